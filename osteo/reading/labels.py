"""Labels from a table: the class of each picture of an archive, and where it has them patient, split and T-score."""

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from osteo.checks import LABEL_COLUMNS, named_pairs, patient_pattern
from osteo.config import DataConfig
from osteo.errors import UserError, counted
from osteo.reading.covariates import read_column
from osteo.reading.pictures import PICTURES_AND_DICOM
from osteo.reading.tables import read_users_table
from osteo.task import CLASSES, POSITIVE, T_SCORE, who_class

log = logging.getLogger(__name__)

COLUMNS = {
    "picture": ("image_id", "picture", "image", "image_name", "file", "file_name", "path", "name"),
    "class": ("class", "class_name", "label", "diagnosis", "target", POSITIVE),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "split": ("split",),
    T_SCORE: (T_SCORE, "t_score_value"),
}
"""Names of columns by what they hold, the first that is there counts; case, blanks, - and _ make no difference."""
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Splits by what folders and tables call them."""
NUMBERS = {str(label): name for name, label in CLASSES.items() if label is not None}
"""What the numbers of a column stand for that has no others."""
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
WHOLE = re.compile(r"^(\d+)[.,]0+$")  # 1.0, as pandas may write 1
MOST_SHOWN = 5  # words of a column; more may be a column of patients, whose names stand in no message


class Label(NamedTuple):
    """What is stated of a picture."""

    class_name: str
    patient: str = ""
    split: str = ""
    t_score: float | None = None


KINDS = ("class", "patient", "split", "T-score")
"""What the fields of `Label` are called in messages."""


class Row(NamedTuple):
    """A row of a table of labels."""

    number: int
    """in the file, the heading being 1"""
    picture: str
    """as the file names it"""
    label: Label


@dataclass(frozen=True)
class LabelFile:
    """A table of labels."""

    option: str
    """that named it, for messages"""
    rows: list[Row]
    patient_column: str = ""
    """the column that names the patients, or empty"""

    def match(self, names: Iterable[str], prefixes: Iterable[str] = ()) -> dict[str, Label]:
        """The label of every picture that a row names, by name; what does not fit is said in a warning for each kind.

        Args:
            names: of the pictures in their archive.
            prefixes: that a row may have before such a name.

        Raises:
            UserError: no row fits, or one fits several pictures, or two rows contradict each other.
        """
        places = Places(names, prefixes)
        found: dict[str, Row] = {}
        spare = []
        for row in self.rows:
            fitting = places.find(row.picture)
            if len(fitting) > 1:
                raise UserError(
                    f"{self.option}: '{row.picture}' in row {row.number} may be {fitting[0]} or {fitting[1]};"
                    " give paths"
                )
            if not fitting:
                spare.append(row.picture)
                continue
            earlier = found.setdefault(fitting[0], row)
            for kind, one, two in zip(KINDS, earlier.label, row.label, strict=True):
                if one != two:
                    raise UserError(
                        f"{self.option}: rows {earlier.number} and {row.number} differ in the {kind} of {fitting[0]};"
                        " keep one of them"
                    )
        if not found:
            raise UserError(
                f"{self.option} names none of {counted(len(places.names), 'picture')}"
                + (f", such as {places.names[0]}; its first row names '{self.rows[0].picture}'" if places.names else "")
            )
        warn_of(spare, f"{self.option} has {{}} without a picture", "row")
        left_out = [name for name in places.names if name not in found]
        warn_of(left_out, f"{self.option} has no row with a class for {{}}: left out")
        return {name: row.label for name, row in found.items()}


class Places:
    """Finds a picture by its path, or the end of it, with or without suffix and in any case."""

    def __init__(self, names: Iterable[str], prefixes: Iterable[str]) -> None:
        self.names = list(names)
        self._known = set(self.names)
        self._prefixes = ["", *(f"{prefix.rstrip('/')}/" for prefix in prefixes)]
        self._whole: dict[str, list[str]] = {}
        self._ends: dict[str, list[str]] = {}
        for name in self.names:
            path = _folded(name)
            self._whole.setdefault(path, []).append(name)
            suffix = PurePosixPath(path).suffix
            for form in {path, path.removesuffix(suffix) if suffix in PICTURES_AND_DICOM else path}:
                parts = form.split("/")
                for start in range(len(parts)):
                    self._ends.setdefault("/".join(parts[start:]), []).append(name)

    def find(self, given: str) -> list[str]:
        """The pictures that a name may stand for; the whole path of one is that one, first where case agrees."""
        exact = [given.removeprefix(prefix) for prefix in self._prefixes]
        if same := [path for path in exact if path in self._known]:
            return same[:1]
        paths = [_folded(given).removeprefix(_folded(prefix)) for prefix in self._prefixes]
        for known in (self._whole, self._ends):
            for path in paths:
                if path in known:
                    return known[path]
        return []


def _folded(name: str) -> str:
    """A name as it is compared: without regard to case, to slashes of Windows and to how accents are composed."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./").casefold()


