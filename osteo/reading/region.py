"""Finds the knee in a radiograph: the limb without padding and markers, its joint line, and how wide the bone is there.

A drawn knee is laid over the picture at every place, in several sizes and tilts, and compared by the direction of
edges, as in a generalised Hough transform (Ballard 1981). Edges are blind to exposure, and what is drawn is
symmetrical, so that both sides are alike. The likeliest places are looked at again at a finer scale, where all four
quarters of the knee must be seen.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from osteo.types import Grey, Singles

VERSION = 1  # raise it when the same picture gives another joint or limb

SIDE = 400  # pixels of the longer side of the picture that is searched
COARSE, FINE = 28, 40  # pixels that the bone is wide in either search
STEP = 1.2  # from one width to the next
NARROWEST, WIDEST = 0.25, 0.95  # width of the bone, as shares of that of the limb
TILTS = (-10.0, 0.0, 10.0)
FINE_TILTS = (-7.5, -5.0, -2.5, 0.0, 2.5, 5.0, 7.5)
FINE_WIDTHS = (31, 34, 37, 40, 44, 48, 52)
CANDIDATES = 6  # that are looked at again
REACH = 0.4  # how far from their places, in widths of the bone
HIGH, WIDE = 1.2, 1.4  # size of what is drawn, in widths of the bone
MARGIN = 0.95  # more than half of that, at the greatest of the fine widths
ACROSS = 2.2  # weight of edges along the joint line beside that of edges along the bones
LARGER = 0.4  # exponent of the width in a candidate's rank: half a knee can be found in any whole one
FLAT = 0.1  # squared edge per pixel that makes a likeness of noise small
WEAKEST = 0.5  # weight of the least likely quarter beside the mean of all
LEAST = 0.28  # likeness below which nothing was found
BURNT_OUT = 252  # brightness from which film was not exposed


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

    def scaled(self, factor: float) -> "Joint":
        """The same in a picture that is so many times as large."""
        row, column = ((place + 0.5) * factor - 0.5 for place in (self.row, self.column))
        return Joint(row, column, self.width * factor, self.tilt, self.likeness)

    @property
    def rank(self) -> float:
        """By which candidates are ordered."""
        return float(self.likeness * self.width**LARGER)


@dataclass(frozen=True)
class Region:
    """What is found in a picture."""

    joint: Joint | None
    """None where nothing looks like a knee"""
    limb: Grey
    """255 in the limb, 0 in air, padding, markers and unexposed film, (h, w); at most 400 pixels high and wide"""
    scale: float
    """of that, relative to the picture"""


def find_region(grey: Grey) -> Region:
    """The knee and the limb in a picture (H, W) that is upright, bone bright."""
    height, width = grey.shape
    scale = min(1.0, SIDE / max(height, width))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(grey, shape, interpolation=cv2.INTER_AREA), np.float32)
    limb = _limb(small)
    joint = _find_joint(small, limb)
    if joint is not None:
        joint = joint.scaled(1.0 / scale)
    return Region(joint, np.asarray(limb * 255, np.uint8), scale)


def _find_joint(small: Singles, limb: Singles) -> Joint | None:
    left, top, span, height = cv2.boundingRect(limb.astype(np.uint8))
    if min(span, height) < COARSE:
        return None
    small, limb = (part[top : top + height, left : left + span] for part in (small, limb))
    found = list[Joint]()
    width = float(COARSE)
    while width < WIDEST * span:
        if width > NARROWEST * span:
            found += _search(small, limb, width)
        width *= STEP
    candidates = list[Joint]()
    for joint in sorted(found, key=lambda joint: -joint.rank):
        if len(candidates) < CANDIDATES and not any(_is_same(joint, other) for other in candidates):
            candidates.append(joint)
    refined = [_refine(small, limb, joint) for joint in candidates]
    best = max(refined, key=lambda joint: joint.rank, default=None)
    if best is None or best.likeness < LEAST:
        return None
    return replace(best, row=top + best.row, column=left + best.column)


def _limb(small: Singles) -> Singles:
    """The largest thing that is neither dark nor burnt out, as 0 and 1.

    The threshold is half the mean brightness at edges, weighted by their strength (Kittler et al. 1985), which does not
    depend on how much air and padding there is.
    """
    smooth = cv2.GaussianBlur(small, (0, 0), 1.5)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    strength = np.minimum(strength, np.percentile(strength, 99))
    total = float(strength.sum())
    if total <= 0.0:
        return np.zeros_like(small)
    threshold = 0.5 * float((strength * smooth).sum()) / total
    seen = np.asarray((smooth > threshold) & (smooth < BURNT_OUT), np.uint8)
    _, labels, facts, _ = cv2.connectedComponentsWithStats(seen)
    if len(facts) < 2:
        return np.zeros_like(small)
    limb = np.asarray(labels == 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax()), np.uint8)
    outline, _ = cv2.findContours(limb, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(limb, outline, -1, 1, cv2.FILLED)  # dark and burnt-out places in its midst are of it
    return limb.astype(np.float32)


def _search(small: Singles, limb: Singles, width: float) -> list[Joint]:
    """The likeliest place of a knee of this width, at each tilt."""
    factor, border = COARSE / width, round(MARGIN * COARSE)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    picture, mask = (
        np.asarray(cv2.resize(part, None, fx=factor, fy=factor, interpolation=how), np.float32)
        for part in (small, limb)
    )
    around = _edges(picture, mask, COARSE)
    edges = Edges(np.pad(around, ((border, border), (border, border), (0, 0))), border)
    found = []
    for tilt in TILTS:
        likeness, row, column = edges.match(COARSE, tilt)
        found.append(Joint((row - border) / factor, (column - border) / factor, width, tilt, likeness))
    return found


def _refine(small: Singles, limb: Singles, joint: Joint) -> Joint:
    """The same knee, found again about its place at a finer scale."""
    factor, border = FINE / joint.width, round(MARGIN * FINE)
    middle = border + round(REACH * FINE)
    affine = cv2.getRotationMatrix2D((joint.column, joint.row), joint.tilt, factor)
    affine[:, 2] += np.array([middle - joint.column, middle - joint.row])
    shape = 2 * middle + 1, 2 * middle + 1
    picture, mask = (np.asarray(cv2.warpAffine(part, affine, shape), np.float32) for part in (small, limb))
    edges = Edges(_edges(picture, mask, FINE), border)
    width, tilt = FINE, 0.0
    for _ in range(2):
        width = max(FINE_WIDTHS, key=lambda trial: edges.match(trial, tilt)[0] * trial**LARGER)
        tilt = max(FINE_TILTS, key=lambda trial: edges.match(width, trial)[0])
    _, row, column = edges.match(width, tilt)
    likeness = edges.likeness_of_quarters(width, tilt, row, column)
    x, y = cv2.invertAffineTransform(affine) @ np.array([column, row, 1.0])
    return Joint(float(y), float(x), width / factor, joint.tilt + tilt, likeness)


def _is_same(one: Joint, other: Joint) -> bool:
    near = max(abs(one.row - other.row), abs(one.column - other.column)) < 0.15 * one.width
    return near and abs(np.log(one.width / other.width)) < 0.2


class Edges:
    """The edges of a picture, to be compared with those of a drawn knee."""

    def __init__(self, edges: Singles, border: int) -> None:
        """Of a picture (H, W, 2), where no knee is looked for in a border of so many pixels."""
        self._edges, self._border = edges, border
        self._squared = cv2.integral((edges**2).sum(axis=2))
        self._matched = dict[tuple[int, float], tuple[float, int, int]]()

    def match(self, width: int, tilt: float) -> tuple[float, int, int]:
        """The greatest likeness of a drawn knee to any place, and its row and column."""
        if (width, tilt) not in self._matched:
            self._matched[width, tilt] = self._match(_drawn_edges(width, tilt))
        return self._matched[width, tilt]

    def _match(self, drawn: Singles) -> tuple[float, int, int]:
        rows, columns = drawn.shape[:2]
        height, width = (side - 2 * self._border for side in self._edges.shape[:2])
        top, left = self._border - rows // 2, self._border - columns // 2
        part = self._edges[top : top + height + rows - 1, left : left + width + columns - 1]
        sums = self._squared[top : top + height + rows, left : left + width + columns]
        squared = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
        likeness = cv2.matchTemplate(part, drawn, cv2.TM_CCORR) / np.sqrt(squared + FLAT * rows * columns)
        row, column = divmod(int(likeness.argmax()), width)
        return float(likeness[row, column]), row + self._border, column + self._border

    def likeness_of_quarters(self, width: int, tilt: float, row: int, column: int) -> float:
        """The likeness of a drawn knee to a place by its quarters, of which the least likely counts twice over."""
        drawn = _drawn_edges(width, tilt)
        rows, columns = drawn.shape[:2]
        top, left = row - rows // 2, column - columns // 2
        part = self._edges[top : top + rows, left : left + columns]
        quarters = []
        for down in (slice(rows // 2), slice(rows // 2, rows)):
            for right in (slice(columns // 2), slice(columns // 2, columns)):
                seen, expected = part[down, right], drawn[down, right]
                norm = np.sqrt((seen**2).sum() + FLAT * expected.size / 2) * np.linalg.norm(expected)
                quarters.append(float((seen * expected).sum() / norm))
        return (float(np.mean(quarters)) + WEAKEST * min(quarters)) / (1.0 + WEAKEST)


def _edges(picture: Singles, mask: Singles, width: int) -> Singles:
    """Edges within a mask (H, W) relative to those about them, so that strong and faint ones count alike: (H, W, 2)."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.0)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=0.125) for order in ((1, 0), (0, 1)))
    inside = cv2.erode(mask, np.ones((5, 5), np.uint8))
    squared = x * x + y * y
    share = cv2.GaussianBlur(inside, (0, 0), 0.5 * width) + 0.02
    about = cv2.GaussianBlur(np.sqrt(squared) * inside, (0, 0), 0.5 * width) / share
    relative = inside / np.sqrt(squared + about * about + 0.1)
    return np.asarray(np.dstack([x * relative, y * relative]), np.float32)


