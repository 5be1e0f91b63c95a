"""The metrics, in one table from which the record, the leaderboard, the report and its tables follow.

Each is a function of weighted pictures: a record weighs every picture once, and the bootstrap as often as it is drawn,
so that a value and its interval cannot disagree. What training follows by batch is in `torch_metrics`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from osteo import parts
from osteo.evaluation.bootstrap import DRAWS, Interval, bootstrap
from osteo.evaluation.ties import join_ties
from osteo.parts import Metric
from osteo.task import THRESHOLD
from osteo.types import Floats, Labels, Mask, Statistic

# --- functions of weighted pictures: weights (D, N), labels (N,), probabilities (N,), calls (N,) -> (D,) --------------


def confusion(weights: Floats, labels: Labels, calls: Mask) -> tuple[Floats, Floats, Floats, Floats]:
    """Weight of true positives, false negatives, false positives and true negatives, each (D,)."""
    positive = labels == 1
    cells = np.column_stack([positive & calls, positive & ~calls, ~positive & calls, ~positive & ~calls])
    tp, fn, fp, tn = (weights @ cells).T
    return tp, fn, fp, tn


def accuracy(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Share of right calls."""
    tp, _, _, tn = confusion(weights, labels, calls)
    return np.asarray((tp + tn) / weights.sum(axis=1))


