"""Lays one picture over another by an affine warp and says how well their detail agrees then."""

from typing import NamedTuple

import cv2
import numpy as np

from osteo.data.candidates import (
    CONTENT,
    INVERSE,
    WHOLE,
    WHOLE_BOX,
    Box,
    Candidate,
    Described,
    Map,
    cut,
    from_pixels,
    in_pixels,
    normalise,
)
from osteo.types import Grey, Mask, Singles

FINE = (1.0, 2.5)
"""Standard deviations, in pixels, of the two Gaussians whose difference is the fine detail of a picture."""
COARSE = ((3.0, 8.0), (4.0, 10.0), (6.0, 14.0))
"""The same of detail that a picture has which was made small or compressed beyond recognition."""

SAME = 0.87
"""From this agreement of fine detail on, two pictures are one exposure.

Measured (benchmarks/results/duplicates.md): the nearest of 2000 phantom strangers reach 0.76, the nearest of 189 real
ones 0.82, and 0.86 where all were searched for a knee turned by 45 degrees; the least alike of 1033 copies that were
found have 0.87 (a JPEG of quality 5), 0.88 (CLAHE of clip limit 4), and 0.89 and more of any other change.
"""

_WORTH = (0.6, 0.65, 0.8)
"""Correlation of the coarse pictures, agreement at half size, and either agreement, from which it pays to go on."""
_STRONG = 16.0  # variance of detail, in grey levels squared, at which a tile counts half


_LITTLE = 1.0  # tiles full of detail, of 256: fewer are no evidence


class Comparison(NamedTuple):
    """How alike two pictures are once the first of a candidate was laid over the second."""

    candidate: Candidate
    map: Map
    fine: float
    """agreement of the fine detail, -1 to 1"""
    coarse: float
    """mean agreement of coarser detail where one of them lacks the fine, else 0"""


