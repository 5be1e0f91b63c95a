"""Clinical sheets, each a table of its own: nothing of one goes into a manifest, a log or W&B."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from osteo.checks import CLINICAL_COLUMNS, named_pairs
from osteo.config import DataConfig
from osteo.data.archives import Archive
from osteo.errors import UserError, counted
from osteo.reading import labels
from osteo.reading.covariates import ImpossibleError, lowered, read_cell, read_column
from osteo.reading.pictures import Unusable, describe_error
from osteo.reading.tables import (
    LARGEST_TABLE,
    NO_HEADING,
    NO_WORKBOOK,
    NUMBERS_ABOVE,
    WORKBOOK,
    read_sheets,
    read_users_table,
)
from osteo.task import T_SCORE, who_class

log = logging.getLogger(__name__)

COLUMNS = {  # by our name: how Mendeley's heading begins, in lower case, without stray blanks and colons
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
VALUES = tuple(name for name in COLUMNS if name != "patient")
OTHER_NAMES = {
    **{name: (name, start) for name, start in COLUMNS.items()},
    "t_score": ("t_score", "t_score_value"),
    "z_score": ("z_score", "z_score_value"),
    "patient": labels.COLUMNS["patient"],
    "picture": tuple(name for name in labels.COLUMNS["picture"] if name != "name"),  # which is a patient's here
}
"""Headings of a user's sheet by what they hold, the first that is there counts; units in brackets do not matter."""
PATIENT, IMAGE = "patient", "image_id"
"""What a table of ours may be indexed by."""
KEY = "data.clinical"
"""The key that names a sheet."""
UNIT = re.compile(r"[(\[].*?[)\]]|:")
SHEETS = {".xlsx", ".csv"}


def find_sheet(archive: Archive, name: str, wanted: Collection[str] = ()) -> pd.DataFrame | None:
    """What `read_sheet` makes of a file in an archive; one that cannot be used is named in a warning."""
    try:
        content = archive.read(name, LARGEST_TABLE + 1)
        if name.lower().endswith(".xlsx") and not content.startswith(WORKBOOK):
            raise Unusable(NO_WORKBOOK)
        return read_sheet(content, wanted, name)
    except (OSError, Unusable) as error:
        log.warning("set aside %s: %s", name, describe_error(error))
        return None


def read_sheet(content: bytes, wanted: Collection[str] = (), name: str = "the sheet") -> pd.DataFrame | None:
    """Reads a workbook or CSV file laid out as Mendeley's, one row per patient.

    Args:
        content: of the file.
        wanted: columns in which a value that cannot be is an error; in the others it counts as not known.
        name: of the file, for errors.

    Returns:
        As `_typed` and `_one_row_each` make it, indexed by the patient's pseudonym in upper case; rows without a
        patient are dropped. None where this is no clinical sheet: nothing in it names the patient and one thing more.

    Raises:
        Unusable: it is no table, is damaged, or is larger than any sheet of patients.
        UserError: a wanted column is missing, or holds what cannot be.
    """
    tables = (_table(rows, wanted, name) for rows in read_sheets(content))
    return next((table for table in tables if table is not None), None)


def _table(rows: Iterator[list[str]], wanted: Collection[str], option: str) -> pd.DataFrame | None:
    titles = next(rows, [])
    headings = [lowered(cell) for cell in titles]
    places = {
        name: place
        for name, start in COLUMNS.items()
        if (place := next((n for n, heading in enumerate(headings) if heading.startswith(start)), None)) is not None
    }
    if COLUMNS["patient"] not in headings or len(places) < 2:
        return None
    columns = {name: titles[place].strip() for name, place in places.items()}
    _check_columns(columns, wanted, option, [title.strip() for title in titles])
    used = [[row[place] if place < len(row) else "" for place in places.values()] for row in rows]
    cells = pd.DataFrame(used, index=range(2, 2 + len(used)), columns=list(places), dtype="string")
    keys = cells["patient"].map(lowered).str.upper()
    table = _typed(cells[keys != ""], columns, wanted, option)
    return _one_row_each(table, keys[keys != ""].rename("patient"), columns, wanted, option)


def _check_columns(
    columns: Mapping[str, str], wanted: Collection[str], option: str, titles: Sequence[str], key: str = KEY
) -> None:
    """Refuses a sheet that lacks a wanted column; BMI follows from height and weight too."""
    for name in wanted:
        if name not in columns and not (name == "bmi" and {"height", "weight"} <= columns.keys()):
            raise UserError(
                f"{option} has no column for {name}; name it: {key}_columns=[COLUMN:{name}], with"
                f" {key}=FILE; its columns are: {', '.join(filter(None, titles))}"
            )