def precision_macro(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Mean precision of both classes; that of a class that is never called is 0, as usual."""
    tp, fn, fp, tn = confusion(weights, labels, calls)
    return (np.nan_to_num(tp / (tp + fp)) + np.nan_to_num(tn / (tn + fn))) / 2


def recall_macro(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Mean of sensitivity and specificity."""
    tp, fn, fp, tn = confusion(weights, labels, calls)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


def f1_macro(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Mean F1 of both classes."""
    tp, fn, fp, tn = confusion(weights, labels, calls)
    return (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2


def sensitivity(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Recall of the positive class."""
    tp, fn, _, _ = confusion(weights, labels, calls)
    return tp / (tp + fn)


def specificity(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Recall of the negative class."""
    _, _, fp, tn = confusion(weights, labels, calls)
    return tn / (tn + fp)


def cumulative_weights(weights: Floats, labels: Labels, scores: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at or above each distinct score, the highest score first, both (D, K)."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.r_[np.diff(scores[order]) != 0.0, True])
    positives, negatives = (
        _accumulate(weights, order[is_of_class], np.cumsum(is_of_class)[last_of_ties])
        for is_of_class in (labels[order] == 1, labels[order] == 0)
    )
    return positives, negatives


def _accumulate(weights: Floats, order: Labels, counts: Labels) -> Floats:
    """The sum of the first pictures of an order, for each of several counts (K,) of them, (D, K)."""
    sums = np.zeros((len(weights), len(order) + 1))
    np.cumsum(weights[:, order], axis=1, out=sums[:, 1:])
    return np.asarray(sums[:, counts])


def auroc(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Area under the ROC curve: the share of pairs in the right order, ties as a half."""
    positives, negatives = cumulative_weights(weights, labels, probabilities)
    new_positives, new_negatives = (np.diff(total, axis=1, prepend=0.0) for total in (positives, negatives))
    inverted = (new_positives * (negatives - new_negatives / 2)).sum(axis=1)
    return np.asarray(1.0 - inverted / (positives[:, -1] * negatives[:, -1]))


def average_precision(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Area under the precision-recall curve, as steps."""
    positives, negatives = cumulative_weights(weights, labels, probabilities)
    precision = positives / np.maximum(positives + negatives, 1e-300)  # nothing drawn so far: 0
    return np.asarray((np.diff(positives, axis=1, prepend=0.0) * precision).sum(axis=1) / positives[:, -1])


def brier(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    """Mean squared difference between probability and label."""
    return np.asarray(weights @ (probabilities - labels) ** 2 / weights.sum(axis=1))


# --- the table -------------------------------------------------------------------------------------------------------

BUILT_IN = (
    Metric("accuracy", "accuracy", accuracy, needs=()),
    Metric("precision_macro", "precision", precision_macro),
    Metric("recall_macro", "recall", recall_macro),
    Metric("f1_macro", "F1", f1_macro),
    Metric("auroc", "AUROC", auroc),
    Metric("average_precision", "average precision", average_precision, is_recorded=False),
    Metric("sensitivity", "sensitivity", sensitivity, needs=(1,)),
    Metric("specificity", "specificity", specificity, needs=(0,)),
    Metric("brier", "Brier score", brier, "min", needs=(), is_recorded=False),
)
"""In the order of every table. Precision, recall and F1 are macro averages, as in the paper's Table 2."""
for _metric in BUILT_IN:
    parts.metrics.add(_metric)


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of every table: osteo's own, then those of plugins."""
    return {metric.name: metric for metric in BUILT_IN} | {name: parts.metrics[name] for name in parts.metrics}


def weighted_metrics(
    labels: Labels,
    probabilities: Floats,
    thresholds: Floats | float = THRESHOLD,
    *,
    names: Iterable[str] | None = None,
) -> Statistic:
    """Metrics as a statistic of weighted pictures, one column per metric, each the mean over repeats.

    A metric is NaN where a class that it needs has no weight.

    Args:
        labels: 0 or 1, (N,).
        probabilities: of the positive class, (R, N); NaN where a repeat did not test a picture.
        thresholds: a picture is called positive where its probability is above, (R, N) or one for all.
        names: of the metrics; null for all of `all_metrics`.
    """
    table = all_metrics()
    chosen = [table[name] for name in (table if names is None else names)]
    limits = np.broadcast_to(np.asarray(thresholds, float), probabilities.shape)
    repeats = [
        (known, labels[known], scores[known], (scores > limit)[known])
        for known, scores, limit in zip(np.isfinite(probabilities), probabilities, limits, strict=True)
        if known.any()
    ]

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), len(chosen)))
        for known, of_repeat, scores, calls in repeats:
            total += _columns(chosen, weights[:, known], of_repeat, scores, calls)
        return total / len(repeats) if repeats else np.full_like(total, np.nan)

    return statistic


def _columns(metrics: Sequence[Metric], weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    is_absent = {label: weights @ (labels == label) == 0.0 for label in (0, 1)}
    columns = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for metric in metrics:
            values = np.asarray(metric.measure(weights, labels, probabilities, calls), float)
            for label in metric.needs:
                values = np.where(is_absent[label], np.nan, values)
            columns.append(values)
    return np.column_stack(columns)


def evaluate(logits: Iterable[float], labels: Iterable[int], *, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The metrics of a record, to six digits; one that is undefined, as where a class is absent, is None.

    Args:
        logits: (N,); those that arithmetic cannot tell apart are ties.
        labels: see osteo.task, (N,).
        threshold: a picture is called positive where its probability is above.

    Returns:
        By name, and last "confusion_matrix": truth down, call across, [[tn, fp], [fn, tp]].
    """
    probabilities, truth = expit(join_ties(list(logits))), np.asarray(list(labels), int)
    names = [metric.name for metric in all_metrics().values() if metric.is_recorded]
    once = np.ones((1, len(truth)))
    values = weighted_metrics(truth, probabilities[None], threshold, names=names)(once)[0]
    rounded = [round(float(value), 6) if np.isfinite(value) else None for value in values]
    tp, fn, fp, tn = (int(count[0]) for count in confusion(once, truth, probabilities > threshold))
    return dict(zip(names, rounded, strict=True)) | {"confusion_matrix": [[tn, fp], [fn, tp]]}


def metric_intervals(
    labels: Labels,
    probabilities: Floats,
    groups: Sequence[object],
    *,
    thresholds: Floats | float = THRESHOLD,
    names: Iterable[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Metrics by name with the intervals of the cluster bootstrap; arguments as `weighted_metrics` and `bootstrap`."""
    names = list(all_metrics() if names is None else names)
    statistic = weighted_metrics(labels, probabilities, thresholds, names=names)
    drawn = bootstrap(statistic, labels, groups, draws=draws, seed=seed)
    return {name: drawn.interval(column) for column, name in enumerate(names)}


def auroc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, groups: Sequence[object], *, seed: int = 0
) -> Interval:
    """The area under the ROC curve of any scores with the interval of the cluster bootstrap.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1, (N,).
        groups: pictures that are drawn together, (N,).
        seed: of the draws.
    """
    only = np.asarray(scores, float)[None]
    return metric_intervals(np.asarray(labels, int), only, groups, names=["auroc"], seed=seed)["auroc"]
