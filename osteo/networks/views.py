"""How a network looks at a picture: mirrored, turned or enlarged too, and in tiles."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from osteo.checks import check_views

Change: TypeAlias = tuple[float, float]
"""Degrees and relative size."""
CHANGES: dict[str, tuple[Change, ...]] = {"rotate": ((-5.0, 1.0), (5.0, 1.0)), "zoom": ((0.0, 1.05),)}
"""What a view shows beside the picture as it is; hflip shows its mirror image."""


class Views(nn.Module):
    """Test-time augmentation: the picture as it is, and what each name adds.

    Args:
        names: some of `osteo.config.VIEWS`: changes that leave a knee a knee, and its class what it is.
        side: S of the pictures, in pixels.

    Raises:
        UserError: there is no such view, or one is named twice.
    """

    grids: Tensor

    def __init__(self, names: Sequence[str], side: int) -> None:
        super().__init__()
        check_views(names)
        self.names = ["plain", *(name for name in names for _ in CHANGES.get(name, ("",)))]
        """one for each picture that is shown"""
        self.chosen = list(names)
        grids = [_grid(change, side) for name in names for change in CHANGES.get(name, ())]
        self.register_buffer("grids", torch.stack(grids) if grids else torch.empty(0), persistent=False)

    def __len__(self) -> int:
        return len(self.names)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """All views of float (B, 1, S, S) in [0, 1], the picture as it is first."""
        return [self.show(pictures, number) for number in range(len(self))]

    def show(self, pictures: Tensor, number: int) -> Tensor:
        """One view, by its place in `names`."""
        if self.names[number] == "plain":
            return pictures
        if self.names[number] == "hflip":
            return pictures.flip(-1)
        place = sum(name in CHANGES for name in self.names[:number])
        return grid_sample(pictures, self.grids[place].expand(pictures.shape[0], -1, -1, -1), align_corners=True)


def _grid(change: Change, side: int) -> Tensor:
    """Where each pixel of a turned and enlarged picture comes from, (S, S, 2) as `grid_sample` takes it."""
    angle, scale = math.radians(change[0]), change[1]
    cos, sin = math.cos(angle) / scale, -math.sin(angle) / scale
    affine = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    return affine_grid(affine, [1, 1, side, side], align_corners=True)[0]


def cut(pictures: Tensor, tiles: int) -> Tensor:
    """Tiles of pictures (B, C, S, S): (B * tiles * tiles, C, S / tiles, S / tiles), row by row."""
    if tiles == 1:
        return pictures
    batch, channels, side, _ = pictures.shape
    part = side // tiles
    grid = pictures.reshape(batch, channels, tiles, part, tiles, part).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, channels, part, part)


def join(features: Tensor, tiles: int, channels: int) -> Tensor:
    """One feature map per picture from those of its tiles; tokens, which have no place, one after the other.

    Args:
        features: (B * tiles * tiles, F, H, W), (..., H, W, F) or (..., N, F).
        tiles: on each side.
        channels: F.
    """
    if tiles == 1:
        return features
    parts = features.reshape(-1, tiles, tiles, *features.shape[1:])
    if features.ndim != 4:
        return parts.flatten(1, 3)
    if features.shape[1] == channels:
        return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return parts.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def separate(features: Tensor, tiles: int, channels: int) -> Tensor:
    """The features of tiles again: `join` undone."""
    if tiles == 1:
        return features
    if features.ndim != 4:
        batch, tokens, width = features.shape
        return features.reshape(batch * tiles * tiles, tokens // tiles**2, width)
    first = features.shape[1] == channels
    batch, height, width = len(features), *(side // tiles for side in features.shape[2 if first else 1 :][:2])
    if first:
        grid = features.reshape(batch, channels, tiles, height, tiles, width)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height, width)
    grid = features.reshape(batch, tiles, height, tiles, width, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)
