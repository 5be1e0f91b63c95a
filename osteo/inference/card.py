"""What a checkpoint carries beside its weights: all that is needed to use it as it was validated."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from osteo.config import Config, DataConfig
from osteo.data.store import Store
from osteo.errors import UserError
from osteo.evaluation.calibration import COLDEST, HOTTEST
from osteo.evaluation.systems import validate
from osteo.inference import guard as guards
from osteo.records.record import CONFIG, Run
from osteo.task import BINARY, RULES, TASKS
from osteo.training.checkpoints import write_for_use

KEY = "osteo"
"""of a checkpoint, under which its card is stored"""
VERSION = 1
ADVICE = "it is damaged or was tampered with: take another copy of it"
LICENCE = "Apache-2.0 for the software; the pictures that it learnt from have licences of their own"
INTENDED_USE = "research use only, not a medical device: knee radiographs, {asked}"
ASKED = {
    "binary": "osteoporosis against normal bone density",
    "osteopenia_or_worse": "osteopenia or osteoporosis against normal bone density",
    "three_class": "normal bone density, osteopenia or osteoporosis",
    "ordinal": "normal bone density, osteopenia or osteoporosis",
    "t_score": "the T-score",
}
"""What a network answers, by its task."""


@dataclass(frozen=True)
class Card:
    """Preprocessing, calibration and origin of a trained network, as numbers, text and tensors."""

    image_size: int
    """side of the square picture that the network sees, in pixels"""
    fit: str
    """how a picture is made square: pad, resize, crop, bone or clusters"""
    class_names: list[str]
    """of the task's classes; the last is the positive one, which a positive logit stands for"""
    temperature: float
    """divisor of the logits, from validation"""
    thresholds: dict[str, float]
    """of the calibrated probability, by rule, from validation"""
    data_hash: str
    """SHA-256 of the hashes and splits of all pictures"""
    trained_on: str
    """name of the data set"""
    backbone: str
    seed: int
    fold: int | None
    osteo: str
    """version of osteo"""
    licence: str = LICENCE
    intended_use: str = INTENDED_USE.format(asked=ASKED[BINARY.name])
    version: int = VERSION
    task: str = BINARY.name
    """what a picture is asked, see `osteo.task.TASKS`"""
    guard: dict[str, Any] = field(default_factory=dict)
    """what the training pictures look like; see osteo.inference.guard"""
    enhance: str = "none"
    """what is done to the square: none or equalise"""
    plugins: list[str] = field(default_factory=list)
    """modules that were loaded for training, by which a backbone or a head may be known"""

    def facts(self) -> dict[str, Any]:
        """What a reader of the answers wants to know of the model, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("guard", "plugins")}


def data_hash(sha256: Sequence[str], splits: Sequence[str]) -> str:
    """One hash of all pictures and their splits, whatever their order and place."""
    rows = sorted(f"{sha} {split}" for sha, split in zip(sha256, splits, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def write_card(checkpoint: Path, stored: Mapping[str, Any], card: Card) -> None:
    """Adds a card to the file of a checkpoint that is trained no further; see `write_for_use`.

    Args:
        checkpoint: the file.
        stored: what it holds.
        card: of its network.
    """
    write_for_use(checkpoint, {**stored, KEY: asdict(card)})


def read_card(stored: Mapping[str, Any], name: str) -> Card:
    """The card of a checkpoint that has been loaded.

    Args:
        stored: the content of the checkpoint.
        name: of its file, for the error.

    Raises:
        UserError: it has none, or one that this osteo does not know, or one of its values makes no sense.
    """
    values = stored.get(KEY)
    if not isinstance(values, dict) and "seen" in stored and "hyper_parameters" not in stored:
        raise UserError(
            f"{name} is a pretraining's, which has no classifier yet: fine-tune it first with osteo"
            f" train model.weights_file=RUN"
        )
    if not isinstance(values, dict):
        raise UserError(f"{name} holds no preprocessing: give best.ckpt of a finished run, made by this osteo")
    known = {entry.name for entry in fields(Card)}
    if values.get("version") != VERSION or set(values) - known:
        raise UserError(f"{name} was made by osteo {values.get('osteo')}, whose checkpoints this osteo does not know")
    if missing := sorted(REQUIRED - set(values)):
        raise UserError(f"{name} holds a card without {missing[0]}; {ADVICE}")
    checks = CHECKS | {"class_names": lambda names: names == list(TASKS[values.get("task", BINARY.name)].class_names)}
    for key, is_right in checks.items():  # class_names after task
        if key in values and not is_right(values[key]):
            raise UserError(f"{name} holds a card whose {key} makes no sense ({str(values[key])[:40]}); {ADVICE}")
    return Card(**values)


def check_origin(stored: Mapping[str, Any], checkpoint: Path, run: Run) -> None:
    """Refuses the checkpoint of another run, by its card.

    Args:
        stored: the content of the checkpoint; one without a card is of an older version, and not looked at.
        checkpoint: its file, for the error.
        run: in which it lies.

    Raises:
        UserError: one line with the first value that differs from the configuration of the run.
    """
    values, settings = stored.get(KEY), run.read_settings()
    expected = {
        "backbone": settings.model.backbone, "image_size": settings.data.image_size, "seed": settings.seed,
        "fold": settings.data.split.fold,
    }  # fmt: skip
    if not isinstance(values, dict):
        return
    for key, value in expected.items():
        if values.get(key) != value:
            raise UserError(
                f"{checkpoint.name} of run {run.name} belongs to another run: its card has {key}={values.get(key)}, and"
                f" {CONFIG} {value}; put the run's own checkpoint back from a copy, or train the run again"
            )


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN is not


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _are_thresholds(thresholds: object) -> bool:
    if not isinstance(thresholds, dict) or set(thresholds) != set(RULES):
        return False
    return all(_is_number(value, 0.0, 1.0) for value in thresholds.values())


def _are_module_names(names: object) -> bool:
    if not isinstance(names, list):
        return False
    return all(isinstance(name, str) and all(part.isidentifier() for part in name.split(".")) for name in names)


_OPTIONS = {entry.name: entry.metadata for entry in fields(DataConfig) if entry.metadata}
_SIZE = _OPTIONS["image_size"]
CHECKS: dict[str, Callable[[Any], bool]] = {
    "image_size": lambda value: isinstance(value, int) and _is_number(value, _SIZE["low"], _SIZE["high"]),
    "fit": lambda value: value in _OPTIONS["fit"]["choices"],
    "enhance": lambda value: value in _OPTIONS["enhance"]["choices"],
    "task": lambda value: isinstance(value, str) and value in TASKS,
    "temperature": lambda value: _is_number(value, COLDEST / 5, HOTTEST * 5),  # a margin around what validation gives
    "thresholds": _are_thresholds,
    **dict.fromkeys(("data_hash", "trained_on", "backbone", "osteo", "licence", "intended_use"), _is_text),
    "seed": lambda value: isinstance(value, int),
    "fold": lambda value: value is None or isinstance(value, int),
    "guard": guards.is_guard,
    "plugins": _are_module_names,
}
"""Whether a value of a card makes sense, by its name."""
REQUIRED = {entry.name for entry in fields(Card) if entry.default is MISSING and entry.default_factory is MISSING}


def card_of(config: Config, manifest: pd.DataFrame, store: Store, predictions: pd.DataFrame) -> Card:
    """The card of a run's checkpoint; calibration follows from validation alone.

    Args:
        config: of the run.
        manifest: every picture with its split.
        store: the pictures of the manifest.
        predictions: the run's, of which those for validation are used.
    """
    task = TASKS[config.task]
    validated = validate(predictions, task)
    used = manifest[manifest["split"] != "excluded"]
    rows = used["sha256"].map(store.rows)
    rows_of_splits = [np.asarray(rows[used["split"] == name], np.int_) for name in ("train", "val", "test")]
    return Card(
        image_size=config.data.image_size,
        fit=config.data.fit,
        enhance=config.data.enhance,
        class_names=list(task.class_names),
        task=task.name,
        intended_use=INTENDED_USE.format(asked=ASKED[task.name]),
        temperature=validated.temperature,
        thresholds=validated.thresholds,
        data_hash=data_hash(list(used["sha256"]), list(used["split"])),
        trained_on=config.data.name,
        backbone=config.model.backbone,
        seed=config.seed,
        fold=config.data.split.fold,
        osteo=version("osteo"),
        guard=guards.to_dict(guards.fit(store.pictures[0], *rows_of_splits)),
        plugins=list(config.plugins),
    )
