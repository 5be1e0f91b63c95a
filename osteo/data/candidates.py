"""Which pictures may show the same exposure: the nearest of each, under every change that copies undergo.

A picture is described by 32 x 32 numbers, locally normalised, so that brightness, contrast and CLAHE matter little and
an inverted picture has the opposite sign. Every search turns, mirrors or crops all pictures in one way and compares
them with all others in one matrix product.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from osteo.types import Floats, Grey, Singles

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as shares of the side."""
WHOLE_BOX: Box = (0.0, 0.0, 1.0, 1.0)

_SEARCHED = 64
"""Side of the normalised pictures that are searched and roughly aligned, in pixels."""
WHOLE, WITHOUT_PADDING, CONTENT = range(3)
"""Parts of a picture: all of it, without a constant border, and without a border that is nearly constant."""

_SIDE, _NUMBERS = 32, 256  # side of a description, and how many numbers are kept of it
_CROP = 0.05  # share of the side that a copy may lack
_TOLERANCE = {WITHOUT_PADDING: (2, 1.0), CONTENT: (10, 0.97)}  # grey levels, and the share of a line within them


class Map(NamedTuple):
    """Where in one picture the points of another lie: x -> linear @ x + shift, both from 0 to 1 over the side."""

    linear: Floats
    """(2, 2)"""
    shift: Floats
    """(2,)"""


class Search(NamedTuple):
    """One way in which a copy may differ from its original."""

    kind: int
    """searches of one kind share what a picture may have of candidates"""
    parts: tuple[int, int]
    """of the changed picture and of the others"""
    map: Map
    """from the others to the changed picture"""
    least: float
    """correlation from which two pictures are candidates"""
    most: int
    """candidates that a picture may have"""
    inverted: bool = False


class Candidate(NamedTuple):
    """Two pictures that may be the same, the first of them changed as a search says."""

    first: int
    second: int
    search: Search
    correlation: float


class Described(NamedTuple):
    """What is searched of all pictures."""

    boxes: list[tuple[Box, Box, Box]]
    """of the three parts of each"""
    normalised: list[npt.NDArray[np.float16]]
    """of each part, (N, _SEARCHED, _SEARCHED)"""


def _about_centre(linear: Floats, box: Box = WHOLE_BOX) -> Map:
    """A linear map about the centre, followed by the map of the whole to a box."""
    size, corner = np.diag([box[2] - box[0], box[3] - box[1]]), np.array(box[:2])
    return Map(size @ linear, corner + size @ (0.5 - linear @ np.full(2, 0.5)))


