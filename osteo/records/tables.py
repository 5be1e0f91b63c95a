"""Reads the tables of a run record: one that is damaged or contradicts another is one line that names it."""

import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from osteo.data.manifest import COLUMNS, SPLITS, typed
from osteo.errors import counted
from osteo.files import read_table
from osteo.records.content import damaged, read_text
from osteo.task import PREDICTED_T_SCORE, T_SCORE, TASKS
from osteo.types import Floats, Mask

OF_HISTORY = ("epoch", "train/loss", "val/loss", "val/auroc")
OF_PRETRAINING = ("epoch", "train/loss")
"""Columns of history.csv of a training, and of a pretraining."""
OF_PREDICTIONS = ("image_id", "split", "label", "logit", "probability")
TOLERANCE = 1e-3
"""by which a probability may differ from that of its logit: older versions rounded"""


class Check(NamedTuple):
    """What may be wrong with the rows of a table."""

    wrong: Mask
    """(N,)"""
    say: Callable[[int], str]
    """what is wrong with a row, by its place"""


def read_csv(path: Path, columns: tuple[str, ...], **options: Any) -> pd.DataFrame:
    """A table with at least these columns and one row.

    Raises:
        DamagedError: it is none, or lacks a column.
    """
    text = read_text(path)
    try:
        table = read_table(io.StringIO(text), **options)
    except ValueError as error:  # of pandas' parser
        raise damaged(path, f"is damaged: not a table ({str(error).strip().splitlines()[0]})") from None
    if missing := [name for name in columns if name not in table]:
        raise damaged(path, f"is damaged: it lacks the column {missing[0]}")
    if table.empty:
        raise damaged(path, "is damaged: it has no row")
    return table


def check_numbers(
    path: Path,
    table: pd.DataFrame,
    columns: Iterable[str],
    *,
    finite: bool = True,
    where: Mask | None = None,
) -> None:
    """Refuses columns that are not numbers.

    Args:
        path: of the table.
        table: its rows.
        columns: that hold numbers.
        finite: refuse what is missing or infinite, too.
        where: rows that are looked at; all where it is None.

    Raises:
        DamagedError: the first row that has none there.
    """
    for name in columns:
        values, numbers = table[name], _numbers(table[name])
        wrong = ~np.isfinite(numbers) if finite else np.isnan(numbers) & values.notna().to_numpy(bool)
        wrong = wrong if where is None else wrong & where
        kind = "finite number" if finite else "number"
        refuse_rows(path, table, [Check(wrong, partial(_say_value, values, kind))])


def _say_value(values: "pd.Series[Any]", kind: str, number: int) -> str:
    return f"{values.name} is {values.iloc[number]}, no {kind}"


def _numbers(values: "pd.Series[Any]") -> Floats:
    """NaN where there is none, (N,)."""
    numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
    return np.asarray(numbers.to_numpy(float, na_value=np.nan), np.float64)


def refuse_rows(path: Path, table: pd.DataFrame, checks: Iterable[Check]) -> None:
    """Refuses a table that has a wrong row.

    Args:
        path: of the table.
        table: its rows.
        checks: what may be wrong with them.

    Raises:
        DamagedError: it names the first wrong row, by its number (the heading is none) and its picture.
    """
    found = [(int(np.argmax(wrong)), say) for wrong, say in checks if wrong.any()]
    if found:
        number, say = min(found, key=lambda pair: pair[0])
        picture = f" ({table['image_id'].iloc[number]})" if "image_id" in table else ""
        raise damaged(path, f"is damaged: row {number + 1}{picture}: {say(number)}")


def read_history(path: Path, *, labelled: bool = True) -> pd.DataFrame:
    """The curves, one row per epoch.

    Args:
        path: of history.csv.
        labelled: it is of a training, with validation; else of a pretraining.

    Raises:
        DamagedError: a column is missing or no number, or the epochs are not those from 0 on.
    """
    table = read_csv(path, OF_HISTORY if labelled else OF_PRETRAINING)
    check_numbers(path, table, table.columns, finite=False)
    check_numbers(path, table, ("epoch",))
    is_wrong = table["epoch"].to_numpy(float) != np.arange(len(table))
    refuse_rows(path, table, [Check(is_wrong, lambda n: f"epoch {table['epoch'].iloc[n]} is out of order")])
    return table


