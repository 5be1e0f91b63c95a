"""The task, said once: the classes, which of them is positive, how a call is made, and which way a value is better."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

Direction: TypeAlias = Literal["min", "max"]
"""Whether a value is better when it is lower or when it is higher."""

CLASSES: Mapping[str, int | None] = {"normal": 0, "osteopenia": None, "osteoporosis": 1}
"""Class folders and their label; osteopenia lies between the two and has none."""
CLASS_NAMES = tuple(name for name, label in CLASSES.items() if label is not None)
"""The classes that a network tells apart, in the order of their labels."""
NEGATIVE, POSITIVE = CLASS_NAMES
THRESHOLD = 0.5
"""A picture is called positive where its probability is above this, unless another rule is asked for."""


class Rule(NamedTuple):
    """One way to choose a threshold; both texts may name `{sensitivity}`, which is a share."""

    title: str
    """in a table"""
    meaning: str
    """in a sentence"""


RULES: Mapping[str, Rule] = {
    "0.5": Rule("0.5", "as given"),
    "Youden": Rule("Youden's index", "largest sensitivity + specificity"),
    "sensitivity": Rule(
        "sensitivity of {sensitivity:.2f} on validation", "sensitivity of at least {sensitivity:.2f}"
    ),
}  # fmt: skip
"""How a threshold is chosen on validation, by the names that keys, cards and tables use."""
FIXED, YOUDEN, SENSITIVITY = RULES
LOSS = "loss"
LAST_EPOCH = "epoch"
"""What training may follow beside validation: the number of the epoch, so that the last one is kept."""


def call(probability: float, threshold: float = THRESHOLD) -> str:
    """The class that a probability of the positive class stands for."""
    return CLASS_NAMES[int(probability > threshold)]


def direction(followed: str) -> Direction:
    """Whether a value that training follows, such as val/loss or val/auroc, is better when it is lower or higher.

    What a record holds beside these says so itself; see `osteo.parts.Metric`.
    """
    return "min" if followed.rpartition("/")[2] == LOSS else "max"


def is_better(followed: str, value: float, than: float) -> bool:
    """Whether one value of what training follows is strictly better than another."""
    return value < than if direction(followed) == "min" else value > than
