"""Intervals by drawing clusters of pictures again and again: what is known from few pictures, and what is not.

Shapes: N pictures, R repeats of an experiment (a repeat's folds are pooled), D draws. A repeat that did not test a
picture has NaN for it; a metric of several repeats is its mean over them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from scipy.stats import binomtest, norm, t

from osteo.types import Floats, Labels, Statistic

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
    bounds = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


@dataclass(frozen=True)
class Bootstrapped:
    """Metrics (M,), the same in every draw (D, M), and with each cluster left out (K, M)."""

    value: Floats
    draws: Floats
    left_out: Floats
    smallest_stratum: int
    """number of clusters in the stratum with the fewest"""

    def __sub__(self, other: Self) -> "Bootstrapped":
        return Bootstrapped(
            self.value - other.value, self.draws - other.draws, self.left_out - other.left_out, self.smallest_stratum
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
            edge = proportion(self.smallest_stratum, self.smallest_stratum).low
            return Interval(value, edge if value == 1.0 else value, 1.0 - edge if value == 0.0 else value)
        influence = np.nanmean(self.left_out[:, column]) - self.left_out[:, column]
        spread = np.nansum(influence**2)
        acceleration = np.nansum(influence**3) / (6.0 * spread**1.5) if spread > 0 else 0.0
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
    labels: Labels,
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
    cluster = number_clusters(groups)
    strata = stratify(labels, cluster)
    count = int(cluster.max()) + 1
    generators = [np.random.default_rng([seed, place]) for place in range(len(strata))]
    rows = max(1, CELLS // max(len(labels), 1))

    def drawn_weights() -> Iterator[Floats]:
        for start in range(0, draws, rows):
            weights = np.zeros((min(rows, draws - start), count))
            for members, rng in zip(strata, generators, strict=True):
                chosen = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), len(weights))
                weights[:, members] = chosen
            yield weights[:, cluster]

    def left_out_weights() -> Iterator[Floats]:
        block = np.arange(count) * min(count, BLOCKS) // count
        for start in range(0, min(count, BLOCKS), rows):
            omitted = np.arange(start, min(start + rows, count, BLOCKS))
            yield (block[cluster][None, :] != omitted[:, None]).astype(float)

    return Bootstrapped(
        statistic(np.ones((1, len(labels))))[0],
        np.concatenate([statistic(weights) for weights in drawn_weights()]),
        np.concatenate([statistic(weights) for weights in left_out_weights()]),
        min(len(members) for members in strata),
    )


def number_clusters(groups: Sequence[object]) -> Labels:
    """The groups as numbers from 0, (N,)."""
    return np.asarray(np.unique(np.asarray(groups, str), return_inverse=True)[1])


def stratify(labels: Labels, cluster: Labels) -> list[Labels]:
    """The clusters with negative pictures only, with both kinds, and with positive ones only; no stratum is empty."""
    positives = np.bincount(cluster, weights=labels)
    stratum = (positives > 0).astype(int) + (positives == np.bincount(cluster))
    return [members for code in range(3) if len(members := np.flatnonzero(stratum == code))]