def _rotation(degrees: float, proportion: float) -> Floats:
    """A rotation of a picture that is `proportion` times as wide as high and was stretched to a square."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin / proportion], [sin * proportion, cos]])


def _searches() -> tuple[Search, ...]:
    """What a copy may have undergone; a turn finds the opposite one too, since every picture is turned."""
    same, mirrored, quarter = np.eye(2), np.diag([-1.0, 1.0]), _rotation(90.0, 1.0)
    whole, c = (WHOLE, WHOLE), _CROP
    crops: list[Box] = [
        (c / 2, c / 2, 1 - c / 2, 1 - c / 2), (c, c, 1 - c, 1 - c), (c, 0, 1, 1), (0, c, 1, 1), (0, 0, 1 - c, 1),
        (0, 0, 1, 1 - c), (c, 0, 1 - c, 1), (0, c, 1, 1 - c),
    ]  # fmt: skip
    found = [Search(0, parts, _about_centre(same), 0.7, 5) for parts in (whole, (CONTENT, CONTENT))]
    found += [Search(0, (WITHOUT_PADDING, WHOLE), _about_centre(same), 0.7, 5)]
    found += [Search(0, whole, _about_centre(same, box), 0.7, 5) for box in crops]
    found += [Search(1, parts, _about_centre(same), 0.6, 1, inverted=True) for parts in (whole, (CONTENT, CONTENT))]
    found += [Search(2, whole, _about_centre(mirrored, box), 0.75, 2) for box in (WHOLE_BOX, crops[0])]
    found += [Search(3, whole, _about_centre(turn), 0.75, 1) for turn in (-mirrored, -same)]
    found += [
        Search(4, whole, _about_centre(turn), 0.5, 2) for turn in (quarter, quarter @ mirrored, mirrored @ quarter)
    ]
    proportions = np.geomspace(0.33, 1.3, 8)  # of radiographs of knees: the pictures here have lost theirs
    found += [Search(5, whole, _about_centre(_rotation(45.0, float(p))), 0.5, 2) for p in proportions]
    return tuple(found)


SEARCHES = _searches()


def describe(thumbnails: Grey) -> Described:
    """The parts of thumbnails, uint8 (N, S, S), and what is compared of them."""
    boxes = [find_parts(picture) for picture in thumbnails]
    normalised = [np.empty((len(thumbnails), _SEARCHED, _SEARCHED), np.float16) for _ in range(3)]
    for row, picture in enumerate(thumbnails):
        for part in range(3):
            again = part and boxes[row][part] == boxes[row][0]
            normalised[part][row] = (
                normalised[0][row] if again else normalise(cut(picture, boxes[row][part], _SEARCHED))
            )
    return Described(boxes, normalised)


def find_parts(picture: Grey) -> tuple[Box, Box, Box]:
    """The whole of a square picture, it without padding, and its content."""
    boxes: list[Box] = [WHOLE_BOX]
    side = len(picture)
    for tolerance, share in _TOLERANCE.values():
        left, right = _borders(picture.T, tolerance, share)
        top, bottom = _borders(picture, tolerance, share)
        boxes.append((left / side, top / side, 1.0 - right / side, 1.0 - bottom / side))
    return boxes[0], boxes[1], boxes[2]


def _borders(lines: Grey, tolerance: int, share: float) -> tuple[int, int]:
    """How many of the first and of the last lines have the grey level of the outermost; none where little is left."""
    found = []
    for ordered in (lines, lines[::-1]):
        near = np.abs(ordered.astype(np.int16) - int(np.median(ordered[0]))) <= tolerance
        flat = near.mean(axis=1) >= share
        found.append(int(np.argmin(flat)) if not flat.all() else 0)
    return (found[0], found[1]) if sum(found) <= 0.9 * len(lines) else (0, 0)


def cut(picture: Grey, box: Box, side: int) -> Grey:
    """A part of a square picture, stretched to a square of this side."""
    left, top, right, bottom = (round(edge * len(picture)) for edge in box)
    part = picture[top:bottom, left:right]
    if part.shape == (side, side):
        return part
    mode = cv2.INTER_AREA if min(part.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (side, side), interpolation=mode), np.uint8)


def normalise(picture: Grey) -> Singles:
    """A picture less its local mean, over its local standard deviation; both within a sixteenth of its side."""
    grey, width = picture.astype(np.float32), len(picture) / 16
    rest = grey - cv2.GaussianBlur(grey, (0, 0), width)
    return np.asarray(rest / np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), width) + 8.0), np.float32)


def find_candidates(described: Described) -> list[Candidate]:
    """For every picture those that resemble it most after one of the searches; of each kind a limited number."""
    count = len(described.boxes)
    if count < 2:
        return []
    smooth = [_smooth(pictures) for pictures in described.normalised]
    straight = {part: _vectors(smooth[part], _about_centre(np.eye(2))) for part in (WHOLE, CONTENT)}
    basis = _principal(straight[WHOLE])
    targets = {part: vectors @ basis for part, vectors in straight.items()}
    kept = []
    for kind in sorted({search.kind for search in SEARCHES}):
        numbers = [number for number, search in enumerate(SEARCHES) if search.kind == kind]
        found = []
        for number in numbers:
            search = SEARCHES[number]
            queries = _vectors(smooth[search.parts[0]], search.map) @ basis
            queries = -queries if search.inverted else queries
            found += [
                np.column_stack([rows, np.full(len(rows), number)])
                for rows in (
                    _nearest(queries, targets[search.parts[1]], start, search) for start in range(0, count, 1024)
                )
            ]
        kept += _best(np.concatenate(found), count, SEARCHES[numbers[0]].most)
    return kept


def _best(rows: Floats, count: int, most: int) -> list[Candidate]:
    """The candidates of one kind, best first; at least one picture of each has fewer than `most` better ones.

    Args:
        rows: first, second, correlation and number of the search of each.
        count: of all pictures.
        most: of candidates per picture.
    """
    rows = rows[np.argsort(-rows[:, 2], kind="stable")]
    key = np.minimum(rows[:, 0], rows[:, 1]) * count + np.maximum(rows[:, 0], rows[:, 1])
    rows = rows[np.sort(np.unique(key, return_index=True)[1])]
    seen = np.zeros(count, np.int64)
    kept = []
    for first, second, correlation, number in rows.tolist():
        pair = [int(first), int(second)]
        if seen[pair].min() < most:
            seen[pair] += 1
            kept.append(Candidate(pair[0], pair[1], SEARCHES[int(number)], correlation))
    return kept


def _nearest(queries: torch.Tensor, targets: torch.Tensor, start: int, search: Search) -> Floats:
    """First, second and correlation of the likeliest partners of 1024 queries, which are pictures from `start` on."""
    block = queries[start : start + 1024]
    alike = block @ targets.T
    alike[torch.arange(len(block)), start + torch.arange(len(block))] = -1.0
    best = alike.topk(min(search.most, alike.shape[1] - 1), dim=1)
    values, columns = best.values.numpy(), best.indices.numpy()
    row, place = np.nonzero(values >= search.least)
    return np.column_stack([row + start, columns[row, place], values[row, place]]).astype(np.float64)


def _smooth(pictures: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Normalised pictures without detail that a description cannot hold."""
    width = _SEARCHED / _SIDE / 2
    return np.stack([cv2.GaussianBlur(p.astype(np.float32), (0, 0), width) for p in pictures]).astype(np.float16)


