"""What a checkpoint carries beside its weights: all that is needed to use it as it was validated."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from osteo.config import Config
from osteo.data.store import Store
from osteo.errors import UserError
from osteo.evaluation.systems import validate
from osteo.files import whole
from osteo.inference import guard as guards
from osteo.task import CLASS_NAMES

KEY = "osteo"
"""of a checkpoint, under which its card is stored"""
VERSION = 1
LICENCE = "Apache-2.0 for the software; the pictures that it learnt from have licences of their own"
INTENDED_USE = "research use only, not a medical device: knee radiographs, osteoporosis against normal bone density"


@dataclass(frozen=True)
class Card:
    """Preprocessing, calibration and origin of a trained network, as numbers, text and tensors."""

    image_size: int
    """side of the square picture that the network sees, in pixels"""
    fit: str
    """how a picture is made square: pad or resize"""
    class_names: list[str]
    """of a negative and a positive logit"""
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
    intended_use: str = INTENDED_USE
    version: int = VERSION
    guard: dict[str, Any] = field(default_factory=dict)
    """what the training pictures look like; see osteo.inference.guard"""
    plugins: list[str] = field(default_factory=list)
    """modules that were loaded for training, by which a backbone or a head may be known"""

    def facts(self) -> dict[str, Any]:
        """What a reader of the answers wants to know of the model, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("guard", "plugins")}


def data_hash(sha256: Sequence[str], splits: Sequence[str]) -> str:
    """One hash of all pictures and their splits, whatever their order and place."""
    rows = sorted(f"{sha} {split}" for sha, split in zip(sha256, splits, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def write_card(checkpoint: Path, card: Card) -> None:
    """Adds a card to a checkpoint file, which then appears whole or stays as it was."""
    stored = torch.load(checkpoint, weights_only=True, map_location="cpu")
    stored[KEY] = asdict(card)
    content = io.BytesIO()  # torch's own writer does not report a full disk
    torch.save(stored, content)
    with whole(checkpoint, durable=True) as aside:
        aside.write_bytes(content.getbuffer())


def read_card(stored: Mapping[str, Any], name: str) -> Card:
    """The card of a checkpoint that has been loaded.

    Args:
        stored: the content of the checkpoint.
        name: of its file, for the error.

    Raises:
        UserError: it has none, or one that this osteo does not know.
    """
    values = stored.get(KEY)
    if not isinstance(values, dict):
        raise UserError(f"{name} carries no preprocessing: give best.ckpt of a finished run, made by this osteo")
    known = {entry.name for entry in fields(Card)}
    if values.get("version") != VERSION or set(values) - known:
        raise UserError(f"{name} was made by osteo {values.get('osteo')}, whose checkpoints this osteo does not know")
    card = Card(**values)
    numbers = (card.temperature, *card.thresholds.values())
    sensible = all(isinstance(v, float) for v in numbers) and card.fit in ("pad", "resize") and card.temperature > 0
    if not sensible or not _are_module_names(card.plugins):
        raise UserError(f"{name} carries a card that makes no sense; it may have been tampered with")
    return card


def _are_module_names(names: object) -> bool:
    if not isinstance(names, list):
        return False
    return all(isinstance(name, str) and all(part.isidentifier() for part in name.split(".")) for name in names)


def card_of(config: Config, manifest: pd.DataFrame, store: Store, predictions: pd.DataFrame) -> Card:
    """The card of a run's checkpoint; calibration follows from validation alone.

    Args:
        config: of the run.
        manifest: every picture with its split.
        store: the pictures of the manifest.
        predictions: the run's, of which those for validation are used.
    """
    validated = validate(predictions)
    used = manifest[manifest["split"] != "excluded"]
    rows = used["sha256"].map(store.rows)
    rows_of_splits = [np.asarray(rows[used["split"] == name], np.int_) for name in ("train", "val", "test")]
    return Card(
        image_size=config.data.image_size,
        fit=config.data.fit,
        class_names=list(CLASS_NAMES),
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
