"""Intervals for what was measured on few pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

DRAWS = 1000


class Interval(NamedTuple):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


def proportion(successes: int, trials: int) -> Interval:
    """A proportion with Wilson's interval."""
    found = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high))


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: Sequence[object], *, seed: int = 0) -> Interval:
    """The area under the ROC curve with a percentile interval from a bootstrap that draws whole groups.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1, (N,).
        groups: pictures that are drawn together, (N,).
        seed: of the draws; a draw without both classes is drawn again.
    """
    truth, score = np.asarray(labels, int), np.asarray(scores, float)
    _, code = np.unique(np.asarray(groups, str), return_inverse=True)
    members = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    rng = np.random.default_rng(seed)
    areas: list[float] = []
    while len(areas) < DRAWS:
        drawn = np.concatenate([members[group] for group in rng.integers(0, len(members), len(members))])
        if 0 < truth[drawn].sum() < len(drawn):
            areas.append(_area(truth[drawn], score[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return Interval(float(roc_auc_score(truth, score)), float(low), float(high))


def _area(truth: npt.NDArray[np.int_], score: npt.NDArray[np.float64]) -> float:
    """The area by counting pairs, ties as a half: ten times faster than the general function."""
    zeros, ones = np.sort(score[truth == 0]), score[truth == 1]
    below = np.searchsorted(zeros, ones, "left") + np.searchsorted(zeros, ones, "right")
    return float(below.mean() / 2 / len(zeros))
