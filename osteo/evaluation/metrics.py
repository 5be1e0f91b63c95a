"""The metrics, in one table from which the record, the leaderboard, the report and its tables follow.

Each is a function of weighted pictures: a record weighs every picture once, and the bootstrap as often as it is drawn,
so that a value and its interval cannot disagree. What training follows by batch is in `torch_metrics`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from osteo import parts
from osteo.errors import UserError, unknown
from osteo.evaluation.bootstrap import DRAWS, Bootstrapped, Interval, Rows, bootstrap, rows_of
from osteo.evaluation.ties import join_ties
from osteo.parts import Metric
from osteo.task import TASKS, THRESHOLD
from osteo.types import Floats, Labels, Mask, Statistic

CLAIM = ("source", "doi", "read", "classes", "pictures", "test_pictures", "parameters", "also", "left_open", "averaged")
"""What a claim may say beside metrics: who made it and where, how much of it was read, of how many classes and pictures
it is, how many parameters the network has, what else it says and what it leaves open, and whether the networks of the
source answer together. What it claims of another task has the task's name, with metrics of its own."""

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
    Metric("auroc", "AUROC", auroc, is_ranking=True),
    Metric("average_precision", "average precision", average_precision, is_recorded=False, is_ranking=True),
    Metric("sensitivity", "sensitivity", sensitivity, needs=(1,)),
    Metric("specificity", "specificity", specificity, needs=(0,)),
    Metric("brier", "Brier score", brier, "min", needs=(), is_recorded=False),
)
"""In the order of every table. Precision, recall and F1 are macro averages, as in the paper's Table 2."""
for _metric in BUILT_IN:
    parts.metrics.add(_metric)


def check_claim(claim: Mapping[str, Any]) -> None:
    """Refuses what no source can claim of its system; metrics are shares.

    Raises:
        UserError: a name is neither a metric nor a task nor one of `CLAIM`, or a metric is not from 0 to 1.
    """
    for name, value in claim.items():
        if name in TASKS and isinstance(value, Mapping):
            check_claim(value)
            continue
        if name not in CLAIM and name not in all_metrics():
            raise unknown("claim", name, [*CLAIM, *all_metrics(), *TASKS])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in CLAIM and not (is_number and 0.0 <= value <= 1.0):
            raise UserError(f"claim.{name}={value} must be a number from 0 to 1")


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of every table: osteo's own, then those of plugins."""
    return {metric.name: metric for metric in BUILT_IN} | {name: parts.metrics[name] for name in parts.metrics}


def weighted_metrics(
    labels: Labels,
    probabilities: Floats,
    thresholds: Floats | float = THRESHOLD,
    *,
    names: Iterable[str] | None = None,
    networks: Labels | None = None,
) -> Statistic:
    """Metrics as a statistic of weighted rows, one column per metric, each the mean over repeats.

    A metric is NaN where a class that it needs has no weight. One that ranks pictures is taken among the pictures of
    each network, whose probabilities alone are on one scale, and averaged with the number of their pairs of a case and
    a control as weights.

    Args:
        labels: 0 or 1, (N,).
        probabilities: of the positive class, (R, N); NaN where a repeat did not test a picture.
        thresholds: a picture is called positive where its probability is above, (R, N) or one for all.
        names: of the metrics; null for all of `all_metrics`.
        networks: numbers of the networks that tested the pictures, (R, N); null where one tested all of a repeat.
    """
    table = all_metrics()
    chosen = [table[name] for name in (table if names is None else names)]
    rows, limits = rows_of(labels), np.broadcast_to(np.asarray(thresholds, float), probabilities.shape)
    repeats = []
    for scores, limit, of_networks in zip(
        probabilities[:, rows.picture], limits[:, rows.picture], by_network(rows, probabilities, networks), strict=True
    ):
        if of_networks:
            calls = np.where(rows.is_prior, rows.is_called, scores > limit)
            repeats.append((np.isfinite(scores), of_networks, scores, calls))

    def statistic(weights: Floats) -> Floats:
        total, weights = np.zeros((len(weights), len(chosen))), rows.weigh(weights)
        for known, of_networks, scores, calls in repeats:
            sizes = [pairs(weights, rows.label, part) for part in of_networks]
            for column, metric in enumerate(chosen):
                values = [
                    _of_rows(metric, weights[:, part], rows.label[part], scores[part], calls[part])
                    for part in (of_networks if metric.is_ranking else [known])
                ]
                total[:, column] += mean_over_networks(values, sizes) if metric.is_ranking else values[0]
        return total / len(repeats) if repeats else np.full_like(total, np.nan)

    return statistic


def by_network(rows: Rows, probabilities: Floats, networks: Labels | None) -> list[list[Mask]]:
    """For each repeat the rows of the pictures that one network tested, (M,) for each; as `weighted_metrics` takes."""
    numbers = np.zeros(probabilities.shape, int) if networks is None else networks
    known = np.isfinite(probabilities)
    return [
        [(is_known & (of_repeat == number))[rows.picture] for number in np.unique(of_repeat[is_known])]
        for is_known, of_repeat in zip(known, numbers, strict=True)
    ]


