"""Whether 95 % intervals cover a known truth 95 times in 100, and tests at 0.05 reject a true null 5 times in 100.

Scores are normal in each class, so that every metric's truth is known. Two models share half of the variance of their
scores. In clusters of one to three, pictures share 0.7 of their noise. With several folds each fold's network adds an
offset of its own, of a standard deviation of 1 on the scale of the logit.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from osteo.evaluation.bootstrap import Interval, proportion
from osteo.evaluation.metrics import all_metrics, confusion, metric_intervals
from osteo.evaluation.tests import Answers, delong, delong_test, mcnemar, paired_bootstrap

NAMES = ("auroc", "accuracy", "sensitivity", "specificity", "precision_macro", "recall_macro", "f1_macro")
SETS = int(os.environ.get("OSTEO_SETS", "2000"))
DRAWS = 1000
ALIKE = 0.7  # share of a cluster's variance that its pictures have in common


class Design(NamedTuple):
    """Pictures of a data set."""

    title: str
    cases: int
    controls: int
    sizes: tuple[int, ...] = (1,)
    """of the clusters, in turn"""
    folds: int = 1


DESIGNS = (
    Design("47 pictures", 24, 23),
    Design("47 in clusters", 24, 23, (1, 2, 3)),
    Design("24 pictures", 12, 12),
    Design("9 cases of 47", 9, 38),
    Design("173 pictures", 99, 74),
    Design("173 in 5 folds", 99, 74, (1,), 5),
)
AREAS = (0.95, 0.85)


class Data(NamedTuple):
    """One simulated data set."""

    labels: np.ndarray
    groups: list[int]
    models: list[Answers]
    """two of the same strength"""


def distance(area: float) -> float:
    """Between the means of the classes, in standard deviations, for an AUROC."""
    return float(2**0.5 * norm.ppf(area))


def clusters(design: Design) -> Iterator[int]:
    """The label of every cluster's pictures, so often as it has pictures; -1 ends a cluster."""
    for label, left in ((1, design.cases), (0, design.controls)):
        turn = 0
        while left:
            size = min(design.sizes[turn % len(design.sizes)], left)
            yield from [label] * size
            yield -1
            left, turn = left - size, turn + 1


def draw(rng: np.random.Generator, design: Design, area: float) -> Data:
    """Two models that share half of the variance of their scores."""
    marked = np.array(list(clusters(design)))
    groups, labels = np.cumsum(marked < 0)[marked >= 0], marked[marked >= 0]
    alike = ALIKE if len(design.sizes) > 1 else 0.0
    networks = rng.permutation(len(labels)) % design.folds

    def noise() -> np.ndarray:
        common = rng.normal(size=groups.max() + 1)[groups]
        return alike**0.5 * common + (1 - alike) ** 0.5 * rng.normal(size=len(labels))

    both, models = noise(), []
    for _ in range(2):
        scores = 0.5**0.5 * both + 0.5**0.5 * noise() + distance(area) * (labels - 0.5)
        offset = rng.normal(size=design.folds)[networks] if design.folds > 1 else 0.0
        logits = distance(area) * scores + offset  # the logarithm of the likelihood ratio
        models.append(Answers(expit(logits)[None], expit(np.broadcast_to(offset, labels.shape))[None], networks[None]))
    return Data(labels, groups.tolist(), models)


def truth(design: Design, area: float) -> dict[str, float]:
    """What every metric is at these shares of cases; a picture is called above the middle between the classes."""
    right = norm.cdf(distance(area) / 2)
    labels, calls = np.array([1, 1, 0, 0]), np.array([True, False, True, False])
    weights = np.array([[right * design.cases, (1 - right) * design.cases,
                         (1 - right) * design.controls, right * design.controls]])  # fmt: skip
    assert confusion(weights, labels, calls)[0] == weights[0, 0]
    return {
        name: float(all_metrics()[name].measure(weights, labels, calls.astype(float), calls)[0]) for name in NAMES
    } | {"auroc": area}


def one_set(design: Design, area: float, seed: int, draws: int = DRAWS) -> dict[str, bool]:
    """Whether each interval of one data set covers the truth, and each test finds a difference that is not there."""
    data = draw(
        np.random.default_rng([seed, int(area * 100), design.cases, design.controls, design.folds]), design, area
    )
    first, second = data.models
    known, titles, found = truth(design, area), all_metrics(), {}
    intervals = metric_intervals(
        data.labels, first.probabilities, data.groups, thresholds=first.thresholds, networks=first.networks,
        names=NAMES, draws=draws, seed=seed,
    )  # fmt: skip
    for name in NAMES:
        found[f"coverage|{titles[name].title}"] = covers(intervals[name], known[name])
        found[f"truth below|{titles[name].title}"] = known[name] < intervals[name].low
    pair = paired_bootstrap(data.labels, first, second, data.groups, draws=draws, seed=seed)
    for name in ("auroc", "accuracy"):
        found[f"coverage|difference of {titles[name].title}"] = covers(pair[name].difference, 0.0)
        found[f"type I error|{titles[name].title}, paired bootstrap"] = pair[name].p <= 0.05
        agree = (pair[name].p <= 0.05) != covers(pair[name].difference, 0.0)
        found[f"interval and p agree|{titles[name].title}"] = agree
    areas, covariance = delong(data.labels, first.probabilities, data.groups, first.networks)
    reach = 1.96 * covariance[0, 0] ** 0.5
    found["coverage|AUROC, DeLong (not shown)"] = covers(Interval(areas[0], areas[0] - reach, areas[0] + reach), area)
    right = [(one.probabilities > one.thresholds) == (data.labels == 1) for one in data.models]
    wilson = proportion(int(right[0].sum()), len(data.labels))
    found["coverage|accuracy, Wilson (only without clusters)"] = covers(wilson, known["accuracy"])
    found["type I error|AUROC, DeLong"] = delong_test(data.labels, first, second, data.groups) <= 0.05
    *_, exact, middle = mcnemar(right[0].astype(float), right[1].astype(float), data.groups)
    found["type I error|accuracy, McNemar exact"] = exact <= 0.05
    found["type I error|accuracy, McNemar mid-p"] = middle <= 0.05
    return found


def covers(interval: Interval, value: float) -> bool:
    """Whether a value lies inside."""
    return bool(interval.low <= value <= interval.high)


def measure() -> list[dict]:
    """One row per interval or test, one column per design and AUROC."""
    columns: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor() as pool:
        for design in DESIGNS:
            for area in AREAS:
                total: Counter[str] = Counter()
                for found in pool.map(partial(one_set, design, area), range(SETS), chunksize=max(1, SETS // 40)):
                    total.update({name: bool(value) for name, value in found.items()})
                columns[f"{design.title}, {area}"] = {name: total[name] / SETS for name in found}
                print(f"{design.title}, {area}:", columns[f"{design.title}, {area}"], flush=True)
    rows = []
    for name in found:
        what, method = name.split("|")
        rows.append({"what": what, "of": method} | {title: f"{by[name]:.3f}" for title, by in columns.items()})
    return sorted(rows, key=lambda row: row["what"])
