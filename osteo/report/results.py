"""What a sweep's records say: the intervals of every system, and tests between them."""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from osteo.evaluation.bootstrap import Bootstrapped, Comparison, Interval, proportion
from osteo.evaluation.metrics import all_metrics, measure, metric_intervals
from osteo.evaluation.selection import Selected, best_on_test
from osteo.evaluation.systems import Experiment, System
from osteo.evaluation.tests import compare, delong_test, drawn_for_pair, holm, mcnemar
from osteo.progress import followed
from osteo.types import Floats, Mask

PAIRWISE = 10  # models that are all compared with each other; of more, the chosen one with each


@dataclass(frozen=True)
class Result:
    """One system's figures."""

    system: System
    intervals: dict[str, Interval]
    """by metric, of the cluster bootstrap"""
    pooled: Interval | None
    """AUROC of all pairs, also of pictures that different networks tested; None where one network tested them all"""
    wilson: dict[str, Interval]
    """of accuracy, sensitivity and specificity; empty where pictures share a group and do not stand for themselves"""
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
    delong: float
    """p-value of the AUROC; NaN where there is no variance"""
    votes: tuple[int, int]
    """groups on which the first, or the second, was right more often"""
    mcnemar: float
    mcnemar_mid: float


class PrimaryTest(NamedTuple):
    """One test of the primary endpoint."""

    pair: Paired
    comparison: Comparison
    p: float
    """after Holm's correction over the whole family"""


@dataclass(frozen=True)
class Results:
    """Everything that a report says in numbers."""

    experiment: Experiment
    draws: int
    seed: int
    prevalence: float
    sensitivity: float
    primary: str
    """name of the metric that is the primary endpoint"""
    ranked: list[Result]
    """models first, the best on validation first; then ensembles, then the shortcut"""
    between: list[Paired]
    """every pair of models; of many models the chosen one and each other"""
    against_shortcut: list[Paired]
    """every model, or of many the chosen one, and the shortcut"""
    on_test: Selected | None
    """the model that the test pictures would have chosen; None where there is one model"""

    @property
    def models(self) -> list[Result]:
        """Those of single models."""
        return [result for result in self.ranked if result.system.kind == "model"]

    @property
    def best(self) -> Result:
        """The model that validation chooses; its test pictures had no part in the choice."""
        return self.models[0]

    @property
    def tied(self) -> int:
        """How many models are as good on validation as the best, itself among them."""
        reached = [result.system.validation.get(self.primary) for result in self.models]
        return max(sum(value == reached[0] for value in reached), 1)

    @property
    def has_folds(self) -> bool:
        """Whether several networks of a model tested its pictures between them."""
        return any(len(result.system.runs) > result.system.repeats for result in self.models)

    @property
    def has_repeats(self) -> bool:
        """Whether the values of a model are means over repeats."""
        return any(result.system.repeats > 1 for result in self.models)

    @property
    def shortcut(self) -> Result:
        """What width and height reach."""
        return self.ranked[-1]

    @cached_property
    def family(self) -> list[PrimaryTest]:
        """Every test of the primary endpoint, with Holm's correction over all of them that could be made."""
        pairs = [*self.between, *self.against_shortcut]
        comparisons = [pair.by_metric[self.primary] for pair in pairs]
        made = [number for number, comparison in enumerate(comparisons) if np.isfinite(comparison.p)]
        corrected = dict(zip(made, holm([comparisons[number].p for number in made]), strict=True))
        return [
            PrimaryTest(pair, comparison, corrected.get(number, float("nan")))
            for number, (pair, comparison) in enumerate(zip(pairs, comparisons, strict=True))
        ]


