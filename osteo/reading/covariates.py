"""A patient's characteristics as numbers: how a cell of a clinical sheet is read, and what is learnt of the columns."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from osteo.errors import UserError, counted
from osteo.types import Floats

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a number can be, both ends included."""

    low: float
    high: float
    unit: str


NUMBERS: Mapping[str, Limits] = {
    "age": Limits(0, 120, "years"),
    "menopause_age": Limits(10, 80, "years"),
    "height": Limits(0.5, 2.5, "m; 165 cm is 1.65"),
    "weight": Limits(10, 400, "kg"),
    "bmi": Limits(8, 100, "kg/m²"),
    "t_score": Limits(-10, 10, "standard deviations"),
    "z_score": Limits(-10, 10, "standard deviations"),
}
"""Columns that hold numbers; what lies outside is a slip or another unit."""
_YES_NO = {"no": ("no", "n", "0", "false", "nein", "none", "never"), "yes": ("yes", "y", "1", "true", "ja", "j")}
WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sex": {"female": ("female", "f", "w", "woman", "weiblich"), "male": ("male", "m", "man", "männlich")},
    "smoker": _YES_NO,
    "diabetic": _YES_NO,
    "fracture": _YES_NO,
    "family_history": _YES_NO,
}
"""Columns that hold one of two words, each with those that mean the same; the second is 1 as a number."""
DESCRIBED = ("fracture", "family_history")
"""Columns of words in which any other text, such as the bone or the relative, means yes."""
UNKNOWN = ("", "-", "?", "na", "n/a", "nan", "null", "unknown", "unbekannt")
"""What stands for a value that is not known."""


Patient: TypeAlias = Mapping[str, object]
"""Covariates of one patient by name, as the cells of a sheet hold them; those that are left out are not known."""


class ImpossibleError(ValueError):
    """A cell that cannot be; the text says what is allowed, and nothing of the cell."""


def read_cell(name: str, cell: object) -> float | str | None:
    """The number or the word of a cell; None where it is not known.

    Args:
        name: of the column, as we name it.
        cell: a number, or text with a decimal point or comma, in any case.

    Raises:
        ImpossibleError: a number is outside `NUMBERS`, or a word is none of `WORDS`.
    """
    text = "" if cell is None or cell is pd.NA else lowered(str(cell))
    if text in UNKNOWN:
        return None
    if name in NUMBERS:
        low, high, unit = NUMBERS[name]
        try:
            number = float(text.replace(",", "."))
        except ValueError:
            number = np.nan
        if not low <= number <= high:
            raise ImpossibleError(f"is not a number from {low:g} to {high:g} ({unit})")
        return number
    if name not in WORDS:
        return text
    for word, forms in WORDS[name].items():
        if text in forms:
            return word
    if name in DESCRIBED:
        return "yes"
    known = "; ".join(", ".join(forms) for forms in WORDS[name].values())
    raise ImpossibleError(f"is not one of the known words: {known}")


def read_column(name: str, cells: "pd.Series[str]", heading: str, option: str, *, strict: bool) -> "pd.Series[Any]":
    """The numbers (float) or words of a column, missing where not known, indexed as its cells are.

    Args:
        name: of the column, as we name it.
        cells: text, by the number of the row in its file.
        heading: of the column, for messages.
        option: that named the file, for messages.
        strict: whether a value that cannot be is an error; else it counts as not known, and a warning counts these.

    Raises:
        UserError: a value cannot be; its row is named, and not the value.
    """
    values, impossible = [], 0
    for row, cell in cells.items():
        try:
            values.append(read_cell(name, cell))
        except ImpossibleError as error:
            if strict:
                raise UserError(f"{option}: '{heading}' in row {row} {error}") from None
            values.append(None)
            impossible += 1
    if impossible:
        log.warning(
            "%s: %s in '%s' are impossible, and count as not known", option, counted(impossible, "value"), heading
        )
    return pd.Series(values or None, index=cells.index, dtype="float64" if name in NUMBERS else "string")


def lowered(cell: str) -> str:
    """Text in lower case, with single blanks and without colons, as headings have them."""
    return re.sub(r"[\s:]+", " ", cell).strip().lower()


def described(name: str) -> str:
    """In what a covariate is given as a number, such as (years), or (female 0, male 1)."""
    if name in NUMBERS:
        return f"({NUMBERS[name].unit.partition(';')[0]})"
    return "(" + ", ".join(f"{word} {number}" for number, word in enumerate(WORDS[name])) + ")"


def as_number(name: str, value: float | str) -> float:
    """A known value of a covariate as a number: of a word, 0 or 1."""
    return float(value) if name in NUMBERS else float(value == list(WORDS[name])[1])


def as_numbers(names: Sequence[str], table: pd.DataFrame) -> Floats:
    """Covariates as they are, words as 0 and 1, NaN where one is not known, (N, C).

    Args:
        names: of the covariates.
        table: one row per picture; a column of floats or words per covariate, missing where not known.
    """
    columns = [
        [np.nan if value is None or pd.isna(value) else as_number(name, value) for value in table[name]]
        for name in names
    ]
    return np.array(columns, np.float64).reshape(len(names), len(table)).T


