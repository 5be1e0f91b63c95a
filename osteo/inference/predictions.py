"""Answers to the pictures of a file, a folder or a zip, as one table."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy.typing as npt
import pandas as pd

from osteo.config import DataConfig
from osteo.data.archives import Archive, Entry, Folder, open_archive
from osteo.data.clinical import read_clinical
from osteo.data.sources import is_hidden, is_picture
from osteo.errors import UserError, counted
from osteo.inference.answer import WITHHELD, Answer, answer, heat_map
from osteo.inference.model import Model, covariates_of, size_to_read
from osteo.reading.covariates import Patient
from osteo.reading.pictures import Unusable, describe_error
from osteo.reading.reader import read_picture
from osteo.types import Grey

log = logging.getLogger(__name__)

SOURCE = "input"
EXPECTED = "expected PNG, JPEG, TIFF, BMP, WEBP, GIF or DICOM files"
BATCH = 16  # pictures that are answered at once
COLUMNS = (
    *("file", "error", "call", "calibrated", "low", "high", "threshold", "rule", "probability", "logit"),
    *("flag", "guard_score", "guard_limit"),
)
"""of predictions.csv; what a task says beyond the positive class follows"""


class Opened(NamedTuple):
    """A file that was read, or could not be."""

    name: str
    """of the file, within the folder or zip that was given"""
    grey: Grey | None
    """the picture, (H, W); None where the file cannot be used"""
    reason: str = ""
    """why the file cannot be used, or empty"""
    patient: Patient = MappingProxyType({})
    """what is known of the patient"""


class Row(NamedTuple):
    """The answer to a picture or to half of one that shows two knees, or why a file cannot be used."""

    name: str
    """of the file, within the folder or zip that was given"""
    reason: str
    """why the file cannot be used, or empty"""
    answer: Answer | None
    """None where there is a reason"""
    heat: npt.NDArray[Any] | None
    """Grad-CAM in [0, 1], (S, S)"""


def list_pictures(given: str) -> tuple[Archive, list[Entry]]:
    """A file, folder or zip as an archive, and the files in it that are meant to be pictures.

    Raises:
        UserError: nothing is there, or no picture.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.suffix.lower() != ".zip":
        folder = Folder(path.parent)
        entry = folder.entry(path.name)
        if not is_picture(folder, entry) and (reason := _why_unusable(folder, entry)):
            raise UserError(f"input={given}: {reason}; {EXPECTED}")
        return folder, [entry]
    archive = open_archive(given, "input")
    entries = [entry for entry in archive.entries() if not is_hidden(entry.name)]
    pictures = [entry for entry in entries if is_picture(archive, entry)]
    if skipped := len(entries) - len(pictures):
        log.info("skipped %s without the suffix of a picture or the header of DICOM", counted(skipped, "file"))
    if not pictures:
        raise UserError(f"input={given} holds no pictures; {EXPECTED}")
    return archive, pictures


def _why_unusable(archive: Archive, entry: Entry) -> str:
    """Why a file cannot be read as a picture; empty where it can, or that is for its answer to say."""
    try:
        read_picture(archive.read(entry.name))
    except Unusable as error:
        return str(error).splitlines()[0]
    except OSError:
        return ""
    return ""


def open_pictures(
    archive: Archive, entries: Iterable[Entry], models: Sequence[Model], patients: Mapping[str, Patient] | None = None
) -> Iterator[Opened]:
    """Reads one file after another, in the size that the models need; patients are known by the names of pictures."""
    size = size_to_read(models)
    for entry in entries:
        if entry.refused:
            yield Opened(entry.name, None, entry.refused)
            continue
        try:
            grey = read_picture(archive.read(entry.name), size)
            yield Opened(entry.name, grey, patient=(patients or {}).get(entry.name, {}))
        except Unusable as error:
            yield Opened(entry.name, None, str(error).splitlines()[0])
        except PermissionError as error:
            yield Opened(entry.name, None, describe_error(error))
        except (OSError, RuntimeError):
            yield Opened(entry.name, None, "cannot be read")


