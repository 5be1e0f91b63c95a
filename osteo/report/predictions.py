"""The answers of `osteo predict`: a table, a JSON file, a picture each, and a sheet for people; and of `explain`."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from osteo.command_settings import ExplainConfig, PredictConfig
from osteo.errors import counted, listed
from osteo.evaluation.gradcam import overlay, without_colour
from osteo.files import display_path, name_of_file, portable, whole, write_json, write_table, write_text
from osteo.inference import explain
from osteo.inference.answer import VARIANTS, WITHHELD, Answer
from osteo.inference.model import Model, to_batch
from osteo.inference.predictions import Row, describe_rows, to_table
from osteo.report.figures import STYLE, explained
from osteo.report.html import embed, render
from osteo.report.tables import cell, terminal
from osteo.task import Task
from osteo.types import Grey, Singles


def caveats(models: Sequence[Model], rule: str, *, interval: bool) -> list[str]:
    """What a reader of the answers must know.

    Args:
        models: that answered together.
        rule: by which the threshold was chosen.
        interval: whether the answers have ranges.
    """
    card, guard = models[0].card, models[0].guard
    lines = [f"{card.intended_use[0].upper()}{card.intended_use[1:]}."]
    if interval:
        of = f"{len(models)} models and " if len(models) > 1 else ""
        lines.append(
            f"Ranges cover {of}{len(VARIANTS)} variants of each picture (mirrored, rotated by 5 degrees, enlarged by"
            " 5 %); they show how stable an answer is, not how often it is right."
        )
    task = models[0].network.task
    if task.has_many_classes:
        called = "by the WHO's cuts of its T-score" if task.kind == "regression" else "the most probable class"
        lines.append(
            f"A picture is called {called}; the threshold applies to {task.contrast} alone, and decides no call."
        )
    lines.append(
        f"The threshold ({rule}) and the calibration were fitted on validation pictures of the data {card.trained_on}."
    )
    if guard is not None:
        lines.append(
            f"A flag means that a picture is unlike those the model was trained on; the check {guard.false_alarm_rate}."
        )
    return lines


def write(folder: Path, rows: Sequence[Row], models: Sequence[Model], config: PredictConfig) -> None:
    """Writes predictions.csv and .json, overlays/ and predictions.html into a folder."""
    table, notes = to_table(rows, config.rule), caveats(models, config.rule, interval=config.interval)
    write_table(folder / "predictions.csv", table)
    overlays = [path_of(folder / "overlays", row.name) for row in rows if heat_of(row) is not None]
    names = [path.relative_to(folder / "overlays").as_posix() for path in overlays]  # so that they may be replaced
    cards = [model.card.facts() for model in models]
    content = {"models": cards, "notes": notes, "pictures": _records(table), "overlays": names}
    write_json(folder / "predictions.json", content)
    for row in rows:
        if row.answer is not None and heat_of(row) is not None:
            write_png(path_of(folder / "overlays", row.name), seen(row, row.answer))
    figures = [on_page(row, row.answer, models[0].network.task) for row in rows if row.answer is not None]
    answered_by = listed(sorted({model.card.backbone for model in models}))
    title = title_of(f"Answers of {answered_by} to", rows, config.input, models[0].network.task)
    notes = [*outcome(rows, figures, with_maps=config.overlay), *notes]
    write_text(folder / "predictions.html", page(title, rows, figures, models, notes))


def page(
    title: str, rows: Sequence[Row], figures: Sequence[dict[str, Any]], models: Sequence[Model], notes: Sequence[str]
) -> str:
    """The sheet of pictures, and what was said of each.

    Args:
        title: of the page.
        rows: all pictures.
        figures: those with an answer, as `on_page` gives them.
        models: that answered together.
        notes: what a reader must know.
    """
    return render(
        "predictions.html.jinja",
        title=title,
        figures=figures,
        failed=[row for row in rows if row.reason],
        notes=notes,
        models=[model.card.facts() for model in models],
    )


def title_of(start: str, rows: Sequence[Row], given: object, task: Task) -> str:
    """The title of the sheet: models, pictures and what was asked; of what was given, the last part of its path."""
    return f"{start} {counted(len(rows), 'picture')} ({Path(str(given)).resolve().name}): {task.contrast}"


def outcome(rows: Sequence[Row], figures: Sequence[dict[str, Any]], *, with_maps: bool) -> list[str]:
    """How many pictures were answered, and why there are no heat maps where some were asked for."""
    has_maps = any(figure["has_heat"] or figure["of_map"] for figure in figures)
    lacking = "There are no heat maps: Grad-CAM needs a spatial feature map, which transformers do not have."
    return [f"{describe_rows(rows)}.", *([lacking] if with_maps and figures and not has_maps else [])]


def on_page(row: Row, found: Answer, task: Task, maps: str = "") -> dict[str, Any]:
    """An answered picture as the sheet shows it.

    Args:
        row: of the picture.
        found: its answer.
        task: that was asked.
        maps: the file with its feature maps, as a path from the page; empty where there is none.
    """
    return {
        "row": row._replace(heat=None),
        "call": call_of(found, task),
        "picture": embed(seen(row, found)),
        "has_heat": heat_of(row) is not None,
        "is_withheld": found.call == WITHHELD,
        "of_map": of_map(row, found, task),
        "maps": quote(maps),
    }


def seen(row: Row, found: Answer) -> Grey:
    """What the model saw, BGR uint8 (S, S, 3); with its heat map, where that may be shown, beside it, (S, 2 S, 3)."""
    picture = np.asarray(cv2.cvtColor(found.prepared, cv2.COLOR_GRAY2BGR), np.uint8)
    heat = heat_of(row)
    return picture if heat is None else np.hstack([picture, overlay(found.prepared, heat)])


def of_map(row: Row, found: Answer, task: Task) -> str:
    """Why a picture has no heat map though one was computed, or one without colour; empty where it has one."""
    if row.heat is None:
        return ""
    if found.call == WITHHELD:
        return "The heat map is withheld, as the answer is."
    return without_colour(row.heat, task.sides[1])


def call_of(found: Answer, task: Task) -> str:
    """The class that is called, and that the call is borderline where the range straddles the threshold."""
    is_borderline = found.is_borderline and found.call != WITHHELD and not task.has_many_classes
    return f"{found.call}, borderline" if is_borderline else found.call


def heat_of(row: Row) -> Singles | None:
    """The map that may be shown: none where there is none, and none of a picture whose answer is withheld."""
    return None if row.answer is None or row.answer.call == WITHHELD else row.heat


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        for line in table.to_dict("records")
    ]


def write_explanations(
    folder: Path, rows: Iterable[Row], model: Model, layers: Sequence[str], config: ExplainConfig
) -> list[Row]:
    """Writes explain.csv and .json, a figure per picture in maps/, and index.html, into a folder.

    Args:
        folder: that is empty.
        rows: of `answer_pictures`, each of which is drawn before the next is asked for.
        model: that answered.
        layers: of its network, early to late.
        config: how many channels of each are shown, and the rule of the threshold.

    Returns:
        The rows without their heat maps.
    """
    answered, tables, drawn, figures = [], [pd.DataFrame(columns=list(explain.COLUMNS))], [], []
    task = model.network.task
    for row in rows:
        answered.append(row._replace(heat=None))
        if (found := row.answer) is None:
            continue
        of_layers = explain.feature_maps(model.network, to_batch([found.prepared]), layers)
        shown = [explain.most_active(name, maps, config.channels) for name, maps in of_layers.items()]
        tables.append(explain.to_table(row.name, found.prepared, shown))
        drawn.append(path_of(folder / "maps", row.name))
        write_figure(drawn[-1], explained(found.prepared, heat_of(row), facts_of(row, model, config.rule), shown))
        figures.append(on_page(row, found, task, drawn[-1].relative_to(folder).as_posix()))
    content = {
        "models": [model.card.facts()],
        "layers": list(layers),
        "channels": explain.RULE,
        "pictures": _records(to_table(answered, config.rule)),
        "maps": [path.relative_to(folder / "maps").as_posix() for path in drawn],
    }
    write_json(folder / "explain.json", content)
    write_table(folder / "explain.csv", pd.concat([table for table in tables if len(table)] or tables))
    title = title_of(f"What {model.card.backbone} sees in", answered, config.input, task)
    notes = [
        *outcome(answered, figures, with_maps=True),
        f"Feature maps of {counted(len(layers), 'layer')}, {listed(list(layers))}; {explain.RULE}.",
        *caveats([model], config.rule, interval=False),
    ]
    write_text(folder / "index.html", page(title, answered, figures, [model], notes))
    return answered


def facts_of(row: Row, model: Model, rule: str) -> list[str]:
    """What stands beside an explained picture: the call and, unless it is withheld, its numbers; flags and notes."""
    found = row.answer
    assert found is not None
    beyond = ", ".join(
        f"{name.removeprefix('probability_').replace('_t_score', ' T-score')} {cell(value)}"
        for name, value in found.details.items()
    )
    numbers = [
        f"logit {cell(found.logit)}, calibrated probability {cell(found.calibrated)}",
        f"threshold {cell(found.threshold)} ({rule}) for {model.network.task.sides[1]}",
        *([beyond] if beyond else []),
    ]
    return [
        f"{model.card.backbone}: {call_of(found, model.network.task)}",
        *([] if found.call == WITHHELD else numbers),
        *found.inspection.flags,
        *found.notes,
        *filter(None, [of_map(row, found, model.network.task)]),
    ]


def path_of(folder: Path, name: str) -> Path:
    """Where what is drawn of a picture lies, whatever the length of its name."""
    *inner, last = PurePosixPath(portable(name)).parts
    return folder.joinpath(*(name_of_file(part, "") for part in inner), name_of_file(last, ".png"))


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG, whole."""
    with whole(path) as aside, rc_context(STYLE):
        figure.savefig(aside, format="png", dpi=130, facecolor="white", metadata={"Software": None})


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Writes a picture (H, W) or BGR (H, W, 3) whole."""
    with whole(path) as aside:
        aside.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def show(folder: Path, rows: Sequence[Row], models: Sequence[Model], most: int = 20) -> None:
    """Prints the first answers, how many there are, and where the rest lies."""
    console, task = terminal(), models[0].network.task
    answered = [row for row in rows if row.answer is not None]
    if answered:
        shown = [_shown(row, row.answer, task) for row in answered[:most] if row.answer is not None]
        console.table(pd.DataFrame(shown))
    if len(answered) > most:
        console.say(f"and {counted(len(answered) - most, 'more answer')}, which predictions.csv has")
    if task.has_many_classes:
        console.say(f"probability and range are for {task.contrast}")
    flagged = [
        (row.name, row.answer.inspection.flags) for row in answered if row.answer and row.answer.inspection.flags
    ]
    failed = [(row.name, row.reason) for row in rows if row.reason]
    for name, reasons in [*flagged[:most], *((name, [reason]) for name, reason in failed[:most])]:
        console.say(f"{name}: {'; '.join(reasons)}", bullet="- ")
    console.say(describe_rows(rows))
    console.say(models[0].card.intended_use)
    console.name(
        f"answers      {display_path(folder)}/predictions.csv", f"sheet        {display_path(folder)}/predictions.html"
    )


def _shown(row: Row, answer: Answer, task: Task) -> dict[str, object]:
    """An answer as a line of the terminal's table."""
    beyond = {name: name.removeprefix("probability_").replace("_", " ") for name in answer.details}
    is_withheld, of_variants = answer.call == WITHHELD, f"{cell(answer.low)} to {cell(answer.high)}"
    return {
        "file": row.name,
        "call": call_of(answer, task),
        **{title: None if is_withheld else answer.details[name] for name, title in beyond.items()},
        "probability": None if is_withheld else answer.calibrated,
        **({} if math.isnan(answer.low) else {"range": None if is_withheld else of_variants}),
        "threshold": answer.threshold,
    }


def show_explanations(folder: Path, rows: Sequence[Row], layers: Sequence[str]) -> None:
    """Prints what was explained, what could not be, and where the figures lie."""
    console = terminal()
    for row in rows:
        if row.reason:
            console.say(f"{row.name}: {row.reason}", bullet="- ")
    drawn = sum(row.answer is not None for row in rows)
    console.say(f"{counted(drawn, 'figure')} of {counted(len(layers), 'layer')}: {', '.join(layers)}")
    place = display_path(folder)
    console.name(f"page         {place}/index.html", f"figures      {place}/maps/", f"numbers      {place}/explain.csv")
