"""Finds the knee in a radiograph: the limb without padding and markers, its joint line, and how wide the bone is there.

A drawn knee is laid over the picture at every place, in several sizes and tilts, and compared by the direction of
edges, as in a generalised Hough transform (Ballard 1981); where edges are is blind to exposure, and a drawn knee is
symmetrical, so it does not matter which side is shown. What was found best is found again at a finer scale.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from osteo.types import Grey

Map = npt.NDArray[np.float32]

VERSION = 1  # raise it when the same picture gives another joint or limb

SIDE = 400  # pixels of the longer side of the picture that is searched
COARSE, FINE = 28, 40  # pixels that the drawn bone is wide in either search
STEP = 1.15  # from one width to the next
NARROWEST, WIDEST = 0.25, 0.95  # width of the bone, as shares of that of the limb
TILTS = (-10.0, 0.0, 10.0)
FINE_TILTS = (-6.0, -3.0, 0.0, 3.0, 6.0)
FINE_WIDTHS = (0.85, 0.92, 1.0, 1.09, 1.18)
CANDIDATES = 3
ACROSS = 1.5  # weight of edges along the joint line beside that of edges along the shafts
WIDER = 0.25  # exponent of the width that the likeness is multiplied with: half a knee is found in any whole one
FLAT = 0.1  # squared edge per pixel that a likeness of 0 is sure of
LEAST = 0.25  # likeness below which nothing was found


@dataclass(frozen=True)
class Joint:
    """Where the knee is in a picture, in its pixels."""

    row: float
    """of the joint space in the middle of the knee"""
    column: float
    """of the middle of the knee"""
    width: float
    """of the bone at the joint"""
    tilt: float
    """of the joint line, in degrees; positive where its right end is lower"""
    likeness: float
    """to a drawn knee, up to 1"""


class Edges(NamedTuple):
    """Direction and strength of the edges in a picture, each component in [-1, 1], (H, W)."""

    x: Map
    y: Map


def find_limb(grey: Grey) -> Grey:
    """The pixels of the limb in a picture (H, W), 255 in it and 0 beside, without air, padding, markers and unexposed film."""
    mask = np.asarray(_limb(_shrink(grey)[0]) * 255, np.uint8)
    return np.asarray(cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def find_joint(grey: Grey) -> Joint | None:
    """The knee in a picture (H, W), or None where nothing in it looks like one."""
    small, scale = _shrink(grey)
    limb = _limb(small)
    columns = np.flatnonzero(limb.any(axis=0))
    if len(columns) < COARSE:
        return None
    span = float(columns[-1] - columns[0])
    found: list[Joint] = []
    width = max(NARROWEST * span, COARSE)
    while width < WIDEST * span:
        found += _search(small, limb, width)
        width *= STEP
    found.sort(key=lambda joint: -joint.likeness * joint.width**WIDER)
    chosen: list[Joint] = []
    for joint in found:
        if len(chosen) < CANDIDATES and not any(_is_same(joint, other) for other in chosen):
            chosen.append(joint)
    refined = [_refine(small, limb, joint) for joint in chosen]
    best = max(refined, key=lambda joint: joint.likeness * joint.width**WIDER, default=None)
    if best is None or best.likeness < LEAST:
        return None
    row, column = ((place + 0.5) / scale - 0.5 for place in (best.row, best.column))
    return Joint(row, column, best.width / scale, best.tilt, best.likeness)


def _shrink(grey: Grey) -> tuple[Map, float]:
    height, width = grey.shape
    scale = min(1.0, SIDE / max(height, width))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(grey, shape, interpolation=cv2.INTER_AREA), np.float32), scale


def _limb(small: Map) -> Map:
    """The largest thing that is neither dark nor burnt out, as 0 and 1.

    The threshold is the brightness at the edges of the picture, weighted by their strength (RATS, Kittler et al. 1985),
    which does not depend on how much air there is; half of it, since bone has edges too.
    """
    smooth = cv2.GaussianBlur(small, (0, 0), 1.5)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    strength = np.minimum(strength, np.percentile(strength, 99))
    total = float(strength.sum())
    if total <= 0.0:
        return np.zeros_like(small)
    threshold = 0.5 * float((strength * smooth).sum()) / total
    seen = np.asarray((smooth > threshold) & (smooth < 252), np.uint8)
    _, labels, facts, _ = cv2.connectedComponentsWithStats(seen)
    if len(facts) < 2:
        return np.zeros_like(small)
    limb = np.asarray(labels == 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax()), np.uint8)
    outline, _ = cv2.findContours(limb, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(limb, outline, -1, 1, cv2.FILLED)  # dark and burnt-out places in its midst are of it
    return np.asarray(limb, np.float32)


def _search(small: Map, limb: Map, width: float) -> list[Joint]:
    """The likeliest place of a knee of this width, at each tilt."""
    factor = COARSE / width
    edges = _edges(_scaled(small, factor), _scaled(limb, factor), COARSE)
    found = []
    for tilt in TILTS:
        likeness, row, column = _match(edges, _drawn_edges(COARSE, tilt))
        found.append(Joint(row / factor, column / factor, width, tilt, likeness))
    return found


def _refine(small: Map, limb: Map, joint: Joint) -> Joint:
    """The same knee, found again about its place at a finer scale."""
    factor = FINE / joint.width
    affine = cv2.getRotationMatrix2D((joint.column, joint.row), joint.tilt, factor)
    middle = 1.1 * FINE
    affine[:, 2] += middle - joint.column, middle - joint.row
    side = round(2 * middle) + 1
    local, mask = (cv2.warpAffine(m, affine, (side, side), flags=cv2.INTER_LINEAR) for m in (small, limb))
    edges = _edges(np.asarray(local, np.float32), np.asarray(mask, np.float32), FINE)
    best = (-1.0, 0.0, 0.0, 1.0, 0.0)
    for wider in FINE_WIDTHS:
        for tilt in FINE_TILTS:
            likeness, row, column = _match(edges, _drawn_edges(round(FINE * wider), tilt))
            if likeness * wider**WIDER > best[0] * best[3] ** WIDER:
                best = (likeness, row, column, wider, tilt)
    likeness, row, column, wider, tilt = best
    back = cv2.invertAffineTransform(affine)
    x, y = back @ np.array([column, row, 1.0])
    return Joint(float(y), float(x), joint.width * wider, joint.tilt + tilt, likeness)


def _is_same(one: Joint, other: Joint) -> bool:
    near = max(abs(one.row - other.row), abs(one.column - other.column)) < 0.15 * one.width
    return near and abs(np.log(one.width / other.width)) < 0.2


def _scaled(small: Map, factor: float) -> Map:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, None, fx=factor, fy=factor, interpolation=how), np.float32)


def _edges(picture: Map, mask: Map, width: int) -> Edges:
    """Edges within a mask, relative to those about them: strong and faint ones count alike."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.0)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=0.125) for order in ((1, 0), (0, 1)))
    inside = cv2.erode(mask, np.ones((5, 5), np.uint8))
    squared = x * x + y * y
    about = cv2.GaussianBlur(np.sqrt(squared) * inside, (0, 0), 0.5 * width)
    about /= cv2.GaussianBlur(inside, (0, 0), 0.5 * width) + 0.02
    strength = np.sqrt(squared + about * about + 0.1) / inside.clip(1e-6)
    return Edges(np.asarray(x / strength, np.float32), np.asarray(y / strength, np.float32))


