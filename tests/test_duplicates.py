"""Copies that were altered are found, and strangers are not joined."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from osteo.data.duplicates import SIDE, find_pairs
from osteo.data.phantom import draw

Grey = np.ndarray


def patient(number: int) -> Grey:
    rng = np.random.default_rng([7, number])
    height = int(rng.integers(400, 560))
    return draw(rng, rng.uniform(-4.0, 1.0), height=height, width=int(height * rng.uniform(0.45, 1.0)))


def recoded(picture: Grey, rng: np.random.Generator) -> Grey:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))]
    return cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_GRAYSCALE)


def resized(picture: Grey, rng: np.random.Generator) -> Grey:
    factor = rng.uniform(0.5, 0.9)
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def cropped(picture: Grey, rng: np.random.Generator) -> Grey:
    top, bottom, left, right = (rng.uniform(0.0, 0.05, 4) * np.repeat(picture.shape, 2)).astype(int)
    return picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]


def brighter(picture: Grey, rng: np.random.Generator) -> Grey:
    changed = (picture / 255.0) ** rng.uniform(0.75, 1.35) * rng.uniform(0.85, 1.1) * 255.0 + rng.uniform(-10, 10)
    return np.clip(changed, 0, 255).astype(np.uint8)


def mirrored(picture: Grey, rng: np.random.Generator) -> Grey:
    return picture[:, ::-1]


CHANGES: list[tuple[Callable, ...]] = [
    (recoded,), (resized,), (cropped,), (brighter,), (mirrored,), (cropped, resized, recoded),
    (brighter, cropped, recoded),
]  # fmt: skip


def altered(picture: Grey, changes: tuple[Callable, ...], seed: int) -> Grey:
    rng = np.random.default_rng([8, seed])
    for change in changes:
        picture = change(picture, rng)
    return picture


def thumbnail(picture: Grey) -> Grey:
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: " ".join(c.__name__ for c in changes))
def test_each_kind_of_copy_is_found(changes: tuple[Callable, ...]) -> None:
    originals = [patient(number) for number in range(12)]
    copies = [altered(originals[number], changes, number) for number in range(4)]
    pairs = find_pairs(np.stack([thumbnail(picture) for picture in originals + copies]))
    assert [(pair.first, pair.second) for pair in pairs] == [(number, 12 + number) for number in range(4)]
    assert all(pair.mirrored == (mirrored in changes) for pair in pairs)


def test_many_copies_of_one_picture_are_connected() -> None:
    originals = [patient(number) for number in range(3)]
    copies = [altered(originals[0], CHANGES[seed % 4], seed) for seed in range(12)]
    pairs = find_pairs(np.stack([thumbnail(picture) for picture in originals + copies]))
    joined = {0}
    for _ in range(len(pairs)):
        joined |= {n for pair in pairs if {pair.first, pair.second} & joined for n in pair[:2]}
    assert joined == {0, *range(3, 15)}


def test_nothing_and_blank_pictures_have_no_pairs() -> None:
    assert find_pairs(np.zeros((0, SIDE, SIDE), np.uint8)) == []
    assert find_pairs(np.zeros((1, SIDE, SIDE), np.uint8)) == []
    assert find_pairs(np.full((5, SIDE, SIDE), 90, np.uint8)) == []


@pytest.mark.slow
def test_500_copies_among_2000_patients() -> None:
    with ThreadPoolExecutor() as pool:
        originals = list(pool.map(patient, range(2000)))
    copies = [altered(originals[number], CHANGES[number % len(CHANGES)], number) for number in range(500)]
    pairs = find_pairs(np.stack([thumbnail(picture) for picture in originals + copies]))
    found = {(pair.first, pair.second) for pair in pairs}
    planted = {(number, 2000 + number) for number in range(500)}
    assert found - planted == set(), "strangers were joined"
    assert len(found & planted) >= 495
