"""The figures of a paper, from run records and the manifest; each is returned as a matplotlib figure."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import FancyBboxPatch

from osteo.evaluation.gradcam import overlay
from osteo.evaluation.metrics import all_metrics
from osteo.files import whole
from osteo.inference.explain import RULE, LayerMaps
from osteo.report.paper import HEADINGS
from osteo.report.results import Result
from osteo.task import CLASSES, Task
from osteo.types import Floats, Grey, Singles

BLUE, ORANGE, GREEN, RED, INK, PALE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222", "#EEF3F8"
"""Okabe and Ito's colours, which most colour-blind readers tell apart."""
COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#F0E442", "#999999")
MOST = 6  # models on one figure
NARROW = 4.2  # inches of a figure on a narrow screen
LINE, CHARACTER, KEY = 0.16, 0.078, 0.5  # inches: height of a legend's line, width of its characters and of its key
LONGEST = 44  # characters of a name in one line
MAP = 1.15  # width of a feature map and its gap, in inches
GAP, LABEL, TITLE = 0.08, 0.3, 0.32  # beside a map, above it and above those of a layer, in this width
FEWEST_COLUMNS, MOST_COLUMNS = 6, 8  # maps in a row
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "osteo",  # the same figure gives the same file
    "image.composite_image": False,  # each picture of an SVG at its own resolution
}


class Panel(NamedTuple):
    """A picture on a figure."""

    picture: Grey
    title: str
    is_right: bool | None = None
    """whether the prediction was right; None where there is none"""


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of a figure: NAME.png and NAME.svg."""
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def remove(folder: Path, name: str) -> None:
    """Removes a figure, where there is one."""
    for path in files_of(folder, name):
        path.unlink(missing_ok=True)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes the files of a figure, each whole."""
    paths = files_of(folder, name)
    with rc_context(STYLE):
        for path in paths:
            with whole(path) as aside:
                metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
                figure.savefig(aside, dpi=200, bbox_inches="tight", facecolor="white", metadata=metadata)
    return paths


def overview(models: Sequence[Result], manifest: pd.DataFrame, task: Task) -> dict[str, Figure]:
    """The data set, and what every model reaches: the values of the page, all folds together, the mean over repeats.

    Args:
        models: the chosen one first.
        manifest: of one of their runs.
        task: names the positive class and the rest.
    """
    drawn = models[:MOST]
    matrices = {result.system.name: result.confusion for result in drawn}
    return {
        "collection": collection(manifest),
        "metrics": bars(drawn, task.contrast),
        "confusion": confusion(matrices, task.sides),
    }


def collection(manifest: pd.DataFrame) -> Figure:
    """From the sources to the data set: how many pictures of each class came, were left out and are used."""
    with rc_context(STYLE):
        sources = sorted(manifest["source"].unique())
        figure = Figure(figsize=(7.2, 1.2 + 1.5 * len(sources)))
        axes = figure.add_subplot()
        axes.set(xlim=(0, 12), ylim=(0, 2 * len(sources)))
        axes.axis("off")
        used = manifest[manifest["split"] != "excluded"]
        middle = len(sources)
        total = f"{len(used)} pictures\n" + _by_class(used)
        _box(axes, 9.9, middle, f"used\n{total}", PALE, BLUE, height=1.3)
        for place, source in enumerate(reversed(sources)):
            height = 2 * place + 1
            rows = manifest[manifest["source"] == source]
            out = rows[rows["split"] == "excluded"]
            _box(axes, 1.9, height, f"{source}\n{len(rows)} pictures\n{_by_class(rows)}", "white", INK, height=1.3)
            if len(out):
                reasons = out["reason"].value_counts()
                text = "\n".join(f"{count} {reason.split(':')[0]}" for reason, count in reasons.head(4).items())
                beside = 0.5 if height > middle else -0.5  # of the arrow, which goes to the middle
                _box(axes, 5.9, height + beside, f"left out\n{text}", "white", RED, height=0.8, small=True)
            axes.annotate(
                "",
                xy=(8.1, middle + (height - middle) * 0.25),
                xytext=(3.8, height),
                arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1},
            )
        return figure


def _by_class(rows: pd.DataFrame) -> str:
    counts = rows["class_name"].value_counts()
    order = [name for name in CLASSES if name in counts]
    return "\n".join(f"{counts[name]} {name}" for name in order)


def _box(
    axes: Axes, x: float, y: float, text: str, fill: str, edge: str, *, height: float, small: bool = False
) -> None:
    width = 3.6
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0.05", facecolor=fill, edgecolor=edge, lw=1))
    axes.text(x, y, text, ha="center", va="center", fontsize=6.5 if small else 8.5, linespacing=1.35)


