"""Whether a picture looks like those that a network learnt from; the network itself would answer for anything.

A picture's features are a thumbnail, without its brightness and contrast, and a histogram. Their distance from those of
the training pictures is measured by probabilistic principal components (Tipping and Bishop 1999).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from osteo.reading.pictures import is_blank
from osteo.types import Grey, Singles

Rows = npt.NDArray[np.int_]

SIDE, BINS = 32, 16  # of the thumbnail and of the histogram
FEATURES = SIDE * SIDE + BINS
HISTOGRAM = 0.5  # its weight beside the thumbnail
COMPONENTS = 16
MAX_PICTURES = 2000  # of the training split
KEPT, MARGIN = 0.95, 1.5  # the limit is MARGIN times the score that this share of validation pictures stays below


@dataclass(frozen=True)
class Guard:
    """What the training pictures look like, as tensors and numbers that a checkpoint carries."""

    mean: Tensor
    """float32 (F,)"""
    components: Tensor
    """float32 (K, F)"""
    variances: Tensor
    """float32 (K,)"""
    residual: float
    """variance that the components leave unexplained, over all features"""
    limit: float
    """score above which a picture is flagged, from validation"""
    false_alarms: int
    """test pictures that the limit flags"""
    tested: int
    """number of test pictures"""

    def score(self, pictures: Iterable[Grey]) -> npt.NDArray[np.float64]:
        """How far uint8 (S, S) pictures lie from the training pictures, (N,); about 2 for pictures like them."""
        centred = features(pictures) - self.mean.numpy()
        along = centred @ self.components.numpy().T
        beside = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
        variances = self.variances.numpy() + self.residual / (10 * len(self.variances))
        return np.asarray((along**2 / variances).mean(axis=1) + beside / self.residual, np.float64)

    @property
    def false_alarm_rate(self) -> str:
        """How often it flags a picture like those of the training split, in words."""
        return f"flags {self.false_alarms} of {self.tested} pictures of the held-out test split"


def features(pictures: Iterable[Grey]) -> Singles:
    """Float32 (N, 32 * 32 + 16) of uint8 (S, S) pictures."""
    rows = []
    for picture in pictures:
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
        thumbnail = (small - small.mean()) / (small.std() + 1e-3) / SIDE
        shares = np.bincount(picture.ravel() // (256 // BINS), minlength=BINS) / picture.size
        rows.append(np.concatenate([thumbnail.ravel(), HISTOGRAM * np.sqrt(shares)]))
    return np.asarray(rows, np.float32)


def fit(plane: Grey, train: Rows, val: Rows, test: Rows) -> Guard:
    """Fits a guard to training pictures; validation sets its limit, and the test split counts its false alarms.

    Args:
        plane: uint8 (N, S, S); where it is memory-mapped, only the pictures that are used are read.
        train: rows of the pictures that it learns from, at least three; at most 2000 of them are used.
        val: rows that set the limit, at least one.
        test: rows that false alarms are counted on, any number.
    """
    known = features(plane[row] for row in train[:: -(-len(train) // MAX_PICTURES)])
    mean = known.mean(axis=0)
    _, spread, directions = np.linalg.svd(known - mean, full_matrices=False)
    variances = spread**2 / (len(known) - 1)
    count = min(COMPONENTS, (len(known) - 1) // 2)
    mean, components, along = (
        torch.from_numpy(part.astype(np.float32)) for part in (mean, directions[:count], variances[:count])
    )
    guard = Guard(mean, components, along, float(max(variances[count:].sum(), 1e-6)), 0.0, 0, len(test))
    limit = MARGIN * float(np.quantile(guard.score(plane[row] for row in val), KEPT))
    alarms = int((guard.score(plane[row] for row in test) > limit).sum()) if len(test) else 0
    return replace(guard, limit=limit, false_alarms=alarms)


def to_dict(guard: Guard) -> dict[str, Any]:
    """What a checkpoint stores of a guard."""
    return asdict(guard)


def is_guard(stored: object) -> bool:
    """Whether a checkpoint has stored a guard that fits together, or none: an empty mapping."""
    if not isinstance(stored, dict) or not stored:
        return stored == {}
    if set(stored) != {entry.name for entry in fields(Guard)}:
        return False
    shapes = [getattr(stored[name], "shape", None) for name in ("mean", "components", "variances")]
    count = len(stored["variances"]) if isinstance(stored["variances"], Tensor) and shapes[2] else 0
    if not count or [tuple(shape or ()) for shape in shapes] != [(FEATURES,), (count, FEATURES), (count,)]:
        return False
    numbers = [*(stored[name] for name in ("mean", "components", "variances")), stored["residual"], stored["limit"]]
    are_counts = all(isinstance(stored[name], int) and stored[name] >= 0 for name in ("false_alarms", "tested"))
    are_floats = all(isinstance(stored[name], float) for name in ("residual", "limit"))
    is_finite = are_floats and all(bool(torch.isfinite(torch.as_tensor(number)).all()) for number in numbers)
    return are_counts and is_finite and stored["residual"] > 0 and bool((stored["variances"] >= 0).all())


def from_dict(stored: Mapping[str, Any]) -> Guard | None:
    """The guard that a checkpoint has stored, see `is_guard`, or None where it has none."""
    return Guard(**stored) if stored else None


@dataclass(frozen=True)
class Inspection:
    """What a guard finds in one picture."""

    score: float
    limit: float
    flags: tuple[str, ...]
    """what is odd about the picture, in words; empty where nothing is"""
    halves: tuple[Grey, Grey] | None
    """left and right, as decoded, where the picture has two knees"""


def inspect(guard: Guard | None, grey: Grey, prepare: Callable[[Grey], Grey], image_size: int) -> Inspection:
    """Inspects a decoded picture (H, W) of any size before it is answered.

    Args:
        guard: of the model; None where its checkpoint has none.
        grey: as decoded.
        prepare: turns it into uint8 (S, S), as the model does.
        image_size: S.
    """
    height, width = grey.shape
    flags = [f"only {width} x {height} pixels"] if min(height, width) < image_size // 2 else []
    if blank := is_blank(grey):
        flags.append("blank")
    if guard is None:
        return Inspection(float("nan"), float("nan"), (*flags, "its checkpoint has no guard"), None)

    def score_of(picture: Grey) -> float:
        return float(guard.score([prepare(picture)])[0])

    score = score_of(grey)
    halves = None
    if score > guard.limit and not blank:
        left, right = (np.ascontiguousarray(half) for half in (grey[:, : width // 2], grey[:, width - width // 2 :]))
        turned = [np.ascontiguousarray(np.rot90(grey, quarter)) for quarter in (1, 2, 3)]
        explained = max(guard.limit, score / 10)  # a change that brings the score this low explains what is odd
        if width > height and max(score_of(left), score_of(right)) <= explained:
            flags.append("two knees")
            halves = (left, right)
        elif score_of(np.asarray(255 - grey, np.uint8)) <= explained:
            flags.append("inverted: bone is dark")
        elif min(score_of(picture) for picture in turned) <= explained:
            flags.append("turned")
        else:
            flags.append("unlike the pictures that the model learnt from")
    return Inspection(score, guard.limit, tuple(flags), halves)