def compare(thumbnails: Grey, described: Described, candidate: Candidate, *, blurred: bool) -> Comparison | None:
    """Aligns the pictures of a candidate, in steps; None where they turn out to be different early on.

    Args:
        thumbnails: all pictures, uint8 (N, S, S).
        described: what was found of them.
        candidate: two of them.
        blurred: compare coarser detail too, since one of them has no other.
    """
    ends = list(zip(candidate[:2], candidate.search.parts, strict=True))
    sign = -1.0 if candidate.search.inverted else 1.0
    small = [described.normalised[part][row].astype(np.float32) for row, part in ends]
    correlation, rough = align(sign * small[0], small[1], candidate.search.map, steps=15, gain=1e-3)
    if correlation < _WORTH[0]:
        return None
    side = thumbnails.shape[1]
    large = [cut(thumbnails[row], described.boxes[row][part], side) for row, part in ends]
    half = [cut(picture, WHOLE_BOX, side // 2) for picture in large]
    inner = [described.boxes[row][CONTENT] if part == WHOLE else WHOLE_BOX for row, part in ends]
    at_half = sign * agreement(_blacken(half[0], inner[0]), _blacken(half[1], inner[1]), rough, FINE)
    if at_half < _WORTH[1]:
        return None
    framed = [_blacken(picture, box) for picture, box in zip(large, inner, strict=True)]
    _, found = align(sign * normalise(half[0]), normalise(half[1]), rough, steps=10, gain=1e-4)
    fine = sign * agreement(framed[0], framed[1], found, FINE)
    if fine < SAME and max(at_half, fine) > _WORTH[2]:  # so close: align as well as can be, from every map
        for start in (candidate.search.map, found, rough):
            _, again = align(sign * normalise(large[0]), normalise(large[1]), start, steps=20, gain=1e-4)
            better = [(sign * agreement(framed[0], framed[1], tried, FINE), tried) for tried in (start, again)]
            fine, found = max([(fine, found), *better], key=lambda pair: pair[0])
            if fine >= SAME:
                break
    coarse = [sign * agreement(framed[0], framed[1], found, detail) for detail in COARSE] if blurred else [0.0]
    return Comparison(candidate, found, fine, float(np.mean(coarse)))


def _blacken(picture: Grey, box: Box) -> Grey:
    """A picture that is black outside a box, so that the edge of a grey border is no detail."""
    left, top, right, bottom = (round(edge * len(picture)) for edge in box)
    inner = np.zeros_like(picture)
    inner[top:bottom, left:right] = picture[top:bottom, left:right]
    return inner


def align(first: Singles, second: Singles, start: Map, *, steps: int, gain: float) -> tuple[float, Map]:
    """Finds the affine map from the second to the first picture: their correlation then, and the map.

    Args:
        first: normalised, (S, S).
        second: the same.
        start: near the map.
        steps: at most.
        gain: of correlation, by which a step must improve it.

    It is the enhanced correlation coefficient of Evangelidis and Psarakis (2008).
    """
    side = len(first)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, steps, gain)
    try:
        mask = np.ones(first.shape, np.uint8)
        warp = in_pixels(start, side, side)
        found = cv2.findTransformECC(second, first, warp, cv2.MOTION_AFFINE, stop, mask, 5)
    except cv2.error:  # it did not converge: these two cannot be laid over each other
        return -1.0, start
    return float(found[0]), from_pixels(np.asarray(found[1], np.float32), side)


def agreement(first: Grey, second: Grey, found: Map, detail: tuple[float, float]) -> float:
    """Median over tiles, weighted by the detail that both have, of its correlation where both are well exposed.

    Args:
        first: uint8 (S, S).
        second: the same.
        found: from the second to the first.
        detail: standard deviations of two Gaussians, in pixels; their difference is what is compared.
    """
    side = len(second)
    rim = 2 * (side // 64) + 1  # about what is badly exposed: its edge is no detail
    warp = in_pixels(found, side, side)
    warped = cv2.warpAffine(first.astype(np.float32), warp, (side, side), flags=INVERSE)
    inside = cv2.warpAffine(_exposed(first).astype(np.float32), warp, (side, side), flags=INVERSE) > 0.99
    both = (inside & _exposed(second)).astype(np.float32)
    used = np.asarray(cv2.erode(both, np.ones((rim, rim)), borderValue=1.0), np.float32)
    low, high = (cv2.GaussianBlur(both, (0, 0), width) + 1e-3 for width in detail)

    def detailed(grey: Singles) -> Singles:
        """The detail of a picture, as if what is badly exposed were not there; 0 near it."""
        smooth = [cv2.GaussianBlur(grey * both, (0, 0), width) for width in detail]
        return np.asarray((smooth[0] / low - smooth[1] / high) * used, np.float32)

    a, b = detailed(np.asarray(warped, np.float32)), detailed(second.astype(np.float32))
    tile, step = max(side // 6, int(4 * detail[1])), side // 16

    def tiles(values: Singles) -> Singles:
        means = cv2.boxFilter(values, -1, (tile, tile), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(means[step // 2 :: step, step // 2 :: step], np.float32)

    share = tiles(used)
    enough = share > 0.25
    if enough.sum() < 10:
        return 0.0
    share = share[enough]
    aa, bb, ab = (np.asarray(tiles(product)[enough] / share, np.float32) for product in (a * a, b * b, a * b))
    aa, bb = np.maximum(aa, 0.0), np.maximum(bb, 0.0)
    # what is added is less than the rounding to grey levels
    correlation = np.asarray(ab / np.sqrt((aa + 0.05) * (bb + 0.05)), np.float32)
    weights = np.asarray(share * np.sqrt(aa / (aa + _STRONG) * bb / (bb + _STRONG)), np.float32)
    return _weighted_median(correlation, weights) if weights.sum() > _LITTLE else 0.0


def _exposed(picture: Grey) -> Mask:
    """Where a picture is neither black nor white, which film borders, padding and letters are."""
    return (picture > 4) & (picture < 251)


def _weighted_median(values: Singles, weights: Singles) -> float:
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, sums[-1] / 2)])


def lost_detail(picture: Grey) -> str:
    """Why a picture has no fine detail: it consists of "blocks", or is a "blur" since it was much smaller; else ""."""
    grey = picture.astype(np.float32)
    smooth = [cv2.GaussianBlur(grey, (0, 0), width) for width in (0.8, 1.5, 4.0)]
    spread = cv2.GaussianBlur(grey * grey, (0, 0), 4.0) - smooth[2] * smooth[2]
    shown = (spread > 4.0) & _exposed(picture)  # where there is something to see
    if shown.sum() < shown.size / 50:
        return ""
    level = (np.abs(np.diff(grey, axis=1))[1:] < 0.5) & (np.abs(np.diff(grey, axis=0))[:, 1:] < 0.5)
    if level[shown[1:, 1:]].mean() > 0.38:
        return "blocks"
    fine, middle = (float(np.median(np.abs(a - b)[shown])) for a, b in ((grey, smooth[0]), (smooth[1], smooth[2])))
    return "blur" if fine < max(0.4, 0.2 * middle) else ""
