"""Squares about the joint: found where it is, whatever lies about it, and blind to the shape of the file."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osteo.data.manifest import typed
from osteo.data.phantom import draw
from osteo.data.store import open_store
from osteo.inference.model import Model
from osteo.reading.clusters import find_square
from osteo.reading.framing import JOINT_FITS, decoded_size, equalise, frame, square
from osteo.reading.pictures import decode
from osteo.reading.region import find_region
from osteo.types import Grey
from tests.conftest import REAL_DATA
from tests.test_store import encoded, sha

HEIGHT, WIDTH = 500, 360
MARK = np.zeros((HEIGHT, WIDTH), np.uint8)
"""Shows where a change of a picture has put its pixels."""
MARK[HEIGHT // 2, WIDTH // 2] = 200


@pytest.fixture(scope="module")
def phantoms() -> list[Grey]:
    return [draw(np.random.default_rng(seed), -1.0, height=HEIGHT, width=WIDTH) for seed in range(12)]


def test_the_joint_is_found_where_it_was_drawn(phantoms: list[Grey]) -> None:
    errors = []
    for seed, picture in enumerate(phantoms):
        rng = np.random.default_rng(seed)  # as `draw` draws: field, column, row, tilt
        scale = rng.uniform(200.0, 260.0) / HEIGHT
        column, row = WIDTH * rng.uniform(0.44, 0.56), HEIGHT * rng.uniform(0.4, 0.55)
        tilt = rng.normal(0.0, 3.0)
        joint = find_region(picture).joint
        assert joint is not None
        errors.append([(joint.row - row) * scale, (joint.column - column) * scale, joint.tilt - tilt])
        assert 60.0 < joint.width * scale < 105.0, "79 mm, times 0.88 to 1.1"
    assert np.abs(errors).max(axis=0) == pytest.approx([0.0, 0.0, 0.0], abs=8.0)
    assert np.sqrt(np.mean(np.square(errors), axis=0))[:2] == pytest.approx([0.0, 0.0], abs=4.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda grey: np.pad(grey, ((0, 0), (300, 200))),
        lambda grey: np.pad(grey, ((250, 120), (0, 0))),
        lambda grey: np.pad(np.pad(grey, 40), 12, constant_values=255),
        lambda grey: np.ascontiguousarray(grey[30:-60]),
        lambda grey: cv2.circle(grey.copy(), (20, 400), 15, 255, -1),
        lambda grey: cv2.rectangle(grey.copy(), (2, 20), (30, 60), 230, -1),
    ],
    ids=["black bands beside", "black bands above", "a white frame", "less leg", "a disc", "a letter's box"],
)
def test_the_crop_does_not_depend_on_what_lies_about_the_knee(
    phantoms: list[Grey], change: Callable[[Grey], Grey]
) -> None:
    before = find_region(phantoms[0]).joint
    after = find_region(change(phantoms[0])).joint
    assert before is not None
    assert after is not None
    assert after.width == pytest.approx(before.width, rel=0.13)
    assert after.tilt == pytest.approx(before.tilt, abs=5.0)
    top, left = np.argwhere(change(MARK) == 200)[0] - np.argwhere(MARK == 200)[0]
    assert after.row - top == pytest.approx(before.row, abs=0.05 * before.width)
    assert after.column - left == pytest.approx(before.column, abs=0.05 * before.width)


def test_what_is_not_of_the_limb_is_black_in_a_crop(phantoms: list[Grey]) -> None:
    joint = find_region(phantoms[0]).joint
    assert joint is not None
    air = phantoms[0] < 60
    marked = phantoms[0].copy()
    row = int(joint.row)
    column = int(np.flatnonzero(~air[row])[0]) - 12
    marked[row - 20 : row + 20, column : column + 6] = 255  # beside the skin, within the crop
    crop, region = square(marked, 128, "crop"), find_region(marked)
    assert region.limb.shape == (400, 288)
    assert region.limb[round(row * 0.8), round((column + 3) * 0.8)] == 0
    assert region.limb[round(row * 0.8), round(joint.column * 0.8)] == 255
    assert crop[:, :2].max() < 255
    assert crop[64, 64] > 0


def test_a_mosaic_of_bone_has_the_femur_over_the_tibia(phantoms: list[Grey]) -> None:
    for picture in phantoms:
        joint = find_region(picture).joint
        assert joint is not None
        gap = cv2.blur(picture, (3, 3))[round(joint.row) - 3 : round(joint.row) + 4, round(joint.column) - 60].min()
        bone = frame(picture, 64, "bone").picture
        assert bone.shape == (64, 64)
        assert (bone > gap).mean() > 0.9, "denser than the joint space"
    bright = phantoms[0].copy()
    joint = find_region(bright).joint
    assert joint is not None
    bright[: round(joint.row)] = 255 - (255 - bright[: round(joint.row)]) // 2  # the femur alone
    lighter = square(bright, 64, "bone").astype(int) - square(phantoms[0], 64, "bone")
    assert lighter[:30].mean() > lighter[34:].mean()


def test_where_there_is_no_joint_the_central_square_is_used(
    tmp_path: Path, phantoms: list[Grey], caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    for fit in JOINT_FITS:
        assert frame(phantoms[0], 32, fit).is_found
        picture, is_found = frame(noise, 32, fit)
        assert not is_found
        assert np.array_equal(picture, square(noise[:, 15:75], 32, "resize"))
    assert frame(noise, 32, "pad").is_found, "which needs no joint"
    shown = {"s/noise": noise, "s/knee": phantoms[0]}
    content = {name: encoded(Image.fromarray(picture), "PNG") for name, picture in shown.items()}
    table = typed(
        pd.DataFrame([{"image_id": name, "sha256": sha(data), "split": ""} for name, data in content.items()])
    )
    for _ in range(2):  # built, and opened again
        caplog.clear()
        store = open_store(table, content.__getitem__, tmp_path, image_size=32, fit="crop")
        assert store.without_joint == {sha(content["s/noise"])}
        assert caplog.messages == ["the joint was not found in 1 picture, s/noise first; their central square is used"]
    padded = open_store(table, content.__getitem__, tmp_path, image_size=32, fit="pad")
    assert not padded.without_joint


def test_a_jpeg_is_decoded_whole_where_a_joint_may_be_small_in_it() -> None:
    assert [decoded_size(224, fit) for fit in ("crop", "bone", "clusters", "pad")] == [0, 0, 0, 224]


@pytest.mark.slow
def test_a_crop_is_blind_to_the_shape_of_the_file_and_padding_is_not() -> None:
    """Narrow files are of one class and wide ones of the other; texture is drawn without regard to it."""
    rng = np.random.default_rng(0)
    labels = np.arange(70) % 2
    files = [draw(rng, rng.uniform(-4.0, 1.0), height=300, width=320 if label else 230) for label in labels]
    aurocs = {}
    for fit in ("pad", "crop"):
        pictures = np.stack([square(picture, 24, fit).ravel() for picture in files]).astype(float)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        scores = cross_val_predict(model, pictures, labels, cv=5, method="decision_function")
        aurocs[fit] = roc_auc_score(labels, scores)
    assert aurocs["pad"] > 0.99
    assert 0.35 < aurocs["crop"] < 0.65, "chance: its standard error is 0.07"


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "kaggle").is_dir(), reason="the original X-rays are not at hand")
def test_joints_are_found_in_real_pictures() -> None:
    """All but those of which no joint space can be seen; of the same machine, bones are about as wide."""
    files = sorted((REAL_DATA / "kaggle").rglob("*.*"))[::4]
    pictures = [decode(file.read_bytes()) for file in files]
    start = time.process_time()
    joints = [find_region(picture).joint for picture in pictures]
    assert (time.process_time() - start) / len(pictures) < 0.1, "seconds per picture"
    assert sum(joint is not None for joint in joints) >= 0.96 * len(files)
    widths = [joint.width for joint, picture in zip(joints, pictures, strict=True) if joint and len(picture) == 1994]
    assert np.quantile(widths, 0.95) < 1.5 * np.quantile(widths, 0.05)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (20, 20), (900, 30), (30, 900)])
def test_odd_shapes_have_no_joint(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for fit in JOINT_FITS:
        framed = frame(picture, 32, fit)
        assert (framed.picture.shape, framed.is_found) == ((32, 32), False)


def test_clusters_and_edges_show_the_joint(phantoms: list[Grey]) -> None:
    for picture in phantoms:
        joint, found = find_region(picture).joint, find_square(picture)
        assert joint is not None
        assert found is not None
        assert abs(found.row - joint.row) < 0.2 * found.side
        assert abs(found.column - joint.column) < 0.2 * found.side
        assert 0.8 * joint.width < found.side < 2.0 * joint.width
    black, blank = np.zeros((90, 60), np.uint8), np.full((90, 60), 90, np.uint8)
    assert (find_square(black), find_square(blank)) == (None, None)


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "kaggle").is_dir(), reason="the original X-rays are not at hand")
def test_clusters_and_edges_show_the_joint_of_real_pictures() -> None:
    pictures = [decode(file.read_bytes()) for file in sorted((REAL_DATA / "kaggle").rglob("*.*"))[::10]]
    pairs = [(find_square(picture), find_region(picture).joint) for picture in pictures]
    both = [(found, joint) for found, joint in pairs if found and joint]
    assert len(both) >= 0.94 * len(pictures)
    held = [max(abs(f.row - j.row), abs(f.column - j.column)) < 0.4 * f.side for f, j in both]
    assert np.mean(held) >= 0.96


def test_equalising_evens_the_histogram_and_leaves_padding_black(phantoms: list[Grey]) -> None:
    dark = np.asarray(1 + 200 * np.random.default_rng(0).random((128, 128)) ** 3, np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(dark, (0, 0), 4), np.uint8)
    levels, even = np.sort(equalise(smooth).ravel()) / 255.0, np.linspace(0.0, 1.0, smooth.size)
    assert np.abs(levels - even).mean() < 0.06 < np.abs(np.sort(smooth.ravel()) / 255.0 - even).mean()
    plain, enhanced = frame(phantoms[0], 128, "pad").picture, frame(phantoms[0], 128, "pad", "equalise").picture
    assert enhanced[:, :10].max() == 0
    assert np.array_equal(enhanced, equalise(plain))
    constant = np.full((32, 32), 80, np.uint8)
    assert equalise(constant).std() == 0.0


def test_a_store_and_a_model_s_card_know_how_a_picture_was_enhanced(tmp_path: Path, phantoms: list[Grey]) -> None:
    data = encoded(Image.fromarray(phantoms[0]), "PNG")
    table = typed(pd.DataFrame([{"image_id": "s/knee", "sha256": sha(data), "split": ""}]))
    read = {"s/knee": data}.__getitem__
    for fit, enhance in (("clusters", "equalise"), ("clusters", "none"), ("pad", "equalise")):
        store = open_store(table, read, tmp_path, image_size=32, fit=fit, enhance=enhance)
        model = Model(tmp_path, SimpleNamespace(), SimpleNamespace(image_size=32, fit=fit, enhance=enhance), None)  # type: ignore[arg-type]
        assert np.array_equal(store.pictures[0, 0], model.prepare(decode(data)))
    assert len(list((tmp_path / "stores").iterdir())) == 3