def _match(edges: Edges, drawn: Edges) -> tuple[float, float, float]:
    """The greatest likeness of what is drawn to any place, and its row and column; places may lie near the border."""
    height, width = drawn.x.shape
    up, left = height // 2, width // 2
    x, y = (cv2.copyMakeBorder(m, up, up, left, left, cv2.BORDER_CONSTANT, value=0) for m in edges)
    box = cv2.boxFilter(x * x + y * y, -1, (width, height), normalize=False, borderType=cv2.BORDER_CONSTANT)
    norm = np.sqrt(box[up : box.shape[0] - up, left : box.shape[1] - left] + FLAT * height * width)
    likeness = cv2.matchTemplate(x, drawn.x, cv2.TM_CCORR) + cv2.matchTemplate(y, drawn.y, cv2.TM_CCORR)
    _, best, _, (column, row) = cv2.minMaxLoc(likeness / norm)
    return float(best), float(row), float(column)


@cache
def _drawn_edges(width: int, tilt: float) -> Edges:
    """The edges of a drawn knee, of norm 1 together."""
    margin = 10
    picture = cv2.copyMakeBorder(_draw(width, tilt), *[margin] * 4, cv2.BORDER_REPLICATE)
    edges = _edges(100.0 * picture, np.ones_like(picture), width)
    x, y = (part[margin:-margin, margin:-margin] for part in edges)
    y = ACROSS * y
    norm = np.float32(np.sqrt((x * x).sum() + (y * y).sum()))
    return Edges(np.ascontiguousarray(x / norm), np.ascontiguousarray(y / norm))


def _draw(width: int, tilt: float) -> Map:
    """A knee from the front, bone 1 and brighter at the joint, in units of the bone's width: 1.2 high and 1.4 wide."""
    finer = 4
    rows, columns = (2 * round(half * width) + 1 for half in (0.6, 0.7))
    y, x = np.mgrid[: rows * finer, : columns * finer].astype(np.float32)
    y, x = ((axis - (count * finer - 1) / 2) / (width * finer) for axis, count in ((y, rows), (x, columns)))
    sine, cosine = np.sin(np.deg2rad(tilt)), np.cos(np.deg2rad(tilt))
    x, y = cosine * x + sine * y, cosine * y - sine * x
    middle, side, gap = np.exp(-((x / 0.1) ** 2)), np.abs(x), 0.035
    above = -y - gap - 0.05 * middle - 0.1 * _rise(side, 0.3, 0.5) ** 2
    below = y - gap + 0.05 * middle - 0.05 * _rise(side, 0.35, 0.5) ** 2
    femur = (above > 0) & (side < 0.17 + 0.33 * _rise(y, -0.95, -0.28))
    tibia = (below > 0) & (side < 0.48 - 0.32 * _rise(y, 0.08, 0.75))
    plate = 0.3 * sum(bone * np.exp(-(((end - 0.03) / 0.03) ** 2)) for bone, end in ((femur, above), (tibia, below)))
    drawn = np.asarray((femur | tibia) + plate, np.float32)
    return np.asarray(cv2.resize(drawn, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _rise(value: npt.NDArray[np.floating], start: float, end: float) -> npt.NDArray[np.floating]:
    """0 up to start, 1 from end, smooth between."""
    t = np.clip((value - start) / (end - start), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
