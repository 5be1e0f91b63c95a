"""What is done to a batch of pictures while training, on the device that holds it, before normalisation."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import kornia.augmentation as K
import kornia.geometry.transform as geometry
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PAPER_VARIANTS = ("original", "horizontal flip", "vertical flip", "brightness", "CLAHE", "rotation 90", "rotation 45")
PAPER_BRIGHTNESS, PAPER_CONTRAST = 0.1, 1.2  # the paper names the variant, not the amount


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
    """The paper's six variants beside the original, chosen by index: nothing here is random."""

    variants = len(PAPER_VARIANTS)

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor) -> Tensor:
        """Returns of every picture the variant asked for, in the order of `PAPER_VARIANTS`."""
        made = pictures.clone()
        for number, change in enumerate(self._changes()):
            chosen = variant == number
            if number and bool(chosen.any()):
                made[chosen] = twins[chosen] if number == 4 else change(pictures[chosen])
        return made

    @staticmethod
    def _changes() -> tuple[Callable[[Tensor], Tensor], ...]:
        return (
            lambda x: x,
            lambda x: x.flip(-1),
            lambda x: x.flip(-2),
            lambda x: ((x - 0.5) * PAPER_CONTRAST + 0.5 + PAPER_BRIGHTNESS).clamp(0.0, 1.0),
            lambda x: x,  # the stored CLAHE twin
            lambda x: x.rot90(1, (-2, -1)),
            lambda x: geometry.rotate(x, torch.full((len(x),), 45.0, device=x.device)),
        )


def make_augmentation(ranges: Ranges) -> Augmentation:
    """The pipeline that runs on the batch's device; albumentations runs before it, in the workers."""
    if ranges.name == "online":
        return Online(ranges)
    return Paper() if ranges.name == "paper" else Augmentation()


def make_cpu_twin(ranges: Ranges) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """The transforms of `Online` by albumentations, for one uint8 picture (H, W) on the CPU, for comparison."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version at import
    import albumentations as A

    pipeline: Any = A.Compose(
        [
            A.HorizontalFlip(p=ranges.flip),
            A.Affine(
                rotate=(-ranges.rotate, ranges.rotate),
                translate_percent=dict.fromkeys("xy", (-ranges.translate, ranges.translate)),
                scale=(1.0 - ranges.scale, 1.0 + ranges.scale),
                p=1.0,
            ),
            A.RandomBrightnessContrast(ranges.brightness, ranges.contrast, p=1.0),
        ],
        seed=int(torch.initial_seed() % 2**32),
    )
    return lambda picture: np.asarray(pipeline(image=picture)["image"], np.uint8)
