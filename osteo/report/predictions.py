"""The answers of `osteo predict`: a table, a JSON file, a picture each, and a sheet for people."""

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from osteo.command_settings import PredictConfig, ServeConfig
from osteo.errors import counted
from osteo.evaluation.gradcam import overlay
from osteo.files import display_path, name_of_file, portable, whole, write_json, write_table, write_text
from osteo.inference.answer import VARIANTS
from osteo.inference.model import Model
from osteo.inference.predictions import Row, to_table
from osteo.report.html import embed, render
from osteo.report.tables import as_table, terminal
from osteo.task import details_columns


def caveats(models: Sequence[Model], config: PredictConfig | ServeConfig) -> list[str]:
    """What a reader of the answers must know."""
    card, guard = models[0].card, models[0].guard
    lines = [f"{card.intended_use[0].upper()}{card.intended_use[1:]}."]
    if config.interval:
        of = f"{len(models)} models and " if len(models) > 1 else ""
        lines.append(
            f"Ranges are over {of}{len(VARIANTS)} variants of each picture (mirrored, turned by 5 degrees, enlarged by"
            " a twentieth); they show how stable an answer is, not how often it is right."
        )
    task = models[0].network.task
    if task.has_many_classes:
        called = "by the WHO's cuts of its T-score" if task.kind == "regression" else "the most probable class"
        lines.append(f"A picture is called {called}; the threshold is for {task.contrast} alone, and decides no call.")
    lines.append(
        f"The threshold ({config.rule}) and the calibration come from validation on {card.trained_on} pictures."
    )
    if guard is not None:
        lines.append(
            f"A flag says that a picture is unlike those that the model learnt from; it {guard.false_alarm_rate}."
        )
    return lines


def write(folder: Path, rows: Sequence[Row], models: Sequence[Model], config: PredictConfig) -> None:
    """Writes predictions.csv and .json, overlays/ and predictions.html into a folder."""
    table = to_table(rows, config.rule)
    write_table(folder / "predictions.csv", table)
    cards = [model.card.facts() for model in models]
    records = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        for line in table.to_dict("records")
    ]
    overlays = [overlay_path(folder, row.name) for row in rows if row.answer is not None and row.heat is not None]
    listed = [path.relative_to(folder / "overlays").as_posix() for path in overlays]  # so that they may be replaced
    content = {"models": cards, "notes": caveats(models, config), "pictures": records, "overlays": listed}
    write_json(folder / "predictions.json", content)
    figures = []
    for row in rows:
        if row.answer is not None:
            picture = cv2.cvtColor(row.answer.prepared, cv2.COLOR_GRAY2BGR)
            seen = np.asarray(picture, np.uint8)
            if row.heat is not None:
                seen = np.hstack([seen, overlay(row.answer.prepared, row.heat)])
                write_png(overlay_path(folder, row.name), seen)
            figures.append({"row": row, "picture": embed(seen)})
    failed = [row for row in rows if row.reason]
    page = render("predictions.html.jinja", figures=figures, failed=failed, notes=caveats(models, config), models=cards)
    write_text(folder / "predictions.html", page)


def overlay_path(folder: Path, name: str) -> Path:
    """Where the overlay of a picture lies, whatever the length of its name."""
    *inner, last = PurePosixPath(portable(name)).parts
    return folder.joinpath("overlays", *(name_of_file(part, "") for part in inner), name_of_file(last, ".png"))


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Writes a picture (H, W) or BGR (H, W, 3) whole."""
    with whole(path) as aside:
        aside.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def show(folder: Path, rows: Sequence[Row], models: Sequence[Model], most: int = 20) -> None:
    """Prints the first answers, how many there are, and where the rest lies."""
    console = terminal()
    task = models[0].network.task
    beyond = {name: name.removeprefix("probability_").replace("_", " ") for name in details_columns(task)}
    names = ["file", "call", *beyond, "calibrated", "low", "high", "flag", "error"]
    table = to_table(rows, "").reindex(columns=names).rename(columns=beyond)
    console.print(as_table(table.head(most).fillna({"call": "", "flag": "", "error": ""})))
    if beyond:
        console.print(f"calibrated, low and high: the probability for {task.contrast}")
    failed, flagged = sum(bool(row.reason) for row in rows), int((table["flag"].fillna("") != "").sum())
    console.print(f"{counted(len(rows), 'row')}: {flagged} flagged, {failed} without an answer")
    console.print(f"{models[0].card.intended_use}")
    console.print(f"sheet        {display_path(folder)}/predictions.html", soft_wrap=True)
