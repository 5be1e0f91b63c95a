"""Which pictures a network has seen before a training, as its file of weights says: none of those that are to test.

A checkpoint carries the SHA-256 of each picture and a descriptor by which altered copies are recognised later, when the
picture itself is not at hand. The descriptor is 128 projections of fine detail, 64 x 64 numbers, on random signs: too
few to see a picture by, and enough to tell two pictures apart.
"""

import hashlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from osteo.data.candidates import INVERSE, WHOLE_BOX, Box, cut, find_parts
from osteo.data.prepare import open_thumbnails
from osteo.errors import UserError
from osteo.records.record import Run
from osteo.records.sweep import best_of
from osteo.types import Grey, ReadFile, Singles

KEY = "seen"
"""of a checkpoint, under which its lineage is stored"""
VERSION = 1
SIDE = 64  # of what is described, in pixels
NUMBERS = 128  # of a descriptor
WIDTH = 2.0  # within which detail is measured against what is about it, in pixels
COPY = 0.8
"""Likeness of two descriptors from which one picture is taken for a copy of the other; see docs/pretraining.md."""
MARGINS = (0.0, 0.025, 0.05, -0.025, -0.05)
"""What a copy may lack on each side, or have more than its original, as shares of the side."""

Descriptors = npt.NDArray[np.int8]
"""Of pictures, (N, 2, NUMBERS): of all of each, and of it without padding."""


@dataclass(frozen=True)
class Seen:
    """The pictures that a network has learnt from without labels."""

    method: str
    """by which"""
    sha256: tuple[str, ...]
    """of their files"""
    descriptors: Tensor
    """int8 (N, 2, 128), in the order of `sha256`"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values and a tensor, as a checkpoint holds them."""
        return {
            "version": VERSION, "method": self.method, "sha256": list(self.sha256), "descriptors": self.descriptors,
        }  # fmt: skip

    def joined(self, earlier: "Seen | None") -> "Seen":
        """This, and what the weights had seen that it began with."""
        if earlier is None:
            return self
        together = torch.cat([self.descriptors, earlier.descriptors])
        return Seen(self.method, self.sha256 + earlier.sha256, together)

    @staticmethod
    def from_dict(values: object, name: str) -> "Seen":
        """What `to_dict` gave.

        Args:
            values: to be read.
            name: of the file that holds them, for the error.

        Raises:
            UserError: they make no sense.
        """
        try:
            given: Any = values
            seen = Seen(str(given["method"]), tuple(given["sha256"]), given["descriptors"])
            is_right = given["version"] == VERSION and seen.descriptors.dtype == torch.int8
            is_right = is_right and seen.descriptors.shape == (len(seen.sha256), 2, NUMBERS)
            is_right = is_right and all(isinstance(sha256, str) for sha256 in seen.sha256)
        except (AttributeError, KeyError, TypeError):
            is_right = False
        if not is_right:
            raise UserError(
                f"model.weights_file={name} does not say which pictures it was pretrained on, or not in words of this"
                " osteo; take another copy of it, or pretrain again"
            )
        return seen


def read_seen(weights_file: str | None) -> Seen | None:
    """What a file of weights, or the best checkpoint of a run, says that it was pretrained on; None where nothing.

    Raises:
        UserError: what it says makes no sense.
    """
    if weights_file is None:
        return None
    path = Path(weights_file).expanduser()
    path = best_of(path) if path.is_dir() else path
    try:
        with torch.serialization.safe_globals([Namespace]):  # timm's own training keeps its arguments
            kept = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001 - it holds tensors alone (.safetensors), or `read_weights` has said what is wrong
        return None
    return Seen.from_dict(kept[KEY], path.name) if isinstance(kept, dict) and KEY in kept else None


def check_unseen(weights_file: str | None, manifest: pd.DataFrame, read: ReadFile, cache: Path) -> Seen | None:
    """Refuses weights that have learnt from a validation or test picture, with or without labels, or from a copy.

    What weights have learnt from with labels is known where their file lies in a run, by the same bytes alone.

    Args:
        weights_file: as `read_seen` takes it.
        manifest: with splits.
        read: gives the bytes of a picture by its image_id.
        cache: folder of decoded pictures.

    Returns:
        What the weights have seen.

    Raises:
        UserError: one line with the number of pictures, the first of them, and what to do.
    """
    held = manifest[manifest["split"].isin(["val", "test"])]
    if (seen := read_seen(weights_file)) is None:
        _check_not_trained_on(weights_file, held)
        return None
    small = open_thumbnails(manifest, read, cache)
    thumbnails = {sha: small.pictures[0, row] for sha, row in small.rows.items() if sha not in small.unreadable}
    copies = first_copies(seen, held["sha256"].tolist(), thumbnails)
    if copies:
        named = held[held["sha256"].isin(copies)]
        first = named.iloc[0]
        same = int(named["sha256"].isin(seen.sha256).sum())
        raise UserError(
            f"model.weights_file={Path(str(weights_file)).name} was pretrained on {len(named)} of the {len(held)}"
            f" validation and test pictures or on copies of them ({same} of the same bytes), {first['image_id']}"
            f" ({first['split']}) first; pretrain without them: osteo pretrain against=RUN_OR_SPLIT_FILE, or the same"
            " data and split"
        )
    _check_not_trained_on(weights_file, held)
    return seen


