"""The answer of one model, or of several together, to a picture: how certain it is, and what casts doubt on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.special import logit as to_logit

from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.inference.guard import Inspection, inspect
from osteo.inference.model import Model, mean_details, to_batch
from osteo.reading.covariates import Patient
from osteo.reading.framing import NOT_FOUND, Framed
from osteo.task import call_by_details
from osteo.types import Floats, Grey


class Variant(NamedTuple):
    """A harmless change of a picture that should not change the answer."""

    mirrored: bool
    degrees: float
    scale: float


WITHHELD = "withheld"
NOT_FINITE = "no answer: the logit is not finite"
VARIANTS = tuple(Variant(m, d, s) for m in (False, True) for d, s in ((0.0, 1.0), (-5.0, 1.0), (5.0, 1.0), (0.0, 1.05)))
"""The first is the picture as it is."""


@dataclass(frozen=True)
class Answer:
    """The answer to one picture."""

    logit: float
    """of one model as in its test after training; of an ensemble, that of its probability"""
    probability: float
    """of osteoporosis, not calibrated; of an ensemble the mean"""
    calibrated: float
    """the same, with each model's temperature"""
    low: float
    high: float
    """range of the calibrated probability over models and harmless changes of the picture; NaN where not requested"""
    threshold: float
    """the picture is called osteoporosis where the calibrated probability is above"""
    call: str
    """class name, or withheld where something is odd about the picture"""
    inspection: Inspection
    prepared: Grey
    """the picture as the first model sees it, uint8 (S, S)"""
    details: dict[str, float] = field(default_factory=dict)
    """what the task says beyond the positive class: the probability of every class, or the T-score"""
    notes: tuple[str, ...] = ()
    """what a reader should know of the picture, in words, though the call stands"""
    error: str = ""
    """why there is no answer, all numbers of which are void then; empty where there is one"""

    @property
    def is_borderline(self) -> bool:
        """Whether the range lies on both sides of the threshold; False where none was requested."""
        return self.low <= self.threshold < self.high


def threshold_of(models: Sequence[Model], rule: str) -> float:
    """The mean of the models' thresholds by a rule.

    Raises:
        UserError: a model has no threshold by this rule.
    """
    for model in models:
        if rule not in model.card.thresholds:
            raise UserError(f"rule={rule} is unknown to {model.name}; it knows: {', '.join(model.card.thresholds)}")
    return float(np.mean([model.card.thresholds[rule] for model in models]))


def answer(
    models: Sequence[Model],
    pictures: Sequence[Grey],
    *,
    rule: str,
    interval: bool = True,
    patients: Sequence[Patient] | None = None,
) -> list[Answer]:
    """Answers for decoded pictures, each (H, W) of any size.

    An answer does not depend on which other pictures are answered with it.

    Args:
        models: one or several, which answer together.
        pictures: decoded.
        rule: by which the threshold was chosen on validation.
        interval: whether the answers have a range over models and harmless changes of the picture.
        patients: what is known of the patient of each picture; None where nothing is.

    Raises:
        UserError: a model has no threshold by this rule, or a covariate cannot be; its value is not said.
    """
    patients = [{}] * len(pictures) if patients is None else patients
    threshold, class_names = threshold_of(models, rule), models[0].card.class_names
    framed = [[model.frame(grey) for grey in pictures] for model in models]
    prepared = [[picture for picture, _ in of_model] for of_model in framed]
    variants = VARIANTS if interval else VARIANTS[:1]
    outputs, logits = [], np.empty((len(models), len(variants), len(pictures)))
    for number, (model, of_model) in enumerate(zip(models, prepared, strict=True)):
        features = model.features(patients)
        of_variants = [model.outputs([change(picture, v) for picture in of_model], features) for v in variants]
        logits[number] = [model.positive(found) for found in of_variants]
        outputs.append(of_variants[0])
    is_finite = np.asarray(np.isfinite(logits).all((0, 1)))
    over_variants = expit(logits / temperatures(models)[:, None, None])
    low, high = over_variants.min((0, 1)), over_variants.max((0, 1))
    logit, probability, calibrated = combine(models, logits[:, 0])
    first = models[0]
    task = first.network.task
    details = mean_details(task, outputs)
    inspections = [inspect(first.guard, grey, first.prepare, first.card.image_size) for grey in pictures]
    answers = []
    for n in range(len(pictures)):
        of_picture = {name: float(values[n]) for name, values in details.items()}
        called = call_by_details(task, of_picture) or class_names[int(calibrated[n] > threshold)]
        answers.append(Answer(
            logit=float(logit[n]),
            probability=float(probability[n]),
            calibrated=float(calibrated[n]),
            low=float(low[n]) if interval else math.nan,
            high=float(high[n]) if interval else math.nan,
            threshold=threshold,
            call=WITHHELD if inspections[n].flags or not is_finite[n] else called,
            inspection=inspections[n],
            prepared=prepared[0][n],
            details=of_picture,
            notes=notes_of(models, patients[n], [of_model[n] for of_model in framed]),
            error="" if is_finite[n] else NOT_FINITE,
        ))  # fmt: skip
    return answers


