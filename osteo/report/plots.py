"""The figures of the report page, from its results; each is returned as a matplotlib figure."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from textwrap import fill

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from osteo.evaluation import curves
from osteo.evaluation.bootstrap import Interval, bootstrap, proportion
from osteo.evaluation.metrics import all_metrics
from osteo.report.figures import COLOURS, MOST, NARROW, STYLE, grid_of_panels, legend
from osteo.report.paper import TABLE_2, TEST_PICTURES
from osteo.report.results import Results
from osteo.task import BINARY
from osteo.types import Floats, Statistic

GRID = np.linspace(0.0, 1.0, 101)
LIMITS = np.linspace(0.05, 0.95, 91)  # probabilities above which a picture may be called
BINS = 6  # of the reliability curve, each with the same number of pictures
SOFT = "#888888"
LABEL, GAP = 0.14, 0.1  # inches: a line of a system's name, and what lies between two names


def forest(results: Results, *, is_narrow: bool = False) -> Figure:
    """AUROC and accuracy of every system with 95 % intervals, and, of the paper's task, its accuracies.

    Args:
        results: of the sweep.
        is_narrow: the two panels one below the other, for a screen as wide as a hand.
    """
    rows: dict[str, list[tuple[str, str, Interval]]] = {
        name: [(r.system.name, r.system.kind, r.intervals[name]) for r in results.ranked]
        for name in ("auroc", "accuracy")
    }
    rows["accuracy"] += [
        (f"{backbone}, paper", "paper", proportion(round(reported["accuracy"] * TEST_PICTURES), TEST_PICTURES))
        for backbone, reported in (TABLE_2.items() if results.experiment.task == BINARY else ())
    ]
    names = [fill(name, 22 if is_narrow else 52) for name, *_ in rows["accuracy"]]
    heights = [LABEL * (name.count("\n") + 1) + GAP for name in names]  # inches, as the vertical axis
    places = [end - height / 2 for end, height in zip(accumulate(heights), heights, strict=True)]
    width, panels = (NARROW, (2, 1)) if is_narrow else (9.5, (1, 2))
    with rc_context(STYLE):
        figure = Figure(figsize=(width, panels[0] * (sum(heights) + 0.6)), layout="constrained")
        for axes, metric in zip(figure.subplots(*panels, sharey=True), rows, strict=True):
            for place, (_, kind, interval) in zip(places, rows[metric], strict=False):
                colour = {"model": COLOURS[0], "ensemble": COLOURS[2], "shortcut": COLOURS[3]}.get(kind, SOFT)
                axes.plot(interval[1:], [place, place], color=colour, lw=2)  # nothing where it has no ends
                axes.plot(interval.value, place, "o", color=colour, ms=5)
            axes.set(ylim=(sum(heights), 0), xlabel=f"{all_metrics()[metric].title} with 95 % interval")
            axes.set_yticks(places, names, fontsize=8)
            axes.axvline(0.5, color=SOFT, lw=0.8, ls=":")
            axes.grid(axis="x", color=SOFT, lw=0.4, alpha=0.4)
            axes.tick_params(axis="y", length=0)
        return figure


def roc_and_pr(results: Results) -> Figure:
    """ROC and precision-recall curves with pointwise 95 % bands."""
    labels, drawn = results.experiment.labels, results.models[:MOST]
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.4), layout="constrained")
        roc, pr = figure.subplots(1, 2)
        for number, result in enumerate(drawn):
            value, low, high = _bands(
                results, curves.roc_and_pr(labels, result.system.probabilities, GRID, result.system.networks)
            )
            for axes, part in ((roc, slice(0, len(GRID))), (pr, slice(len(GRID), None))):
                line(axes, GRID, value[part], low[part], high[part], COLOURS[number], result.system.name)
        roc.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":")
        pr.axhline(float(labels.mean()), color=SOFT, lw=0.8, ls=":")
        roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", xlim=(0, 1), ylim=(0, 1.02))
        pr.set(xlabel="sensitivity (recall)", ylabel="precision", title="precision-recall", xlim=(0, 1), ylim=(0, 1.02))
        legend(figure)
        return figure


def reliability(results: Results) -> Figure:
    """Share of cases against probability, before and after the temperature of validation, one panel per model."""
    labels, drawn = results.experiment.labels, results.models[:MOST]
    with rc_context(STYLE):
        figure, panels = grid_of_panels([result.system.name for result in drawn])
        for axes, result in zip(panels, drawn, strict=True):
            for scores, name, colour in (
                (result.system.probabilities, "as trained", COLOURS[1]),
                (result.system.calibrated, "after temperature", COLOURS[0]),
            ):
                known = scores[np.isfinite(scores)]
                edges = np.quantile(known, np.linspace(0, 1, BINS + 1))
                edges[-1] += 1e-9  # before equal ones go: where all pictures have one probability, one bin is left
                edges = np.unique(edges)
                value, low, high = _bands(results, curves.reliability(labels, scores, edges))
                middle = [known[(known >= a) & (known < b)].mean() for a, b in pairwise(edges)]
                bars = np.nan_to_num(np.clip([value - low, high - value], 0, None))
                axes.errorbar(middle, value, bars, color=colour, marker="o", ms=4, lw=1.3, capsize=2, label=name)
            axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":")
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability")
        panels[0].set_ylabel(f"share with {results.experiment.task.sides[1]}")
        legend(figure)
        return figure


def decision(results: Results) -> Figure:
    """Net benefit of calling pictures above a probability, beside calling all and calling none."""
    labels, drawn = results.experiment.labels, results.models[:MOST]
    share = float(labels.mean())
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, result in enumerate(drawn):
            value, low, high = _bands(results, curves.net_benefit(labels, result.system.calibrated, LIMITS))
            line(axes, LIMITS, value, low, high, COLOURS[number], result.system.name, band=number == 0)
        everyone = share - (1 - share) * LIMITS / (1 - LIMITS)
        axes.plot(LIMITS, everyone, color=SOFT, lw=1, ls="--", label="call every picture")
        axes.axhline(0.0, color=SOFT, lw=1, label="call none")
        axes.set(xlabel="probability above which a picture is called", ylabel="net benefit per picture")
        axes.set(xlim=(0, 1), ylim=(-0.08, share * 1.08))
        legend(figure)
        return figure


def training(histories: dict[str, Sequence[pd.DataFrame]]) -> Figure:
    """Loss and AUROC by epoch, the mean over a system's runs with their range; points where there is one epoch."""
    drawn = dict(list(histories.items())[:MOST])
    is_point = max(len(run) for runs in drawn.values() for run in runs) == 1
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        loss, area = figure.subplots(1, 2)
        for number, (name, runs) in enumerate(drawn.items()):
            for axes, column, style in ((loss, "train/loss", "--"), (loss, "val/loss", "-"), (area, "val/auroc", "-")):
                table = pd.concat([run.set_index("epoch")[column] for run in runs], axis=1)
                label = name if column == "val/auroc" else None
                value, low, high = table.mean(axis=1), table.min(axis=1), table.max(axis=1)
                colour, band = COLOURS[number], column != "train/loss" and len(runs) > 1
                if is_point:  # of several models beside each other
                    x = table.index + 0.1 * (number - (len(drawn) - 1) / 2)
                    inside = colour if style == "-" else "none"
                    axes.plot(x, value, "o", color=colour, markerfacecolor=inside, label=label)
                    axes.vlines(x, low, high, color=colour, lw=1.2 if band else 0.0)
                else:
                    line(axes, table.index, value, low, high, colour, label, band=band, style=style)
        for axes in (loss, area):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.margins(x=0.3 if is_point else 0.05)
        marks = ("filled", "open") if is_point else ("solid", "dashed")
        loss.set(xlabel="epoch", ylabel="loss", title=f"loss: validation ({marks[0]}), training ({marks[1]})")
        top = np.nanquantile(
            [float(run["val/loss"].quantile(0.95)) for runs in histories.values() for run in runs], 0.9
        )
        loss.set_ylim(0, max(1.0, 1.2 * float(top)))
        area.set(xlabel="epoch", ylabel="AUROC", title="AUROC on validation", ylim=(0, 1.02))
        legend(figure)
        return figure


def _bands(results: Results, statistic: Statistic) -> Floats:
    """Values, and the 2.5 and 97.5 percent points of the draws, (3, M)."""
    experiment = results.experiment
    drawn = bootstrap(statistic, experiment.labels, experiment.groups, draws=min(results.draws, 500), seed=results.seed)
    return np.vstack([drawn.value, np.nanquantile(drawn.draws, [0.025, 0.975], axis=0)])


def line(
    axes: Axes,
    x: npt.ArrayLike,
    value: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    colour: str,
    name: str | None,
    *,
    band: bool = True,
    style: str = "-",
) -> None:
    """Draws a curve, and its band from low to high."""
    axes.plot(x, value, color=colour, lw=1.6, ls=style, label=name)
    if band:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
