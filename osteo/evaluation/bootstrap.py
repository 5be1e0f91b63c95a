"""Intervals and tests on predictions: what is known from few pictures, and what is not.

Shapes: N pictures, R repeats of an experiment (a repeat's folds are pooled), D draws. A repeat that did not test a
picture has NaN for it; a metric of several repeats is its mean over them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm, t

from osteo.types import Floats, Statistic

DRAWS = 2000
CELLS = 4_000_000  # of a matrix of draws that is held at once
BLOCKS = 500  # clusters are left out one by one, or in so many blocks


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