def _typed(cells: pd.DataFrame, columns: Mapping[str, str], wanted: Collection[str], option: str) -> pd.DataFrame:
    """The cells of a sheet as numbers and words.

    Args:
        cells: text, by our names of columns, indexed by the number of the row in the file.
        columns: their headings, for errors.
        wanted: columns in which a value that cannot be is an error.
        option: that named the sheet, for errors.

    Returns:
        All of `VALUES`, numbers as float (age in years, height in m, weight in kg, T- and Z-score in standard
        deviations) and words in lower case, missing where not known; `row`, the number of the row.

    Raises:
        UserError: a value in a wanted column cannot be; the row and the column are named, and not the value.
    """
    strict = {*wanted, *(("height", "weight") if "bmi" in wanted else ())}
    table = pd.DataFrame({"row": pd.Series(list(cells.index), cells.index, "Int64")})
    for name in VALUES:
        given = cells[name] if name in cells else pd.Series(pd.NA, cells.index, dtype="string")
        table[name] = read_column(name, given, columns.get(name, ""), option, strict=name in strict)
    return table


def _one_row_each(
    table: pd.DataFrame, keys: "pd.Series[str]", columns: Mapping[str, str], wanted: Collection[str], option: str
) -> pd.DataFrame:
    """One row per key, with what all rows of it say together.

    Args:
        table: as `_typed` gives it.
        keys: of its rows, named patient or image_id.
        columns: headings by our names.
        wanted: columns in which rows of one key may not contradict each other; in the others the first one counts.
        option: that named the sheet, for errors.

    Raises:
        UserError: they do, or height and weight give a BMI that cannot be.
    """
    for name in (name for name in VALUES if name in wanted):
        known = table[name].dropna()
        first = known.groupby(keys).transform("first")
        if (differs := known != first).any():
            row = known.index[differs][0]
            earlier = known.index[(keys[known.index] == keys[row]).to_numpy()][0]
            kind = PATIENT if keys.name == PATIENT else "picture"
            raise UserError(
                f"{option}: rows {earlier} and {row} are of one {kind} and differ in '{columns[name]}';"
                " keep one of them"
            )
    merged = table.groupby(keys, sort=False).first()
    computed = (merged["weight"] / merged["height"] ** 2)[merged["bmi"].isna()].dropna()
    for (key, bmi), row in zip(computed.items(), merged.loc[computed.index, "row"], strict=True):
        try:
            read_cell("bmi", bmi)
        except ImpossibleError as error:
            if "bmi" in wanted:
                raise UserError(f"{option}: BMI, from height and weight in row {row}, {error}") from None
            computed = computed.drop(key)
    return merged.assign(bmi=merged["bmi"].fillna(computed))


def validated(table: pd.DataFrame, wanted: Collection[str], option: str) -> pd.DataFrame:
    """A table that a plugin's source has brought, read like a sheet: `row` counts its rows from 1.

    Raises:
        UserError: a wanted column is missing, or holds what cannot be.
    """
    columns = {name: name for name in VALUES if name in table}
    _check_columns(columns, wanted, option, list(map(str, table.columns)))
    cells = table[list(columns)].set_axis(range(1, 1 + len(table)))
    name = IMAGE if table.index.name == IMAGE else PATIENT
    keys = pd.Series(table.index.astype("string"), index=cells.index, name=name)
    return _one_row_each(_typed(cells, columns, wanted, option), keys, columns, wanted, option)


