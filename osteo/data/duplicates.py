"""Finds pictures of the same exposure, whatever was done to a copy: turned, mirrored, inverted, padded, equalised, ...

Candidates come from one matrix product per assumed change; each is then aligned by an affine warp and confirmed where
the fine detail agrees all over the picture. Different knees in the same pose agree along the edges of the bones only.
A picture that has no fine detail any more is a copy of the one that it resembles far more than any other.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from osteo.data.alignment import SAME, Comparison, compare, lost_detail
from osteo.data.candidates import Candidate, describe, find_candidates
from osteo.data.manifest import connect
from osteo.types import Floats, Grey

SIDE = 256
"""Side of the thumbnails, in pixels; the picture is stretched to a square."""

_ALIKE = {"blocks": 0.9, "blur": 0.94}  # least agreement of coarse detail for a picture that has lost the fine
_APART = {"blocks": 0.5, "blur": 0.35}  # most of what it lacks to its original, over what it lacks to the next


class Pair(NamedTuple):
    """Two pictures of the same exposure."""

    first: int
    second: int
    similarity: float
    """median over the picture of the local correlation of the finest detail that both have, 0 to 1"""
    mirrored: bool
    """one is a mirror image of the other, from left to right or upside down"""
    change: str
    """how one lies to the other: "", "mirrored", "upside down", "rotated by 90 degrees", "inverted", ..."""


def find_pairs(thumbnails: Grey) -> list[Pair]:
    """Pairs of the same exposure among thumbnails, uint8 (N, SIDE, SIDE), in the order of their indices.

    Of many copies of one picture not every pair is listed, but all copies are connected.
    """
    return join(*compare_likely(thumbnails))


def join(compared: Sequence[Comparison], lost: Sequence[str]) -> list[Pair]:
    """The pairs of the same exposure among what `compare_likely` returns, in the order of their indices."""
    same = [comparison for comparison in compared if comparison.fine >= SAME]
    found: dict[tuple[int, int], Pair] = {}
    for comparison in same + _without_detail(compared, same, lost):
        pair = _as_pair(comparison)
        if pair[:2] not in found or found[pair[:2]].similarity < pair.similarity:
            found[pair[:2]] = pair
    return sorted(found.values())


def compare_likely(thumbnails: Grey) -> tuple[list[Comparison], list[str]]:
    """Compares every two thumbnails that may show the same; also says why one has no fine detail, else ""."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pictures are small and there are many: one thread each
    try:
        with ThreadPoolExecutor() as pool:
            described = describe(thumbnails)
            lost = list(pool.map(lost_detail, thumbnails))

            def work(candidate: Candidate) -> Comparison | None:
                unequal = bool(lost[candidate.first]) != bool(lost[candidate.second])
                return compare(thumbnails, described, candidate, blurred=unequal)

            compared = list(pool.map(work, find_candidates(described)))
    finally:
        cv2.setNumThreads(threads)
    return [comparison for comparison in compared if comparison is not None], lost


def _without_detail(
    compared: Sequence[Comparison], same: Sequence[Comparison], lost: Sequence[str]
) -> list[Comparison]:
    """The original of every picture without fine detail, where one picture is far more like it than the others."""
    groups = connect(len(lost), [comparison.candidate[:2] for comparison in same])
    known = {group for group, reason in zip(groups, lost, strict=True) if not reason}
    likeness: dict[int, dict[int, Comparison]] = {}  # by picture and by group of its partners
    for comparison in compared:
        first, second = comparison.candidate[:2]
        picture, partner = (first, second) if lost[first] else (second, first)
        if lost[picture] and not lost[partner] and groups[picture] not in known:
            best = likeness.setdefault(picture, {})
            if groups[partner] not in best or best[groups[partner]].coarse < comparison.coarse:
                best[groups[partner]] = comparison
    found = []
    for picture, best in likeness.items():
        nearest, *others = sorted(best.values(), key=lambda comparison: -comparison.coarse)
        following = others[0].coarse if others else 0.0
        lacking = _APART[lost[picture]] * (1.0 - following)
        if nearest.coarse >= max(_ALIKE[lost[picture]], 1.0 - lacking):
            found.append(nearest)
    return found


def _as_pair(comparison: Comparison) -> Pair:
    first, second = sorted(comparison.candidate[:2])
    similarity = comparison.fine if comparison.fine >= SAME else comparison.coarse
    linear, inverted = comparison.map.linear, comparison.candidate.search.inverted
    return Pair(first, second, round(similarity, 4), bool(np.linalg.det(linear) < 0), _describe(linear, inverted))


def _describe(linear: Floats, inverted: bool) -> str:
    """How one picture lies to the other, in words, where `linear` (2, 2) is part of the map between them."""
    mirrored = np.linalg.det(linear) < 0
    turn = linear @ np.diag([-1.0, 1.0]) if mirrored else linear
    angle = 45 * round(np.rad2deg(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1])) / 45) % 360
    angle = min(angle, 360 - angle)  # either of them may be the copy
    words = []
    if mirrored:
        words.append("upside down" if angle == 180 else "mirrored")
    if angle and not (mirrored and angle == 180):
        words.append(f"rotated by {angle} degrees")
    return ", ".join(words + ["inverted"] * inverted)
