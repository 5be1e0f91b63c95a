"""Finds pictures of the same exposure: re-encoded, resized, cropped by a few per cent, brighter or mirrored.

Candidates come from one matrix product per assumed crop; each is then aligned by an affine warp and confirmed where the
fine detail agrees all over the picture. Different knees in the same pose agree along the edges of the bones only.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from osteo.types import Grey, Singles

Window = tuple[float, float, float, float]

SIDE = 256
"""Side of the thumbnails, in pixels; the picture is stretched to a square."""
SAME = 0.9
"""From this similarity on, two pictures are one exposure. Measured: the nearest of 2000 phantom strangers reach 0.80,
the least alike of 500 altered copies 0.93; the nearest strangers among 202 real knees reach 0.86."""

_COARSE, _MIDDLE = 32, 96  # sides, in pixels, at which candidates are searched and alignment starts
_LIKELY, _NEAREST = 0.85, 4  # least correlation of a candidate, and how many a picture may have
_MARGIN = 0.05  # assumed crops, as a share of the side
_WINDOWS: tuple[Window, ...] = (
    (0.0, 0.0, 1.0, 1.0),
    (_MARGIN / 2, _MARGIN / 2, 1.0 - _MARGIN / 2, 1.0 - _MARGIN / 2),
    (_MARGIN, _MARGIN, 1.0 - _MARGIN, 1.0 - _MARGIN),
    (_MARGIN, 0.0, 1.0, 1.0),
    (0.0, _MARGIN, 1.0, 1.0),
    (0.0, 0.0, 1.0 - _MARGIN, 1.0),
    (0.0, 0.0, 1.0, 1.0 - _MARGIN),
    (_MARGIN, 0.0, 1.0 - _MARGIN, 1.0),
    (0.0, _MARGIN, 1.0, 1.0 - _MARGIN),
)
_ASSUMED = (*((number, False) for number in range(len(_WINDOWS))), (0, True), (1, True))
"""Windows, and whether mirrored, that together find nearly every planted copy; more of them take longer."""


class Pair(NamedTuple):
    """Two pictures of the same exposure."""

    first: int
    second: int
    similarity: float
    """median over the picture of the local correlation of fine detail, SAME to 1"""
    mirrored: bool


class Candidate(NamedTuple):
    """Two pictures that may be the same, the first of them cropped to a window and perhaps mirrored."""

    first: int
    second: int
    window: int
    mirrored: bool


def find_pairs(thumbnails: Grey) -> list[Pair]:
    """Pairs of the same exposure among thumbnails, uint8 (N, SIDE, SIDE), in the order of their indices.

    Of many copies of one picture not every pair is listed, but all copies are connected.
    """
    middle = np.stack([_resize(picture, _MIDDLE) for picture in thumbnails]) if len(thumbnails) else thumbnails

    def confirm(candidate: Candidate) -> Pair | None:
        similarity = _similarity(thumbnails, middle, candidate)
        if similarity < SAME:
            return None
        first, second = sorted(candidate[:2])
        return Pair(first, second, round(similarity, 4), candidate.mirrored)

    candidates = _candidates(middle)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pictures are small and there are many: one thread each
    try:
        with ThreadPoolExecutor() as pool:
            return sorted(pair for pair in pool.map(confirm, candidates) if pair is not None)
    finally:
        cv2.setNumThreads(threads)


def _candidates(middle: Grey) -> list[Candidate]:
    """For every picture those that resemble it most, under all assumed crops."""
    if len(middle) < 2:
        return []
    targets = _describe(middle, _WINDOWS[0], mirrored=False)
    found: list[npt.NDArray[np.float64]] = []
    for number, mirrored in _ASSUMED:
        queries = _describe(middle, _WINDOWS[number], mirrored=mirrored)
        found += [
            _nearest(queries[start : start + 1024], targets, start, number, mirrored=mirrored)
            for start in range(0, len(queries), 1024)
        ]
    rows = np.concatenate(found)  # columns: first, second, correlation, window, mirrored
    rows = rows[np.argsort(-rows[:, 2], kind="stable")]
    key = np.minimum(rows[:, 0], rows[:, 1]) * len(middle) + np.maximum(rows[:, 0], rows[:, 1])
    rows = rows[np.sort(np.unique(key, return_index=True)[1])]  # the best of each pair, best first
    seen = np.zeros(len(middle), np.int64)
    kept = []
    for first, second, _, number, mirror in rows.tolist():
        candidate = Candidate(int(first), int(second), int(number), bool(mirror))
        if min(seen[candidate.first], seen[candidate.second]) < _NEAREST:
            seen[[candidate.first, candidate.second]] += 1
            kept.append(candidate)
    return kept


def _nearest(queries: Singles, targets: Singles, start: int, window: int, *, mirrored: bool) -> npt.NDArray[np.float64]:
    """The likeliest partners of these queries, which are pictures start, start + 1, and so on."""
    alike = torch.from_numpy(queries) @ torch.from_numpy(targets).T  # torch, since NumPy has no topk
    alike[torch.arange(len(queries)), start + torch.arange(len(queries))] = -1.0
    best = alike.topk(min(_NEAREST, alike.shape[1] - 1), dim=1)
    values, columns = best.values.numpy(), best.indices.numpy()
    row, place = np.nonzero(values >= _LIKELY)
    fixed = np.full(len(row), float(window)), np.full(len(row), float(mirrored))
    return np.column_stack([row + start, columns[row, place], values[row, place], *fixed]).astype(np.float64)


def _describe(middle: Grey, window: Window, *, mirrored: bool) -> Singles:
    """Unit vectors (N, 1024): the window of each picture, small, without what varies slowly."""
    vectors = np.empty((len(middle), _COARSE * _COARSE), np.float32)
    for row, picture in enumerate(middle):
        smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _MIDDLE / _COARSE / 2)
        small = cv2.warpAffine(smooth, _crop(window, _MIDDLE, _COARSE), (_COARSE, _COARSE), flags=_INVERSE)
        small = small[:, ::-1] if mirrored else small
        vectors[row] = (small - cv2.GaussianBlur(small, (0, 0), _COARSE / 8)).ravel()
    vectors -= vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-3), np.float32)


_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _crop(window: Window, source: int, target: int) -> Singles:
    """The map from pixels of a target to pixels of a window of the source."""
    left, top, right, bottom = (edge * source for edge in window)
    across, down = (right - left) / target, (bottom - top) / target
    return np.array([[across, 0.0, left + across / 2 - 0.5], [0.0, down, top + down / 2 - 0.5]], np.float32)


def _resize(picture: Grey, side: int) -> Grey:
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _similarity(thumbnails: Grey, middle: Grey, candidate: Candidate) -> float:
    """How well the fine detail of two pictures agrees once one is warped onto the other, -1 to 1."""
    first, second, _, mirrored = candidate
    similarity = -1.0
    # alignment goes astray from one start in fifty, and rarely from both
    for start in (candidate, Candidate(second, first, 0, mirrored)):
        window = _WINDOWS[start.window]
        if mirrored:
            window = (1 - window[2], window[1], 1 - window[0], window[3])
        # more steps and a finer end find no more pairs
        coarse, warp = _align(middle, start, _crop(window, _MIDDLE, _MIDDLE), steps=15, gain=1e-3)
        if coarse >= 0.7:
            warp[:, 2] *= SIDE / _MIDDLE
            similarity = max(similarity, _align(thumbnails, start, warp, steps=20, gain=1e-4)[0])
            if similarity >= SAME or coarse < 0.8:
                break
    return similarity


def _align(pictures: Grey, start: Candidate, warp: Singles, *, steps: int, gain: float) -> tuple[float, Singles]:
    """Warps the first picture of a candidate onto the second: how well they agree then, and the warp."""
    first, second = pictures[start.first].astype(np.float32), pictures[start.second].astype(np.float32)
    first = np.ascontiguousarray(first[:, ::-1]) if start.mirrored else first
    side = len(second)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, steps, gain)
    try:
        found = cv2.findTransformECC(second, first, warp, cv2.MOTION_AFFINE, stop, _inner(first), 5)
    except cv2.error:  # it did not converge: these two cannot be laid over each other
        return -1.0, warp
    warp = np.asarray(found[1], np.float32)
    aligned = cv2.warpAffine(first, warp, (side, side), flags=_INVERSE)
    inside = cv2.warpAffine(np.ones_like(first), warp, (side, side), flags=_INVERSE) > 0.99
    return _agreement(np.asarray(aligned, np.float32), second, inside), warp


def _inner(picture: Singles) -> Grey:
    """The pixels that alignment uses: not the rim, nor what is white, where films have edges and letters."""
    rim = len(picture) // 32
    mask = np.zeros(picture.shape, np.uint8)
    mask[rim:-rim, rim:-rim] = 255 * (picture[rim:-rim, rim:-rim] < 245)
    return mask


def _agreement(first: Singles, second: Singles, inside: npt.NDArray[np.bool_]) -> float:
    """Median over tiles of the correlation of detail between two pictures (S, S), where both are well exposed."""
    side = len(second)
    detail = (1.5, 4.0) if side == SIDE else (0.6, 2.0)  # sigmas, in pixels, between which detail lies
    tile = side // 6
    grown = cv2.erode(inside.astype(np.uint8), np.ones((side // 24, side // 24)), borderValue=0) > 0
    lit = cv2.GaussianBlur(second, (0, 0), side / 32) > 20
    used = (grown & lit & (first > 4) & (first < 248) & (second > 4) & (second < 248)).astype(np.float32)
    a, b = (
        (cv2.GaussianBlur(p, (0, 0), detail[0]) - cv2.GaussianBlur(p, (0, 0), detail[1])) * used
        for p in (first, second)
    )

    def tiles(values: Singles) -> Singles:
        means = cv2.boxFilter(values, -1, (tile, tile), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(means[tile // 2 :: tile // 2, tile // 2 :: tile // 2], np.float32)

    share = tiles(used)
    noise = 0.02 * share  # of variance, in grey levels squared: a flat tile agrees with nothing
    correlation = tiles(a * b) / np.sqrt((tiles(a * a) + noise) * (tiles(b * b) + noise) + 1e-9)
    counted = correlation[share > 0.6]
    return float(np.median(counted)) if len(counted) >= 8 else 0.0
