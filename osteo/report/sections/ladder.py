"""The section "Protocol ladder" of the report: the same systems under protocols from the loosest to the strictest.

Every protocol is an experiment of its own: nothing is pooled or tested across protocols.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osteo.data.splits import copied_to_training
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.evaluation.metrics import all_metrics, measure, metric_intervals
from osteo.evaluation.systems import Experiment, System, read_experiment
from osteo.records.record import Run
from osteo.report.figures import COLOURS, STYLE, legend
from osteo.report.plots import SOFT
from osteo.report.rows import claim_of

FIGURE = TABLE = "ladder"
CAPTION = (
    "AUROC and accuracy with 95 % intervals of the same network, trained in the same way, by protocol, the loosest"
    " first. Below: how many pictures were tested, and for what share a copy or variant was in training. Small points"
    " are single folds or repeats; a dashed line is what the publication claims. The figure shows how such a result can"
    " arise, not how a publication arrived at its own."
)
PROTOCOLS = ("augmented_first", "by_picture", "no_copies", "grouped_folds", "other_source")
"""Those of conf/protocol, the loosest first."""
MAIN = ("grouped_folds", "other_source", "no_copies", "by_picture", "augmented_first")
"""The first of these that a sweep has is what its report is of."""
DRAWN = ("auroc", "accuracy")


class Rung(NamedTuple):
    """A system under a protocol."""

    protocol: str
    system: str
    claim: dict[str, Any]
    """of the system's source, on as many classes as the task has; empty where there is none"""
    intervals: dict[str, Interval]
    by_run: dict[str, list[float]]
    """of each fold or repeat, by the metrics that are drawn"""
    tested: int
    """rows of the manifest that were tested: pictures, or their variants"""
    groups: int
    """groups among them: patients, or copies and variants of one exposure"""
    copied: int
    """answers about a picture of whose group, its copies, variants or patient, one was in the training"""
    answers: int
    """all of them: each repeat's count"""


@dataclass(frozen=True)
class Findings:
    """What the page shows; empty where the sweep has one protocol."""

    rungs: list[Rung] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)


def read_by_protocol(runs: Sequence[Run], *, sensitivity: float) -> dict[str, Experiment]:
    """One experiment per protocol, the loosest first; of runs without a protocol, one of an empty name, the last.

    Raises:
        UserError: see `read_experiment`.
    """
    of_protocol: dict[str, list[Run]] = {}
    for run in runs:
        of_protocol.setdefault(run.read_config().get("protocol") or "", []).append(run)
    names = [name for name in PROTOCOLS if name in of_protocol]
    names += sorted(of_protocol.keys() - set(names), key=lambda name: (not name, name))
    return {name: read_experiment(of_protocol[name], sensitivity=sensitivity) for name in names}


def main_protocol(protocols: Collection[str]) -> str:
    """The strictest of them, which a report is of: grouped folds first."""
    return next((name for name in MAIN if name in protocols), next(iter(protocols)))


def find(experiments: Mapping[str, Experiment], *, draws: int, seed: int) -> Findings:
    """What every model reaches under every protocol, where there are several.

    Args:
        experiments: as `read_by_protocol` gives them.
        draws: of the bootstrap of whole groups: a picture's copies and variants are drawn together.
        seed: of the draws.
    """
    if len(experiments) < 2:
        return Findings()
    rungs = [
        _rung(protocol, experiment, system, draws, seed)
        for protocol, experiment in experiments.items()
        for system in experiment.of_kind("model")
    ]
    main = main_protocol(experiments)
    others = {_titled(name): experiment for name, experiment in experiments.items() if name != main}
    lines = [
        f"Everything here is about {_titled(main)}; the results of {', '.join(others)} are in the section Protocol"
        " ladder. Nothing is pooled or tested across protocols.",
        *(f"{name}: {note}." for name, other in others.items() for note in other.notes),
    ]
    return Findings(rungs, {TABLE: table(rungs)}, {FIGURE: draw(rungs)}, lines)


def _titled(protocol: str) -> str:
    return f"protocol={protocol}" if protocol else "no protocol"