def read_labels(data: DataConfig) -> LabelFile:
    """Reads `data.labels`. Where T-scores are asked for and stand there, a class may be left out: it follows from them.

    Raises:
        UserError: there is no such table, a column is missing, or a word in it is none that it may hold.
    """
    path = Path(str(data.labels)).expanduser()
    option = f"data.labels={path.name}"
    table = read_users_table(path, option)
    columns = _find_columns(table, data, option)
    if table.empty:
        raise UserError(f"{option} has no row below its headings")
    log.info("%s: %s", option, ", ".join(f"{meaning} from column '{name}'" for meaning, name in columns.items()))
    cells = {meaning: table[column].fillna("") for meaning, column in columns.items()}
    blank = pd.Series("", index=table.index)
    is_wanted = data.task == T_SCORE or T_SCORE in _named(data).values()
    t_scores = read_column(T_SCORE, cells.get(T_SCORE, blank), columns.get(T_SCORE, ""), option, strict=is_wanted)
    if "class" in cells:
        classes = _classes(cells["class"], columns["class"], data, option)
    else:
        classes = t_scores.map(who_class, na_action="ignore").fillna("")
    splits = blank
    if "split" in cells:
        splits = _translate(cells["split"], SPLIT_NAMES, columns["split"], option, "write train, val or test")
    known = (classes != "") & (cells["picture"] != "")
    if not known.any():
        raise UserError(f"{option} has no row with a picture and a class of {', '.join(CLASSES)}")
    patients = cells.get("patient", blank).str.upper()
    measured = (None if math.isnan(t_score) else t_score for t_score in t_scores)
    values = zip(table.index, cells["picture"], classes, patients, splits, measured, known, strict=True)
    rows = [Row(number, picture, Label(*stated)) for number, picture, *stated, use in values if use]
    if "split" in cells and (missing := sum(not row.label.split for row in rows)):
        raise UserError(
            f"{option} has no split in {missing} of {counted(len(rows), 'row')}; give one to all of them, or to none"
        )
    return LabelFile(option, rows, columns.get("patient", ""))


def _find_columns(table: pd.DataFrame, data: DataConfig, option: str) -> dict[str, str]:
    """The heading of the column that holds each thing, for those that are there."""
    headings = plain_headings(table, option)
    listed = f"its columns are: {', '.join(table.columns)}"
    given = named_columns(_named(data), headings, option)
    if data.patient:
        if plain(data.patient) in headings:
            given["patient"] = headings[plain(data.patient)]
        elif "(" not in data.patient:
            raise UserError(
                f"data.patient={data.patient} is neither a column of {option} nor a pattern with a group; {listed}"
            )
    for meaning, names in COLUMNS.items():
        present = [headings[plain(name)] for name in names if plain(name) in headings]
        if present and not (meaning == "patient" and data.patient):
            given.setdefault(meaning, present[0])
    for needed in ("picture", "class"):
        if needed not in given and not (needed == "class" and data.task == T_SCORE and T_SCORE in given):
            raise UserError(
                f"{option} has no column for the {needed}, such as {', '.join(COLUMNS[needed])}; name it:"
                f" data.columns=[COLUMN:{needed}]; {listed}"
            )
    return given


def _named(data: DataConfig) -> dict[str, str]:
    """What a column holds that data.columns names."""
    return named_pairs(data.columns, "data.columns", "COLUMN:MEANING with a meaning", LABEL_COLUMNS)


def plain_headings(table: pd.DataFrame, option: str) -> dict[str, str]:
    """The headings of a table by how they are compared.

    Raises:
        UserError: two of them cannot be told apart.
    """
    headings: dict[str, str] = {}
    for heading in table.columns:
        if (earlier := headings.setdefault(plain(heading), heading)) != heading:
            raise UserError(f"{option} has the columns '{earlier}' and '{heading}', which cannot be told apart")
    return headings


