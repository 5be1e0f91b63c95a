"""How far predicted T-scores are from measured ones, with intervals and paired tests, and what their cut at -2.5 calls.

The cut is a binary view of the same pictures, and has its metrics from `metrics`. All else is weighed by the same
bootstrap of clusters, without classes and without a prior: no two T-scores agree by chance.

Shapes: N pictures, R repeats, D draws.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from osteo.evaluation.bootstrap import CELLS, DRAWS, Bootstrapped, Comparison, Interval, bootstrap, number_clusters
from osteo.evaluation.metrics import all_metrics, bootstrap_metrics, check_finite, evaluate
from osteo.evaluation.ties import join_by_network
from osteo.task import T_SCORE_CUTS, Direction, cut_logits
from osteo.types import Floats, Labels, Mask, Statistic

STEP = 1e-3  # of a cluster's weight, to see what it adds to a metric
REACH = 1.96  # standard deviations, between which 95 in 100 normal differences lie
CUT = T_SCORE_CUTS[-1]

AgreementMeasure: TypeAlias = Callable[[Floats, Floats, Floats], Floats]
"""(weights (D, N), true T-scores (N,), predicted ones (N,)) -> (D,), as `osteo.parts.Measure`."""

# --- functions of weighted pictures: weights (D, N), true (N,), predicted (N,) -> (D,) --------------------------------


def mean_absolute_error(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Mean distance between predicted and true."""
    return np.asarray(weights @ np.abs(predicted - true) / weights.sum(axis=1))


