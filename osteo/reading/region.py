"""Finds the knee in a radiograph: the limb without padding and markers, its joint line, and how wide the bone is there.

A drawn knee is laid over the picture at every place, in several sizes and tilts, and compared by the direction of
edges, as in a generalised Hough transform (Ballard 1981); where edges are is blind to exposure, and a drawn knee is
symmetrical, so it does not matter which side is shown. What was found best is found again at a finer scale.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from osteo.types import Grey

Map = npt.NDArray[np.float32]

VERSION = 1  # raise it when the same picture gives another joint or limb

SIDE = 400  # pixels of the longer side of the picture that is searched
COARSE, FINE = 24, 40  # pixels that the drawn bone is wide in either search
STEP = 1.2  # from one width to the next
NARROWEST, WIDEST = 0.25, 0.95  # width of the bone, as shares of that of the limb
TILTS = (-10.0, 0.0, 10.0)
FINE_TILTS = (-7.5, -5.0, -2.5, 0.0, 2.5, 5.0, 7.5)
FINE_WIDTHS = (31, 34, 37, 40, 44, 48, 52)
MARGIN = 0.95  # more than half of what is drawn, in widths of the bone
REACH = 0.4  # of the search at a finer scale, in widths of the bone
CANDIDATES = 6
ACROSS = 1.5  # weight of edges along the joint line beside that of edges along the shafts
WIDER = 0.25  # exponent of the width that the likeness is multiplied with: half a knee is found in any whole one
FLAT = 0.1  # squared edge per pixel that a likeness of 0 is sure of
PLATE, HIGH = 0.4, 0.6
LEASTW = 1.0
LEAST = 0.2  # likeness below which nothing was found


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


def find_limb(grey: Grey) -> Grey:
    """The pixels of the limb in a picture (H, W), 255 in it and 0 beside, without air, padding, markers and unexposed film."""
    mask = np.asarray(_limb(_shrink(grey)[0]) * 255, np.uint8)
    return np.asarray(cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def find_joint(grey: Grey) -> Joint | None:
    """The knee in a picture (H, W), or None where nothing in it looks like one."""
    small, scale = _shrink(grey)
    limb = _limb(small)
    left, top, span, height = cv2.boundingRect(limb.astype(np.uint8))
    if span < COARSE:
        return None
    small, limb = (part[top : top + height, left : left + span] for part in (small, limb))
    found: list[Joint] = []
    width = max(NARROWEST * span, float(COARSE))
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
    row, column = ((place + 0.5) / scale - 0.5 for place in (top + best.row, left + best.column))
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
    border = round(MARGIN * COARSE)
    around = _edges(_scaled(small, factor), _scaled(limb, factor), COARSE)
    edges = Edges(cv2.copyMakeBorder(around, *[border] * 4, cv2.BORDER_CONSTANT, value=(0.0, 0.0)), border)
    found = []
    for tilt in TILTS:
        likeness, row, column = edges.match(COARSE, tilt)
        found.append(Joint((row - border) / factor, (column - border) / factor, width, tilt, likeness))
    return found


def _refine(small: Map, limb: Map, joint: Joint) -> Joint:
    """The same knee, found again about its place at a finer scale."""
    factor = FINE / joint.width
    affine = cv2.getRotationMatrix2D((joint.column, joint.row), joint.tilt, factor)
    border = round(MARGIN * FINE)
    middle = border + round(REACH * FINE)
    affine[:, 2] += middle - joint.column, middle - joint.row
    side = 2 * middle + 1
    local, mask = (cv2.warpAffine(m, affine, (side, side), flags=cv2.INTER_LINEAR) for m in (small, limb))
    edges = Edges(_edges(np.asarray(local, np.float32), np.asarray(mask, np.float32), FINE), border)
    width, tilt = FINE, 0.0
    for _ in range(2):
        width = max(FINE_WIDTHS, key=lambda trial: edges.match(trial, tilt)[0] * trial**WIDER)
        tilt = max(FINE_TILTS, key=lambda trial: edges.match(width, trial)[0])
    _, row, column = edges.match(width, tilt)
    likeness = edges.balance(width, tilt, row, column)
    x, y = cv2.invertAffineTransform(affine) @ np.array([column, row, 1.0])
    return Joint(float(y), float(x), width / factor, joint.tilt + tilt, likeness)


def _is_same(one: Joint, other: Joint) -> bool:
    near = max(abs(one.row - other.row), abs(one.column - other.column)) < 0.15 * one.width
    return near and abs(np.log(one.width / other.width)) < 0.2


def _scaled(small: Map, factor: float) -> Map:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, None, fx=factor, fy=factor, interpolation=how), np.float32)


class Edges:
    """The edges of a picture, to be compared with those of a drawn knee."""

    def __init__(self, edges: Map, border: int) -> None:
        """Of a picture (H, W, 2), where no knee is looked for in a border of so many pixels."""
        self._edges, self._border = edges, border
        self._squared = cv2.integral((edges**2).sum(axis=2))
        self._matched: dict[tuple[int, float], tuple[float, float, float]] = {}

    def match(self, width: int, tilt: float) -> tuple[float, float, float]:
        """The greatest likeness of a drawn knee to any place, and its row and column."""
        if (width, tilt) not in self._matched:
            self._matched[width, tilt] = self._match(_drawn_edges(width, tilt))
        return self._matched[width, tilt]

    def balance(self, width: int, tilt: float, row: float, column: float) -> float:
        """The likeness of a drawn knee to a place: that of its quarters, and of the least of them, on average."""
        drawn = _drawn_edges(width, tilt)
        rows, columns = drawn.shape[:2]
        top, left = int(row) - rows // 2, int(column) - columns // 2
        part = self._edges[top : top + rows, left : left + columns]
        quarters = []
        for down in (slice(rows // 2), slice(rows // 2, rows)):
            for right in (slice(columns // 2), slice(columns // 2, columns)):
                seen, wanted = part[down, right], drawn[down, right]
                norm = np.sqrt((seen**2).sum() + FLAT * wanted.size / 2) * np.linalg.norm(wanted)
                quarters.append(float((seen * wanted).sum() / norm))
        return float(np.mean(quarters) + LEASTW * min(quarters)) / (1 + LEASTW)

    def _match(self, drawn: Map) -> tuple[float, float, float]:
        rows, columns = drawn.shape[:2]
        height, width = (side - 2 * self._border for side in self._edges.shape[:2])
        top, left = self._border - rows // 2, self._border - columns // 2
        part = self._edges[top : top + height + rows - 1, left : left + width + columns - 1]
        sums = self._squared[top : top + height + rows, left : left + width + columns]
        box = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
        likeness = cv2.matchTemplate(part, drawn, cv2.TM_CCORR) / np.sqrt(box + FLAT * rows * columns)
        _, best, _, (column, row) = cv2.minMaxLoc(likeness)
        return float(best), float(row + self._border), float(column + self._border)


def _edges(picture: Map, mask: Map, width: int) -> Map:
    """Edges within a mask (H, W) relative to those about them, so that strong and faint ones count alike: (H, W, 2)."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.0)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, *order, scale=0.125) for order in ((1, 0), (0, 1)))
    inside = cv2.erode(mask, np.ones((5, 5), np.uint8))
    squared = x * x + y * y
    about = cv2.GaussianBlur(np.sqrt(squared) * inside, (0, 0), 0.5 * width)
    about /= cv2.GaussianBlur(inside, (0, 0), 0.5 * width) + 0.02
    strength = np.sqrt(squared + about * about + 0.1) / inside.clip(1e-6)
    return np.asarray(np.dstack([x / strength, y / strength]), np.float32)