def notes_of(models: Sequence[Model], patient: Patient, framed: Sequence[Framed]) -> tuple[str, ...]:
    """What a reader should know of an answer: covariates that are not known, and a joint that was not found."""
    missing: dict[str, None] = {}
    for fitted in (model.covariates for model in models if model.covariates is not None):
        read = fitted.read(fitted.chosen(patient))
        missing |= dict.fromkeys(name for name in fitted.names if read[name] is None)
    not_known = f"not known of the patient: {', '.join(missing)}; typical values from training are used"
    is_found = all(of_model.is_found for of_model in framed)
    return (*([not_known] if missing else []), *([] if is_found else [NOT_FOUND]))


def temperatures(models: Sequence[Model]) -> Floats:
    """The temperature of each model, (models,)."""
    return np.array([model.card.temperature for model in models])


def combine(models: Sequence[Model], logits: Floats) -> tuple[Floats, Floats, Floats]:
    """Logit, probability and calibrated probability of each picture, (N,), from the logits of one or several models.

    The probabilities of several models are averaged; their logit is that of the mean.

    Args:
        models: one or several.
        logits: of each model, (models, N).
    """
    probability = expit(logits).mean(axis=0)
    calibrated = expit(logits / temperatures(models)[:, None]).mean(axis=0)
    logit = logits[0] if len(models) == 1 else to_logit(np.clip(probability, 1e-12, 1 - 1e-12))
    return logit, probability, calibrated


def change(picture: Grey, variant: Variant) -> Grey:
    """A prepared picture (S, S), mirrored, rotated about its centre and enlarged."""
    if variant.degrees or variant.scale != 1.0:
        centre = ((picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2)
        affine = cv2.getRotationMatrix2D(centre, variant.degrees, variant.scale)
        picture = np.asarray(cv2.warpAffine(picture, affine, picture.shape[::-1], flags=cv2.INTER_LINEAR), np.uint8)
    return np.ascontiguousarray(picture[:, ::-1]) if variant.mirrored else picture


def heat_map(models: Sequence[Model], grey: Grey) -> npt.NDArray[np.float32]:
    """Where the evidence for osteoporosis lies, in [0, 1], (S, S) as the first model sees the picture: a mean Grad-CAM.

    Raises:
        UserError: a backbone has no spatial feature map.
    """
    side = models[0].card.image_size
    maps = []
    for model in models:
        cam = grad_cam(model.network, to_batch([model.prepare(grey)]))[0].numpy()
        maps.append(cv2.resize(cam, (side, side), interpolation=cv2.INTER_LINEAR))
    return np.asarray(np.mean(maps, axis=0), np.float32)
