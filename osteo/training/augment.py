"""What is done to a batch of pictures while training, on the device that holds it, before normalisation."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import kornia.enhance as enhance
import kornia.geometry.transform as geometry
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

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

    `forward` takes pictures and their CLAHE twins, both float (B, 1, S, S) in [0, 1], the variant of each, int64 (B,),
    and a number that no other picture or epoch has, int64 (B,), and returns float (B, 1, S, S) in [0, 1].
    """

    variants = 1
    """How many fixed variants of each picture an epoch contains."""

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Returns the pictures as they are."""
        return pictures


class Parameters(NamedTuple):
    """What is done to each picture, float (B,); Kornia's names and meanings."""

    flip: Tensor
    """1 where mirrored"""
    angle: Tensor
    """degrees, counter-clockwise"""
    translate_x: Tensor
    """pixels"""
    translate_y: Tensor
    scale: Tensor
    brightness: Tensor
    """less 1, added"""
    contrast: Tensor
    """multiplied"""


class Online(Augmentation):
    """Random flip, affine warp, brightness and contrast, drawn anew for every picture and epoch.

    It is what Kornia's RandomHorizontalFlip, RandomAffine, RandomBrightness and RandomContrast give in this order, in
    one warp and one pass. Parameters are a hash of the seed and the picture's number: the same on every device, in
    every order of the pictures, and after a run was taken up again.
    """

    def __init__(self, ranges: Ranges, seed: int = 0) -> None:
        super().__init__()
        self.ranges, self.seed = ranges, seed

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Augments every picture with parameters of its own."""
        return warp_and_expose(pictures, self.drawn(draw.to(pictures.device), pictures.shape[-1]))

    def drawn(self, draw: Tensor, side: int) -> Parameters:
        """The parameters of these draws for pictures of this side, in pixels."""
        share = hashed_uniform(self.seed, draw, len(Parameters._fields))  # (B, 7) in [0, 1)
        around = share * 2.0 - 1.0
        ranges = self.ranges
        return Parameters(
            flip=(share[:, 0] < ranges.flip).float(),
            angle=around[:, 1] * ranges.rotate,
            translate_x=around[:, 2] * ranges.translate * side,
            translate_y=around[:, 3] * ranges.translate * side,
            scale=1.0 + around[:, 4] * ranges.scale,
            brightness=1.0 + around[:, 5] * ranges.brightness,
            contrast=1.0 + around[:, 6] * ranges.contrast,
        )


def hashed_uniform(seed: int, draw: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1) by SplitMix64 (Steele, Lea and Flood 2014), float32 (B, count).

    Args:
        seed: of all draws.
        draw: the number of each draw, int64 (B,).
        count: numbers a draw.
    """
    golden = -7046029254386353131  # 2 ** 64 over the golden ratio, odd, as a signed integer
    start = _mix(torch.tensor(seed, device=draw.device) + golden)
    state = _mix(start + draw * golden)
    numbers = _mix(state[:, None] + torch.arange(1, count + 1, device=draw.device) * golden)
    return _shifted(numbers, 40).float() * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right: torch's own copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def warp_and_expose(pictures: Tensor, of: Parameters) -> Tensor:
    """Mirrors, warps (bilinear, zeros outside), brightens and scales contrast, clamped to [0, 1] as Kornia does.

    Args:
        pictures: float (B, 1, S, S) in [0, 1].
        of: parameters of each.
    """
    side = pictures.shape[-1]
    angle = torch.deg2rad(of.angle)
    cos, sin = torch.cos(angle) / of.scale, -torch.sin(angle) / of.scale
    mirror = 1.0 - 2.0 * of.flip
    # where each pixel comes from, in coordinates from -1 to 1 between the centres of the outermost pixels
    x, y = of.translate_x * 2.0 / (side - 1), of.translate_y * 2.0 / (side - 1)
    line = torch.linspace(-1.0, 1.0, side, device=pictures.device)
    grid = torch.empty(len(pictures), side, side, 2, device=pictures.device)
    rows = (
        (mirror * cos, -mirror * sin, -mirror * (cos * x - sin * y)),
        (sin, cos, -(sin * x + cos * y)),
    )
    for axis, (across, down, shift) in enumerate(rows):
        by_column, by_row = across[:, None] * line, down[:, None] * line + shift[:, None]
        torch.add(by_column[:, None, :], by_row[:, :, None], out=grid[..., axis])
    warped = grid_sample(pictures, grid, align_corners=True)
    brightness, contrast = ((of.brightness - 1.0).view(-1, 1, 1, 1), of.contrast.view(-1, 1, 1, 1))
    return warped.add_(brightness).clamp_(0.0, 1.0).mul_(contrast).clamp_(0.0, 1.0)


class Paper(Augmentation):
    """The paper's six variants beside the original, chosen by index: nothing here is random.

    The paper names brightness and contrast, not their amount: `contrast` scales every intensity by 1 + contrast, and
    `brightness` is added to it.
    """

    variants = len(PAPER_VARIANTS)

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.brightness, self.contrast = ranges.brightness, ranges.contrast

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
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


def make_augmentation(ranges: Ranges, seed: int = 0) -> Augmentation:
    """The pipeline that runs on the batch's device; albumentations runs before it, in the workers."""
    if ranges.name == "online":
        return Online(ranges, seed)
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
