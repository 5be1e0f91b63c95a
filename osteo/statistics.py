"""Intervals and tests on predictions: what is known from few pictures, and what is not.

Shapes: N pictures, R repeats of an experiment (a repeat's folds are pooled), D draws. A repeat that did not test a
picture has NaN for it; a metric of several repeats is its mean over them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest, norm, rankdata, t

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights of pictures (D, N) -> values (D, M)."""

DRAWS = 2000
CELLS = 4_000_000  # of a matrix of draws that is held at once
BLOCKS = 500  # clusters are left out one by one, or in so many blocks

METRICS = (
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "brier",
)


class Interval(NamedTuple):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A paired difference, its 95 % interval, and the p-value of no difference."""

    difference: Interval
    p: float


def proportion(successes: int, trials: int) -> Interval:
    """A proportion with Wilson's interval."""
    found = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p-values of one family of tests."""
    from statsmodels.stats.multitest import multipletests  # half a second, which an audit need not wait for

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


# --- the bootstrap ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bootstrapped:
    """Metrics (M,), the same in every draw (D, M), and with each cluster left out (K, M)."""

    value: Floats
    draws: Floats
    left_out: Floats
    clusters: int
    """of the stratum with the fewest"""

    def __sub__(self, other: Self) -> "Bootstrapped":
        return Bootstrapped(
            self.value - other.value, self.draws - other.draws, self.left_out - other.left_out, self.clusters
        )

    def interval(self, column: int) -> Interval:
        """The bias-corrected and accelerated interval (Efron 1987), the acceleration by leaving out clusters.

        Where every draw is alike, as with no error among few pictures, the interval would be a point: there, one bound
        is Wilson's of as many successes as the smallest stratum has clusters.
        """
        value, draws = float(self.value[column]), self.draws[:, column]
        draws = draws[np.isfinite(draws)]
        if not np.isfinite(value) or len(draws) == 0:
            return Interval(float("nan"), float("nan"), float("nan"))
        if np.ptp(draws) == 0.0:
            edge = proportion(self.clusters, self.clusters).low
            return Interval(value, edge if value == 1.0 else value, 1.0 - edge if value == 0.0 else value)
        apart = np.nanmean(self.left_out[:, column]) - self.left_out[:, column]
        spread = np.nansum(apart**2)
        acceleration = np.nansum(apart**3) / (6.0 * spread**1.5) if spread > 0 else 0.0
        below = ((draws < value).mean() + (draws <= value).mean()) / 2
        bias = norm.ppf(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
        shifted = bias + norm.ppf([0.025, 0.975])
        low, high = np.quantile(draws, norm.cdf(bias + shifted / (1.0 - acceleration * shifted)))
        return Interval(value, float(low), float(high))

    def compare(self, column: int, clusters: int) -> Comparison:
        """Tests whether a difference is zero: its size in standard errors of the draws, by Student's t.

        Args:
            column: of the metric.
            clusters: the number of clusters, whose two class means cost two degrees of freedom.
        """
        value, error = float(self.value[column]), float(np.nanstd(self.draws[:, column], ddof=1))
        if value == 0.0 or not np.isfinite(value):
            p = 1.0
        else:
            p = float(2 * t.sf(abs(value) / error, max(clusters - 2, 1))) if error > 0 else 0.0
        return Comparison(self.interval(column), p)


def bootstrap(
    statistic: Statistic,
    labels: npt.NDArray[np.int_],
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrapped:
    """Draws whole clusters with replacement, within each class, so that the share of cases stays what it is.

    The same labels, groups and seed give the same draws, so two results can be subtracted: they are paired.

    Args:
        statistic: of weighted pictures.
        labels: 0 or 1, (N,).
        groups: pictures of one group are drawn together, (N,).
        draws: how many.
        seed: of the draws.
    """
    cluster = _clusters(groups)
    strata = _strata(labels, cluster)
    count = int(cluster.max()) + 1
    generators = [np.random.default_rng([seed, place]) for place in range(len(strata))]
    rows = max(1, CELLS // max(len(labels), 1))

    def drawn() -> Iterator[Floats]:
        for start in range(0, draws, rows):
            weights = np.zeros((min(rows, draws - start), count))
            for members, rng in zip(strata, generators, strict=True):
                chosen = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), len(weights))
                weights[:, members] = chosen
            yield weights[:, cluster]

    def without() -> Iterator[Floats]:
        block = np.arange(count) * min(count, BLOCKS) // count
        for start in range(0, min(count, BLOCKS), rows):
            wanted = np.arange(start, min(start + rows, count, BLOCKS))
            yield (block[cluster][None, :] != wanted[:, None]).astype(float)

    return Bootstrapped(
        statistic(np.ones((1, len(labels))))[0],
        np.concatenate([statistic(weights) for weights in drawn()]),
        np.concatenate([statistic(weights) for weights in without()]),
        min(len(members) for members in strata),
    )


def _clusters(groups: Sequence[object]) -> npt.NDArray[np.int_]:
    """The groups as numbers from 0, (N,)."""
    return np.asarray(np.unique(np.asarray(groups, str), return_inverse=True)[1])


def _strata(labels: npt.NDArray[np.int_], cluster: npt.NDArray[np.int_]) -> list[npt.NDArray[np.int_]]:
    """The clusters that hold normal pictures only, osteoporosis only, and both."""
    ones = np.bincount(cluster, weights=labels)
    kind = (ones > 0).astype(int) + (ones == np.bincount(cluster))
    return [found for code in range(3) if len(found := np.flatnonzero(kind == code))]


def metrics(labels: npt.NDArray[np.int_], probabilities: Floats, thresholds: Floats | float = 0.5) -> Statistic:
    """The columns of `METRICS` as a statistic of weighted pictures, the mean over repeats.

    Args:
        labels: 0 or 1, (N,).
        probabilities: of osteoporosis, (R, N); NaN where a repeat did not test a picture.
        thresholds: a picture is called osteoporosis where its probability is above, (R, N) or one for all.
    """
    limit = np.broadcast_to(np.asarray(thresholds, float), probabilities.shape)
    repeats = [
        (known, labels[known], scores[known], (scores > bound)[known])
        for known, scores, bound in zip(np.isfinite(probabilities), probabilities, limit, strict=True)
        if known.any()
    ]

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), len(METRICS)))
        for known, truth, scores, called in repeats:
            total += _metrics(weights[:, known], truth, scores, called)
        return total / max(len(repeats), 1)

    return statistic


def _metrics(weights: Floats, truth: npt.NDArray[np.int_], scores: Floats, called: npt.NDArray[np.bool_]) -> Floats:
    ones = truth == 1
    tp, fn = weights @ (ones & called), weights @ (ones & ~called)
    fp, tn = weights @ (~ones & called), weights @ (~ones & ~called)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        precision = np.nan_to_num(tp / (tp + fp)), np.nan_to_num(tn / (tn + fn))  # nothing called: 0, as usual
        f1 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
        total = weights.sum(axis=1)
        auroc, average_precision = _ranking(weights, truth, scores)
        columns = [
            (tp + tn) / total,
            sum(precision) / 2,
            (sensitivity + specificity) / 2,
            sum(f1) / 2,
            auroc,
            average_precision,
            sensitivity,
            specificity,
            weights @ (scores - truth) ** 2 / total,
        ]
    return np.column_stack(columns)


def _ranking(weights: Floats, truth: npt.NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats]:
    """AUROC by counting pairs, ties as a half, and average precision, by sorting once for all draws."""
    ones, zeros = cumulated(weights, truth, scores)
    new_ones, new_zeros = np.diff(ones, axis=1, prepend=0.0), np.diff(zeros, axis=1, prepend=0.0)
    auroc = 1.0 - (new_ones * (zeros - new_zeros / 2)).sum(axis=1) / (ones[:, -1] * zeros[:, -1])
    precision = ones / np.maximum(ones + zeros, 1e-300)  # nothing drawn so far: 0
    return auroc, (new_ones * precision).sum(axis=1) / ones[:, -1]


def cumulated(weights: Floats, truth: npt.NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats]:
    """Weight of cases and of controls at or above each different score, the highest score first, both (D, K)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0.0, True])  # of each set of equal scores
    weights, truth = weights[:, order], truth[order]
    return np.cumsum(weights * truth, axis=1)[:, ends], np.cumsum(weights * (1 - truth), axis=1)[:, ends]


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: Sequence[object], *, seed: int = 0) -> Interval:
    """The area under the ROC curve with the interval of the cluster bootstrap.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1, (N,).
        groups: pictures that are drawn together, (N,).
        seed: of the draws.
    """
    truth, score = np.asarray(labels, int), np.asarray(scores, float)

    def statistic(weights: Floats) -> Floats:
        return _ranking(weights, truth, score)[0][:, None]

    return bootstrap(statistic, truth, groups, seed=seed).interval(0)