@cache
def _drawn_edges(width: int, tilt: float) -> Map:
    """The edges of a drawn knee, (H, W, 2), of norm 1."""
    margin = 10
    picture = cv2.copyMakeBorder(_draw(width, tilt), *[margin] * 4, cv2.BORDER_REPLICATE)
    edges = _edges(100.0 * picture, np.ones_like(picture), width)[margin:-margin, margin:-margin]
    edges = edges * np.array([1.0, ACROSS], np.float32)
    return np.ascontiguousarray(edges / np.linalg.norm(edges))


def _draw(width: int, tilt: float) -> Map:
    """A knee from the front, bone 1 and brighter at the joint, in units of the bone's width: 1.2 high and 1.4 wide."""
    finer = 4
    rows, columns = (2 * round(half * width) + 1 for half in (HIGH, 0.7))
    y, x = np.mgrid[: rows * finer, : columns * finer].astype(np.float32)
    y, x = ((axis - (count * finer - 1) / 2) / (width * finer) for axis, count in ((y, rows), (x, columns)))
    sine, cosine = np.sin(np.deg2rad(tilt)), np.cos(np.deg2rad(tilt))
    x, y = cosine * x + sine * y, cosine * y - sine * x
    arch, side = 0.09 * np.exp(-((x / 0.13) ** 2)), np.abs(x)
    above = -y - 0.03 - arch - 0.12 * _rise(side, 0.35, 0.5) ** 2
    below = y - 0.03 + arch - 0.04 * _rise(side, 0.35, 0.5) ** 2
    femur = (above > 0) & (side < 0.22 + 0.28 * _rise(y, -1.05, -0.3))
    tibia = (below > 0) & (side < 0.49 - 0.33 * _rise(y, 0.05, 0.95))
    plate = PLATE * tibia * np.exp(-(((below - 0.03) / 0.04) ** 2))
    drawn = np.asarray((femur | tibia) + plate, np.float32)
    return np.asarray(cv2.resize(drawn, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _rise(value: npt.NDArray[np.floating], start: float, end: float) -> npt.NDArray[np.floating]:
    """0 up to start, 1 from end, smooth between."""
    t = np.clip((value - start) / (end - start), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