def _vectors(smooth: npt.NDArray[np.float16], changed: Map) -> torch.Tensor:
    """Unit vectors (N, 1024) of smoothed pictures that were changed by a map."""
    vectors = np.empty((len(smooth), _SIDE * _SIDE), np.float32)
    warp = in_pixels(changed, _SEARCHED, _SIDE)
    for row, picture in enumerate(smooth):
        vectors[row] = cv2.warpAffine(picture.astype(np.float32), warp, (_SIDE, _SIDE), flags=INVERSE).ravel()
    vectors -= vectors.mean(axis=1, keepdims=True)
    return torch.from_numpy(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-3))


def _principal(vectors: torch.Tensor) -> torch.Tensor:
    """The directions (1024, 256) in which vectors differ most; few numbers make the products fast."""
    some = vectors[:: max(1, len(vectors) // 4096)]
    directions: torch.Tensor = torch.linalg.eigh(some.T @ some).eigenvectors  # of the least first
    return directions[:, -_NUMBERS:]


INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def in_pixels(changed: Map, source: int, target: int) -> Singles:
    """The same map, (2, 3), from pixels of a picture of side `target` to those of one of side `source`."""
    linear = changed.linear * source / target
    shift = (changed.linear @ np.full(2, 0.5 / target) + changed.shift) * source - 0.5
    return np.column_stack([linear, shift]).astype(np.float32)


def from_pixels(warp: Singles, side: int) -> Map:
    """The map that `in_pixels` gave for two pictures of this side."""
    linear = warp[:, :2].astype(np.float64)
    return Map(linear, (warp[:, 2] + 0.5) / side - linear @ np.full(2, 0.5 / side))
