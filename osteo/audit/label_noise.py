"""How many labels are wrong, judged by copies of one exposure whose labels disagree, and what that allows at best.

The assumption: every label is wrong with one probability e, below a half, whatever the picture, its class and the
labels of its copies. Two copies then disagree with probability 2 e (1 - e). It fails where copies exist because of
their labels: a file that was copied with its label agrees too often, one that was put into both classes too seldom.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from osteo.evaluation.bootstrap import Interval
from osteo.types import Floats

COIN = 0.5  # a label that is wrong this often says nothing
TAIL = 0.025  # probability beyond either end of an interval
UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))

Sizes = Mapping[tuple[int, int], int]
"""Number of sets by their size and the number of labels in their minority."""


@dataclass(frozen=True)
class LabelNoise:
    """What copies say of the labels of a data set; NaN where there are none."""

    title: str
    """what it is judged by"""
    exposures: int
    """that have copies, or that cleaning keeps"""
    contradictory: int
    """those whose copies have labels that disagree"""
    share: float
    """of the larger class among the labels"""
    noise: Interval
    """share of wrong labels, from 0 to 0.5"""

    @property
    def auroc(self) -> Interval:
        """The most that a classifier which knows the true class reaches on these labels."""
        return self._at_best(auroc_ceiling)

    @property
    def accuracy(self) -> Interval:
        """The most that any classifier reaches on these labels."""
        return self._at_best(accuracy_ceiling)

    def _at_best(self, ceiling: Callable[[float, float], float]) -> Interval:
        value, high, low = (ceiling(e, self.share) for e in self.noise)  # more noise, less to reach
        return Interval(value, low, high)

    def as_json(self) -> dict[str, Any]:
        """Its part of audit.json."""
        intervals = {"noise": self.noise, "auroc_ceiling": self.auroc, "accuracy_ceiling": self.accuracy}
        return {
            "exposures": self.exposures,
            "contradictory": self.contradictory,
            **{name: interval.as_json() for name, interval in intervals.items()},
        }


def estimate(title: str, sets: Sequence[Sequence[int]], share: float) -> LabelNoise:
    """The share of wrong labels by maximum likelihood, with an exact 95 % interval.

    Args:
        title: which copies these are.
        sets: the labels, 0 or 1, of the copies of one exposure, at least two each; one exposure in one set.
        share: of the larger class among all labels.
    """
    sizes = Counter((len(labels), min(sum(labels), len(labels) - sum(labels))) for labels in sets)
    contradictory = sum(count for (_, minority), count in sizes.items() if minority)
    return LabelNoise(title, len(sets), contradictory, share, _interval(sizes) if sizes else UNKNOWN)


def after_cleaning(found: LabelNoise, kept: Sequence[int], share: float) -> LabelNoise:
    """What is left of the noise once contradictory copies are set aside and one of every set that agrees is kept.

    A picture without a copy is as likely wrong as before; where n copies agree, all are wrong with probability
    e^n / (e^n + (1 - e)^n).

    Args:
        found: by all copies.
        kept: copies of every picture that is kept, itself included.
        share: of the larger class among these.
    """
    copies = np.array(kept, float)

    def left(e: float) -> float:
        return float((e**copies / (e**copies + (1 - e) ** copies)).mean())

    noise = Interval(*(left(e) for e in found.noise)) if len(copies) else UNKNOWN
    return LabelNoise("what cleaning leaves", len(kept), 0, share, noise)


def auroc_ceiling(noise: float, share: float) -> float:
    """AUROC of the true class itself, measured on labels of which a share is wrong.

    With q = (share - e) / (1 - 2 e) of the pictures truly of a class, a perfect call has the sensitivity
    q (1 - e) / share and the specificity (1 - q) (1 - e) / (1 - share); the AUROC of a call is the mean of both. No
    score ranks such labels better, since they depend on nothing but the true class. 0.5 where noise alone can explain
    the smaller class.

    Args:
        noise: e, from 0 to 0.5.
        share: of one class among the labels, from 0 to 1.
    """
    if noise >= min(share, 1 - share):
        return COIN
    true = (share - noise) / (1 - 2 * noise)
    return (1 - noise) / 2 * (true / share + (1 - true) / (1 - share))


def accuracy_ceiling(noise: float, share: float) -> float:
    """Expected accuracy of a classifier that knows the true class, or of the larger class where that is more."""
    return float("nan") if np.isnan(noise) else max(1 - noise, share, 1 - share)


def largest_noise(auroc: float, share: float) -> float:
    """The share of wrong labels that makes an AUROC the highest that can be reached; from 0 to 0.5."""
    if auroc <= COIN:
        return min(share, 1 - share)
    return float(brentq(lambda e: auroc_ceiling(e, share) - auroc, 0.0, min(share, 1 - share)))


def _interval(sizes: Sizes) -> Interval:
    """The estimate, and the ends at which so few or so many labels in a minority have 2.5 % (Clopper-Pearson 1934)."""
    seen = sum(minority * count for (_, minority), count in sizes.items())
    grid = np.linspace(0.0, COIN, 2001)
    best = float(grid[np.argmax(_log_likelihood(grid, sizes))])

    def beyond(e: float, *, upwards: bool) -> float:
        chances = _minorities(e, sizes)
        return float(chances[seen:].sum() if upwards else chances[: seen + 1].sum()) - TAIL

    low, high = 0.0, COIN
    if seen:
        up = partial(beyond, upwards=True)
        low = float(brentq(up, 0.0, COIN)) if up(COIN) > 0 else COIN
    down = partial(beyond, upwards=False)
    if down(COIN) < 0:
        high = float(brentq(down, 0.0, COIN))
    return Interval(best, low, high)


def _log_likelihood(e: Floats, sizes: Sizes) -> Floats:
    """Of the splits of sets into two labels, whichever of them is the right one."""
    with np.errstate(divide="ignore"):
        return np.asarray(sum(count * np.log(_split(e, n, m)) for (n, m), count in sizes.items()))


def _split(e: Floats | float, n: int, m: int) -> Floats:
    """Probability that `m` of `n` labels stand against the rest."""
    chance = binom.pmf(m, n, e)
    return np.asarray(chance if 2 * m == n else chance + binom.pmf(n - m, n, e))


def _minorities(e: float, sizes: Sizes) -> Floats:
    """Probability of each number of labels in a minority, over all sets, from 0 to as many as there can be."""
    by_size: Counter[int] = Counter()
    for (n, _), count in sizes.items():
        by_size[n] += count
    length = 1 + sum(count * (n // 2) for n, count in by_size.items())
    product = np.ones(length // 2 + 1, complex)  # sums of independent numbers: products of transforms
    for n, count in by_size.items():
        product *= np.fft.rfft([_split(e, n, m) for m in range(n // 2 + 1)], length) ** count
    return np.asarray(np.fft.irfft(product, length))