def panels(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Rows of pictures, each row with a name at its left; wrong predictions are framed and marked."""
    with rc_context(STYLE):
        columns = max(len(row) for _, row in rows)
        figure = Figure(figsize=(1.45 * columns + 0.5, 1.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, row) in zip(grid, rows, strict=True):
            for place, axes in enumerate(line):
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if place < len(row):
                    _draw(axes, row[place])
            line[0].set_ylabel(name, fontsize=9)
        return figure


def grid_of_panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """An empty panel for each model, in rows of up to three, on the same axes."""
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(9.5, 3.3 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel())
    for axes in panels[len(titles) :]:
        axes.axis("off")
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(fill(title, 32))
    for axes in panels[max(0, len(titles) - columns) : len(titles)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    return figure, panels[: len(titles)]


def legend(figure: Figure) -> None:
    """Says below all panels what is drawn on them, in as many columns as fit; the figure grows by its height."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            drawn.setdefault(name, handle)
    width, height = figure.get_size_inches()
    names = [fill(name, LONGEST) for name in drawn]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = min(len(names), max(1, int(width / (CHARACTER * longest + KEY))))
    lines = -(-len(names) // columns) * max(name.count("\n") + 1 for name in names)
    figure.set_size_inches(width, height + LINE * (lines + 1))
    figure.legend(drawn.values(), names, frameon=False, ncols=columns, loc="outside lower center")


def narrowed(figure: Figure) -> Figure:
    """A copy for a screen as wide as a hand: its panels one below the other, its legend in fewer columns."""
    copied = copy.deepcopy(figure)
    height = float(copied.get_size_inches()[1])
    lines = 1 if (first := copied.axes[0].get_subplotspec()) is None else first.get_gridspec().nrows
    drawn = [axes for axes in copied.axes if axes.axison]
    grid = GridSpec(len(drawn), 1, figure=copied)
    for place, axes in enumerate(drawn):
        axes.set_subplotspec(grid[place])
        axes.tick_params(labelleft=True, labelbottom=True)
    copied.set_size_inches(NARROW, len(drawn) * min(height / lines, 1.2 * NARROW))
    if copied.legends:
        copied.legends.clear()
        with rc_context(STYLE):
            legend(copied)
    return copied


def _draw(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.picture, cmap="gray", vmin=0, vmax=255)
    if panel.is_right is None:
        axes.set_title(panel.title, fontsize=7.5)
        return
    colour, mark = (GREEN, "\N{CHECK MARK}") if panel.is_right else (RED, "\N{MULTIPLICATION X}")
    axes.set_title(f"{mark} {panel.title}", fontsize=7.5, color=colour)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.8)


def explained(
    picture: Grey, heat: Singles | None, facts: Sequence[str], layers: Sequence[LayerMaps], columns: int | None = None
) -> Figure:
    """What a network sees: the picture, where the evidence lies, what is said of it, and feature maps by layer.

    Args:
        picture: uint8 (S, S), as the network sees it.
        heat: its Grad-CAM in [0, 1], (S, S); None where there is none.
        facts: lines beside it.
        layers: early to late; each map is drawn from its smallest activation to its largest.
        columns: maps in a row; None for as many as fit a page.
    """
    columns = columns or max([FEWEST_COLUMNS, *(min(MOST_COLUMNS, len(layer.maps)) for layer in layers)])
    heights = [-(-len(layer.maps) // columns) * (1 + LABEL) + TITLE for layer in layers]
    side = (columns - 0.2) / 4  # of the pictures, in the width of a map, as all heights
    head = side + LABEL
    size = (columns * MAP, (head + sum(heights) + TITLE) * MAP)
    with rc_context(STYLE):
        figure = Figure(figsize=size)
        grid = figure.add_gridspec(
            len(layers) + 1, 1, height_ratios=[head, *heights], left=0.01, right=0.99, top=0.995,
            bottom=TITLE * MAP / size[1], hspace=0,
        )  # fmt: skip
        pictures = [np.repeat(picture[:, :, None], 3, axis=2)]
        if heat is not None:
            pictures.append(overlay(picture, heat)[:, :, ::-1])
        first = figure.add_subplot(grid[0])
        first.axis("off")
        for place, seen in enumerate(pictures):
            left = place * (side + GAP)
            first.imshow(seen, extent=(left, left + side, head - side, head), interpolation="none")
        of_heat = "Grad-CAM" if heat is None or heat.any() else "Grad-CAM: no colour"
        for place, name in enumerate(("network input", of_heat)[: len(pictures)]):
            first.text(place * (side + GAP), head - side - 0.04, fill(name, 5 * columns), va="top", fontsize=7.5)
        text = "\n".join(fill(fact, round(7.3 * columns)) for fact in facts)
        first.text(
            len(pictures) * (side + GAP) + GAP, head, text, va="top", fontsize=8, linespacing=1.4, parse_math=False
        )
        first.set(xlim=(0, columns), ylim=(0, head), aspect="equal")
        for number, (layer, height) in enumerate(zip(layers, heights, strict=True), 1):
            _draw_layer(figure.add_subplot(grid[number]), layer, columns, height)
        if layers:
            note = f"{RULE}; dark is a map's smallest activation, bright its largest"
            figure.text(0.01, 0.004, fill(note, 18 * columns), fontsize=7.5)
        return figure


def _draw_layer(axes: Axes, layer: LayerMaps, columns: int, height: float) -> None:
    axes.axis("off")
    rows, width = layer.maps.shape[1:]
    shown = f"{len(layer.maps)} of {layer.of} channels, each {rows} x {width}"
    for number, (channel, values) in enumerate(zip(layer.channels, layer.maps, strict=True)):
        row, left = divmod(number, columns)
        top = height - TITLE - row * (1 + LABEL)
        extent = (left, left + 1 - GAP, top - LABEL - 1 + GAP, top - LABEL)
        axes.imshow(values, cmap="viridis", extent=extent, interpolation="none")
        low, high = (f"{value:.{2 if abs(value) < 1 else 3}g}" for value in (values.min(), values.max()))
        label = f"channel {channel}\n{low} to {high}"
        axes.text(left, top - LABEL + 0.03, label, va="bottom", fontsize=7, linespacing=1.2)
    axes.text(0, height - TITLE / 2, f"{layer.layer}: {shown}", va="center", fontsize=8.5, fontweight="bold")
    axes.set(xlim=(0, columns), ylim=(0, height), aspect="equal")


def bars(models: Sequence[Result], contrast: str) -> Figure:
    """Accuracy, macro precision, recall and F1 of every model side by side, with 95 % intervals.

    Args:
        models: some.
        contrast: what they tell from what, in words.
    """
    with rc_context(STYLE):
        titles = {name: all_metrics()[name].title for name in HEADINGS}
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / len(models)
        for number, result in enumerate(models):
            places = np.arange(len(titles)) + (number - (len(models) - 1) / 2) * width
            value, low, high = np.array([result.intervals[name] for name in titles]).T
            drawn = axes.bar(places, value, width * 0.92, label=result.system.name, color=COLOURS[number])
            axes.bar_label(drawn, fmt="%.2f", fontsize=7, label_type="center", color="white")
            axes.errorbar(places, value, np.nan_to_num([value - low, high - value]), fmt="none", ecolor=INK, lw=0.8)
        axes.set(xticks=range(len(titles)), xticklabels=list(titles.values()), ylim=(0, 1.05))
        axes.set_ylabel(f"on test pictures,\n{contrast}")
        axes.set_yticks(np.linspace(0, 1, 6))
        legend(figure)
        return figure


def confusion(matrices: Mapping[str, Floats], class_names: Sequence[str]) -> Figure:
    """Confusion matrices side by side, truth down, call across: pictures, and shares of the true class.

    Args:
        matrices: by title, (C, C).
        class_names: in the order of their labels, C of them.
    """
    places, class_names = range(len(class_names)), [fill(name, 16) for name in class_names]
    side = 1.25 * len(class_names)  # inches
    with rc_context(STYLE):
        figure = Figure(figsize=(side * len(matrices) + 0.4, side + 0.2), layout="constrained")
        for place, (title, matrix) in enumerate(matrices.items()):
            shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-9)
            axes = figure.add_subplot(1, len(matrices), place + 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (row, column), count in np.ndenumerate(matrix):
                colour = "white" if shares[row, column] > 0.55 else INK
                text = f"{count:.1f}".removesuffix(".0") + f"\n{shares[row, column]:.0%}"
                axes.text(column, row, text, ha="center", va="center", color=colour)
            axes.set(title=fill(title, 24), xticks=places, yticks=places, xlabel="predicted")
            axes.set_xticklabels(class_names, fontsize=8)
            axes.set_yticklabels(
                class_names if place == 0 else [""] * len(places), fontsize=8, rotation=90, va="center"
            )
            if place == 0:
                axes.set_ylabel("true")
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        return figure