def sources_without(names: Sequence[str], table: pd.DataFrame, sources: Sequence[str]) -> list[str]:
    """Sources of which no picture has any of these covariates, while another has: that one is missing tells them apart.

    Args:
        names: of the covariates.
        table: as `as_numbers` takes it.
        sources: of its rows.
    """
    has_any = table[list(names)].notna().any(axis=1).groupby(list(sources)).any()
    return sorted(has_any.index[~has_any]) if has_any.any() else []


@dataclass(frozen=True)
class Covariates:
    """What has been learnt of the covariates of training pictures, and how it makes features of those of any patient.

    Missing values become the mean of a number and the most frequent word; numbers are then scaled to mean 0 and
    standard deviation 1 in training, and words are 0 or 1. Where a covariate was missing in training, a further feature
    is 1 where it is missing: whether a woman's menopause has an age says something itself. One that repeats another,
    as where whole rows are missing, is left out.
    """

    names: tuple[str, ...]
    """of the covariates, in order"""
    fills: Mapping[str, float | str]
    """what stands for a missing value"""
    means: Mapping[str, float]
    """of those that are numbers, once filled"""
    deviations: Mapping[str, float]
    """standard deviation of those that are numbers, once filled; above 0"""
    flagged: tuple[str, ...] = ()
    """those whose absence is a feature"""

    @classmethod
    def fit(cls, names: Sequence[str], table: pd.DataFrame) -> "Covariates":
        """Learns from training pictures alone.

        Args:
            names: of the covariates.
            table: one row per training picture; a column of floats or words per covariate, missing where not known.

        Raises:
            UserError: a covariate is missing, or the same, in all of them: nothing can be learnt from it.
        """
        fills: dict[str, float | str] = {}
        means, deviations = {}, {}
        absences: dict[bytes, str] = {}
        for name in names:
            known = table[name].dropna()
            if known.nunique() < 2:
                what = "is missing in" if known.empty else "is the same in"
                raise UserError(
                    f"covariate {name} {what} all of {counted(len(table), 'training picture')}, so that nothing can be"
                    " learnt from it; leave it out of covariates"
                )
            if name in NUMBERS:
                fills[name] = float(known.mean())  # unlike the median, no patient's own value
                filled = table[name].astype(float).fillna(fills[name]).to_numpy()
                means[name], deviations[name] = float(filled.mean()), float(filled.std())
            else:
                fills[name] = str(known.mode().iloc[0])  # the first in alphabetical order where several are
            absent = table[name].isna().to_numpy(bool)
            if absent.any():
                absences.setdefault(absent.tobytes(), name)
        return cls(tuple(names), fills, means, deviations, tuple(absences.values()))

    @property
    def feature_names(self) -> list[str]:
        """One per feature, such as age, sex_male, menopause_age_missing."""
        named = [name if name in NUMBERS else f"{name}_{list(WORDS[name])[1]}" for name in self.names]
        return named + [f"{name}_missing" for name in self.flagged]

    def features(self, table: pd.DataFrame) -> npt.NDArray[np.float32]:
        """float32 (N, F), finite.

        Args:
            table: as `as_numbers` takes it.
        """
        columns: list[npt.NDArray[Any]] = []
        for name, values in zip(self.names, as_numbers(self.names, table).T, strict=True):
            filled = np.where(np.isnan(values), as_number(name, self.fills[name]), values)
            columns.append((filled - self.means.get(name, 0.0)) / self.deviations.get(name, 1.0))
        columns += [table[name].isna().to_numpy(float) for name in self.flagged]
        return np.column_stack(columns).astype(np.float32)

    def of_patient(self, values: Patient) -> npt.NDArray[np.float32]:
        """float32 (F,) of one patient; arguments and errors as of `read`."""
        features: npt.NDArray[np.float32] = self.features(pd.DataFrame([self.read(values)]))[0]
        return features

    def read(self, values: Patient) -> dict[str, Any]:
        """The covariates of one patient as numbers and words, None where one is not known.

        BMI follows from height and weight where it is not given.

        Raises:
            UserError: there is no such covariate, or a value cannot be; the value is not said.
        """
        known = self.accepted
        if strange := sorted(values.keys() - set(known)):
            raise UserError(f"'{strange[0]}' is not a covariate of this model; it takes: {', '.join(known)}")
        read: dict[str, Any] = dict.fromkeys(known)
        name = ""
        try:
            for name, cell in values.items():
                read[name] = read_cell(name, cell)
            if "bmi" in known and read["bmi"] is None and read["height"] and read["weight"]:
                name = "bmi"
                read[name] = read_cell(name, read["weight"] / read["height"] ** 2)
        except ImpossibleError as error:
            raise UserError(f"covariate {name} {error}") from None
        return read

    def chosen(self, values: Patient) -> Patient:
        """What of a patient is of use here; the rest may be of another model's."""
        return {name: cell for name, cell in values.items() if name in self.accepted}

    @property
    def accepted(self) -> tuple[str, ...]:
        """What of a patient is of use: the covariates, and height and weight, from which BMI follows."""
        further = ("height", "weight") if "bmi" in self.names else ()
        return *self.names, *(name for name in further if name not in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint or a JSON file holds them."""
        learnt = {"fills": dict(self.fills), "means": dict(self.means), "deviations": dict(self.deviations)}
        return {"names": list(self.names), **learnt, "flagged": list(self.flagged)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Covariates":
        """What `to_dict` has given."""
        fills, means, deviations = (dict(values[key]) for key in ("fills", "means", "deviations"))
        return cls(tuple(values["names"]), fills, means, deviations, tuple(values["flagged"]))
