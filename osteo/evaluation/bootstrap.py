"""Intervals and tests by weighing clusters of pictures at random: what is known from few pictures, and what is not.

The Bayesian bootstrap (Rubin 1981) gives every cluster (a patient, or copies of one exposure) a random weight. Few
pictures leave that too sure of itself: a model without a mistake would have an interval without width. So a prior of
at most one cluster of each class is added: pictures of the other class, half of them called, as Jeffreys' prior has it.
Quantiles are taken as far out as Student's t asks for (Hesterberg 2015). `benchmarks/coverage.py` measures
how often the truth is covered, and how often a test finds a difference where there is none.

Shapes: N pictures, M rows of a draw, R repeats of an experiment, D draws. A repeat that did not test a picture has NaN
for it; a metric of several repeats is its mean over them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from scipy.stats import binomtest, norm, t

from osteo.types import Floats, Labels, Mask, Statistic

DRAWS = 2000
FEWEST, FEWEST_IN_ALL = 4, 6  # clusters of a class, and in all: with fewer no permutation has a p below 0.05
CALLS_PRIOR = 1.0  # clusters of each class that the prior counts for: half called, half not, as Jeffreys' prior has it
RANKING_PRIOR, RANKING_PAIR_PRIOR = 0.75, 0.2  # the same of metrics that rank pictures, and of their differences
TAIL = 5  # draws beyond which the tail is taken to be normal
CELLS = 4_000_000  # of a matrix of draws that is held at once
_SIDES = 2


class Interval(NamedTuple):
    """A measured value and its 95 % interval; both ends are NaN where nothing can be said."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Its numbers by name; None for what is not known."""
        return {name: number if np.isfinite(number) else None for name, number in self._asdict().items()}


def format_interval(interval: Interval | None, digits: int = 3) -> str:
    """An interval as text: value (low to high); "-" for what is not known, of the interval or of all of it."""
    if interval is None or not np.isfinite(interval.value):
        return "-"
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} ({low} to {high})" if np.isfinite(interval.low) else f"{value} (-)"


class Comparison(NamedTuple):
    """A paired difference, its 95 % interval, and the p-value of no difference, both from the same draws."""

    difference: Interval
    p: float


class Rows(NamedTuple):
    """The rows that weights are for: every picture, then what the prior adds, each picture called and not called."""

    picture: Labels
    """its number, (M,)"""
    label: Labels
    """0 or 1, (M,); in the prior that of the other class"""
    is_prior: Mask
    """(M,)"""
    is_called: Mask
    """the call of a row of the prior, (M,)"""

    def weigh(self, weights: Floats) -> Floats:
        """Weights of all rows, (D, M); where they are of the pictures alone, (D, N), the prior has none."""
        return np.pad(weights, ((0, 0), (0, len(self.picture) - weights.shape[1])))