@dataclass(frozen=True)
class ClinicalFile:
    """The sheet of `data.clinical`."""

    option: str
    """that named it, for messages"""
    cells: pd.DataFrame
    """text by our names of columns, indexed by the number of the row"""
    columns: dict[str, str]
    """their headings"""
    headings: tuple[str, ...]
    """of all its columns"""
    wanted: frozenset[str]
    """columns in which a value that cannot be is an error"""

    def keys(self, pictures: Mapping[str, str], source: str, folder: str) -> "pd.Series[str]":
        """The patient, or else the image_id, that each row speaks of, as the series is named; without other rows.

        Args:
            pictures: the patient of each picture of a source by name; empty where not known.
            source: its name, which may stand before the names of its pictures.
            folder: in which they lie, which may stand there too.

        Raises:
            UserError: a row's picture may be either of two.
        """
        patients = {patient.upper(): patient for patient in pictures.values() if patient}
        if patients and PATIENT in self.cells:
            return self.cells[PATIENT].str.upper().map(patients).rename(PATIENT).dropna()
        found: dict[int, str] = {}
        places = labels.Places(pictures, (source, folder))
        cells = self.cells["picture"] if "picture" in self.cells else pd.Series(dtype="string")
        for row, name in zip(cells.index, cells, strict=True):
            fitting = places.find(name) if name else []
            if len(fitting) > 1:
                raise UserError(f"{self.option}: row {row} may be of {fitting[0]} or of {fitting[1]}; give paths")
            if fitting:
                found[row] = f"{source}/{fitting[0]}"
        return pd.Series(found, dtype="string", name=IMAGE)

    def table(self, keys: "pd.Series[str]") -> pd.DataFrame:
        """What it says, one row per key, as `_typed` and `_one_row_each` make it.

        Raises:
            UserError: a value cannot be, or two rows of one key contradict each other.
        """
        typed = _typed(self.cells.loc[keys.index], self.columns, self.wanted, self.option)
        return _one_row_each(typed, keys, self.columns, VALUES, self.option)

    def unmatched(self, pictures: Mapping[str, str]) -> UserError:
        """Why it has a row for none of these pictures, given as `keys` takes them."""
        has_patients = any(pictures.values())
        needed = PATIENT if has_patients else "picture"
        if needed in self.cells or "picture" in self.cells:
            first, patient = next(iter(pictures.items()))
            of_patient = f" of patient {patient}" if needed in self.cells and patient else ""
            return UserError(
                f"{self.option} has a row for none of {counted(len(pictures), 'picture')}, such as {first}{of_patient};"
                f" its column '{self.columns[needed if needed in self.cells else 'picture']}' was compared"
            )
        why = "" if has_patients else " (the pictures have no patients, unless data.patient finds them)"
        return UserError(
            f"{self.option} has no column for the {needed}{why}, such as {', '.join(OTHER_NAMES[needed])}; name it:"
            f" data.clinical_columns=[COLUMN:{needed}]; its columns are: {', '.join(self.headings)}"
        )


def read_clinical(data: DataConfig, key: str = KEY) -> ClinicalFile:
    """Reads `data.clinical`.

    Args:
        data: whose `clinical`, `clinical_columns`, `covariates` and `patient` count.
        key: that named the file, for messages.

    Raises:
        UserError: it is no table with headings, or a column that is asked for is missing.
    """
    path = Path(str(data.clinical)).expanduser()
    option = f"{key}={path.name}"
    table = read_users_table(path, option)
    if any(NO_HEADING.fullmatch(heading) for heading in table.columns):
        raise UserError(f"{option}: {NUMBERS_ABOVE}")
    if table.empty:
        raise UserError(f"{option} has no row below its headings")
    pairs = named_pairs(data.clinical_columns, f"{key}_columns", "COLUMN:MEANING", CLINICAL_COLUMNS)
    columns = labels.named_columns(pairs, labels.plain_headings(table, option), option)
    bare = {labels.plain(UNIT.sub("", heading)): heading for heading in reversed(table.columns)}
    for meaning, names in OTHER_NAMES.items():
        names = (data.patient or "", *names) if meaning == PATIENT else names
        if present := [bare[labels.plain(name)] for name in names if labels.plain(name) in bare]:
            columns.setdefault(meaning, present[0])
    _check_columns(columns, data.covariates, option, list(table.columns), key)
    log.info("%s: %s", option, ", ".join(f"{meaning} from column '{name}'" for meaning, name in columns.items()))
    cells = table[list(columns.values())].set_axis(list(columns), axis=1).fillna("")
    wanted = frozenset({*data.covariates, *pairs.values(), *([T_SCORE] if data.task == T_SCORE else [])})
    return ClinicalFile(option, cells, columns, tuple(table.columns), wanted)


def mismatches(sheet: pd.DataFrame, patients: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """What does not fit between the sheet and the pictures, by pseudonym.

    Returns:
        Patients of pictures without a row, rows without a picture, and rows whose diagnosis the T-score contradicts.
    """
    pictured = set(patients)
    stated = sheet.dropna(subset=["t_score", "diagnosis"])
    wrong = stated[stated["diagnosis"] != stated["t_score"].map(who_class)]
    return sorted(pictured - set(sheet.index)), sorted(set(sheet.index) - pictured), sorted(wrong.index)