def compute(
    experiment: Experiment, *, draws: int, seed: int, prevalence: float, sensitivity: float, primary: str = "auroc"
) -> Results:  # fmt: skip
    """Intervals of every system, and tests between the models and against the shortcut."""
    sign = 1.0 if all_metrics()[primary].direction == "max" else -1.0

    def place(system: System) -> tuple[int, float]:
        value = sign * system.validation.get(primary, 0.0)
        return ["model", "ensemble", "shortcut"].index(system.kind), -value if np.isfinite(value) else np.inf

    systems = sorted(experiment.systems, key=place)
    measured = (_result(experiment, system, draws, seed) for system in systems)
    ranked = list(followed(measured, len(systems), "measuring", "system"))
    models, shortcut = [system for system in systems if system.kind == "model"], systems[-1]
    pairs = _Pairs(experiment, draws, seed)
    few = len(models) <= PAIRWISE
    between = [pairs(*pair) for pair in (combinations(models, 2) if few else ((models[0], m) for m in models[1:]))]
    against = [pairs(model, shortcut) for model in (models if few else models[:1])]
    on_test = None
    if len(models) > 1:
        tested = [model.answers() for model in models]
        on_test = best_on_test(
            experiment.labels, tested, experiment.groups, metric=primary, draws=draws, seed=seed
        )  # fmt: skip
    return Results(experiment, draws, seed, prevalence, sensitivity, primary, ranked, between, against, on_test)


def _result(experiment: Experiment, system: System, draws: int, seed: int) -> Result:
    labels, scores, networks = experiment.labels, system.probabilities, system.networks
    drawn = {"draws": draws, "seed": seed}
    rows = [
        measure(labels, of_repeat[None], networks=of_networks[None]) | {"repeat": name}
        for name, of_repeat, of_networks in zip(experiment.repeats, scores, networks, strict=True)
        if np.isfinite(of_repeat).any()
    ]
    is_split = any(len(np.unique(row[row >= 0])) > 1 for row in networks)
    pooled = metric_intervals(labels, scores, experiment.groups, names=["auroc"], **drawn) if is_split else {}
    right = system.right(labels)
    known, share = np.isfinite(right).any(axis=0), np.nan_to_num(mean_over_repeats(right))
    matrix = [[float((side * (labels == truth) * known).sum()) for side in sides]
              for truth, sides in ((0, (share, 1 - share)), (1, (1 - share, share)))]  # fmt: skip
    return Result(
        system,
        metric_intervals(labels, scores, experiment.groups, networks=networks, **drawn),
        pooled.get("auroc"),
        _wilson(experiment, right),
        pd.DataFrame(rows),
        np.asarray(matrix),
    )


def _wilson(experiment: Experiment, right: Floats) -> dict[str, Interval]:
    """Of the mean over repeats, each of which is measured on what it tested, as every other value is."""
    labels = experiment.labels
    tested = np.asarray(np.isfinite(right).any(axis=0))
    if len({group for group, is_in in zip(experiment.groups, tested, strict=True) if is_in}) < tested.sum():
        return {}
    found = {}
    for name, of_class in (("accuracy", tested), ("sensitivity", labels == 1), ("specificity", labels == 0)):
        rows = [row[of_class & np.isfinite(row)] for row in right]
        shares = [float(row.mean()) for row in rows if len(row)]
        if shares:
            trials = int((tested & of_class).sum())
            found[name] = proportion(float(np.mean(shares)) * trials, trials)
    return found


def mean_over_repeats(values: Floats) -> Floats:
    """The mean over repeats, NaN where none tested a picture."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0))


class _Pairs:
    """Compares systems; the draws of one are kept for its next pair."""

    def __init__(self, experiment: Experiment, draws: int, seed: int) -> None:
        self.experiment, self.draws, self.seed = experiment, draws, seed
        self.kept: dict[tuple[str, int, bytes], dict[str, Bootstrapped]] = {}

    def __call__(self, first: System, second: System) -> Paired:
        labels, groups = self.experiment.labels, self.experiment.groups
        both = np.isfinite(first.probabilities) & np.isfinite(second.probabilities)
        by_metric = compare(self._drawn(first, 0, both), self._drawn(second, 1, both))
        delong = delong_test(labels, first.answers(both), second.answers(both), groups)
        for_first, for_second, exact, mid_p = mcnemar(first.right(labels), second.right(labels), groups)
        return Paired(first.name, second.name, by_metric, delong, (for_first, for_second), exact, mid_p)

    def _drawn(self, system: System, side: int, both: Mask) -> dict[str, Bootstrapped]:
        key = system.name, side, both.tobytes()
        if key not in self.kept:
            self.kept[key] = drawn_for_pair(
                self.experiment.labels, system.answers(both), self.experiment.groups, side=side,
                draws=self.draws, seed=self.seed,
            )  # fmt: skip
        return self.kept[key]
