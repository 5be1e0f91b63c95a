"""Answers to files: a picture, a folder or a zip, one row per picture."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteo.config import PredictConfig
from osteo.errors import UserError

if TYPE_CHECKING:
    from osteo.data.sources import Archive, Entry
    from osteo.inference.model import Model
    from osteo.types import Grey
from typing import NamedTuple

import numpy.typing as npt

from osteo.inference.answer import Answer
from osteo.inference.model import Model

log = logging.getLogger(__name__)

BATCH = 16  # pictures that are answered at once


def pictures_of(given: str) -> "tuple[Archive, list[Entry]]":
    """A file, folder or zip as an archive, and the files in it that are meant to be pictures.

    Raises:
        UserError: nothing is there.
    """
    from osteo.data.sources import Entry, Folder, is_hidden, open_archive
    from osteo.reading.reader import looks_like_picture

    path = Path(given).expanduser()
    if path.is_file() and path.suffix.lower() != ".zip":
        return Folder(path.parent), [Entry(path.name, "", "")]
    archive = open_archive(given, "input")
    found, passed = [], 0
    for entry in archive.entries():
        if is_hidden(entry.name):
            continue
        head = b"" if entry.refused or looks_like_picture(entry.name, b"") else archive.read(entry.name, 132)
        if looks_like_picture(entry.name, head):
            found.append(entry)
        else:
            passed += 1
    if passed:
        log.info("passed over %d files that are no pictures", passed)
    if not found:
        raise UserError(f"input={given} holds no picture; expected PNG, JPEG, TIFF, BMP, WEBP, GIF or DICOM files")
    return archive, found


def answers(
    models: "Sequence[Model]", archive: "Archive", entries: "Sequence[Entry]", config: PredictConfig, *, heats: bool
) -> "tuple[list[Row], bool]":
    """A row an entry, two more for one that shows two knees; and whether heat maps can be had."""
    from osteo.inference.answer import answer, heat_map
    from osteo.reading.pictures import Unusable
    from osteo.reading.reader import read_picture

    size = max(model.card.image_size for model in models)
    reasons: dict[str, str] = {}
    greys: dict[str, Grey] = {}
    for entry in entries:
        reasons[entry.name] = entry.refused
        if not entry.refused:
            try:
                greys[entry.name] = read_picture(archive.read(entry.name), size)
            except (Unusable, OSError, RuntimeError) as error:
                reasons[entry.name] = str(error).splitlines()[0] if isinstance(error, Unusable) else "cannot be read"
    asked: Any = {"rule": config.rule, "interval": config.interval}
    said = dict(zip(greys, answer(models, list(greys.values()), **asked), strict=True)) if greys else {}
    halves: dict[str, list[str]] = {}
    for name, found in list(said.items()):
        if found.look.halves is not None:
            halves[name] = [f"{name} (left half)", f"{name} (right half)"]
            two = answer(models, found.look.halves, **asked)
            said |= dict(zip(halves[name], two, strict=True))
            greys |= dict(zip(halves[name], found.look.halves, strict=True))
    rows = []
    for name in [part for entry in entries for part in (entry.name, *halves.get(entry.name, []))]:
        heat = None
        if name in said and heats:
            try:
                heat = heat_map(models, greys[name])
            except UserError as error:
                log.warning("no overlays: %s", error)
                heats = False
        rows.append(Row(name, reasons.get(name, ""), said.get(name), heat))
    return rows, heats


class Row(NamedTuple):
    """One line of the answers: a picture, half of one that shows two knees, or a file that cannot be used."""

    name: str
    """of the file, within what was given"""
    reason: str
    """why the file cannot be used, or empty"""
    answer: Answer | None
    """None where there is a reason"""
    heat: npt.NDArray[Any] | None
    """Grad-CAM in [0, 1], (S, S)"""