def named_columns(pairs: Mapping[str, str], headings: Mapping[str, str], option: str) -> dict[str, str]:
    """The heading of each meaning that the user has named a column for.

    Args:
        pairs: a meaning by the name of its column.
        headings: as `plain_headings` gives them.
        option: that named the table, for errors.

    Raises:
        UserError: there is no such column, or two of them are to hold the same.
    """
    found: dict[str, str] = {}
    for name, meaning in pairs.items():
        if plain(name) not in headings:
            raise UserError(f"{option} has no column '{name}'; its columns are: {', '.join(headings.values())}")
        heading = headings[plain(name)]
        if (earlier := found.setdefault(meaning, heading)) != heading:
            raise UserError(f"{option}: '{earlier}' and '{heading}' cannot both be the {meaning}; name one of them")
    return found


def plain(heading: str) -> str:
    """A heading as it is compared: without regard to case, blanks, - and _."""
    return re.sub(r"[\s_-]+", "", heading).casefold()


def _classes(cells: "pd.Series[str]", column: str, data: DataConfig, option: str) -> "pd.Series[str]":
    """The class that each cell stands for, as data.classes may say it; empty where it stands for none.

    Raises:
        UserError: none of them stands for one, or what their numbers mean is not known.
    """
    words = {name: name for name in CLASSES}
    given = named_pairs(data.classes, "data.classes", "FOLDER:CLASS with a class", CLASSES)
    words |= {WHOLE.sub(r"\1", name): meaning for name, meaning in given.items()}
    cells = cells.str.replace(WHOLE, r"\1", regex=True)
    words |= _numbers(cells, words, column, option)
    return _translate(cells, words, column, option, "map it with data.classes=[WORD:CLASS]")


def _numbers(cells: "pd.Series[str]", words: Mapping[str, str], column: str, option: str) -> Mapping[str, str]:
    """`NUMBERS`, where a column has these alone; nothing where the user has said what its numbers mean.

    Raises:
        UserError: it has others, as where 1 is osteopenia, and the user has not said what they mean.
    """
    numbers = sorted({word for word in cells if NUMBER.fullmatch(word)}, key=float)
    if any(word in words for word in numbers):
        return {}
    if set(numbers) <= set(NUMBERS):
        return NUMBERS
    listed = ", ".join(numbers) if len(numbers) <= MOST_SHOWN else f"{len(numbers)} different numbers"
    raise UserError(
        f"{option}: column '{column}' has {listed}; say what they mean, as in"
        f" data.classes=[{','.join(f'{number}:{name}' for number, name in enumerate(CLASSES))}]"
    )


def _translate(
    cells: "pd.Series[str]", words: Mapping[str, str], column: str, option: str, hint: str
) -> "pd.Series[str]":
    """What the words of a column stand for; a warning counts those that are none, which become empty.

    Raises:
        UserError: none of them is known.
    """
    meanings = cells.str.casefold().map(words).fillna("")
    strange = cells[meanings == ""]
    if strange.empty:
        return meanings
    shown = sorted(set(strange) - {""})
    listed = f": {', '.join(shown)}" if 0 < len(shown) <= MOST_SHOWN else ""
    expected = ", ".join(dict.fromkeys(words.values()))
    message = (
        f"{option}: {len(strange)} of {counted(len(cells), 'row')}"
        f" {'has' if len(strange) == 1 else 'have'} none of {expected} in column '{column}'{listed}; {hint}"
    )
    if len(strange) == len(cells):
        raise UserError(message)
    log.warning("%s", message)
    return meanings


def patient_in(given: str) -> Callable[[str], str]:
    """A function that finds the patient in the path of a picture by a pattern, in upper case; empty where it has none.

    Raises:
        UserError: it is no pattern with one group.
    """
    pattern = patient_pattern(given)

    def find(name: str) -> str:
        found = pattern.search(name)
        return (found[1] or "").strip().upper() if found else ""

    return find


def check_patients(patients: Mapping[str, str], option: str) -> None:
    """Warns of pictures of which no patient is known.

    Args:
        patients: by the name of the picture, empty where unknown.
        option: that was to give them, for messages.

    Raises:
        UserError: it gives no patient at all.
    """
    unknown = [name for name, patient in patients.items() if not patient]
    if unknown and len(unknown) == len(patients):
        raise UserError(
            f"{option} finds no patient in any of {counted(len(patients), 'picture')}, such as {unknown[0]}"
        )
    warn_of(unknown, f"{option} finds no patient in {{}}: each counts as one of its own")


def warn_of(names: list[str], message: str, noun: str = "picture") -> None:
    """Logs a warning with the number of things, of which it names the first, at `{}`; nothing where there are none."""
    if names:
        log.warning("%s", message.replace("{}", f"{counted(len(names), noun)} ({names[0]} first)"))
