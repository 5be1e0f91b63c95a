"""Finds the knee by brightness and edges: the darkest of three clusters is air, the joint where edges lie across.

Mohammed and George (2023) take a region of interest by K-means and edge detection, after a mean filter and histogram
equalisation; how many clusters, which edges and which part of them was not found in what was read, and is decided here.
"""

from typing import NamedTuple

import cv2
import numpy as np

from osteo.types import Grey, Mask

VERSION = 1  # raise it when the same picture gives another square

SIDE = 256  # pixels of the longer side of the picture that is searched
MEAN = 5  # side of the mean filter, in these pixels
CLUSTERS = 3  # air, soft tissue, bone
BURNT_OUT = 252  # brightness from which film was not exposed
WEAK, STRONG = 60, 140  # thresholds of Canny's edges
BAND = 0.06  # of the picture's height, over which edges across the limb are added up
CLEAR = 4.0  # how many times as many edges lie across the joint as elsewhere, or none is found
HEIGHT = 1.6  # side of the square, in widths of the lines across the joint


class Square(NamedTuple):
    """Part of a picture, in its pixels."""

    row: float
    """of the middle"""
    column: float
    """of the middle"""
    side: float


def find_square(grey: Grey) -> Square | None:
    """The square about the joint in a picture (H, W) that is upright, bone bright; None where no joint stands out."""
    height, width = grey.shape
    scale = min(1.0, SIDE / max(height, width))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(grey, shape, interpolation=cv2.INTER_AREA)
    small = cv2.blur(resized, (MEAN, MEAN))
    limb = _limb(np.asarray(small, np.uint8), np.asarray(resized, np.uint8))
    if limb is None:
        return None
    equalised = _equalised(np.asarray(small, np.uint8), limb)
    inside = cv2.erode(limb.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    steep = np.abs(cv2.Sobel(equalised, cv2.CV_32F, 0, 1)) > 1.5 * np.abs(cv2.Sobel(equalised, cv2.CV_32F, 1, 0))
    lines = (cv2.Canny(equalised, WEAK, STRONG) > 0) & inside & steep
    rows = np.flatnonzero(inside.any(axis=1))
    if not len(rows) or not lines.any():
        return None
    middle = np.zeros(len(small), np.float32)
    middle[rows[0] : rows[-1] + 1] = np.hanning(rows[-1] - rows[0] + 3)[1:-1]  # a joint is not at an end of the limb
    count = lines.sum(axis=1).astype(np.float32)
    across = np.convolve(count, np.hanning(2 * round(BAND * len(small)) + 3), "same") * middle
    row = int(across.argmax())
    if across[row] < CLEAR * across[rows[0] : rows[-1] + 1].mean():
        return None
    reach = max(2, round(BAND * len(small)))
    columns = np.nonzero(lines[max(0, row - reach) : row + reach + 1])[1]
    left, right = (float(edge) for edge in np.percentile(columns, [5, 95]))
    return Square((row + 0.5) / scale, (left + right + 1) / 2 / scale, HEIGHT * (right - left + 1) / scale)


def _limb(small: Grey, resized: Grey) -> Mask | None:
    """The largest connected part that is not of the darkest cluster and not burnt out, (h, w)."""
    values = small.reshape(-1, 1).astype(np.float32)
    if np.ptp(values) == 0.0:
        return None
    start = np.digitize(values, np.linspace(values.min(), values.max(), CLUSTERS + 1)[1:-1]).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, centres = cv2.kmeans(values, CLUSTERS, start, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    seen = (labels != int(centres.argmin())).reshape(small.shape) & (resized < BURNT_OUT)
    opened = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    _, parts, facts, _ = cv2.connectedComponentsWithStats(opened)
    if len(facts) < 2:
        return None
    largest = np.asarray(parts == 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax()), np.uint8)
    return np.asarray(cv2.morphologyEx(largest, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8)), np.bool_)


def _equalised(small: Grey, limb: Mask) -> Grey:
    """The picture, its histogram within the limb made even."""
    counts = np.bincount(small[limb], minlength=256)
    share = np.cumsum(counts) / max(1, counts.sum())
    return np.asarray(np.round(255.0 * share)[small], np.uint8)
