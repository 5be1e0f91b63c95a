"""The answers of `osteo predict`: a table, a JSON file, a picture each, and a sheet for people; and of `explain`."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from osteo.command_settings import ExplainConfig, PredictConfig, ServeConfig
from osteo.errors import counted, listed
from osteo.evaluation.gradcam import overlay
from osteo.files import display_path, name_of_file, portable, whole, write_json, write_table, write_text
from osteo.inference import explain
from osteo.inference.answer import VARIANTS, WITHHELD, Answer
from osteo.inference.model import Model, to_batch
from osteo.inference.predictions import Row, to_table
from osteo.report.figures import STYLE, explained
from osteo.report.html import embed, render
from osteo.report.tables import terminal
from osteo.task import Task
from osteo.types import Singles


def caveats(models: Sequence[Model], config: PredictConfig | ServeConfig) -> list[str]:
    """What a reader of the answers must know."""
    card, guard = models[0].card, models[0].guard
    lines = [f"{card.intended_use[0].upper()}{card.intended_use[1:]}."]
    if config.interval:
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
        f"The threshold ({config.rule}) and the calibration were fitted on validation pictures of the"
        f" data {card.trained_on}."
    )
    if guard is not None:
        lines.append(
            f"A flag means that a picture is unlike those the model was trained on; the check {guard.false_alarm_rate}."
        )
    return lines


def write(folder: Path, rows: Sequence[Row], models: Sequence[Model], config: PredictConfig) -> None:
    """Writes predictions.csv and .json, overlays/ and predictions.html into a folder."""
    table = to_table(rows, config.rule)
    write_table(folder / "predictions.csv", table)
    cards = [model.card.facts() for model in models]
    overlays = [path_of(folder / "overlays", row.name) for row in rows if heat_of(row) is not None]
    names = [path.relative_to(folder / "overlays").as_posix() for path in overlays]  # so that they may be replaced
    content = {"models": cards, "notes": caveats(models, config), "pictures": _records(table), "overlays": names}
    write_json(folder / "predictions.json", content)
    figures = []
    for row in rows:
        if row.answer is not None:
            picture = cv2.cvtColor(row.answer.prepared, cv2.COLOR_GRAY2BGR)
            seen = np.asarray(picture, np.uint8)
            if (heat := heat_of(row)) is not None:
                seen = np.hstack([seen, overlay(row.answer.prepared, heat)])
                write_png(path_of(folder / "overlays", row.name), seen)
            is_withheld = row.answer.call == WITHHELD
            figures.append(
                {"row": row, "picture": embed(seen), "has_heat": heat is not None, "is_withheld": is_withheld}
            )
    failed = [row for row in rows if row.reason]
    title = f"{counted(len(figures), 'answer')} by {listed(sorted({model.card.backbone for model in models}))}"
    page = render(
        "predictions.html.jinja",
        title=f"{title}: {models[0].network.task.contrast}",
        figures=figures,
        failed=failed,
        notes=caveats(models, config),
        models=cards,
    )
    write_text(folder / "predictions.html", page)


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
    """Writes explain.csv and .json and a figure per picture in maps/ into a folder.

    Args:
        folder: that is empty.
        rows: of `answer_pictures`, each of which is drawn before the next is asked for.
        model: that answered.
        layers: of its network, early to late.
        config: how many channels of each are shown, and the rule of the threshold.

    Returns:
        The rows without their heat maps.
    """
    answered, tables, drawn = [], [pd.DataFrame(columns=list(explain.COLUMNS))], []
    for row in rows:
        answered.append(row._replace(heat=None))
        if (found := row.answer) is None:
            continue
        of_layers = explain.feature_maps(model.network, to_batch([found.prepared]), layers)
        shown = [explain.most_active(name, maps, config.channels) for name, maps in of_layers.items()]
        tables.append(explain.to_table(row.name, found.prepared, shown))
        drawn.append(path_of(folder / "maps", row.name))
        write_figure(drawn[-1], explained(found.prepared, heat_of(row), facts_of(row, model, config.rule), shown))
    content = {
        "models": [model.card.facts()],
        "layers": list(layers),
        "channels": explain.RULE,
        "pictures": _records(to_table(answered, config.rule)),
        "maps": [path.relative_to(folder / "maps").as_posix() for path in drawn],
    }
    write_json(folder / "explain.json", content)
    write_table(folder / "explain.csv", pd.concat([table for table in tables if len(table)] or tables))
    return answered


def facts_of(row: Row, model: Model, rule: str) -> list[str]:
    """What stands beside an explained picture: the call, the logit, probability and threshold."""
    found = row.answer
    assert found is not None
    beyond = ", ".join(
        f"{name.removeprefix('probability_').replace('_t_score', ' T-score')} {value:.2f}"
        for name, value in found.details.items()
    )
    return [
        f"{model.card.backbone}: {found.call}",
        f"logit {found.logit:.2f}, calibrated probability {found.calibrated:.2f}",
        f"threshold {found.threshold:.2f} ({rule}) for {model.network.task.sides[1]}",
        *([beyond] if beyond else []),
        *found.inspection.flags,
        *found.notes,
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
    console.say(f"{counted(len(rows), 'picture')}: {len(flagged)} flagged, {len(failed)} without an answer")
    console.say(models[0].card.intended_use)
    console.name(
        f"answers      {display_path(folder)}/predictions.csv", f"sheet        {display_path(folder)}/predictions.html"
    )


def _shown(row: Row, answer: Answer, task: Task) -> dict[str, object]:
    """An answer as a line of the terminal's table."""
    is_borderline = answer.is_borderline and answer.call != WITHHELD and not task.has_many_classes
    beyond = {name: name.removeprefix("probability_").replace("_", " ") for name in answer.details}
    return {
        "file": row.name,
        "call": f"{answer.call}, borderline" if is_borderline else answer.call,
        **{title: answer.details[name] for name, title in beyond.items()},
        "probability": answer.calibrated,
        **({} if math.isnan(answer.low) else {"range": f"{answer.low:.3f} to {answer.high:.3f}"}),
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
    console.name(f"figures      {display_path(folder)}/maps/", f"numbers      {display_path(folder)}/explain.csv")
