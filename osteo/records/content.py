"""Reads the texts and JSON of a run record: one that is gone or damaged is one line that names it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from osteo.errors import UserError
from osteo.files import display_path
from osteo.task import CLASSES

Values: TypeAlias = dict[str, tuple[type, ...]]
"""The types that a value may have, by its key."""

ADVICE = "restore it from a copy, leave the run out, or train it again"
OF_STATUS: Values = {"state": (str,)}
OF_ENVIRONMENT: Values = {
    **dict.fromkeys(("osteo", "python", "system", "machine"), (str,)), "libraries": (dict,), "backbone": (str,),
    "seed": (int,), "fold": (int, type(None)),
}  # fmt: skip
OF_TRAINING: Values = dict.fromkeys(("parameters", "epochs", "best_epoch"), (int,))
"""What environment.json of a training holds beside `OF_ENVIRONMENT`."""
OF_REPORT: Values = dict.fromkeys(("val/auroc", "test/auroc", "test/accuracy"), (int, float, type(None)))
"""What metrics.json of a training holds at least."""
COSTS = ("seconds", "seconds_per_epoch", "pictures_per_second", "peak_memory_mib")
OPTIONAL: Values = {**dict.fromkeys(COSTS, (int, float, type(None))), "pruned": (bool,)}
"""What environment.json may hold beside, which not every version and not every machine has written."""
SHARES = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc", "average_precision", "sensitivity",
          "specificity", "brier", "balanced_accuracy", *(f"auroc_{name}" for name in ("macro", *CLASSES)))  # fmt: skip
LARGEST = sys.float_info.max
RANGES = {
    **dict.fromkeys(SHARES, (0.0, 1.0)), **dict.fromkeys(("quadratic_weighted_kappa", "pearson_r"), (-1.0, 1.0)),
    "mean_absolute_error": (0.0, LARGEST),
}  # fmt: skip
"""Between which a metric lies; one of a plugin may be any number."""


class DamagedError(UserError):
    """A file of a record that is gone, cannot be read, or contradicts another."""


def damaged(path: Path, what: str) -> DamagedError:
    """The error of a file; `what` is the end of a sentence that begins with its name."""
    return DamagedError(f"{display_path(path)} {what}; {ADVICE}")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DamagedError: it is gone, empty, or no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except UnicodeDecodeError:
        raise damaged(path, "is damaged: not a text file") from None
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    if not text.strip():
        raise damaged(path, "is empty")
    return text


def read_json(path: Path, values: Values) -> dict[str, Any]:
    """An object of JSON.

    Args:
        path: of the file.
        values: what it has to hold, at least.

    Raises:
        DamagedError: it is none, or lacks a value or has one of another type.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        content = json.loads(read_text(path), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is damaged: not JSON ({str(error) or 'too deep'})") from None
    if not isinstance(content, dict):
        raise damaged(path, "is damaged: not a JSON object")
    check_values(path, content, values)
    return content


def check_values(path: Path, content: Mapping[str, Any], values: Values) -> None:
    """Refuses an object that lacks a value or has one of another type.

    Raises:
        DamagedError: the first such value.
    """
    for key, types in values.items():
        if key not in content:
            raise damaged(path, f"is damaged: it lacks {key}")
        value = content[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise damaged(path, f"is damaged: {key} is {str(value)[:40]!r}")


def read_metrics(path: Path, needed: Values) -> dict[str, Any]:
    """The metrics of a record: each a number, or none where it is undefined, or a confusion matrix.

    Raises:
        DamagedError: the first that is something else, outside its range or missing.
    """
    content = read_json(path, needed)
    for name, value in content.items():
        kind = name.rpartition("/")[2]
        if kind == "confusion_matrix":
            is_good = isinstance(value, list) and len(value) > 1 and all(_is_row(row, len(value)) for row in value)
        else:
            is_good = value is None or _is_number(value, *RANGES.get(kind, (-LARGEST, LARGEST)))
        if not is_good:
            raise damaged(path, f"is damaged: {name} is {str(value)[:40]!r}")
    return content


def _is_row(row: object, count: int) -> bool:
    """Whether it is a row of a confusion matrix of so many classes."""
    if not isinstance(row, list) or len(row) != count:
        return False
    return all(isinstance(n, int) and _is_number(n, 0, 2**53) for n in row)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def read_environment(path: Path, needed: Values) -> dict[str, Any]:
    """Versions, hardware and facts of a record.

    Raises:
        DamagedError: the first value that is of another type or missing, or a cost that is no finite number from 0 on.
    """
    content = read_json(path, needed)
    check_values(path, content, {key: types for key, types in OPTIONAL.items() if key in content})
    for key in COSTS:
        value = content.get(key)
        if value is not None and not _is_number(value, 0.0, LARGEST):
            raise damaged(path, f"is damaged: {key} is {str(value)[:40]!r}")
    return content
