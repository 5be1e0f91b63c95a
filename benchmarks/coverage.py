"""Whether 95 % intervals cover a known truth 95 times in 100, and tests at 0.05 reject a true null 5 times in 100.

Scores are normal in each class and drawn so that accuracy and AUROC are known. In clusters, four copies of a picture
share most of their noise. Coverage uses 1000 data sets, type I error 2000.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from osteo.evaluation.bootstrap import proportion
from osteo.evaluation.metrics import metric_intervals
from osteo.evaluation.tests import delong_interval, delong_test, mcnemar, paired_bootstrap

DISTANCE = 2**0.5 * norm.ppf(0.85)  # between the classes' means: an AUROC of 0.85
TRUTH = {"accuracy": float(norm.cdf(DISTANCE / 2)), "auroc": 0.85}
NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}


class Design(NamedTuple):
    """Pictures of a data set: so many clusters of so many copies."""

    clusters: int
    copies: int

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.clusters} pictures" if self.copies == 1 else f"{self.clusters} clusters of {self.copies} copies"


DESIGNS = (Design(100, 1), Design(25, 4), Design(100, 4))


class Data(NamedTuple):
    """One simulated data set."""

    labels: np.ndarray
    groups: list[int]
    scores: np.ndarray
    """probabilities of two models of the same strength, (2, N)"""


def draw(rng: np.random.Generator, design: Design) -> Data:
    """Two models that share half of the variance of their scores."""
    labels = np.repeat(np.arange(design.clusters) % 2, design.copies)

    def noise() -> np.ndarray:
        alike = 0.9 if design.copies > 1 else 0.0
        common = np.repeat(rng.normal(size=design.clusters), design.copies)
        return alike**0.5 * common + (1 - alike) ** 0.5 * rng.normal(size=len(labels))

    both = noise()
    scores = [0.5**0.5 * both + 0.5**0.5 * noise() + DISTANCE * (labels - 0.5) for _ in range(2)]
    return Data(labels, np.repeat(np.arange(design.clusters), design.copies).tolist(), norm.cdf(np.stack(scores)))


def covered(design: Design, draws: int, seed: int) -> dict[str, bool]:
    """Whether each interval of one data set covers the truth."""
    data = draw(np.random.default_rng([design.clusters, design.copies, seed]), design)
    scores, found = data.scores[:1], {}
    ways = {"cluster bootstrap": data.groups, "plain bootstrap": list(range(len(data.labels)))}
    for way, groups in ways.items():
        intervals = metric_intervals(data.labels, scores, groups, names=NAMES, draws=draws, seed=seed)
        for name, title in NAMES.items():
            found[f"{title}, {way}"] = intervals[name], TRUTH[name]
    right = (scores[0] > 0.5) == (data.labels == 1)
    found["accuracy, Wilson"] = proportion(int(right.sum()), len(right)), TRUTH["accuracy"]
    found["AUROC, DeLong by cluster"] = delong_interval(data.labels, scores, data.groups), TRUTH["auroc"]
    return {name: bool(interval.low <= truth <= interval.high) for name, (interval, truth) in found.items()}


def rejected(design: Design, draws: int, seed: int) -> dict[str, bool]:
    """Whether each paired test of one data set, whose models are equally good, finds a difference at 0.05."""
    data = draw(np.random.default_rng([design.clusters, design.copies, seed, 1]), design)
    first, second = data.scores[:1], data.scores[1:]
    half = np.full_like(first, 0.5)
    pair = paired_bootstrap(data.labels, (first, half), (second, half), data.groups, draws=draws, seed=seed)
    right = [((one > 0.5) == (data.labels == 1)).astype(float) for one in (first, second)]
    *_, exact, middle = mcnemar(right[0], right[1], data.groups)
    found = {
        "AUROC, paired bootstrap": pair["auroc"].p,
        "AUROC, DeLong by cluster": delong_test(data.labels, first, second, data.groups).p,
        "accuracy, paired bootstrap": pair["accuracy"].p,
        "accuracy, McNemar exact": exact,
        "accuracy, McNemar mid-p": middle,
    }
    return {name: bool(p <= 0.05) for name, p in found.items()}


def rates(
    one: Callable[[Design, int, int], dict[str, bool]], design: Design, *, sets: int, draws: int
) -> dict[str, float]:
    """The share of data sets for which each entry is true."""
    total: Counter[str] = Counter()
    with ProcessPoolExecutor() as pool:
        for found in pool.map(partial(one, design, draws), range(sets), chunksize=max(1, sets // 40)):
            total.update(found)
    return {name: total[name] / sets for name in found}


def measure() -> list[dict]:
    """One row per interval or test, one column per design."""
    rows = []
    for kind, one, sets in (("coverage of 95 %", covered, 1000), ("type I error at 0.05", rejected, 2000)):
        by_design = {design.title: rates(one, design, sets=sets, draws=2000) for design in DESIGNS}
        names = next(iter(by_design.values()))
        rows += [
            {"what": kind, "method": name, **{title: f"{found[name]:.3f}" for title, found in by_design.items()}}
            for name in names
        ]
    return rows
