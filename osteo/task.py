"""The task, said once: the classes, which of them is positive, how a call is made, and which way a value is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from osteo.types import Floats

Direction: TypeAlias = Literal["min", "max"]
"""Whether a value is better when it is lower or when it is higher."""

CLASSES: Mapping[str, int | None] = {"normal": 0, "osteopenia": None, "osteoporosis": 1}
"""Class folders and their label; osteopenia lies between the two and has none."""
CLASS_NAMES = tuple(name for name, label in CLASSES.items() if label is not None)
"""The classes that a network tells apart, in the order of their labels."""
NEGATIVE, POSITIVE = CLASS_NAMES
T_SCORE_CUTS = (-1.0, -2.5)
"""The WHO's: normal is above the first, osteoporosis at or below the second, osteopenia between."""
AT_CUT = 2.0**-22
"""What a T-score at the second cut counts as below it: the least that float32 tells apart there."""
Kind: TypeAlias = Literal["binary", "nominal", "ordinal", "regression"]
"""What a network's outputs are: the log odds of the positive class; one logit per class; the log odds of being beyond
each cut of ordered classes; or the T-score itself."""


@dataclass(frozen=True)
class Task:
    """What a picture is asked.

    Whatever the task, a picture has one logit of its positive class, the last one, against the rest: from it follow
    thresholds, calibration, Grad-CAM and all that compares two classes. What a task knows beyond that is added to it.
    """

    name: str
    kind: Kind
    labels: Mapping[str, int | None]
    """of each class folder; none where its pictures have no part in the task"""
    class_names: tuple[str, ...]
    """in the order of their labels"""

    @property
    def positive(self) -> int:
        """The label of the positive class, which is the last one."""
        return len(self.class_names) - 1

    @property
    def sides(self) -> tuple[str, str]:
        """The positive class and the rest, as names of two classes, the rest first."""
        rest = self.class_names[:-1]
        return (rest[0] if len(rest) == 1 else f"no {self.class_names[-1]}"), self.class_names[-1]

    @property
    def contrast(self) -> str:
        """The same in words: what is told from what."""
        return f"{self.class_names[-1]} against {'the rest' if self.has_many_classes else self.class_names[0]}"

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for a picture."""
        return {"nominal": len(self.class_names), "ordinal": self.positive}.get(self.kind, 1)

    @property
    def has_many_classes(self) -> bool:
        """Whether it tells more than two classes apart."""
        return len(self.class_names) > 2


LOSSES: Mapping[Kind, tuple[str, ...]] = {
    "binary": ("bce", "focal"),
    "nominal": ("cross_entropy",),
    "ordinal": ("cross_entropy",),
    "regression": ("huber", "squared_error"),
}
"""What training can make small; the first where nothing else is said."""
_ORDERED = dict(zip(CLASSES, range(len(CLASSES)), strict=True))
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("binary", "binary", CLASSES, CLASS_NAMES),
        Task("osteopenia_or_worse", "binary", dict(zip(CLASSES, (0, 1, 1), strict=True)),
             (NEGATIVE, "osteopenia or worse")),
        Task("three_class", "nominal", _ORDERED, tuple(CLASSES)),
        Task("ordinal", "ordinal", _ORDERED, tuple(CLASSES)),
        Task("t_score", "regression", _ORDERED, tuple(CLASSES)),
    )
}  # fmt: skip
"""By name."""
BINARY = TASKS["binary"]
PREVALENCE = {"osteoporosis": 0.126, "osteopenia or worse": 0.557}
"""Share of US adults of 50 or more, by positive class (Sarafrazi, Wambogo and Shepherd 2021, NCHS data brief 405)."""
T_SCORE, PREDICTED_T_SCORE = "t_score", "predicted_t_score"
"""Columns of predictions.csv where T-scores are asked for."""


def probability_columns(task: Task) -> list[str]:
    """The columns of predictions.csv with the probability of each of several classes."""
    return [f"probability_{name}" for name in task.class_names] if task.kind in ("nominal", "ordinal") else []


Scores = TypeVar("Scores", "Tensor", "Floats")


def cut_logits(t_scores: Scores) -> Scores:
    """Logits of osteoporosis: how far T-scores lie below the WHO's cut, of the same shape.

    A T-score at the cut is osteoporosis, too: it gets a logit whose probability is just above a half.
    """
    below: Scores = T_SCORE_CUTS[-1] - t_scores
    counted: Scores = below + (below == 0.0) * AT_CUT
    return counted


def who_class(t_score: float) -> str:
    """The WHO's class of a T-score: normal above -1, osteoporosis at -2.5 or below, osteopenia between."""
    return tuple(CLASSES)[sum(t_score <= cut for cut in T_SCORE_CUTS)]


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


def details_columns(task: Task) -> list[str]:
    """The columns of predictions.csv with what a task says beyond the positive class."""
    return [PREDICTED_T_SCORE] if task.kind == "regression" else probability_columns(task)


def call_by_details(task: Task, details: Mapping[str, float]) -> str | None:
    """The class that a picture is called by what a task says beyond the positive class; None where that is nothing.

    Args:
        task: of the network.
        details: the probability of every class, of which the largest decides, or the T-score, by the WHO's cuts.
    """
    if PREDICTED_T_SCORE in details:
        return who_class(details[PREDICTED_T_SCORE])
    columns = probability_columns(task)
    return max(zip(columns, task.class_names, strict=True), key=lambda pair: details[pair[0]])[1] if columns else None


def direction(followed: str) -> Direction:
    """Whether a value that training follows, such as val/loss or val/auroc, is better when it is lower or higher.

    What a record holds beside these says so itself; see `osteo.parts.Metric`.
    """
    return "min" if followed.rpartition("/")[2] == LOSS else "max"


def is_better(followed: str, value: float, than: float) -> bool:
    """Whether one value of what training follows is strictly better than another."""
    return value < than if direction(followed) == "min" else value > than
