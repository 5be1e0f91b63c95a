"""What a checkpoint carries beside its weights: all that is needed to use it rightly, and nothing else is used."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from osteo.config import Config
from osteo.errors import UserError
from osteo.files import whole
from osteo.task import CLASS_NAMES

if TYPE_CHECKING:
    import pandas as pd

    from osteo.data.store import Store

KEY = "osteo"
"""of a checkpoint, under which its card stands"""
VERSION = 1
LICENCE = "Apache-2.0 for the software; the pictures that it learnt from have licences of their own"
INTENDED_USE = "research use only, not a medical device: knee radiographs, osteoporosis against normal bone density"


@dataclass(frozen=True)
class Card:
    """Preprocessing, calibration and origin of a trained network, as plain values and tensors."""

    image_size: int
    """side of the square picture that the network sees, in pixels"""
    fit: str
    """how a picture is made square: pad or resize"""
    class_names: list[str]
    """of a negative and a positive logit"""
    temperature: float
    """that logits are divided by, from validation"""
    thresholds: dict[str, float]
    """of the calibrated probability by rule, from validation"""
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


def data_hash(sha256: Sequence[str], splits: Sequence[str]) -> str:
    """One hash of which pictures there are and in which splits, whatever their order and place."""
    rows = sorted(f"{sha} {split}" for sha, split in zip(sha256, splits, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def write_card(checkpoint: Path, card: Card) -> None:
    """Adds a card to a checkpoint, which appears whole with it or stays as it was."""
    kept = torch.load(checkpoint, weights_only=True, map_location="cpu")
    kept[KEY] = asdict(card)
    content = io.BytesIO()  # torch's own writer says nothing of a full disk
    torch.save(kept, content)
    with whole(checkpoint) as aside, aside.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read_card(kept: Mapping[str, Any], name: str) -> Card:
    """The card of a checkpoint that has been loaded; `name` is the file's, for the error.

    Raises:
        UserError: it has none, or one that this osteo does not know.
    """
    plain = kept.get(KEY)
    if not isinstance(plain, dict):
        raise UserError(f"{name} carries no preprocessing: give best.ckpt of a run that is done, made by this osteo")
    known = {entry.name for entry in fields(Card)}
    if plain.get("version") != VERSION or set(plain) - known:
        raise UserError(f"{name} was made by osteo {plain.get('osteo')}, whose checkpoints this osteo does not know")
    card = Card(**plain)
    values = (card.temperature, *card.thresholds.values())
    if not all(isinstance(v, float) for v in values) or card.fit not in ("pad", "resize") or card.temperature <= 0:
        raise UserError(f"{name} carries a card that makes no sense; it may have been tampered with")
    return card


def card_of(config: Config, manifest: "pd.DataFrame", store: "Store", predictions: "pd.DataFrame") -> "Card":
    """What the checkpoint will carry; calibration follows from validation alone."""
    from importlib.metadata import version

    import numpy as np

    from osteo.evaluation.systems import validate
    from osteo.inference import guard

    validated = validate(predictions)
    used = manifest[manifest["split"] != "excluded"]
    rows = used["sha256"].map(store.rows)
    seen = [np.asarray(rows[used["split"] == name], np.int_) for name in ("train", "val", "test")]
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
        guard=guard.plain(guard.fit(store.pictures[0], *seen)),
    )
