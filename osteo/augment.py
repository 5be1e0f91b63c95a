"""What is done to a batch of pictures while training, on the device that holds it, before normalisation."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import kornia.augmentation as K
import kornia.enhance as enhance
import kornia.geometry.transform as geometry
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from osteo.config import CLAHE_CLIP_LIMIT, CLAHE_TILES

PAPER_VARIANTS = (
    "original",
    "horizontal flip",
    "vertical flip",
    "brightness and contrast",
    "CLAHE",
    "rotation by 90 degrees",
    "rotation by 45 degrees",
)
"""What an epoch of the paper holds of every picture, in this order."""


class Ranges(Protocol):
    """How far random augmentation goes, as `AugmentConfig` says it."""

    name: str
    flip: float
    rotate: float
    translate: float
    scale: float
    brightness: float
    contrast: float


class Augmentation(nn.Module):
    """Base of all pipelines, and the one that changes nothing.

    `forward` takes pictures and their CLAHE twins, both float (B, 1, H, W) in [0, 1], and the variant of each, int64
    (B,), and returns float (B, 1, H, W) in [0, 1].
    """

    variants = 1
    """How many fixed variants of each picture an epoch contains."""

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor) -> Tensor:
        """Returns the pictures as they are."""
        return pictures


class Online(Augmentation):
    """Kornia's random flip, affine warp, brightness and contrast, drawn anew for every picture and epoch."""

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        shift = (ranges.translate, ranges.translate)
        self.pipeline = K.AugmentationSequential(
            K.RandomHorizontalFlip(p=ranges.flip),
            K.RandomAffine(ranges.rotate, translate=shift, scale=(1.0 - ranges.scale, 1.0 + ranges.scale), p=1.0),
            K.RandomBrightness((1.0 - ranges.brightness, 1.0 + ranges.brightness), p=1.0),
            K.RandomContrast((1.0 - ranges.contrast, 1.0 + ranges.contrast), p=1.0),
            data_keys=["input"],
        )

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor) -> Tensor:
        """Augments every picture with parameters of its own."""
        augmented = self.pipeline(pictures)
        assert isinstance(augmented, Tensor)
        return augmented


class Paper(Augmentation):
    """The paper's six variants beside the original, chosen by index: nothing here is random.

    The paper names brightness and contrast, not their amount: `contrast` scales every intensity by 1 + contrast, and
    `brightness` is added to it.
    """

    variants = len(PAPER_VARIANTS)

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.brightness, self.contrast = ranges.brightness, ranges.contrast

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor) -> Tensor:
        """Returns of every picture the variant asked for, in the order of `PAPER_VARIANTS`."""
        made = pictures.clone()
        for number in set(variant.tolist()):
            chosen = variant == number
            made[chosen] = self._change(int(number), pictures[chosen], twins[chosen])
        return made

    def _change(self, number: int, pictures: Tensor, twins: Tensor) -> Tensor:
        if number == 1:
            return geometry.hflip(pictures)
        if number == 2:
            return geometry.vflip(pictures)
        if number == 3:
            return enhance.adjust_brightness(enhance.adjust_contrast(pictures, 1.0 + self.contrast), self.brightness)
        if number == 4:
            return twins
        if number == 5:
            return pictures.rot90(1, (-2, -1))  # Kornia would interpolate
        if number == 6:
            return geometry.rotate(pictures, torch.full((len(pictures),), 45.0, device=pictures.device))
        return pictures


def make_augmentation(ranges: Ranges) -> Augmentation:
    """The pipeline that runs on the batch's device; albumentations runs before it, in the workers."""
    if ranges.name == "online":
        return Online(ranges)
    return Paper(ranges) if ranges.name == "paper" else Augmentation()


def paper_twins(ranges: Ranges) -> dict[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]]:
    """The six variants of `Paper` by albumentations, for one uint8 picture (H, W), by their names."""
    albumentations = _albumentations()
    limits = (ranges.brightness, ranges.brightness), (ranges.contrast, ranges.contrast)
    steps: dict[str, list[Any]] = {
        "horizontal flip": [albumentations.HorizontalFlip(p=1.0)],
        "vertical flip": [albumentations.VerticalFlip(p=1.0)],
        "brightness and contrast": [albumentations.RandomBrightnessContrast(*limits, p=1.0)],
        "CLAHE": [albumentations.CLAHE((CLAHE_CLIP_LIMIT, CLAHE_CLIP_LIMIT), CLAHE_TILES, p=1.0)],
        "rotation by 90 degrees": [albumentations.Transpose(p=1.0), albumentations.VerticalFlip(p=1.0)],
        "rotation by 45 degrees": [albumentations.Rotate((45, 45), p=1.0)],
    }
    return {name: _as_function(albumentations.Compose(made)) for name, made in steps.items()}


def _as_function(pipeline: Any) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    return lambda picture: np.asarray(pipeline(image=picture)["image"], np.uint8)


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version at import
    import albumentations

    return albumentations


def make_cpu_twin(ranges: Ranges) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """The transforms of `Online` by albumentations, for one uint8 picture (H, W) on the CPU, for comparison."""
    albumentations = _albumentations()
    pipeline: Any = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=ranges.flip),
            albumentations.Affine(
                rotate=(-ranges.rotate, ranges.rotate),
                translate_percent=dict.fromkeys("xy", (-ranges.translate, ranges.translate)),
                scale=(1.0 - ranges.scale, 1.0 + ranges.scale),
                p=1.0,
            ),
            albumentations.RandomBrightnessContrast(ranges.brightness, ranges.contrast, p=1.0),
        ],
        seed=int(torch.initial_seed() % 2**32),
    )
    return _as_function(pipeline)
