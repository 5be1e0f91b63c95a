"""The task, said once: the classes, which of them is positive, how a call is made, and which way a metric is better."""

from collections.abc import Mapping
from typing import Literal

CLASSES: Mapping[str, int | None] = {"normal": 0, "osteopenia": None, "osteoporosis": 1}
"""Class folders and their label; osteopenia lies between the two and has none."""
CLASS_NAMES = tuple(name for name, label in CLASSES.items() if label is not None)
"""The classes that a network tells apart, in the order of their labels."""
NEGATIVE, POSITIVE = CLASS_NAMES
THRESHOLD = 0.5
"""A picture is called positive where its probability is above, unless another rule is asked for."""
RULES: Mapping[str, str] = {
    "0.5": "as given",
    "Youden": "largest sensitivity + specificity",
    "sensitivity": "sensitivity of at least {sensitivity:.2f}",
}
"""How a threshold is chosen on validation, by name."""
LOSS = "loss"
"""The one value that is followed while training and is better when it is lower; see `direction`."""


def call(probability: float, threshold: float = THRESHOLD) -> str:
    """The class that a probability of the positive class stands for."""
    return CLASS_NAMES[int(probability > threshold)]


def direction(metric: str) -> Literal["min", "max"]:
    """Whether a value that training follows, such as val/auroc, is better when it is lower or higher."""
    return "min" if metric.rpartition("/")[2] in (LOSS, "brier") else "max"


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value of a metric is strictly better than another."""
    return value < than if direction(metric) == "min" else value > than
