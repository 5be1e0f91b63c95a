"""The original X-rays, where they are at hand."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.duplicates import measure_real
from osteo.config import DataConfig
from osteo.data.manifest import copies
from osteo.data.prepare import prepare
from tests.conftest import REAL_DATA

KAGGLE = REAL_DATA / "kaggle"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not KAGGLE.is_dir(), reason="the original X-rays are not at hand"),
]


def test_what_is_known_of_the_files_is_found() -> None:
    manifest, store = prepare(DataConfig(name="folder", root=str(KAGGLE), image_size=64))
    assert manifest["class_name"].value_counts().to_dict() == {"osteoporosis": 116, "normal": 86}
    assert manifest["format"].value_counts().to_dict() == {"JPEG": 160, "PNG": 42}
    assert (manifest["mode"] == "L").sum() == 68
    same, contradictory = copies(manifest)
    assert (len(same), len(contradictory)) == (13, 7)
    assert store.unreadable == {}
    assert (manifest.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.slow
@pytest.mark.usefixtures("compared_once")
def test_copies_of_real_knees_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEO_REAL", str(KAGGLE))
    found = measure_real()
    assert found.pop("none")["false"] == 7, "the altered copies that are there"
    assert {name: row["found"] for name, row in found.items() if row["found"] < 18} == {}
    # a shin so bright that hardly anything but white is left of it is taken for another one
    assert {name: row["false"] for name, row in found.items() if row["false"]} == {
        "exported, brightness and contrast": 1
    }


@pytest.mark.slow
def test_training_on_real_files_leaves_a_whole_record(osteo: Callable) -> None:
    done = osteo(
        "train", "data=folder", f"data.root={KAGGLE}", "model.backbone=resnet18", "data.image_size=64",
        "trainer.max_epochs=1", "logger.wandb.mode=disabled", "output_dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = pd.read_csv(Path("run") / "manifest.csv")
    predictions = pd.read_csv(Path("run") / "predictions.csv")
    assert manifest["split"].value_counts().to_dict() == {"train": 141, "val": 40, "test": 21}
    assert set(predictions["image_id"]) == set(manifest.loc[manifest["split"].isin(["val", "test"]), "image_id"])