def read_patients(
    clinical: str | None, columns: Sequence[str], names: Sequence[str], models: Sequence[Model]
) -> dict[str, Patient]:
    """What a clinical sheet says of the patients of pictures, by the picture's name; what is missing is left out.

    Args:
        clinical: the file, with a column of the pictures' names, or of patients after whom they are named; None
            where there is none.
        columns: what its columns hold, as COLUMN:MEANING.
        names: of the pictures, within the folder or zip that was given.
        models: whose covariates are asked for.

    Raises:
        UserError: no model takes any; or the sheet cannot be used, or speaks of none of the pictures.
    """
    wanted = covariates_of(models)
    if clinical is None:
        if wanted:
            log.warning(
                "the model takes the patient's %s too, and no clinical sheet is given (clinical=FILE):"
                " typical values from training are used", ", ".join(wanted),
            )  # fmt: skip
        return {}
    if not wanted:
        raise UserError(f"clinical={Path(clinical).name} is not used: the model takes no covariates; leave it out")
    sheet = read_clinical(DataConfig(clinical=clinical, clinical_columns=list(columns), covariates=wanted), "clinical")
    if not {"picture", "patient"} & set(sheet.cells):
        raise UserError(
            f"{sheet.option} has no column for the picture; name it: clinical_columns=[COLUMN:picture]; its columns"
            f" are: {', '.join(sheet.headings)}"
        )
    by_picture = "picture" in sheet.cells
    stems = {name: PurePosixPath(name).stem for name in names}
    keys = sheet.keys(dict.fromkeys(names, "") if by_picture else stems, SOURCE, SOURCE)
    if keys.empty:
        compared = f"column '{sheet.columns['picture']}' was" if by_picture else "patients were"
        raise UserError(
            f"{sheet.option} has a row for none of {counted(len(names), 'picture')}, such as {names[0]}; its {compared}"
            " compared with their names"
        )
    table = sheet.table(keys)
    rows = table[[name for name in table if name != "row"]].to_dict("index")
    known: dict[str, Patient] = {
        str(key): {str(name): cell for name, cell in row.items() if pd.notna(cell)} for key, row in rows.items()
    }
    return {name: known.get(f"{SOURCE}/{name}" if by_picture else stems[name], {}) for name in names}


def answer_pictures(
    models: Sequence[Model], pictures: Iterable[Opened], *, rule: str, interval: bool, overlay: bool = False
) -> Iterator[list[Row]]:
    """The rows of one picture after another: its own, and two more where it shows two knees.

    Args:
        models: one or several, which answer together.
        pictures: read as they are needed.
        rule: by which the threshold was chosen on validation.
        interval: whether the answers have a range over models and harmless changes of the picture.
        overlay: whether the rows have heat maps, where the backbones allow them.
    """

    def ask(pictures: Sequence[Grey], patients: Sequence[Patient]) -> list[Answer]:
        return answer(models, pictures, rule=rule, interval=interval, patients=patients)

    remaining = iter(pictures)
    while batch := list(islice(remaining, BATCH)):
        usable = [(picture.grey, picture.patient) for picture in batch if picture.grey is not None]
        of_batch = [list(column) for column in zip(*usable, strict=True)]
        answers = iter(ask(*of_batch) if usable else [])
        for name, grey, reason, patient in batch:
            if grey is None:
                yield [Row(name, reason, None, None)]
                continue
            parts = [(name, grey, next(answers))]
            if halves := parts[0][2].inspection.halves:
                names = (f"{name} (left half)", f"{name} (right half)")
                of_halves = ask(halves, [patient] * 2)
                parts += zip(names, halves, of_halves, strict=True)
            rows = []
            for part, pixels, found in parts:
                if found.error:
                    rows.append(Row(part, found.error, None, None))
                    continue
                heat = None
                if overlay:
                    try:
                        heat = heat_map(models, pixels)
                    except UserError as error:
                        log.warning("no overlays: %s", error)
                        overlay = False
                rows.append(Row(part, "", found, heat))
            yield rows


def describe_rows(rows: Sequence[Row]) -> str:
    """How many pictures have an answer, how many answers are withheld, and how many files cannot be used."""
    calls = [row.answer.call for row in rows if row.answer is not None]
    withheld = calls.count(WITHHELD)
    numbers = {"withheld": withheld, "unusable": len(rows) - len(calls)}
    others = [f"{number} {what}" for what, number in numbers.items() if number]
    return ", ".join([f"{counted(len(rows), 'picture')}: {len(calls) - withheld} answered", *others])


def to_table(rows: Iterable[Row], rule: str) -> pd.DataFrame:
    """The content of predictions.csv, one line per row; what a file that cannot be used lacks is missing.

    Args:
        rows: of `answer_pictures`.
        rule: by which the threshold was chosen.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"file": row.name, "error": row.reason}
        if (found := row.answer) is not None:
            line |= {
                "probability": found.probability,
                "calibrated": found.calibrated,
                "low": found.low,
                "high": found.high,
                "threshold": found.threshold,
                "rule": rule,
                "call": found.call,
                "flag": "; ".join((*found.inspection.flags, *found.notes)),
                "guard_score": found.inspection.score,
                "guard_limit": found.inspection.limit,
                "logit": found.logit,
                **found.details,
            }
        lines.append(line)
    table = pd.DataFrame(lines)
    return table.reindex(columns=[*COLUMNS, *(name for name in table if name not in COLUMNS)])