def _check_not_trained_on(weights_file: str | None, held: pd.DataFrame) -> None:
    """Refuses the weights of a run that was trained, with labels, on pictures that must not be seen."""
    path = Path(weights_file or "").expanduser()
    run = Run(path if path.is_dir() else path.parent.parent)
    is_of_run = weights_file and (path.is_dir() or path.parent == run.checkpoints)
    if not is_of_run or run.is_pretraining or not (run.directory / "manifest.csv").is_file():
        return
    of_run = run.read_manifest()
    learnt = held[held["sha256"].isin(of_run.loc[of_run["split"] == "train", "sha256"])]
    if len(learnt):
        first = learnt.iloc[0]
        raise UserError(
            f"model.weights_file={Path(str(weights_file)).name} was trained on {len(learnt)} of the {len(held)}"
            f" validation and test pictures, {first['image_id']} ({first['split']}) first; take a run of the same data"
            " and split"
        )


def first_copies(seen: Seen, sha256: Sequence[str], thumbnails: Mapping[str, Grey]) -> list[str]:
    """The SHA-256 of those pictures that were seen, or that a picture that was seen is a copy of.

    Args:
        seen: by the network.
        sha256: of the pictures that it must not have seen.
        thumbnails: uint8 (S, S) by SHA-256, stretched to a square; one that is missing is not compared.
    """
    known = set(seen.sha256)
    asked = [sha for sha in dict.fromkeys(sha256) if sha in thumbnails and sha not in known]
    likeness = likeness_to(seen.descriptors.numpy(), [thumbnails[sha] for sha in asked]).max(axis=1, initial=0.0)
    copies = {sha for sha, most in zip(asked, likeness, strict=True) if most >= COPY}
    return [sha for sha in dict.fromkeys(sha256) if sha in known or sha in copies]


def likeness_to(descriptors: Descriptors, pictures: Sequence[Grey]) -> Singles:
    """The greatest correlation of each picture, turned, mirrored, inverted or cropped, with each other one, (M, N).

    Args:
        descriptors: of the others, (N, 2, NUMBERS).
        pictures: uint8 (S, S), M of them.
    """
    known = _unit(descriptors.reshape(-1, NUMBERS).astype(np.float32)).T
    found = np.zeros((len(pictures), len(descriptors)), np.float32)
    for number, picture in enumerate(pictures if len(descriptors) else ()):
        of_all = np.abs(_unit(np.stack(_variants(picture)) @ _signs()) @ known)
        found[number] = of_all.reshape(-1, len(descriptors), 2).max(axis=(0, 2))
    return found


def describe(pictures: Sequence[Grey]) -> Descriptors:
    """Descriptors of pictures, uint8 (S, S) stretched to a square: of all of each, and of it without padding."""
    squares = [_square(picture, box) for picture in pictures for box in find_parts(picture)[:2]]
    if not squares:
        return np.zeros((0, 2, NUMBERS), np.int8)
    numbers = np.stack([_detail(square) for square in squares]) @ _signs()
    most = np.maximum(np.abs(numbers).max(axis=1, keepdims=True), 1e-6)
    return np.asarray(np.round(127.0 * numbers / most), np.int8).reshape(-1, 2, NUMBERS)


def _square(picture: Grey, box: Box, margin: float = 0.0) -> Grey:
    """A part of a picture, less a margin on each side, or with more, stretched to a small square."""
    part = cut(picture, box, SIDE * 2)
    scale, shift = 1.0 - 2.0 * margin, margin * len(part)
    warp = np.array([[scale, 0.0, shift], [0.0, scale, shift]], np.float32)
    if margin:
        part = np.asarray(cv2.warpAffine(part, warp, part.shape, flags=INVERSE, borderMode=cv2.BORDER_REPLICATE))
    return cut(part, WHOLE_BOX, SIDE)


def _variants(picture: Grey) -> list[Singles]:
    """The fine detail of the parts of a picture, each turned by quarters and mirrored."""
    boxes = dict.fromkeys(find_parts(picture)[:2])
    squares = [_square(picture, box, margin) for box in boxes for margin in MARGINS]
    turned = [np.rot90(square, turns) for square in squares for turns in range(4)]
    return [_detail(np.ascontiguousarray(square)) for one in turned for square in (one, one[:, ::-1])]


def _detail(square: Grey) -> Singles:
    """What is about each pixel taken away, over how much that varies: of mean 0 and norm 1, (SIDE * SIDE,)."""
    grey = square.astype(np.float32)
    rest = grey - cv2.GaussianBlur(grey, (0, 0), WIDTH)
    detail = np.asarray(rest / np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), WIDTH) + 4.0), np.float32).ravel()
    detail -= detail.mean()
    return np.asarray(detail / (np.linalg.norm(detail) + 1e-3), np.float32)


@cache
def _signs() -> Singles:
    """Signs drawn once and for all, (SIDE * SIDE, NUMBERS); random projections keep angles (Achlioptas 2003)."""
    drawn = hashlib.shake_128(b"osteo").digest(SIDE * SIDE * NUMBERS // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(SIDE * SIDE, NUMBERS)
    return np.asarray(2.0 * bits - 1.0, np.float32)


def _unit(vectors: Singles) -> Singles:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)
