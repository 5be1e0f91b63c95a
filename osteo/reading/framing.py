"""Makes a picture square: all of it, the joint alone at one physical scale, or bone alone."""

from typing import NamedTuple

import cv2
import numpy as np

from osteo.config import CLAHE_CLIP_LIMIT, CLAHE_TILES
from osteo.reading.clusters import VERSION as CLUSTERS_VERSION
from osteo.reading.clusters import find_square
from osteo.reading.region import VERSION as REGION_VERSION
from osteo.reading.region import Joint, find_region
from osteo.types import Grey

CROP = 1.3  # side of "crop", in widths of the bone
VERSION = 1  # raise it when `frame` gives another "crop" or "bone" of the same picture
JOINT_FITS = ("crop", "bone", "clusters")
"""Fits that need the joint, and every pixel of the file to show it."""
ENHANCED_VERSION = 1  # raise it when `equalise` gives another picture
MEAN = 3  # side of its mean filters, in pixels
NOT_FOUND = "the joint was not found: the central square is used"
TILE = 0.3  # side of each of the four tiles of "bone", in widths of the bone
ABOVE, BELOW = 0.18, 0.1  # from the joint line to the tiles of the femur and of the tibia, in widths of the bone


class Framed(NamedTuple):
    """A picture made square."""

    picture: Grey
    """uint8 (S, S)"""
    is_found: bool
    """False where a fit needs the joint and there is none to be found: it is the central square then"""


def square(grey: Grey, size: int, fit: str) -> Grey:
    """As `frame`, without the word whether the joint was found."""
    return frame(grey, size, fit).picture


def frame(grey: Grey, size: int, fit: str, enhance: str = "none") -> Framed:
    """Makes a picture (H, W) size x size.

    Args:
        grey: as decoded.
        size: S, in pixels.
        fit: "resize" stretches it; "pad" keeps its proportions between black borders; "crop" is a square about the
            joint, 1.3 times as wide as the bone, black outside the limb; "bone" is made of four tiles, the
            left and right half of the distal femur over those of the proximal tibia; "clusters" is a square about the
            joint as `find_square` finds it.
        enhance: "equalise" smoothes the square, makes its histogram even and smoothes it again, black padding aside.
    """
    framed = _framed(grey, size, fit)
    return framed._replace(picture=equalise(framed.picture)) if enhance == "equalise" else framed


def equalise(picture: Grey) -> Grey:
    """A mean filter, histogram equalisation and a mean filter (Mohammed and George 2023); their sizes are ours."""
    equalised = cv2.equalizeHist(cv2.blur(picture, (MEAN, MEAN)))  # OpenCV's leaves the darkest level out: padding
    return np.asarray(cv2.blur(equalised, (MEAN, MEAN)), np.uint8)


def _framed(grey: Grey, size: int, fit: str) -> Framed:
    if fit not in JOINT_FITS:
        return Framed(_whole(grey, size, fit), True)
    if fit == "clusters":
        if (found := find_square(grey)) is None:
            return Framed(_central(grey, size), False)
        about = Joint(found.row, found.column, found.side, 0.0, 1.0)
        return Framed(_cut(grey, about, (-0.5, -0.5, 1.0, 1.0), (size, size)), True)
    region = find_region(grey)
    joint = region.joint
    if joint is None:
        return Framed(_central(grey, size), False)
    if fit == "crop":
        box, shape = (-CROP / 2, -CROP / 2, CROP, CROP), (size, size)
        limb = _cut(region.limb, joint.scaled(region.scale), box, shape)
        return Framed(np.asarray(np.round(_cut(grey, joint, box, shape) * (limb / 255.0)), np.uint8), True)
    half = size // 2
    femur = _cut(grey, joint, (-TILE, -ABOVE - TILE, 2 * TILE, TILE), (size, half), turned=True)
    tibia = _cut(grey, joint, (-TILE, BELOW, 2 * TILE, TILE), (size, size - half), turned=True)
    return Framed(np.vstack([femur, tibia]), True)


def version_of(fit: str, enhance: str) -> str:
    """What changes when the same picture is made another square by these."""
    found = {"clusters": CLUSTERS_VERSION}.get(fit, REGION_VERSION)
    framed = f"{fit}{VERSION}.{found}" if fit in JOINT_FITS else fit
    return framed if enhance == "none" else f"{framed}:{enhance}{ENHANCED_VERSION}"


def decoded_size(size: int, fit: str) -> int:
    """The size that a file needs to be decoded at, see `read_picture`: a joint may be small in a large picture."""
    return 0 if fit in JOINT_FITS else size


def clahe(grey: Grey) -> Grey:
    """Contrast-limited adaptive histogram equalisation, clip limit 2 and 8 x 8 tiles, as OpenCV computes it."""
    return np.asarray(cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply(grey), np.uint8)


def _whole(grey: Grey, size: int, fit: str) -> Grey:
    height, width = grey.shape
    if fit == "resize":
        new_height = new_width = size
    else:
        longest = max(height, width)
        new_height, new_width = (max(1, round(side * size / longest)) for side in (height, width))
    resized = _resize(grey, (new_width, new_height))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def _central(grey: Grey, size: int) -> Grey:
    height, width = grey.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(grey[top : top + side, left : left + side], (size, size))


def _cut(
    grey: Grey, joint: Joint, box: tuple[float, float, float, float], shape: tuple[int, int], *, turned: bool = False
) -> Grey:
    """A part of a picture, black beyond its border.

    Args:
        grey: (H, W).
        joint: origin of the box.
        box: left, top, width and height, in widths of the bone.
        shape: columns and rows of what is returned.
        turned: the box lies along the joint line, not along the rows of the picture.
    """
    left, top, width, _ = (joint.width * part for part in box)
    middle = joint.column, joint.row
    affine = cv2.getRotationMatrix2D(middle, joint.tilt if turned else 0.0, 1.0)
    affine[:, 2] -= np.array([middle[0] + left, middle[1] + top])
    finer = max(1, int(width / shape[0]))  # pixels of the picture per pixel of the result: they are averaged afterwards
    scale = finer * shape[0] / width
    affine = scale * affine
    affine[:, 2] += (scale - 1.0) / 2.0  # pixels are squares, not points
    large = cv2.warpAffine(grey, affine, (shape[0] * finer, shape[1] * finer), flags=cv2.INTER_LINEAR)
    return _resize(np.asarray(large, np.uint8), shape)


def _resize(grey: Grey, shape: tuple[int, int]) -> Grey:
    """Resizes to so many columns and rows."""
    if grey.shape == (shape[1], shape[0]):
        return grey.copy()
    shrinking = shape[0] * shape[1] < grey.size
    how = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(grey, shape, interpolation=how), np.uint8)