def _rung(protocol: str, experiment: Experiment, system: System, draws: int, seed: int) -> Rung:
    labels, known = experiment.labels, np.isfinite(system.probabilities)
    by_run: dict[str, list[float]] = {name: [] for name in DRAWN}
    copied = 0
    for number, run in enumerate(system.runs):
        answered = system.networks == number  # (R, N), in one repeat
        if not answered.any():  # a run of the same fold and seed stands for this one
            continue
        values = measure(labels[answered.any(axis=0)], system.probabilities[answered][None], names=DRAWN)
        for name, value in values.items():
            by_run[name].append(value)
        copied += copied_to_training(run.read_manifest())
    claim, classes = claim_of(system.runs[0].read_settings()), len(experiment.task.class_names)
    return Rung(
        protocol,
        system.name,
        claim if claim.get("classes", classes) == classes else {},
        metric_intervals(
            labels, system.probabilities, experiment.groups, networks=system.networks, draws=draws, seed=seed
        ),
        by_run,
        tested=system.tested,
        groups=int(experiment.pictures.loc[np.asarray(known.any(axis=0)), "group"].nunique()),
        copied=copied,
        answers=int(known.sum()),
    )


def table(rungs: Iterable[Rung]) -> pd.DataFrame:
    """One row per rung: what was tested, how much of it stands in the training too, and what was reached."""
    titles = {name: all_metrics()[name].title for name in DRAWN}
    rows = pd.DataFrame(
        {
            "protocol": rung.protocol or "-",
            "system": rung.system,
            "tested": rung.tested,
            "groups": rung.groups,
            "with a copy in training": f"{rung.copied} of {rung.answers}",
            **{title: format_interval(rung.intervals[name]) for name, title in titles.items()},
            **{f"{title}, claimed": rung.claim.get(name) for name, title in titles.items()},
        }
        for rung in rungs
    )
    return rows.dropna(axis="columns", how="all")


def beside_claims(claims: pd.DataFrame, rungs: Sequence[Rung]) -> pd.DataFrame:
    """The table of claims with what the other protocols give, one column each after what is measured.

    Args:
        claims: as `rows.literature_table` gives it.
        rungs: of all protocols.
    """
    of_title = {metric.title: name for name, metric in all_metrics().items()}
    protocols = list(dict.fromkeys(rung.protocol for rung in rungs))
    place = list(claims).index("measured")
    for protocol in (name for name in protocols if name != main_protocol(protocols)):
        found = {rung.system: rung.intervals for rung in rungs if rung.protocol == protocol}
        place += 1
        claims.insert(place, f"measured, {_titled(protocol)}", [
            format_interval(found[system][of_title[title]]) if system in found else "-"
            for system, title in zip(claims["system"], claims["metric"], strict=True)
        ])  # fmt: skip
    return claims


def draw(rungs: Sequence[Rung]) -> Figure:
    """AUROC and accuracy by protocol, one line per system, with intervals, single folds and claims."""
    protocols = list(dict.fromkeys(rung.protocol for rung in rungs))
    systems = list(dict.fromkeys(rung.system for rung in rungs))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric in zip(panels, DRAWN, strict=True):
            for number, system in enumerate(systems):
                of_system = [rung for rung in rungs if rung.system == system]
                shift = 0.3 * ((number + 0.5) / len(systems) - 0.5)
                places = [protocols.index(rung.protocol) + shift for rung in of_system]
                _line(axes, places, of_system, metric, COLOURS[number % len(COLOURS)])
            axes.axhline(0.5, color=SOFT, lw=0.8, ls=":")
            axes.set(ylabel=f"{all_metrics()[metric].title} with 95 % interval", xlim=(-0.5, len(protocols) - 0.5))
            axes.set_xticks(range(len(protocols)), [_tick(rungs, protocol) for protocol in protocols], fontsize=8)
            axes.grid(axis="y", color=SOFT, lw=0.4, alpha=0.4)
        legend(figure)
        return figure


def _line(axes: Axes, places: Sequence[float], rungs: Sequence[Rung], metric: str, colour: str) -> None:
    intervals = [rung.intervals[metric] for rung in rungs]
    axes.plot(places, [interval.value for interval in intervals], "o-", color=colour, ms=5, label=rungs[0].system)
    for place, interval, rung in zip(places, intervals, rungs, strict=True):
        axes.plot([place, place], interval[1:], color=colour, lw=2)  # nothing where it has no ends
        values = rung.by_run[metric]
        axes.plot([place + 0.06] * len(values), values, ".", color=colour, ms=4, alpha=0.5)
    if (claimed := rungs[0].claim.get(metric)) is not None:
        axes.axhline(claimed, color=colour, lw=1.2, ls="--", label=f"{rungs[0].system}, claimed")


def _tick(rungs: Sequence[Rung], protocol: str) -> str:
    first = next(rung for rung in rungs if rung.protocol == protocol)
    name = protocol.replace("_", "\n", 1) if protocol else "no\nprotocol"
    return f"{name}\nn = {first.tested}\n{first.copied / max(1, first.answers):.0%} with\na copy"
