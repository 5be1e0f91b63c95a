"""The metrics of tasks that tell several classes apart, with their intervals and paired tests.

A class against the rest is a binary view of the same pictures, and has its metrics, draws and prior from there: what is
said of the positive class is, to the bit, what `metrics` and `tests` say of its logit. What is called is the most
probable class.

Shapes: N pictures, C classes, R repeats, D draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit, logit

from osteo.evaluation.bootstrap import DRAWS, Bootstrapped, Comparison, Interval, bootstrap_classes, class_rows
from osteo.evaluation.metrics import all_metrics, bootstrap_metrics, check_finite
from osteo.evaluation.ties import join_by_network
from osteo.task import CLASSES, Direction
from osteo.types import Floats, Labels, Statistic

FARTHEST = 1000.0  # a logit, beyond those of all probabilities but 0 and 1

ClassMeasure: TypeAlias = Callable[[Floats, Labels, Floats], Floats]
"""(weights (D, N), labels from 0 to C - 1 (N,), probabilities of the classes (N, C)) -> (D,), see `osteo.parts`."""

# --- functions of weighted pictures: weights (D, N), labels (N,), probabilities (N, C) -> (D,) ------------------------


def confusion(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Weight by class, down, and call, across, (D, C, C); the first of classes that are as probable is called."""
    classes = probabilities.shape[1]
    cells = np.eye(classes**2)[labels * classes + probabilities.argmax(axis=1)]
    return np.asarray((weights @ cells).reshape(-1, classes, classes))