# --- tests -----------------------------------------------------------------------------------------------------------


def delong(labels: npt.NDArray[np.int_], scores: Floats, groups: Sequence[object]) -> tuple[Floats, Floats]:
    """Areas under correlated ROC curves and their covariance.

    DeLong, DeLong and Clarke-Pearson (1988), computed by ranks (Sun and Xu 2014). Where a group has several pictures
    its components are summed first, as Obuchowski (1997) does; where none has, the two are the same.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1, (S, N).
        groups: pictures of one patient or exposure, (N,).

    Returns:
        Areas (S,) and covariance (S, S).
    """
    ones = labels == 1
    cases, controls = scores[:, ones], scores[:, ~ones]
    m, n = cases.shape[1], controls.shape[1]
    ranks = np.stack([rankdata(row) for row in scores])
    of_cases = (ranks[:, ones] - np.stack([rankdata(row) for row in cases])) / n  # (S, m)
    of_controls = 1.0 - (ranks[:, ~ones] - np.stack([rankdata(row) for row in controls])) / m  # (S, n)
    areas = of_cases.mean(axis=1)
    cluster = _clusters(groups)
    count = int(cluster.max()) + 1

    def summed(components: Floats, which: npt.NDArray[np.int_]) -> Floats:
        apart = components - areas[:, None]
        return np.stack([np.bincount(which, weights=row, minlength=count) for row in apart])

    with_cases, with_controls = len(np.unique(cluster[ones])), len(np.unique(cluster[~ones]))
    by_case, by_control = summed(of_cases, cluster[ones]), summed(of_controls, cluster[~ones])
    both = by_case @ by_control.T * count / max(count - 1, 1) / (m * n)
    covariance = by_case @ by_case.T * with_cases / max(with_cases - 1, 1) / m**2
    covariance += by_control @ by_control.T * with_controls / max(with_controls - 1, 1) / n**2
    return areas, np.asarray(covariance + both + both.T)


