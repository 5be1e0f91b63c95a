"""The clinical sheet of the Mendeley archive, a table of its own: nothing of it goes into a manifest, a log or W&B."""

import re
from collections.abc import Iterable, Iterator

import pandas as pd

from osteo.reading.tables import read_sheets
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
SHEETS = {".xlsx", ".csv"}


def read_sheet(content: bytes) -> pd.DataFrame | None:
    """Reads a workbook or CSV file, one row per patient, indexed by the patient's pseudonym in upper case.

    Returns:
        The columns of `COLUMNS`, numbers as float (age in years, height in m, weight in kg, T- and Z-score in standard
        deviations) and words in lower case; rows without a patient are dropped. None where this is no clinical sheet,
        that is, where no sheet has a patient and anything of the rest.
    """
    try:
        for rows in read_sheets(content):
            if (table := _clinical(rows)) is not None:
                return table
    except ValueError:  # a table of another kind, or none
        pass
    return None


def _clinical(rows: Iterator[list[str]]) -> pd.DataFrame | None:
    headings = [_normalised(cell) for cell in next(rows, [])]
    starts = {name: next((i for i, h in enumerate(headings) if h.startswith(start)), None)
              for name, start in COLUMNS.items()}  # fmt: skip
    if COLUMNS["patient"] not in headings or sum(place is not None for place in starts.values()) < 2:
        return None
    body = list(rows)
    table = pd.DataFrame(index=range(len(body)))
    for name, place in starts.items():
        cells = [row[place] if place is not None and place < len(row) else "" for row in body]
        if name in NUMBERS:
            table[name] = pd.to_numeric(pd.Series([cell.replace(",", ".") for cell in cells]), errors="coerce")
            table[name] = table[name].astype(float)
        else:
            table[name] = pd.Series([_normalised(cell) or None for cell in cells], dtype="string")
    known = table[table["patient"].notna()].drop_duplicates("patient")
    return known.assign(patient=known["patient"].str.upper()).set_index("patient")


def _normalised(cell: str) -> str:
    return re.sub(r"[\s:]+", " ", cell).strip().lower()


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