def rows_of(labels: Labels) -> Rows:
    """The rows of a draw, M = 3 N; where all pictures are of one class, the prior is of that class, too."""
    count = len(labels)
    is_mixed = 0 < np.count_nonzero(labels == 1) < count
    others = 1 - labels if is_mixed else labels
    place = np.arange(3 * count)
    return Rows(place % count, np.concatenate([labels, others, others]), place >= count, place // count == 1)


def proportion(successes: float, trials: int) -> Interval:
    """A proportion with Wilson's interval; successes need not be whole, as with the mean over repeats."""
    share, z = successes / trials, float(norm.ppf(0.975))
    if float(successes).is_integer():
        bounds = binomtest(int(successes), trials).proportion_ci(0.95, method="wilson")
        return Interval(share, float(bounds.low), float(bounds.high))
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Interval(share, middle - reach, middle + reach)


@dataclass(frozen=True)
class Bootstrapped:
    """Metrics (C,), and the same in every draw (D, C)."""

    value: Floats
    draws: Floats
    clusters: tuple[int, ...]
    """with pictures of each class, in the order of their labels"""
    freedom: float
    """degrees of freedom of Student's t, from the number of clusters"""
    stretch: float = 1.0
    """by which quantiles lie further out, since draws spread less than samples do"""

    def __sub__(self, other: Self) -> "Bootstrapped":
        return replace(self, value=self.value - other.value, draws=self.draws - other.draws)

    def of(self, column: int) -> "Bootstrapped":
        """One of the metrics."""
        chosen = slice(column, column + 1)
        return replace(self, value=self.value[chosen], draws=self.draws[:, chosen])

    @property
    def _edge(self) -> float:
        """The share of draws below the lower end of an interval."""
        return float(norm.cdf(t.ppf(0.025, self.freedom) * self.stretch))

    def interval(self, column: int, needs: Sequence[int] = ()) -> Interval:
        """The 95 % interval of a metric; NaN at both ends where the draws say nothing, or there are too few clusters.

        Args:
            column: of the metric.
            needs: classes that it depends on.
        """
        value, draws = float(self.value[column]), self._finite(column)
        too_few = sum(self.clusters) < FEWEST_IN_ALL or any(self.clusters[label] < FEWEST for label in needs)
        if not np.isfinite(value) or too_few or len(draws) == 0 or np.ptp(draws) < 1e-12:
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(draws, [self._edge, 1.0 - self._edge])
        return Interval(value, min(float(low), value), max(float(high), value))

    def compare(self, column: int, needs: Sequence[int] = ()) -> Comparison:
        """Tests whether a difference is zero: p < 0.05 exactly where the 95 % interval leaves zero out.

        Args:
            column: of the metric.
            needs: classes that it depends on.

        Returns:
            The p-value is NaN where there is no interval, and 1 where every draw says that the two are alike.
        """
        interval, draws = self.interval(column, needs), self._finite(column)
        if len(draws) and np.ptp(draws) < 1e-12 and abs(interval.value) < 1e-12:
            return Comparison(interval, 1.0)
        if not np.isfinite(interval.low):
            return Comparison(interval, float("nan"))
        beyond = min(_share_below(draws), _share_below(-draws))
        edge = min(TAIL / len(draws), self._edge / 2)
        reach = float(norm.ppf(max(beyond, edge)))
        if beyond <= edge:
            reach = min(reach, -abs(float(draws.mean() / draws.std())))
        p = 2.0 * float(t.cdf(reach / self.stretch, self.freedom))
        exchanges = math.comb(
            sum(self.clusters), min(self.clusters)
        )  # of the classes, or of the two models in a cluster
        least = 2.0 / (exchanges if min(self.clusters) >= FEWEST else 2 ** sum(self.clusters))
        return Comparison(interval, float(np.clip(p, least, 1.0)))

    def _finite(self, column: int) -> Floats:
        draws = self.draws[:, column]
        return np.asarray(draws[np.isfinite(draws)])


def _share_below(draws: Floats) -> float:
    """The share of draws below zero: where `numpy.quantile` has a zero, so that interval and p agree."""
    ordered = np.sort(draws)
    at = np.searchsorted(ordered, 0.0, side="right")
    if at == 0 or at == len(ordered):
        return float(at == len(ordered))
    step = ordered[at] - ordered[at - 1]
    return float((at - 1 - ordered[at - 1] / step) / (len(ordered) - 1))


def bootstrap(
    statistic: Statistic,
    labels: Labels,
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    is_ranking: bool = False,
    side: int | None = None,
    views: int = 1,
) -> Bootstrapped:
    """Weighs whole clusters at random, and each class as often as it is, so that the share of cases stays.

    The same labels, groups and seed give the same draws, so the results of two sides can be subtracted: they are
    paired, and the difference of two sides is, to the last bit, that of the swapped ones with its sign turned.

    Args:
        statistic: of weighted rows, see `rows_of`.
        labels: 0 or 1, (N,).
        groups: pictures of one group are weighed together, (N,).
        draws: how many.
        seed: of the draws.
        is_ranking: whether the statistic compares pictures with each other, see `osteo.parts.Metric`.
        side: 0 or 1 of a pair; None for a value of its own.
        views: of the same pictures that a mean is taken over: their priors count for one together.
    """
    cluster = number_clusters(groups)
    controls, cases = clusters_of(labels, cluster)
    clusters = len(controls), len(cases)
    sizes = [_effective(cluster[labels == label]) for label in np.unique(labels)]
    freedom = len(sizes) * (min(sizes) - 1) if is_ranking else sum(sizes) - len(sizes)
    is_pair = side is not None
    prior = (RANKING_PAIR_PRIOR if is_pair else RANKING_PRIOR) if is_ranking else CALLS_PRIOR
    prior /= views
    stretch = (min(sizes) / max(min(sizes) - 1, 1)) ** 0.5 if is_ranking and is_pair else 1.0
    streams = [np.random.default_rng([seed, number]) for number in range(4)]

    def weigh(size: int) -> Floats:
        return _weights(streams, labels, cluster, size, prior, side)

    found = _draw(statistic, weigh, draws, 3 * max(len(labels), 1), _SIDES if is_pair else 1)
    once = rows_of(labels).weigh(np.ones((1, len(labels))))
    return Bootstrapped(statistic(once)[0], found, clusters, max(freedom, 1.0), stretch)


def _draw(statistic: Statistic, weigh: Callable[[int], Floats], draws: int, rows: int, halves: int) -> Floats:
    """A statistic in every draw, (D, C), of as many at once as `CELLS` allows; those of a pair come in two halves."""
    block = max(1, CELLS // (rows * halves))
    left, found = math.ceil(draws / halves), []
    while left:
        size = min(block, left)
        left -= size
        found.append(statistic(weigh(size)))
    return np.concatenate(found)


def _weights(
    streams: Sequence[np.random.Generator], labels: Labels, cluster: Labels, size: int, prior: float, side: int | None
) -> Floats:
    """Weights of `rows_of` these labels, (D, M); of a pair the second half is the first with the sides swapped."""
    rows, count = rows_of(labels), int(cluster.max()) + 1
    of_classes, of_pictures, of_calls = streams[:2], streams[2], streams[3]
    drawn = of_pictures.standard_exponential((size, count))[:, cluster]
    others = rows.label[len(labels) : 2 * len(labels)]
    added = np.empty_like(drawn)
    for label in np.unique(others):
        lenders = cluster[others == label]
        shape = prior / len(np.unique(lenders))
        added[:, others == label] = of_classes[label].standard_gamma(shape, (size, count))[:, lenders]
    called = of_calls.beta(0.5, 0.5, (size, _SIDES, 2))  # the share of the prior of each class that is called

    def of_side(number: int) -> Floats:
        share = called[:, number, others]
        weights = np.concatenate([drawn, added * share, added * (1.0 - share)], axis=1)
        for label in np.unique(labels):
            of_class = rows.label == label
            weights[:, of_class] *= np.count_nonzero(labels == label) / weights[:, of_class].sum(1, keepdims=True)
        return weights

    return of_side(0) if side is None else np.concatenate([of_side(side), of_side(1 - side)])


class ClassRows(NamedTuple):
    """The rows that weights of many classes are for: every picture, then one per class and call of the prior."""

    label: Labels
    """(N + C * C,)"""
    call: Labels
    """of a row of the prior, (C * C,)"""


def class_rows(labels: Labels, classes: int) -> ClassRows:
    """The rows of a draw of pictures (N,) of so many classes, C."""
    label, call = np.divmod(np.arange(classes**2), classes)
    return ClassRows(np.concatenate([labels, label]), call)


def bootstrap_classes(
    statistic: Statistic,
    labels: Labels,
    groups: Sequence[object],
    classes: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    side: int | None = None,
) -> Bootstrapped:
    """`bootstrap` for metrics of the calls of any number of classes.

    Clusters weigh as there, and each class as often as it is. The prior counts for two clusters of mean size in all, as
    with two classes, shared among the classes. The recall of each is Beta(1/2, 1/2) in it, Jeffreys' prior of a
    proportion; a wrong call k classes off has a share of 1 / k^3, between the 1 / k^2 that gives each k as much of the
    mean of a quadratic kappa, and the 1 / k^4 that gives it as much of the variance.

    Args:
        statistic: of weighted rows, see `class_rows`.
        labels: from 0 to C - 1, (N,); a class may be absent, and has no prior then.
        groups: pictures of one group are weighed together, (N,).
        classes: their number C, at least 2.
        draws: how many.
        seed: of the draws.
        side: 0 or 1 of a pair; None for a value of its own.
    """
    cluster, rows = number_clusters(groups), class_rows(labels, classes)
    inside = [np.flatnonzero(labels == label) for label in range(classes)]
    clusters = tuple(len(np.unique(cluster[of_class])) for of_class in inside)
    sizes = [_effective(cluster[of_class]) for of_class in inside if len(of_class)]
    of_pictures, of_classes, of_calls = (np.random.default_rng([seed, number]) for number in range(2, 5))
    mean_size = np.array([len(of_class) / max(count, 1) for of_class, count in zip(inside, clusters, strict=True)])
    off = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    wrong = np.where(off, 1.0 / np.maximum(off, 1) ** 3, 0.0)
    shape = np.where(off, 0.5 * wrong / wrong.sum(axis=1, keepdims=True), 0.5)

    def weigh(size: int) -> Floats:
        drawn = of_pictures.standard_exponential((size, int(cluster.max()) + 1))[:, cluster]
        added = of_classes.standard_gamma(2.0 * CALLS_PRIOR / classes, (size, classes)) * mean_size
        called = of_calls.standard_gamma(shape, (size, _SIDES, classes, classes))
        called /= called.sum(axis=-1, keepdims=True)

        def of_side(number: int) -> Floats:
            prior = (added[:, :, None] * called[:, number]).reshape(size, -1)
            weights = np.concatenate([drawn, prior], axis=1)
            for label, of_class in enumerate(inside):
                if len(of_class):
                    at = rows.label == label
                    weights[:, at] *= len(of_class) / weights[:, at].sum(axis=1, keepdims=True)
            return weights

        return of_side(0) if side is None else np.concatenate([of_side(side), of_side(1 - side)])

    found = _draw(statistic, weigh, draws, len(rows.label), 1 if side is None else _SIDES)
    once = np.pad(np.ones((1, len(labels))), ((0, 0), (0, classes**2)))
    return Bootstrapped(statistic(once)[0], found, clusters, max(sum(sizes) - len(sizes), 1.0))


def number_clusters(groups: Sequence[object]) -> Labels:
    """The groups as numbers from 0, (N,)."""
    return np.asarray(np.unique(np.asarray(groups, str), return_inverse=True)[1])


def _effective(cluster: Labels) -> float:
    """Number of clusters of equal size that say as much as these (Kish 1965)."""
    sizes = np.unique(cluster, return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def clusters_of(labels: Labels, cluster: Labels) -> tuple[Labels, Labels]:
    """The clusters with pictures of class 0, and of class 1."""
    return np.unique(cluster[labels == 0]), np.unique(cluster[labels == 1])