def delong_interval(labels: npt.NDArray[np.int_], probabilities: Floats, groups: Sequence[object]) -> Interval | None:
    """The mean AUROC of repeats (R, N) with DeLong's interval; None where repeats tested different pictures."""
    contrast = _contrast(labels, probabilities, groups, np.full(len(probabilities), 1 / len(probabilities)))
    if contrast is None:
        return None
    value, error = contrast
    reach = float(norm.ppf(0.975)) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def delong_test(
    labels: npt.NDArray[np.int_], first: Floats, second: Floats, groups: Sequence[object]
) -> Comparison | None:
    """The difference between the mean AUROCs of two models' repeats, each (R, N), by DeLong's covariance."""
    sides = np.r_[np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]
    contrast = _contrast(labels, np.concatenate([first, second]), groups, sides)
    if contrast is None:
        return None
    value, error = contrast
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else float(value == 0.0)
    reach = float(norm.ppf(0.975)) * error
    return Comparison(Interval(value, value - reach, value + reach), p)


def _contrast(
    labels: npt.NDArray[np.int_], scores: Floats, groups: Sequence[object], sides: Floats
) -> tuple[float, float] | None:
    known = np.isfinite(scores)
    if not (known == known[0]).all() or len(np.unique(labels[known[0]])) < 2:
        return None
    areas, covariance = delong(labels[known[0]], scores[:, known[0]], np.asarray(groups, str)[known[0]].tolist())
    return float(sides @ areas), max(float(sides @ covariance @ sides), 0.0) ** 0.5


def mcnemar(first_right: Floats, second_right: Floats, groups: Sequence[object]) -> tuple[int, int, float, float]:
    """McNemar's exact test of two models' right and wrong calls.

    A group votes for the model that was right more often over its pictures and repeats; with one repeat and single
    pictures that is McNemar's test itself, and with copies of a picture it does not count them as new evidence.

    Args:
        first_right: 1 right, 0 wrong, NaN not tested, (R, N).
        second_right: the same of the other model.
        groups: (N,).

    Returns:
        Votes for the first and for the second, the exact two-sided p, and its mid-p, which is less conservative
        (Fagerland, Lydersen and Laake 2013).
    """
    lead = np.nan_to_num(first_right - second_right).sum(axis=0)
    cluster = _clusters(groups)
    votes = np.bincount(cluster, weights=lead)  # whole numbers
    first, second = int((votes > 0).sum()), int((votes < 0).sum())
    if first + second == 0:
        return 0, 0, 1.0, 1.0
    fewer = min(first, second)
    exact = float(binomtest(first, first + second).pvalue)
    middle = 2 * binom.cdf(fewer, first + second, 0.5) - binom.pmf(fewer, first + second, 0.5)
    return first, second, exact, float(min(1.0, middle))


def paired_bootstrap(
    labels: npt.NDArray[np.int_],
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The difference of every metric between two models, on the pictures and repeats that both tested.

    Args:
        labels: 0 or 1, (N,).
        first: probabilities and thresholds, each (R, N).
        second: the same of the other model.
        groups: (N,).
        draws: how many.
        seed: of the draws.
    """
    both = np.isfinite(first[0]) & np.isfinite(second[0])
    made = [
        bootstrap(
            metrics(labels, np.where(both, scores, np.nan), bounds), labels, groups, draws=draws, seed=seed
        )
        for scores, bounds in (first, second)
    ]  # fmt: skip
    difference, clusters = made[0] - made[1], len(set(np.asarray(groups, str)))
    return {name: difference.compare(column, clusters) for column, name in enumerate(METRICS)}
