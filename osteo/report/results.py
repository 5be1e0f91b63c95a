"""What a sweep's records say: the intervals of every system, and tests between them."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from osteo.evaluation.bootstrap import Comparison, Interval, proportion
from osteo.evaluation.metrics import all_metrics, metric_intervals, weighted_metrics
from osteo.evaluation.systems import Experiment, System
from osteo.evaluation.tests import delong_interval, delong_test, mcnemar, paired_bootstrap
from osteo.task import THRESHOLD
from osteo.types import Floats


@dataclass(frozen=True)
class Result:
    """One system's figures."""

    system: System
    intervals: dict[str, Interval]
    """by metric, of the cluster bootstrap"""
    wilson: dict[str, Interval]
    """of accuracy, sensitivity and specificity, as if every picture stood for itself"""
    delong: Interval | None
    """of the AUROC"""
    by_repeat: pd.DataFrame
    """one row per repeat, one column per metric"""
    confusion: Floats
    """pictures, the mean over repeats; truth down, call across: [[tn, fp], [fn, tp]]"""


@dataclass(frozen=True)
class Paired:
    """Two systems on the same pictures; differences are the first's less the second's."""

    first: str
    second: str
    by_metric: dict[str, Comparison]
    """of the paired cluster bootstrap"""
    delong: Comparison | None
    votes: tuple[int, int]
    """groups on which the first, or the second, was right more often"""
    mcnemar: float
    mcnemar_mid: float


@dataclass(frozen=True)
class Results:
    """Everything that a report says in numbers."""

    experiment: Experiment
    draws: int
    seed: int
    prevalence: float
    sensitivity: float
    ranked: list[Result]
    """models first, then ensembles, then the shortcut; within a kind the best AUROC first"""
    between: list[Paired]
    """every pair of models"""
    against_shortcut: list[Paired]
    """every model and the shortcut"""

    @property
    def models(self) -> list[Result]:
        """Those of single models."""
        return [result for result in self.ranked if result.system.kind == "model"]

    @property
    def best(self) -> Result:
        """The model with the highest AUROC."""
        return self.models[0]

    @property
    def shortcut(self) -> Result:
        """What width and height reach."""
        return self.ranked[-1]


def compute(
    experiment: Experiment, *, draws: int, seed: int, prevalence: float, sensitivity: float
) -> Results:  # fmt: skip
    """Intervals of every system, and tests between the models and against the shortcut."""
    order = {"model": 0, "ensemble": 1, "shortcut": 2}
    ranked = [_result(experiment, system, draws, seed) for system in experiment.systems]
    ranked.sort(key=lambda result: (order[result.system.kind], -result.intervals["auroc"].value))
    models = [result.system for result in ranked if result.system.kind == "model"]
    pairs = [_pair(experiment, first, second, draws, seed) for first, second in combinations(models, 2)]
    shortcut = ranked[-1].system
    against = [_pair(experiment, model, shortcut, draws, seed) for model in models]
    return Results(experiment, draws, seed, prevalence, sensitivity, ranked, pairs, against)


def _result(experiment: Experiment, system: System, draws: int, seed: int) -> Result:
    labels = experiment.labels
    intervals = metric_intervals(labels, system.probabilities, experiment.groups, draws=draws, seed=seed)
    once = np.ones((1, len(labels)))
    rows = [
        dict(zip(all_metrics(), weighted_metrics(labels, row[None])(once)[0], strict=True)) | {"repeat": name}
        for name, row in zip(experiment.repeats, system.probabilities, strict=True)
        if np.isfinite(row).any()
    ]
    right = system.right(labels)
    known, share = np.isfinite(right).any(axis=0), np.nan_to_num(mean_over_repeats(right))
    counted = {"accuracy": known, "sensitivity": known & (labels == 1), "specificity": known & (labels == 0)}
    wilson = {name: proportion(round(float(share[which].sum())), int(which.sum())) for name, which in counted.items()}
    matrix = [[float((side * (labels == truth) * known).sum()) for side in sides]
              for truth, sides in ((0, (share, 1 - share)), (1, (1 - share, share)))]  # fmt: skip
    return Result(
        system,
        intervals,
        wilson,
        delong_interval(labels, system.probabilities[np.isfinite(system.probabilities).any(axis=1)], experiment.groups),
        pd.DataFrame(rows),
        np.asarray(matrix),
    )


def mean_over_repeats(values: Floats) -> Floats:
    """The mean over repeats, NaN where none tested a picture."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0))


def _pair(experiment: Experiment, first: System, second: System, draws: int, seed: int) -> Paired:
    labels, groups = experiment.labels, experiment.groups
    limits = np.full_like(first.probabilities, THRESHOLD)
    both = np.isfinite(first.probabilities) & np.isfinite(second.probabilities)
    rows = both.any(axis=1)
    delong = delong_test(
        labels,
        np.where(both, first.probabilities, np.nan)[rows],
        np.where(both, second.probabilities, np.nan)[rows],
        groups,
    )
    for_first, for_second, exact, mid_p = mcnemar(first.right(labels), second.right(labels), groups)
    by_metric = paired_bootstrap(
        labels, (first.probabilities, limits), (second.probabilities, limits), groups, draws=draws, seed=seed
    )
    return Paired(first.name, second.name, by_metric, delong, (for_first, for_second), exact, mid_p)
