"""Where a network looks: Grad-CAM, whether the map depends on what was learnt, and how much of it misses the bone."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import spearmanr, t
from torch import Tensor
from torch.nn.functional import interpolate

from osteo.errors import UserError, counted
from osteo.evaluation.bootstrap import bootstrap, rows_of
from osteo.networks.precision import ieee_float32
from osteo.parts import Explainable
from osteo.task import BINARY, Task
from osteo.types import Floats, Grey, Mask

BORDER = 1 / 16  # of the side, on each of four
ALIKE = 0.5  # correlation of two maps, by Spearman, from which on they are too much alike


def grad_cam(network: Explainable, pictures: Tensor) -> Tensor:
    """Where the evidence for osteoporosis lies, by Grad-CAM on the last feature map (Selvaraju et al. 2017).

    timm splits every backbone into features and head, so that the gradient needs no hook and an in-place activation
    within the features does no harm.

    Args:
        network: is put into evaluation mode, and computes in float32 where it is.
        pictures: float (B, 1, S, S) in [0, 1].

    Returns:
        Float (B, S, S) on the CPU, at least 0, the largest of each picture 1; all 0 where nothing speaks for
        osteoporosis.

    Raises:
        UserError: the backbone has no spatial feature map.
    """
    maps = evidence(network, pictures).clamp(min=0.0)
    maps = interpolate(maps[:, None], pictures.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def evidence(network: Explainable, pictures: Tensor) -> Tensor:
    """What each cell of the last feature map (H, W) says for osteoporosis, or against it where negative, (B, H, W).

    Grad-CAM is its positive part, enlarged. Arguments and errors are those of `grad_cam`.
    """
    network.eval()
    with torch.enable_grad(), ieee_float32():
        features = network.features(pictures.to(network.device))
        channels = channel_axis(network, features)
        features = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network.classify(features).sum(), features)
    spatial = tuple(axis for axis in (1, 2, 3) if axis != channels)
    return (gradient.mean(spatial, keepdim=True) * features.detach()).sum(channels).cpu()


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
    """share of the picture that is outside: what evidence spread evenly would reach"""


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


class Sanity(NamedTuple):
    """Whether maps change when random weights take the place of the trained ones (Adebayo et al. 2018).

    Maps of two unrelated networks correlate by chance, the more the fewer cells they have, and in either direction:
    between two random draws of one backbone of 5 x 5 cells -0.7 and 0.8 are usual. So neither one
    randomised network nor the mean of signed correlations decides, but the mean strength |r| over many networks, with
    its 95 % interval over them:

    - passed: the whole interval lies below `ALIKE`;
    - failed: the whole interval lies above. A strong negative correlation counts as a positive one does: the map
      follows from the architecture, only turned over;
    - inconclusive: the interval holds `ALIKE`, or fewer than two networks could be compared.

    For 32 networks of four small backbones at 160 pixels, 200 draws of 40 randomised networks each never gave both
    passed and failed; where |r| lies within 0.1 of the limit they may give one of the two and inconclusive.
    """

    correlations: tuple[float, ...]
    """Spearman's, with the maps of each randomised network, the mean over pictures; in [-1, 1]"""
    pictures: int
    """that were compared"""

    @property
    def strength(self) -> tuple[float, float, float]:
        """The mean of |r| over networks, and the ends of its 95 % interval; NaN where there are fewer than two."""
        strengths = np.abs(self.correlations)
        if len(strengths) < 2:
            return float("nan"), float("nan"), float("nan")
        mean, error = float(strengths.mean()), float(strengths.std(ddof=1)) / len(strengths) ** 0.5
        margin = float(t.ppf(0.975, len(strengths) - 1)) * error
        return mean, mean - margin, mean + margin

    @property
    def outcome(self) -> Literal["passed", "failed", "inconclusive"]:
        """By the rule above."""
        _, low, high = self.strength
        return "passed" if high < ALIKE else "failed" if low > ALIKE else "inconclusive"

    @property
    def passed(self) -> bool:
        """Whether the maps may be read."""
        return self.outcome == "passed"

    @property
    def sentence(self) -> str:
        """What a verdict must say of it, without figures; empty where the maps passed."""
        return {
            "passed": "",
            "failed": "The Grad-CAM maps failed their sanity check: they hardly change when the trained weights are"
            " replaced by random ones, so they do not show what was learnt; do not read them.",
            "inconclusive": "The sanity check of the Grad-CAM maps is inconclusive: they may show what was learnt, or"
            " only what any network of this architecture shows; do not rely on them.",
        }[self.outcome]

    def describe(self) -> str:
        """The figures behind the outcome, as a sentence."""
        if len(self.correlations) < 2:
            return "The maps could not be compared with those of random weights: they have the same value everywhere."
        mean, low, high = self.strength
        conclusion = {
            "passed": "they depend on what was learnt",
            "failed": "they hardly depend on what was learnt: do not read them",
            "inconclusive": "it is unclear whether they depend on what was learnt",
        }[self.outcome]
        return (
            f"Sanity check: these maps were compared with those of {len(self.correlations)} networks with"
            f" random weights on {counted(self.pictures, 'picture')}. Spearman's correlation is"
            f" {np.mean(self.correlations):.2f} on average, from {min(self.correlations):.2f} to"
            f" {max(self.correlations):.2f} by network; its mean absolute value"
            f" is {mean:.2f} (95 % interval {low:.2f} to {high:.2f}; the limit is {ALIKE}): {conclusion}."
        )