@cache
def _drawn_edges(width: int, tilt: float) -> Singles:
    """The edges of a drawn knee, (H, W, 2), of norm 1."""
    margin = 10
    picture = np.pad(_draw(width, tilt), margin, mode="edge")
    edges = _edges(100.0 * picture, np.ones_like(picture), width)[margin:-margin, margin:-margin]
    edges = edges * np.array([1.0, ACROSS], np.float32)
    return np.ascontiguousarray(edges / np.linalg.norm(edges), np.float32)


def _draw(width: int, tilt: float) -> Singles:
    """A knee from the front: bone 1, the plate of the tibia brighter, all else 0; its joint line in the middle."""
    finer = 4
    rows, columns = (2 * round(size / 2 * width) + 1 for size in (HIGH, WIDE))
    y, x = np.mgrid[: rows * finer, : columns * finer].astype(np.float32) / (width * finer)
    y, x = y - y.mean(), x - x.mean()
    sine, cosine = np.sin(np.deg2rad(tilt)), np.cos(np.deg2rad(tilt))
    x, y = cosine * x + sine * y, cosine * y - sine * x
    arch, side = 0.09 * np.exp(-((x / 0.13) ** 2)), np.abs(x)  # of the notch and of the spines that stand in it
    above = -y - 0.03 - arch - 0.12 * _rise(side, 0.35, 0.5) ** 2
    below = y - 0.03 + arch - 0.04 * _rise(side, 0.35, 0.5) ** 2
    femur = (above > 0) & (side < 0.22 + 0.28 * _rise(y, -1.05, -0.3))
    tibia = (below > 0) & (side < 0.49 - 0.33 * _rise(y, 0.05, 0.95))
    plate = 0.4 * tibia * np.exp(-(((below - 0.03) / 0.04) ** 2))
    drawn = np.asarray((femur | tibia) + plate, np.float32)
    return np.asarray(cv2.resize(drawn, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _rise(value: npt.NDArray[np.floating[Any]], start: float, end: float) -> npt.NDArray[np.floating[Any]]:
    """0 up to start, 1 from end, smooth between."""
    t = np.clip((value - start) / (end - start), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))
