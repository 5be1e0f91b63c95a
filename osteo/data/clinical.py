"""The clinical sheet of the Mendeley archive, a table of its own: nothing of it goes into a manifest, a log or W&B."""

import logging
import re
from collections.abc import Iterable, Iterator

import pandas as pd

from osteo.data.archives import Archive
from osteo.reading.pictures import Unusable, describe_error
from osteo.reading.tables import LARGEST_TABLE, NO_WORKBOOK, WORKBOOK, read_sheets
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
SHEETS = {".xlsx", ".csv"}


def find_sheet(archive: Archive, name: str) -> pd.DataFrame | None:
    """What `read_sheet` makes of a file in an archive; one that cannot be used is named in a warning."""
    try:
        content = archive.read(name, LARGEST_TABLE + 1)
        if name.lower().endswith(".xlsx") and not content.startswith(WORKBOOK):
            raise Unusable(NO_WORKBOOK)
        return read_sheet(content)
    except (OSError, Unusable) as error:
        log.warning("set aside %s: %s", name, describe_error(error))
        return None


def read_sheet(content: bytes) -> pd.DataFrame | None:
    """Reads a workbook or CSV file, one row per patient, indexed by the patient's pseudonym in upper case.

    Returns:
        The columns of `COLUMNS`, numbers as float (age in years, height in m, weight in kg, T- and Z-score in standard
        deviations) and words in lower case; rows without a patient are dropped. None where this is no clinical sheet:
        nothing in it names the patient and one thing more.

    Raises:
        Unusable: it is no table, is damaged, or is larger than any sheet of patients.
    """
    tables = (_table(rows) for rows in read_sheets(content))
    return next((table for table in tables if table is not None), None)


def _table(rows: Iterator[list[str]]) -> pd.DataFrame | None:
    headings = [_normalised(cell) for cell in next(rows, [])]
    places = {
        name: [place for place, heading in enumerate(headings) if heading.startswith(start)]
        for name, start in COLUMNS.items()
    }
    if COLUMNS["patient"] not in headings or sum(map(bool, places.values())) < 2:
        return None
    cells = list(rows)
    table = pd.DataFrame(index=range(len(cells)))
    for name, found in places.items():
        column = [row[found[0]] if found and found[0] < len(row) else "" for row in cells]
        if name in NUMBERS:
            numbers = pd.Series([cell.replace(",", ".") for cell in column], dtype=object)
            table[name] = pd.to_numeric(numbers, errors="coerce").astype(float)
        else:
            table[name] = pd.Series([_normalised(cell) or None for cell in column], dtype="string")
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
