"""The clinical sheet of the Mendeley archive, a table of its own: nothing of it goes into a manifest, a log or W&B."""

import io
import re
import zipfile
from collections.abc import Iterable

import openpyxl
import pandas as pd

from osteo.task import CLASSES

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


def read_sheet(content: bytes) -> pd.DataFrame | None:
    """Reads a workbook, one row per patient, indexed by the patient's pseudonym in upper case.

    Returns:
        The columns of `COLUMNS`, numbers as float (age in years, height in m, weight in kg, T- and Z-score in standard
        deviations) and words in lower case; rows without a patient are dropped. None where this is no clinical sheet.
    """
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    for sheet in book.worksheets:
        rows = list(sheet.iter_rows(values_only=True))
        headings = [_normalised(cell) for cell in rows[0]] if rows else []
        if "patient id" not in headings:
            continue
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
    return None


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