def read_manifest(path: Path, *, labelled: bool = True) -> pd.DataFrame:
    """The manifest with its splits, typed.

    Args:
        path: of manifest.csv.
        labelled: every picture that is used has the label of its class.

    Raises:
        DamagedError: a column is missing or of another type, a picture stands in it twice, or a label is not that of
            its class.
    """
    read = read_csv(path, tuple(COLUMNS), dtype="string", keep_default_na=False, na_values=[""])
    image_ids, splits, labels, classes = (read[name] for name in ("image_id", "split", "label", "class_name"))
    used = (splits != "excluded").to_numpy(bool, na_value=True)
    check_numbers(path, read, (*(["label"] if labelled else []), "width", "height"), where=used)
    # a record of a task holds its labels; which task that is, its configuration says
    by_task = [_numbers(classes.map(task.labels.get)) for task in TASKS.values()]
    expected = min(by_task, key=lambda of_task: int((used & (_numbers(labels) != of_task)).sum()))
    refuse_rows(path, read, [
        Check(image_ids.isna().to_numpy(bool), lambda _: "it has no image_id"),
        Check(image_ids.duplicated().to_numpy(bool), lambda _: "the picture is listed twice"),
        Check(~splits.isin([*SPLITS, "excluded"]).to_numpy(bool), lambda n: f"there is no split {splits.iloc[n]!r}"),
        Check(labelled & used & (_numbers(labels) != expected),
              lambda n: f"label {labels.iloc[n]} of class {classes.iloc[n]}"),
    ])  # fmt: skip
    try:
        return typed(read)
    except (ValueError, TypeError) as error:
        raise damaged(path, f"is damaged: {str(error).splitlines()[0]}") from None


def read_predictions(path: Path, manifest: pd.DataFrame, *, complete: bool) -> pd.DataFrame:
    """The predictions on the pictures of a manifest.

    Args:
        path: of predictions.csv.
        manifest: that stands beside it.
        complete: refuse a table that lacks a picture of the validation or test split, as a training leaves none out.

    Raises:
        DamagedError: a column or a picture is missing; a picture stands in it twice, or with another split, label,
            group or source than in the manifest; or a logit is not finite, or not that of its probability.
    """
    texts = ("image_id", "split", "group", "source")
    table = read_csv(path, OF_PREDICTIONS, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    of_task = [
        name for name in map(str, table) if name in (T_SCORE, PREDICTED_T_SCORE) or name.startswith("probability_")
    ]
    check_numbers(path, table, ("label", "logit", "probability", *of_task))
    known = manifest.set_index("image_id").reindex(table["image_id"].astype("string"))
    is_known = known["split"].notna().to_numpy(bool)
    label = _numbers(known["label"])
    expected_text = {name: known[name].fillna("").to_numpy(object) for name in ("split", "group", "source")}
    table = table.assign(**{name: text for name, text in expected_text.items() if name not in table})  # older versions
    probability, expected_probability = table["probability"].to_numpy(float), expit(table["logit"].to_numpy(float))
    refuse_rows(path, table, [
        Check(table["image_id"].duplicated().to_numpy(bool), lambda _: "the picture is listed twice"),
        Check(~is_known, lambda _: "the picture is not in manifest.csv"),
        *(Check(is_known & (table[name].fillna("").to_numpy(object) != text), partial(_say_other, table[name], text))
          for name, text in expected_text.items()),
        Check(is_known & (table["label"].to_numpy(float) != label),
              lambda n: f"label {table['label'].iloc[n]}, but {label[n]:g} in manifest.csv"),
        Check(np.abs(expected_probability - probability) > TOLERANCE,
              lambda n: f"a probability of {probability[n]:.4f}, but its logit gives {expected_probability[n]:.4f}"),
    ])  # fmt: skip
    expected = manifest[manifest["split"].isin(["val", "test"])]
    missing = expected[~expected["image_id"].isin(table["image_id"])]
    if complete and len(missing):
        count, (image_id, split) = counted(len(missing), "picture"), missing[["image_id", "split"]].iloc[0]
        raise damaged(path, f"is damaged: it lacks {count}, {image_id} of split {split} first")
    return table


def _say_other(values: "pd.Series[Any]", expected: npt.NDArray[Any], number: int) -> str:
    return f"{values.name} {values.iloc[number]}, but {expected[number]} in manifest.csv"
