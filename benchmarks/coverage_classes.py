"""The same as `coverage` for three classes and for T-scores: intervals and paired tests against a known truth.

Three classes lie on one line, a distance apart, with normal noise; a model gives their probabilities. T-scores are
normal, and predicted with a bias and normal noise. Two models share half of the variance of their noise. Clusters have
one to three pictures of one class or T-score, which share 0.7 of their noise.
"""

import os
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import norm

from benchmarks.coverage import ALIKE, covers
from osteo.evaluation.agreement import REACH, compare_t_scores, t_score_intervals
from osteo.evaluation.bootstrap import Comparison, Interval
from osteo.evaluation.multiclass import class_intervals, class_metrics, compare_classes

SETS = int(os.environ.get("OSTEO_SETS", "500"))
DRAWS = 1000  # with fewer the tails are rough, and tests reject more often than at the 2000 of a report
SHARES = np.array([0.3, 0.5, 0.2])  # normal, osteopenia, osteoporosis
SIZES = (1, 2, 3)  # of the clusters, in turn
MEAN, SPREAD = -1.5, 1.2  # of true T-scores
BIAS, NOISE = 0.3, 0.8  # of predicted ones
OF_CLASSES = ("auroc", "auroc_macro", "accuracy", "balanced_accuracy", "f1_macro", "quadratic_weighted_kappa")


class Design(NamedTuple):
    """Pictures of a data set, and how far neighbouring classes are apart, in standard deviations of the noise."""

    pictures: int
    distance: float

    @property
    def title(self) -> str:
        """In a table."""
        return f"{self.pictures} pictures, {self.distance} apart"


DESIGNS = (Design(60, 1.0), Design(60, 2.5), Design(200, 2.5))


def class_probabilities(design: Design, scores: np.ndarray) -> np.ndarray:
    """What follows from scores (N,) for the classes, (N, 3)."""
    return softmax(norm.logpdf(scores[:, None] - design.distance * np.arange(3)) + np.log(SHARES), axis=1)


def clusters(pictures: int) -> np.ndarray:
    """The number of every picture's cluster, (N,)."""
    sizes = np.resize(SIZES, pictures)
    return np.repeat(np.arange(pictures), sizes)[:pictures]


def noise(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Of a standard deviation of 1, alike within a cluster, (N,)."""
    common = rng.normal(size=groups.max() + 1)[groups]
    return ALIKE**0.5 * common + (1 - ALIKE) ** 0.5 * rng.normal(size=len(groups))


def two_of(rng: np.random.Generator, groups: np.ndarray) -> list[np.ndarray]:
    """The noise of two models, half of whose variance is shared."""
    both = noise(rng, groups)
    return [0.5**0.5 * (both + noise(rng, groups)) for _ in range(2)]


def draw_classes(rng: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Labels, groups, and the probabilities (1, N, 3) of two models of the same strength."""
    counts = (SHARES * design.pictures).astype(int)
    labels, of_classes = np.repeat(np.arange(3), counts), [clusters(count) for count in counts]
    groups = np.concatenate([of_class + label * design.pictures for label, of_class in enumerate(of_classes)])
    scores = [design.distance * labels + one for one in two_of(rng, groups)]
    return labels, groups, [class_probabilities(design, one)[None] for one in scores]


@lru_cache
def truth_of_classes(design: Design) -> dict[str, float]:
    """Every metric of endlessly many pictures, on a fine grid of scores."""
    grid = np.linspace(-6.0, 6.0 + 2 * design.distance, 6001)
    labels = np.repeat(np.arange(3), len(grid))
    density = norm.pdf(np.tile(grid, 3) - design.distance * labels) * SHARES[labels]
    probabilities = class_probabilities(design, np.tile(grid, 3))
    table = class_metrics()
    return {name: float(table[name].measure(density[None], labels, probabilities)[0]) for name in OF_CLASSES}


def draw_t_scores(rng: np.random.Generator, pictures: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """True T-scores, groups, and those (1, N) that two models of the same strength predict."""
    groups = clusters(pictures)
    true = rng.normal(MEAN, SPREAD, groups.max() + 1)[groups]
    return true, groups, [(true + BIAS + NOISE * one)[None] for one in two_of(rng, groups)]


def truth_of_t_scores() -> dict[str, float]:
    """Of endlessly many pictures; the mean absolute error is that of the folded normal distribution."""
    ratio = BIAS / NOISE
    return {
        "mean_absolute_error": float(2 * NOISE * norm.pdf(ratio) + BIAS * (1 - 2 * norm.cdf(-ratio))),
        "bias": BIAS,
        "agreement_low": BIAS - REACH * NOISE,
        "agreement_high": BIAS + REACH * NOISE,
        "pearson_r": SPREAD / (SPREAD**2 + NOISE**2) ** 0.5,
    }


def one_set_of_classes(design: Design, seed: int, draws: int = DRAWS) -> dict[str, bool]:
    """Whether each interval of one data set covers the truth, and each test finds a difference that is not there."""
    rng = np.random.default_rng([seed, design.pictures, int(10 * design.distance)])
    labels, groups, (first, second) = draw_classes(rng, design)
    intervals = class_intervals(labels, first, list(groups), draws=draws, seed=seed)
    pairs = compare_classes(labels, first, second, list(groups), draws=draws, seed=seed)
    return judged(truth_of_classes(design), intervals, pairs)


def one_set_of_t_scores(pictures: int, seed: int, draws: int = DRAWS) -> dict[str, bool]:
    """The same of T-scores."""
    true, groups, (first, second) = draw_t_scores(np.random.default_rng([seed, pictures]), pictures)
    intervals = t_score_intervals(true, first, list(groups), draws=draws, seed=seed)
    pairs = compare_t_scores(true, first, second, list(groups), draws=draws, seed=seed)
    return judged(truth_of_t_scores(), intervals, pairs)


def judged(truth: dict[str, float], found: dict[str, Interval], pairs: dict[str, Comparison]) -> dict[str, bool]:
    """What is counted, by what it is and of which metric."""
    return (
        {f"coverage|{name}": covers(found[name], value) for name, value in truth.items()}
        | {f"truth below|{name}": value < found[name].low for name, value in truth.items()}
        | {f"coverage of the difference|{name}": covers(pairs[name].difference, 0.0) for name in truth}
        | {f"type I error|{name}": pairs[name].p <= 0.05 for name in truth}
    )


def measure() -> list[dict]:
    """One row per interval or test, one column per design."""
    columns: dict[str, dict[str, float]] = {}
    for design in DESIGNS:
        columns[f"classes, {design.title}"] = shares([one_set_of_classes(design, seed) for seed in range(SETS)])
    for pictures in (60, 200):
        columns[f"T-scores, {pictures} pictures"] = shares([one_set_of_t_scores(pictures, s) for s in range(SETS)])
    names = list(dict.fromkeys(name for by in columns.values() for name in by))
    rows = []
    for name in sorted(names, key=lambda name: name.split("|")[0]):
        what, of = name.split("|")
        values = {title: f"{by[name]:.3f}" if name in by else "" for title, by in columns.items()}
        rows.append({"what": what, "of": of} | values)
    return rows


def shares(sets: list[dict[str, bool]]) -> dict[str, float]:
    """How often each is so."""
    total: Counter[str] = Counter()
    for found in sets:
        total.update({name: bool(value) for name, value in found.items()})
    values = {name: total[name] / len(sets) for name in sets[0]}
    print(values, flush=True)
    return values
