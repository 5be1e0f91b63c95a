"""Where a network looks: Grad-CAM, whether the map depends on what was learnt, and how much of it misses the bone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import interpolate

from osteo.errors import UserError
from osteo.evaluation.bootstrap import bootstrap, rows_of
from osteo.parts import Explainable
from osteo.task import POSITIVE
from osteo.types import Floats, Grey, Mask

BORDER = 1 / 16  # of the side, on each of four


def grad_cam(network: Explainable, pictures: Tensor) -> Tensor:
    """Where the evidence for osteoporosis lies, by Grad-CAM on the last feature map (Selvaraju et al. 2017).

    timm splits every backbone into features and head, so that the gradient needs no hook and an in-place activation
    within the features does no harm.

    Args:
        network: is put into evaluation mode.
        pictures: float (B, 1, S, S) in [0, 1].

    Returns:
        Float (B, S, S), at least 0, the largest of each picture 1; all 0 where nothing speaks for osteoporosis.

    Raises:
        UserError: the backbone has no spatial feature map.
    """
    network.eval()
    with torch.enable_grad():
        features = network.features(pictures)
        channels = channel_axis(network, features)
        features = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network.classify(features).sum(), features)
    spatial = tuple(axis for axis in (1, 2, 3) if axis != channels)
    maps = (gradient.mean(spatial, keepdim=True) * features.detach()).sum(channels).clamp(min=0.0)
    maps = interpolate(maps[:, None], pictures.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def channel_axis(network: Explainable, features: Tensor | list[Tensor]) -> int:
    """The axis of a feature map (B, C, H, W) or (B, H, W, C) that holds channels: 1 or 3.

    Raises:
        UserError: it is none, as with transformers, whose last features are a row of tokens.
    """
    shape = features.shape if isinstance(features, Tensor) else ()
    axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == network.num_features]
    if not axes:
        raise UserError(
            f"Grad-CAM needs a spatial feature map, and {network.name} has none; take a backbone that has one,"
            " such as resnet50, densenet121 or swin_tiny_patch4_window7_224"
        )
    return axes[0]


class Attention(NamedTuple):
    """How much of the evidence lies where no bone is, as shares in [0, 1] of what a map adds up to."""

    outside: float
    """of the knee: on air, padding, border or a marker"""
    border: float
    """within the outermost sixteenth of the side"""
    area: float
    """share of the picture that is outside: what evidence without aim would reach"""


def knee(picture: Grey) -> Mask:
    """Roughly where the knee is: the brighter part of a radiograph that is joined to its middle, filled.

    Markers, air and padding are outside; so is the outermost sixteenth of the side.

    Args:
        picture: uint8 (S, S).
    """
    smooth = cv2.GaussianBlur(picture, (0, 0), max(picture.shape[0] / 64, 0.8))
    _, bright = cv2.threshold(smooth, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    count, parts = cv2.connectedComponents(bright)
    side = picture.shape[0]
    middle = parts[side // 4 : -side // 4, side // 4 : -side // 4]
    inside = np.bincount(middle.ravel(), minlength=count)
    inside[0] = 0  # what is dark
    mask = parts == int(np.argmax(inside)) if inside.any() else np.ones_like(parts, bool)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(picture), outline, -1, 1, cv2.FILLED).astype(bool)
    return np.asarray(filled & ~border(side))


def border(side: int) -> Mask:
    """The outermost sixteenth of a square picture."""
    width = max(1, round(side * BORDER))
    mask = np.ones((side, side), bool)
    mask[width:-width, width:-width] = False
    return mask


def attention(picture: Grey, cam: npt.NDArray[np.floating]) -> Attention | None:
    """How much of a map misses the knee; None where the map is empty."""
    total = float(cam.sum())
    if total <= 0.0:
        return None
    outside = ~knee(picture)
    at_border = border(picture.shape[0])
    return Attention(float(cam[outside].sum()) / total, float(cam[at_border].sum()) / total, float(outside.mean()))


def agreement(first: Tensor, second: Tensor) -> list[float]:
    """Spearman's correlation of two maps of each picture, (B, S, S); pictures with a constant map are left out."""
    pairs = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(first, second, strict=True)]
    return [float(spearmanr(a, b).statistic) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]


def overlay(picture: Grey, cam: npt.NDArray[np.floating]) -> Grey:
    """The picture with its map as heat, BGR uint8 (S, S, 3).

    Args:
        picture: uint8 (S, S).
        cam: in [0, 1], (S, S).
    """
    heat = cv2.applyColorMap(np.asarray(cam * 255.0, np.uint8), cv2.COLORMAP_INFERNO).astype(float)
    weight = 0.65 * cam[:, :, None]
    return np.asarray(picture[:, :, None] * (1.0 - weight) + heat * weight, np.uint8)


def findings(measured: Mapping[str, Attention], pictures: pd.DataFrame, correlations: Sequence[float]) -> list[str]:
    """What maps of many pictures add up to, in words with 95 % intervals.

    Args:
        measured: by image_id.
        pictures: with the columns image_id, group and label.
        correlations: of maps with those of an untrained network.
    """
    rows = pictures[pictures["image_id"].isin(list(measured))]
    values = np.array([measured[image_id] for image_id in rows["image_id"]])

    labels = rows["label"].to_numpy(int)
    of_rows = values[rows_of(labels).picture]

    def statistic(weights: Floats) -> Floats:
        return np.asarray(weights @ of_rows / weights.sum(axis=1, keepdims=True))

    drawn = bootstrap(statistic, labels, list(rows["group"]))
    outside, at_border, area = (drawn.interval(column) for column in range(3))
    border_area = 1.0 - (1.0 - 2 * BORDER) ** 2
    lines = [
        f"Of the evidence for {POSITIVE} in {len(values)} test pictures, {outside.value:.0%} ({outside.low:.0%} to"
        f" {outside.high:.0%}) lies outside the knee: on air, padding, markers or the border. These take"
        f" {area.value:.0%} of a picture, so a map without aim would have {area.value:.0%} there."
        f" {at_border.value:.0%} lies within the outermost sixteenth, which takes {border_area:.0%}."
    ]
    if correlations:
        mean = float(np.mean(correlations))
        sense = "depend on what was learnt" if abs(mean) < 0.5 else "hardly depend on what was learnt: do not read them"
        lines.append(
            f"With random weights in place of the trained ones the maps correlate with these by {mean:.2f} on average"
            f" (Spearman, {len(correlations)} pictures): they {sense}."
        )
    return lines