def compare_randomised(network: Explainable, randomised: Iterable[Explainable], pictures: Tensor) -> list[float]:
    """Spearman's correlation of a network's evidence with each randomised network's, the mean over pictures.

    It is taken cell by cell of the feature map, before Grad-CAM cuts negative evidence off: enlarging adds nothing, and
    a picture whose map is empty counts, too. A randomised network whose evidence is the same all over is left out.

    Args:
        network: whose maps are checked.
        randomised: the same network with random weights, several times.
        pictures: float (B, 1, S, S) in [0, 1].
    """
    ours = evidence(network, pictures)
    of_networks = [agreement(ours, evidence(other, pictures)) for other in randomised]
    return [float(np.mean(of_pictures)) for of_pictures in of_networks if of_pictures]


def agreement(first: Tensor, second: Tensor) -> list[float]:
    """Spearman's correlation of two maps of each picture, (B, H, W); pictures with a constant map are left out."""
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


def without_colour(cam: npt.NDArray[np.floating], finding: str) -> str:
    """Why an overlay of a map has no colour, as a sentence; empty where it has some."""
    return "" if cam.any() else f"The heat map has no colour: nothing in the picture speaks for {finding}."


def findings(
    measured: Mapping[str, Attention], pictures: pd.DataFrame, sanity: Sanity | None, task: Task = BINARY
) -> list[str]:
    """What maps of many pictures add up to, in words with 95 % intervals.

    Args:
        measured: by image_id.
        pictures: with the columns image_id, group and label.
        sanity: whether the maps depend on what was learnt, where that was checked.
        task: for whose positive class the evidence is.
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
    reach = f" ({outside.low:.0%} to {outside.high:.0%})" if np.isfinite(outside.low) else ""  # else too few pictures
    lines = [
        f"Of the evidence for {task.sides[1]} in {len(values)} test pictures, {outside.value:.0%}{reach} lies outside"
        " the knee: on air, padding, markers or the border. These take up"
        f" {area.value:.0%} of a picture, so a map spread evenly over the picture would have {area.value:.0%} there."
        f" {at_border.value:.0%} lies in the outermost sixteenth on each side, which takes up {border_area:.0%}."
    ]
    return lines if sanity is None else [*lines, sanity.describe()]
