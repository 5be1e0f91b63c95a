"""The clinical sheet of the Mendeley archive, a table of its own: nothing of it goes into a manifest, a log or W&B."""

import io
import logging
import re
import time
import zipfile
from collections.abc import Iterable
from typing import Any

import openpyxl
import pandas as pd

from osteo.data.archives import Archive
from osteo.reading.pictures import Unusable, describe_error
from osteo.task import CLASSES

log = logging.getLogger(__name__)

NORMAL, OSTEOPENIA, OSTEOPOROSIS = CLASSES

COLUMNS = {  # by our name: how the sheet's heading begins, in lower case, without stray blanks and colons
    "patient": "patient id",
    "sex": "gender",
    "age": "age",
    "t_score": "t-score",
    "z_score": "z-score",
    "diagnosis": "diagnosis",
    "menopause_age": "menopause age",
    "height": "height",
    "weight": "weight",
    "bmi": "bmi",
    "smoker": "smoker",
    "diabetic": "diabetic",
    "fracture": "history of fracture",
    "family_history": "family history of osteoporosis",
}
NUMBERS = ("age", "t_score", "z_score", "menopause_age", "height", "weight", "bmi")
SHEETS = {".xlsx"}
PARTS = (".xml", ".rels")
"""Suffixes of what openpyxl reads of a workbook; pictures in it are left alone."""
MOST_BYTES, MOST_TEXT = 64 * 2**20, 8 * 2**20
"""Of a workbook, and of its text once it is unpacked, 0.3 MB for 240 patients; openpyxl may need 150 times that."""
MOST_ROWS, MOST_CELLS = 50_000, (2**20, 256)
"""Rows that are not empty; and the rows, as many as Excel has, and columns that are looked at."""
MOST_SECONDS = 20.0
TOO_LARGE = "larger than a sheet with one row per patient can be"


def find_sheet(archive: Archive, name: str) -> pd.DataFrame | None:
    """What `read_sheet` makes of a workbook in an archive; one that cannot be used is named in a warning."""
    try:
        return read_sheet(archive.read(name, MOST_BYTES + 1))
    except (OSError, Unusable) as error:
        log.warning("set aside %s: %s", name, describe_error(error))
        return None


def read_sheet(content: bytes) -> pd.DataFrame | None:
    """Reads a workbook, one row per patient, indexed by the patient's pseudonym in upper case.

    Returns:
        The columns of `COLUMNS`, numbers as float (age in years, height in m, weight in kg, T- and Z-score in standard
        deviations) and words in lower case; rows without a patient are dropped. None where this is no clinical sheet.

    Raises:
        Unusable: it is no workbook, is damaged, or is larger than any sheet of patients.
    """
    end = time.monotonic() + MOST_SECONDS
    if len(content) > MOST_BYTES:
        raise Unusable(TOO_LARGE)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if sum(part.file_size for part in parts.infolist() if part.filename.endswith(PARTS)) > MOST_TEXT:
                raise Unusable(TOO_LARGE)
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        for sheet in book.worksheets:
            if (rows := _rows(sheet, end)) is not None:
                return _table(rows)
    except Unusable:
        raise
    except Exception as error:
        raise Unusable("not a workbook, or damaged") from error
    return None


def _rows(sheet: Any, end: float) -> list[tuple[object, ...]] | None:
    """The rows of a worksheet that are not empty, headings first; None where there is no heading of a patient.

    Args:
        sheet: of openpyxl, which pads rows to the size that the file claims to have, unless limited.
        end: when to give up, as `time.monotonic` counts.
    """
    rows: list[tuple[object, ...]] = []
    for row in sheet.iter_rows(min_row=1, max_row=MOST_CELLS[0], min_col=1, max_col=MOST_CELLS[1], values_only=True):
        if time.monotonic() > end or len(rows) > MOST_ROWS:
            raise Unusable(TOO_LARGE)
        if row.count(None) == len(row):
            continue
        rows.append(row)
        if len(rows) == 1 and "patient id" not in map(_normalised, row):
            return None
    return rows or None


def _table(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    headings = [_normalised(cell) for cell in rows[0]]
    table = pd.DataFrame(index=range(len(rows) - 1))
    for name, start in COLUMNS.items():
        place = next((i for i, heading in enumerate(headings) if heading.startswith(start)), None)
        cells = [row[place] if place is not None else None for row in rows[1:]]
        if name in NUMBERS:
            table[name] = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").astype(float)
        else:
            table[name] = pd.Series([_normalised(cell) or None for cell in cells], dtype="string")
    known = table[table["patient"].notna()].drop_duplicates("patient")
    return known.assign(patient=known["patient"].str.upper()).set_index("patient")


def _normalised(cell: object) -> str:
    return re.sub(r"[\s:]+", " ", "" if cell is None else str(cell)).strip().lower()


def who_class(t_score: float) -> str:
    """The WHO's class of a T-score: normal above -1, osteoporosis at -2.5 or below, osteopenia between."""
    if t_score <= -2.5:
        return OSTEOPOROSIS
    return NORMAL if t_score > -1.0 else OSTEOPENIA


def mismatches(sheet: pd.DataFrame, patients: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """What does not fit between the sheet and the pictures, by pseudonym.

    Returns:
        Patients of pictures without a row, rows without a picture, and rows whose diagnosis the T-score contradicts.
    """
    pictured = set(patients)
    stated = sheet.dropna(subset=["t_score", "diagnosis"])
    wrong = stated[stated["diagnosis"] != stated["t_score"].map(who_class)]
    return sorted(pictured - set(sheet.index)), sorted(set(sheet.index) - pictured), sorted(wrong.index)