def _sums(weights: Floats, labels: Labels, probabilities: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight of right calls, of pictures and of calls of each class, each (D, C)."""
    cells = confusion(weights, labels, probabilities)
    return np.diagonal(cells, axis1=1, axis2=2), cells.sum(axis=2), cells.sum(axis=1)


def accuracy(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Share of right calls."""
    right, of_class, _ = _sums(weights, labels, probabilities)
    return np.asarray(right.sum(axis=1) / of_class.sum(axis=1))


def precision_macro(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Mean precision of the classes; that of a class that is never called is 0, as usual."""
    right, _, called = _sums(weights, labels, probabilities)
    return np.asarray(np.nan_to_num(right / called).mean(axis=1))


def recall_macro(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Mean recall of the classes."""
    right, of_class, _ = _sums(weights, labels, probabilities)
    return np.asarray((right / of_class).mean(axis=1))


def f1_macro(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Mean F1 of the classes."""
    right, of_class, called = _sums(weights, labels, probabilities)
    return np.asarray((2 * right / (of_class + called)).mean(axis=1))


def balanced_accuracy(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Mean recall of those classes that are there, as in scikit-learn: with all of them it is `recall_macro`."""
    right, of_class, _ = _sums(weights, labels, probabilities)
    return np.asarray(np.nan_to_num(right / of_class).sum(axis=1) / (of_class > 0.0).sum(axis=1))


def quadratic_weighted_kappa(weights: Floats, labels: Labels, probabilities: Floats) -> Floats:
    """Cohen's weighted kappa (1968): agreement beyond chance, where a call k classes off is k * k times as wrong."""
    cells = confusion(weights, labels, probabilities)
    place = np.arange(cells.shape[1])
    wrong = (place[:, None] - place) ** 2
    by_chance = cells.sum(axis=2)[:, :, None] * cells.sum(axis=1)[:, None, :] / cells.sum(axis=(1, 2))[:, None, None]
    return np.asarray(1.0 - (wrong * cells).sum(axis=(1, 2)) / (wrong * by_chance).sum(axis=(1, 2)))


def against_rest(
    weights: Floats, labels: Labels, probabilities: Floats, *, name: str, classes: Sequence[int]
) -> Floats:
    """A binary metric of a class against the rest, the mean over some classes."""
    measure = all_metrics()[name].measure
    values = [
        measure(weights, (labels == label).astype(int), probabilities[:, label], probabilities.argmax(axis=1) == label)
        for label in classes
    ]
    return np.asarray(sum(values) / len(values))


# --- the table -------------------------------------------------------------------------------------------------------


class ClassMetric(NamedTuple):
    """What is said of predictions of several classes, as `osteo.parts.Metric` of two."""

    name: str
    """in metrics.json, after test/ or val/, and in every other file"""
    title: str
    """in a table that a person reads"""
    measure: ClassMeasure
    needs: tuple[int, ...] = ()
    """labels without which it is undefined; of a binary view those that the binary metric needs"""
    view: str = ""
    """the binary metric of a class against the rest that it is; of the calls of all classes none"""
    classes: tuple[int, ...] = ()
    """against the rest of which it is taken; of several it is the mean"""
    direction: Direction = "max"
    """whether lower or higher is better"""

    @property
    def is_ranking(self) -> bool:
        """Whether it compares pictures with each other, so that it is taken among those that one network tested."""
        return bool(self.view) and all_metrics()[self.view].is_ranking


def class_metrics(class_names: Sequence[str] = tuple(CLASSES)) -> dict[str, ClassMetric]:
    """The metrics by name, in the order of every table.

    Args:
        class_names: in the order of their labels; the last one is the positive class.
    """
    every = tuple(range(len(class_names)))
    positive = every[-1:]

    def view(name: str, title: str, of: str, classes: tuple[int, ...]) -> ClassMetric:
        measure = partial(against_rest, name=of, classes=classes)
        return ClassMetric(name, title, measure, all_metrics()[of].needs, of, classes)

    table = (
        ClassMetric("accuracy", "accuracy", accuracy),
        ClassMetric("precision_macro", "precision", precision_macro, every),
        ClassMetric("recall_macro", "recall", recall_macro, every),
        ClassMetric("f1_macro", "F1", f1_macro, every),
        view("auroc", "AUROC", "auroc", positive),
        view("auroc_macro", "AUROC, mean of the classes", "auroc", every),
        *(view(f"auroc_{name}", f"AUROC, {name}", "auroc", (label,)) for label, name in enumerate(class_names)),
        ClassMetric("balanced_accuracy", "balanced accuracy", balanced_accuracy),
        ClassMetric("quadratic_weighted_kappa", "quadratic weighted kappa", quadratic_weighted_kappa),
        view("sensitivity", "sensitivity", "sensitivity", positive),
        view("specificity", "specificity", "specificity", positive),
    )
    return {metric.name: metric for metric in table}


def join_class_ties(probabilities: Floats, networks: Labels | None = None) -> Floats:
    """Probabilities (R, N, C) of which those of a class that arithmetic cannot tell apart are equal, see `ties`."""
    logits = np.clip(logit(probabilities), -FARTHEST, FARTHEST)
    joined = np.stack([join_by_network(of_class, networks) for of_class in np.moveaxis(logits, -1, 0)], axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(joined == logits, probabilities, expit(joined))


def evaluate_classes(
    probabilities: Iterable[Sequence[float]],
    labels: Iterable[int],
    *,
    class_names: Sequence[str] = tuple(CLASSES),
) -> dict[str, Any]:
    """The metrics of a record, to six digits; one that is undefined, as where a class is absent, is None.

    Args:
        probabilities: of the classes, (N, C); those that arithmetic cannot tell apart are ties in every ranking.
        labels: from 0 to C - 1, (N,).
        class_names: in the order of their labels.

    Returns:
        By name, and last "confusion_matrix": truth down, call across, C lists of C counts.

    Raises:
        UserError: a probability is not finite.
    """
    truth = np.asarray(list(labels), int)
    scores = np.asarray(list(probabilities), float).reshape(len(truth), len(class_names))
    names = (f"picture {number}" for number in range(len(truth)))
    check_finite(scores.sum(axis=1), names, "evaluation", "sets of probabilities")
    ranked, once, present = join_class_ties(scores[None])[0], np.ones((1, len(truth))), set(truth.tolist())
    found: dict[str, Any] = {}
    for name, metric in class_metrics(class_names).items():
        value = float("nan")
        if present and (metric.view or set(metric.needs) <= present):
            with np.errstate(divide="ignore", invalid="ignore"):
                value = float(metric.measure(once, truth, ranked if metric.is_ranking else scores)[0])
        found[name] = round(value, 6) if np.isfinite(value) else None
    return found | {"confusion_matrix": confusion(once, truth, scores)[0].astype(int).tolist()}


# --- intervals and tests ---------------------------------------------------------------------------------------------


def weighted_calls(labels: Labels, probabilities: Floats, metrics: Sequence[ClassMetric]) -> Statistic:
    """Metrics of calls as a statistic of weighted rows (see `class_rows`), one column each, the mean over repeats.

    Args:
        labels: from 0 to C - 1, (N,).
        probabilities: (R, N, C); NaN where a repeat did not test a picture.
        metrics: those without a binary view.
    """
    rows = class_rows(labels, probabilities.shape[-1])
    of_prior = np.eye(probabilities.shape[-1])[rows.call]
    repeats = []
    for of_repeat in probabilities:
        every = np.concatenate([of_repeat, of_prior])
        known = np.isfinite(every).all(axis=1)
        if known[: len(labels)].any():
            repeats.append((known, rows.label[known], every[known]))

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), len(metrics)))
        for known, truth, scores in repeats:
            inside = weights[:, known]
            with np.errstate(divide="ignore", invalid="ignore"):
                for column, metric in enumerate(metrics):
                    values = metric.measure(inside, truth, scores)
                    for label in metric.needs:
                        values = np.where(inside @ (truth == label) == 0.0, np.nan, values)
                    total[:, column] += values
        return total / len(repeats) if repeats else np.full_like(total, np.nan)

    return statistic


def bootstrap_class_metrics(
    labels: Labels,
    probabilities: Floats,
    groups: Sequence[object],
    *,
    networks: Labels | None = None,
    class_names: Sequence[str] = tuple(CLASSES),
    draws: int = DRAWS,
    seed: int = 0,
    side: int | None = None,
) -> dict[str, Bootstrapped]:
    """Metrics by name in every draw, each the mean over repeats.

    Pictures that no repeat tested are no evidence: they count neither as clusters nor for the prior.

    Args:
        labels: from 0 to C - 1, (N,).
        probabilities: of the classes, (R, N, C); NaN where a repeat did not test a picture.
        groups: pictures of one group are weighed together, (N,).
        networks: numbers of the networks that tested the pictures, (R, N); null where one tested all of a repeat.
        class_names: in the order of their labels.
        draws: how many.
        seed: of the draws.
        side: 0 or 1 of a pair; None for a value of its own.
    """
    tested = np.asarray(np.isfinite(probabilities).all(axis=-1).any(axis=0))
    if tested.any() and not tested.all():
        labels, probabilities, groups = labels[tested], probabilities[:, tested], list(compress(groups, tested))
        networks = None if networks is None else networks[:, tested]
    table = class_metrics(class_names)
    of_calls = [metric for metric in table.values() if not metric.view]
    statistic = weighted_calls(labels, probabilities, of_calls)
    drawn = bootstrap_classes(statistic, labels, groups, len(class_names), draws=draws, seed=seed, side=side)
    found = {metric.name: drawn.of(column) for column, metric in enumerate(of_calls)}
    options = {"networks": networks, "draws": draws, "seed": seed, "side": side}
    found |= _bootstrap_views(labels, probabilities, groups, table, **options)
    return {name: found[name] for name in table}


def _bootstrap_views(
    labels: Labels,
    probabilities: Floats,
    groups: Sequence[object],
    table: Mapping[str, ClassMetric],
    **options: Any,
) -> dict[str, Bootstrapped]:
    """The metrics of classes against the rest; arguments as `bootstrap_class_metrics`."""
    ranked = join_class_ties(probabilities, options["networks"])
    known, called = np.isfinite(probabilities).all(axis=-1), probabilities.argmax(axis=-1)

    @cache
    def draw(view: str, label: int, views: int) -> Bootstrapped:
        scores = ranked[..., label] if all_metrics()[view].is_ranking else np.where(known, called == label, np.nan)
        is_of_class = (labels == label).astype(int)
        return bootstrap_metrics(is_of_class, scores, groups, names=[view], views=views, **options)[view]

    return {
        metric.name: _mean([draw(metric.view, label, len(metric.classes)) for label in metric.classes])
        for metric in table.values()
        if metric.view
    }


def _mean(views: Sequence[Bootstrapped]) -> Bootstrapped:
    """The mean over classes against the rest, as uncertain in its tails as that of the fewest clusters."""
    fewest = min(views, key=lambda one: one.freedom)
    return replace(
        fewest,
        value=np.mean([one.value for one in views], axis=0),
        draws=np.mean([one.draws for one in views], axis=0),
        clusters=tuple(min(counts) for counts in zip(*(one.clusters for one in views), strict=True)),
    )


def class_intervals(
    labels: Labels,
    probabilities: Floats,
    groups: Sequence[object],
    *,
    class_names: Sequence[str] = tuple(CLASSES),
    **options: Any,
) -> dict[str, Interval]:
    """Metrics by name with their 95 % intervals; arguments as `bootstrap_class_metrics`."""
    drawn = bootstrap_class_metrics(labels, probabilities, groups, class_names=class_names, **options)
    return {name: drawn[name].interval(0, metric.needs) for name, metric in class_metrics(class_names).items()}


def compare_classes(
    labels: Labels,
    first: Floats,
    second: Floats,
    groups: Sequence[object],
    *,
    networks: tuple[Labels | None, Labels | None] = (None, None),
    class_names: Sequence[str] = tuple(CLASSES),
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The difference of every metric, first less second, on the pictures and repeats that both tested.

    Args:
        labels: from 0 to C - 1, (N,).
        first: probabilities of one model, (R, N, C); NaN where a repeat did not test a picture.
        second: the same of the other model.
        groups: (N,).
        networks: of the first and of the second, see `bootstrap_class_metrics`.
        class_names: in the order of their labels.
        draws: how many.
        seed: of the draws.
    """
    both = np.isfinite(first + second).all(axis=-1, keepdims=True)
    one, other = (
        bootstrap_class_metrics(
            labels, np.where(both, scores, np.nan), groups, networks=networks[side], class_names=class_names,
            draws=draws, seed=seed, side=side,
        )
        for side, scores in enumerate((first, second))
    )  # fmt: skip
    table = class_metrics(class_names)
    return {name: (one[name] - other[name]).compare(0, metric.needs) for name, metric in table.items()}
