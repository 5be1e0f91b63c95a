"""What one model, or several together, say of a picture, how sure it is, and what speaks against believing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.inference.guard import Look, look
from osteo.inference.model import Model, to_batch
from osteo.types import Floats, Grey


class Variant(NamedTuple):
    """A harmless change of a picture that should not change the answer."""

    mirrored: bool
    degrees: float
    scale: float


WITHHELD = "withheld"
VARIANTS = tuple(Variant(m, d, s) for m in (False, True) for d, s in ((0.0, 1.0), (-5.0, 1.0), (5.0, 1.0), (0.0, 1.05)))
"""The first is the picture as it is."""


@dataclass(frozen=True)
class Answer:
    """What is said of one picture."""

    logit: float
    """of one model as in training's test; of an ensemble, of its probability"""
    probability: float
    """of osteoporosis, not calibrated; of an ensemble the mean"""
    calibrated: float
    """the same, at each model's temperature"""
    low: float
    high: float
    """range of the calibrated probability over models and harmless changes of the picture; not asked for: NaN"""
    threshold: float
    """the picture is called osteoporosis where the calibrated probability is above"""
    call: str
    """class name, or withheld where something is odd about the picture"""
    look: Look
    shown: Grey
    """what the first model saw, (S, S)"""


def threshold_of(models: Sequence[Model], rule: str) -> float:
    """The mean of the models' thresholds by a rule.

    Raises:
        UserError: a model has none by this rule.
    """
    for model in models:
        if rule not in model.card.thresholds:
            raise UserError(f"rule={rule} is unknown to {model.name}; it has: {', '.join(model.card.thresholds)}")
    return float(np.mean([model.card.thresholds[rule] for model in models]))


def answer(models: Sequence[Model], pictures: Sequence[Grey], *, rule: str, interval: bool = True) -> list[Answer]:
    """What the models say of decoded pictures, (H, W) each of any size.

    The answers do not depend on which pictures are asked about together.
    """
    limit, names = threshold_of(models, rule), models[0].card.class_names
    prepared = [[model.prepare(grey) for grey in pictures] for model in models]
    variants = VARIANTS if interval else VARIANTS[:1]
    logits = np.stack(
        [
            np.stack([model.logits([change(picture, v) for picture in mine]) for v in variants])
            for model, mine in zip(models, prepared, strict=True)
        ]
    )  # (models, variants, pictures)
    calibrated = expit(logits / temperatures(models)[:, None, None])
    own, plain, sure = combine(models, logits[:, 0])
    first = models[0]
    looks = [look(first.guard, grey, first.prepare, first.card.image_size) for grey in pictures]
    ranges = (
        np.array([calibrated.min((0, 1)), calibrated.max((0, 1))]) if interval else np.full((2, len(plain)), np.nan)
    )
    return [
        Answer(
            logit=float(own[n]),
            probability=float(plain[n]),
            calibrated=float(sure[n]),
            low=float(ranges[0, n]),
            high=float(ranges[1, n]),
            threshold=limit,
            call=WITHHELD if looks[n].flags else names[int(sure[n] > limit)],
            look=looks[n],
            shown=prepared[0][n],
        )
        for n in range(len(pictures))
    ]


def temperatures(models: Sequence[Model]) -> Floats:
    """Of each model, (models,)."""
    return np.array([model.card.temperature for model in models])


def combine(models: Sequence[Model], logits: Floats) -> tuple[Floats, Floats, Floats]:
    """Logit, probability and calibrated probability of each picture, (N,), from the logits of one or several models.

    Probabilities of several are means; their logit is that of the mean.

    Args:
        models: that were asked.
        logits: (models, N).
    """
    plain, sure = expit(logits).mean(axis=0), expit(logits / temperatures(models)[:, None]).mean(axis=0)
    own = logits[0] if len(models) == 1 else logit(np.clip(plain, 1e-12, 1 - 1e-12))
    return own, plain, sure


def change(picture: Grey, variant: Variant) -> Grey:
    """A prepared picture (S, S), mirrored, turned about its middle and enlarged."""
    if variant.degrees or variant.scale != 1.0:
        middle = ((picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2)
        turn = cv2.getRotationMatrix2D(middle, variant.degrees, variant.scale)
        picture = np.asarray(cv2.warpAffine(picture, turn, picture.shape[::-1], flags=cv2.INTER_LINEAR), np.uint8)
    return np.ascontiguousarray(picture[:, ::-1]) if variant.mirrored else picture


def heat_map(models: Sequence[Model], grey: Grey) -> npt.NDArray[np.float32]:
    """Where the evidence for osteoporosis lies, in [0, 1], on what the first model saw, (S, S): the mean of Grad-CAMs.

    Raises:
        UserError: a backbone has no spatial feature map.
    """
    side = models[0].card.image_size
    maps = []
    for model in models:
        cam = grad_cam(model.network, to_batch([model.prepare(grey)]))[0].detach().numpy()
        maps.append(cv2.resize(cam, (side, side), interpolation=cv2.INTER_LINEAR))
    return np.asarray(np.mean(maps, axis=0), np.float32)
