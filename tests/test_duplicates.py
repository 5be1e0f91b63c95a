"""Copies that were altered are found, and strangers are not joined."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.duplicates import CHANGES, EXPORTED, measure_phantoms, patient, phantoms, planted, thumbnail
from osteo.config import AugmentConfig, DataConfig
from osteo.data.duplicates import SIDE, find_pairs
from osteo.data.prepare import prepare
from osteo.reading.framing import square
from osteo.training.augment import paper_twins

Grey = np.ndarray

LIES = {
    "horizontal flip": "mirrored", "vertical flip": "upside down", "rotation by 90 degrees": "rotated by 90 degrees",
    "rotation by 45 degrees": "rotated by 45 degrees", "rotation by 180 degrees": "rotated by 180 degrees",
    "inverted grey": "inverted",
}  # fmt: skip
"""How a copy lies to its original, where that is another way."""
USUAL = ("re-encoded", "resized", "cropped by up to 5 %", "brighter or darker", "horizontal flip",
         "cropped, resized, re-encoded", "brighter, cropped, re-encoded")  # fmt: skip


@pytest.fixture(scope="module")
def patients() -> list[Grey]:
    return [patient(number) for number in range(12)]


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_copy_is_found(name: str, patients: list[Grey]) -> None:
    thumbnails = [thumbnail(picture) for picture in patients]
    copies = []
    for number in range(4):
        thumbnails[number], copy = planted(patients[number], name, number)
        copies.append(copy)
    pairs = find_pairs(np.stack(thumbnails + copies))
    assert [(pair.first, pair.second) for pair in pairs] == [(number, 12 + number) for number in range(4)]
    change = LIES.get(name.removeprefix(EXPORTED), "")
    assert {pair.change for pair in pairs} == {change}
    assert {pair.mirrored for pair in pairs} == {change in ("mirrored", "upside down")}


def joined(start: int, pairs: list) -> set[int]:
    group = {start}
    for _ in range(len(pairs)):
        group |= {n for pair in pairs if {pair.first, pair.second} & group for n in pair[:2]}
    return group


def test_many_copies_of_one_picture_are_connected(patients: list[Grey]) -> None:
    copies = [planted(patients[0], USUAL[seed % 4], seed)[1] for seed in range(12)]
    pairs = find_pairs(np.stack([thumbnail(picture) for picture in patients[:3]] + copies))
    assert joined(0, pairs) == {0, *range(3, 15)}


@pytest.mark.slow
def test_the_papers_variants_become_one_group_per_original(patients: list[Grey], tmp_path: Path) -> None:
    exported = [square(picture, 224, "pad") for picture in patients]
    twins = paper_twins(AugmentConfig())
    variants = [[picture, *(twin(picture) for twin in twins.values())] for picture in exported]
    pairs = find_pairs(np.stack([thumbnail(variant) for of_one in variants for variant in of_one]))
    for number in range(12):
        assert joined(7 * number, pairs) == set(range(7 * number, 7 * number + 7))
    for number, of_one in enumerate(variants):
        folder = tmp_path / "exported" / ("normal", "osteoporosis")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for name, variant in zip(("original", *twins), of_one, strict=True):
            cv2.imwrite(str(folder / f"{number}, {name}.png"), variant)
    for clean in (False, True):
        manifest = prepare(DataConfig("folder", root=str(tmp_path / "exported"), clean=clean, image_size=32)).manifest
        used = manifest[manifest["split"] != "excluded"]
        original = used["image_id"].str.extract(r"(\d+), ", expand=False)
        assert len(used) == (12 if clean else 84)
        assert (used.groupby(original)["split"].nunique() == 1).all()
        assert used["group"].nunique() == original.nunique() == 12


def test_nothing_and_blank_pictures_have_no_pairs() -> None:
    assert find_pairs(np.zeros((0, SIDE, SIDE), np.uint8)) == []
    assert find_pairs(np.zeros((1, SIDE, SIDE), np.uint8)) == []
    assert find_pairs(np.full((5, SIDE, SIDE), 90, np.uint8)) == []


@pytest.fixture(scope="module")
def many() -> list[Grey]:
    return phantoms()


@pytest.mark.slow
@pytest.mark.usefixtures("compared_once")
def test_500_copies_among_2000_patients(many: list[Grey]) -> None:
    copies = [planted(many[number], USUAL[number % len(USUAL)], number)[1] for number in range(500)]
    pairs = find_pairs(np.stack([thumbnail(picture) for picture in many] + copies))
    found = {(pair.first, pair.second) for pair in pairs}
    expected = {(number, 2000 + number) for number in range(500)}
    assert found - expected == set(), "strangers were joined"
    assert len(found & expected) >= 495


@pytest.mark.slow
@pytest.mark.usefixtures("compared_once")
def test_20_copies_of_each_kind_among_2000_patients(many: list[Grey]) -> None:
    found = measure_phantoms(many)
    assert found.pop("none")["false"] == 0, "patients were joined"
    assert {name: row["found"] for name, row in found.items() if row["found"] < 18} == {}
    assert {name: row["false"] for name, row in found.items() if row["false"]} == {}