def bias(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Mean of predicted less true."""
    return np.asarray(weights @ (predicted - true) / weights.sum(axis=1))


def _spread(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Standard deviation of predicted less true, of which draws have no other mean than samples; N - 1 for ones."""
    total = weights.sum(axis=1)
    variance = _covariance(weights, predicted - true, predicted - true)
    return np.asarray((np.maximum(variance, 0.0) / (1.0 - (weights**2).sum(axis=1) / total**2)) ** 0.5)


def _covariance(weights: Floats, one: Floats, other: Floats) -> Floats:
    one, other = one - np.median(one), other - np.median(other)  # so that what is constant varies by exactly nothing
    total = weights.sum(axis=1)
    return np.asarray(weights @ (one * other) / total - (weights @ one / total) * (weights @ other / total))


def agreement_low(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Lower limit of agreement (Bland and Altman 1986): bias less 1.96 standard deviations of the differences."""
    return bias(weights, true, predicted) - REACH * _spread(weights, true, predicted)


def agreement_high(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Upper limit of agreement: bias and 1.96 standard deviations of the differences."""
    return bias(weights, true, predicted) + REACH * _spread(weights, true, predicted)


def pearson_r(weights: Floats, true: Floats, predicted: Floats) -> Floats:
    """Pearson's correlation of predicted and true."""
    product = _covariance(weights, true, true) * _covariance(weights, predicted, predicted)
    return np.clip(_covariance(weights, true, predicted) / product**0.5, -1.0, 1.0)


# --- the table -------------------------------------------------------------------------------------------------------


class AgreementMetric(NamedTuple):
    """What is said of predicted T-scores, as `osteo.parts.Metric` of classes; none of them ranks."""

    name: str
    """in metrics.json, after test/ or val/, and in every other file"""
    title: str
    """in a table that a person reads"""
    measure: AgreementMeasure
    direction: Direction | None = None
    """whether lower or higher is better; none of what is best at zero or has no best"""


AGREEMENT = (
    AgreementMetric("mean_absolute_error", "mean absolute error", mean_absolute_error, "min"),
    AgreementMetric("bias", "bias", bias),
    AgreementMetric("agreement_low", "lower limit of agreement", agreement_low),
    AgreementMetric("agreement_high", "upper limit of agreement", agreement_high),
    AgreementMetric("pearson_r", "Pearson's r", pearson_r, "max"),
)
"""In the order of every table; the binary metrics of the cut follow."""


def cut_labels(t_scores: npt.ArrayLike) -> Labels:
    """1 where a T-score is at or below the WHO's cut of osteoporosis, 0 elsewhere, (N,)."""
    return (np.asarray(t_scores, float) <= CUT).astype(int)


def evaluate_t_scores(true: Iterable[float], predicted: Iterable[float]) -> dict[str, Any]:
    """The metrics of a record, to six digits; one that is undefined, as with one picture alone, is None.

    Args:
        true: measured T-scores, (N,).
        predicted: those of a model, (N,).

    Returns:
        By name: those of `AGREEMENT`, then what `metrics.evaluate` says of the cut at -2.5.

    Raises:
        UserError: a T-score is not finite.
    """
    known, answers = np.asarray(list(true), float), np.asarray(list(predicted), float)
    for values, what in ((known, "true T-scores"), (answers, "predicted T-scores")):
        check_finite(values, (f"picture {number}" for number in range(len(values))), "evaluation", what)
    found: dict[str, Any] = {}
    for metric in AGREEMENT:
        value = float(_measure(metric, np.ones((1, len(known))), known, answers)[0])
        found[metric.name] = round(value, 6) if np.isfinite(value) else None
    return found | evaluate(cut_logits(answers), cut_labels(known))


def _measure(metric: AgreementMetric, weights: Floats, true: Floats, predicted: Floats) -> Floats:
    if not len(true):
        return np.full(len(weights), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return metric.measure(weights, true, predicted)


# --- intervals and tests ---------------------------------------------------------------------------------------------


def weighted_agreement(true: Floats, predicted: Floats) -> Statistic:
    """The metrics of `AGREEMENT` as a statistic of weighted pictures, one column each, the mean over repeats.

    Args:
        true: (N,).
        predicted: (R, N); NaN where a repeat did not test a picture.
    """
    repeats = [(known, values[known]) for values in predicted if (known := np.isfinite(values)).any()]

    def statistic(weights: Floats) -> Floats:
        total, weights = np.zeros((len(weights), len(AGREEMENT))), weights[:, : len(true)]  # without a prior
        weights = weights * (len(true) / weights.sum(axis=1, keepdims=True))
        for known, values in repeats:
            for column, metric in enumerate(AGREEMENT):
                total[:, column] += _measure(metric, weights[:, known], true[known], values)
        return total / len(repeats) if repeats else np.full_like(total, np.nan)

    return statistic


def _bootstrap_agreement(
    statistic: Statistic, pictures: int, groups: Sequence[object], *, draws: int, seed: int
) -> dict[str, Bootstrapped]:
    """The metrics of `AGREEMENT`, or their differences, by name in every draw; of n clusters.

    Draws of a mean vary by (n - 1) / (n + 1) of what samples do, so quantiles lie further out. How sure their variance
    itself is depends on the kurtosis k of what a cluster adds to the metric: it has 2 n / (k - 1) degrees of freedom
    (Satterthwaite 1946), which are n - 1 for a mean of normal values and far fewer for a standard deviation.
    """
    drawn = bootstrap(statistic, np.zeros(pictures, int), groups, draws=draws, seed=seed)
    cluster = number_clusters(groups)
    numbers = np.arange(cluster.max() + 1)
    parts = np.array_split(numbers, len(numbers) * pictures // CELLS + 1)
    added = np.concatenate([statistic(1.0 + STEP * (part[:, None] == cluster)) for part in parts])
    added -= added.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = len(numbers) * (added**4).sum(axis=0) / (added**2).sum(axis=0) ** 2
        freedom = np.fmin(2.0 * (drawn.freedom + 1.0) / (kurtosis - 1.0), drawn.freedom).clip(1.0)
    return {
        metric.name: replace(drawn.of(column), freedom=freedom[column], stretch=(1.0 + 2.0 / freedom[column]) ** 0.5)
        for column, metric in enumerate(AGREEMENT)
    }


def _bootstrap_cut(
    true: Floats, predicted: Floats, groups: Sequence[object], networks: Labels | None, **options: Any
) -> dict[str, Bootstrapped]:
    """The binary metrics of the cut by name in every draw; options as `metrics.bootstrap_metrics`."""
    probabilities = expit(join_by_network(cut_logits(predicted), networks))
    return bootstrap_metrics(cut_labels(true), probabilities, groups, networks=networks, **options)


def _needs(name: str) -> tuple[int, ...]:
    """Classes of the cut without which a metric is undefined."""
    return all_metrics()[name].needs if name in all_metrics() else ()


def t_score_intervals(
    true: Floats,
    predicted: Floats,
    groups: Sequence[object],
    *,
    networks: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Metrics by name with their 95 % intervals, each the mean over repeats: those of `AGREEMENT`, then of the cut.

    Pictures that no repeat tested are no evidence.

    Args:
        true: measured T-scores, (N,).
        predicted: those of a model, (R, N); NaN where a repeat did not test a picture.
        groups: pictures of one group are weighed together, (N,).
        networks: numbers of the networks that tested the pictures, (R, N); null where one tested all of a repeat.
        draws: how many.
        seed: of the draws.
    """
    tested = _tested(predicted)
    statistic = weighted_agreement(true[tested], predicted[:, tested])
    drawn = _bootstrap_agreement(statistic, tested.sum(), list(compress(groups, tested)), draws=draws, seed=seed)
    drawn |= _bootstrap_cut(true, predicted, groups, networks, draws=draws, seed=seed)
    return {name: one.interval(0, _needs(name)) for name, one in drawn.items()}


def _tested(predicted: Floats) -> Mask:
    """The pictures that some repeat tested; all of them where none was, (N,)."""
    tested = np.asarray(np.isfinite(predicted).any(axis=0))
    return tested if tested.any() else ~tested


def compare_t_scores(
    true: Floats,
    first: Floats,
    second: Floats,
    groups: Sequence[object],
    *,
    networks: tuple[Labels | None, Labels | None] = (None, None),
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The difference of every metric, first less second, on the pictures and repeats that both tested.

    Args:
        true: measured T-scores, (N,).
        first: those of one model, (R, N); NaN where a repeat did not test a picture.
        second: those of the other model.
        groups: (N,).
        networks: of the first and of the second, see `t_score_intervals`.
        draws: how many.
        seed: of the draws.
    """
    both = np.isfinite(first) & np.isfinite(second)
    sides = [np.where(both, predicted, np.nan) for predicted in (first, second)]
    tested = _tested(sides[0])
    one, other = (weighted_agreement(true[tested], predicted[:, tested]) for predicted in sides)
    drawn = _bootstrap_agreement(
        lambda weights: one(weights) - other(weights), tested.sum(), list(compress(groups, tested)),
        draws=draws, seed=seed,
    )  # fmt: skip
    of_first, of_second = (
        _bootstrap_cut(true, predicted, groups, networks[side], draws=draws, seed=seed, side=side)
        for side, predicted in enumerate(sides)
    )
    drawn |= {name: of_first[name] - of_second[name] for name in of_first}
    return {name: difference.compare(0, _needs(name)) for name, difference in drawn.items()}