def _of_rows(metric: Metric, weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(metric.measure(weights, labels, probabilities, calls), float)
    for label in metric.needs:
        values = np.where(weights @ (labels == label) == 0.0, np.nan, values)
    return values


def pairs(weights: Floats, labels: Labels, which: Mask) -> Floats:
    """The weight of the pairs of a case and a control among some rows, (D,)."""
    inside = weights[:, which]
    return np.asarray((inside @ (labels[which] == 1)) * (inside @ (labels[which] == 0)))


def mean_over_networks(values: Sequence[Floats], weights: Sequence[Floats]) -> Floats:
    """The weighted mean of values (D, ...) over networks, of those that have a value; weights (D,)."""
    total = sum((np.nan_to_num(value).T * weight).T for value, weight in zip(values, weights, strict=True))
    known = sum((np.isfinite(value).T * weight).T for value, weight in zip(values, weights, strict=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(total / known)


def measure(
    labels: Labels,
    probabilities: Floats,
    thresholds: Floats | float = THRESHOLD,
    *,
    names: Iterable[str] | None = None,
    networks: Labels | None = None,
) -> dict[str, float]:
    """Metrics by name, with every picture once; arguments as `weighted_metrics`."""
    names = list(all_metrics() if names is None else names)
    statistic = weighted_metrics(labels, probabilities, thresholds, names=names, networks=networks)
    values = statistic(np.ones((1, len(labels))))[0]
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def check_finite(logits: npt.ArrayLike, image_ids: Iterable[object], origin: str, what: str = "logits") -> None:
    """Refuses logits that are not finite: nothing can be said of their pictures, nor left out in silence.

    Args:
        logits: (N,).
        image_ids: of the pictures, (N,).
        origin: what has given the logits, for the error.
        what: these are, where they are no logits.

    Raises:
        UserError: one line with their number and the first of them.
    """
    is_finite = np.isfinite(np.asarray(logits, float))
    if not is_finite.all():
        first = next(name for name, is_good in zip(image_ids, is_finite, strict=True) if not is_good)
        raise UserError(
            f"{origin}: {np.sum(~is_finite)} of {len(is_finite)} {what} are not finite (the first is that of {first}),"
            " so no metric can be computed"
        )


def evaluate(logits: Iterable[float], labels: Iterable[int], *, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The metrics of a record, to six digits; one that is undefined, as where a class is absent, is None.

    Args:
        logits: (N,); those that arithmetic cannot tell apart are ties.
        labels: see osteo.task, (N,).
        threshold: a picture is called positive where its probability is above.

    Returns:
        By name, and last "confusion_matrix": truth down, call across, [[tn, fp], [fn, tp]].

    Raises:
        UserError: a logit is not finite.
    """
    scores, truth = list(logits), np.asarray(list(labels), int)
    check_finite(scores, (f"picture {number}" for number in range(len(scores))), "evaluation")
    probabilities = expit(join_ties(scores))
    names = [metric.name for metric in all_metrics().values() if metric.is_recorded]
    values = measure(truth, probabilities[None], threshold, names=names).values()
    rounded = [round(float(value), 6) if np.isfinite(value) else None for value in values]
    once = np.ones((1, len(truth)))
    tp, fn, fp, tn = (int(count[0]) for count in confusion(once, truth, probabilities > threshold))
    return dict(zip(names, rounded, strict=True)) | {"confusion_matrix": [[tn, fp], [fn, tp]]}


def bootstrap_metrics(
    labels: Labels,
    probabilities: Floats,
    groups: Sequence[object],
    *,
    thresholds: Floats | float = THRESHOLD,
    names: Iterable[str] | None = None,
    networks: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    side: int | None = None,
    views: int = 1,
) -> dict[str, Bootstrapped]:
    """Metrics by name in every draw; arguments as `weighted_metrics` and `bootstrap`.

    Pictures that no repeat tested are no evidence: they count neither as clusters nor for the prior.
    """
    table = all_metrics()
    names = list(table if names is None else names)
    tested = np.asarray(np.isfinite(probabilities).any(axis=0))
    if tested.any() and not tested.all():
        groups = [group for group, is_in in zip(groups, tested, strict=True) if is_in]
        thresholds = np.broadcast_to(np.asarray(thresholds, float), probabilities.shape)[:, tested]
        labels, probabilities = labels[tested], probabilities[:, tested]
        networks = None if networks is None else networks[:, tested]
    found: dict[str, Bootstrapped] = {}
    for is_ranking in (True, False):
        if kind := [name for name in names if table[name].is_ranking == is_ranking]:
            statistic = weighted_metrics(labels, probabilities, thresholds, names=kind, networks=networks)
            drawn = bootstrap(
                statistic, labels, groups, is_ranking=is_ranking, draws=draws, seed=seed, side=side, views=views
            )
            found |= {name: drawn.of(column) for column, name in enumerate(kind)}
    return {name: found[name] for name in names}


def metric_intervals(
    labels: Labels, probabilities: Floats, groups: Sequence[object], **options: Any
) -> dict[str, Interval]:
    """Metrics by name with their 95 % intervals; arguments as `bootstrap_metrics`."""
    drawn = bootstrap_metrics(labels, probabilities, groups, **options)
    return {name: of_metric.interval(0, all_metrics()[name].needs) for name, of_metric in drawn.items()}
