"""Predictions from Python are those of the command line."""

import inspect
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from osteo import parts
from osteo.command_settings import PredictConfig
from osteo.errors import UserError
from osteo.inference.card import KEY
from osteo.inference.interface import Predictor, load
from osteo.inference.model import Model, load_model
from osteo.reading.reader import read_picture
from tests.test_serve import png


@pytest.fixture
def folder(tmp_path: Path, knees: Path, picture: np.ndarray) -> Path:
    """Twenty pictures, a file that is none, and one that shows two knees."""
    made = tmp_path / "in"
    made.mkdir()
    for path in sorted((knees / "normal").iterdir())[:20]:
        shutil.copy(path, made / path.name)
    (made / "broken.png").write_bytes(b"\x89PNG no")
    (made / "two knees.png").write_bytes(png(np.hstack([picture, picture[:, ::-1]])))
    return made


def csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


def test_a_folder_a_zip_and_a_file_are_answered_as_by_the_command(osteo: Callable, run: Path, folder: Path) -> None:
    with zipfile.ZipFile("in.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    for given in ("in", "in.zip", "in/two knees.png"):
        assert osteo("predict", str(run), f"input='{given}'", "output_dir=p", "overlay=false").code in (0, 1)
        written = Path("p/predictions.csv").read_text(encoding="utf-8")
        assert csv(load(run).predict(given)) == written, given
        shutil.rmtree("p")
    assert written.count("\n") == 4  # columns, the picture and its halves


def test_the_options_mean_what_they_mean_to_the_command(osteo: Callable, run: Path, folder: Path) -> None:
    words = ["input=in", "output_dir=p", "overlay=false", "rule=0.5", "interval=false"]
    assert osteo("predict", f"ckpt=[{run},{run}]", *words).code == 1
    table = load(run, run / "checkpoints" / "best.ckpt").predict(folder, rule="0.5", interval=False)
    assert csv(table) == Path("p/predictions.csv").read_text(encoding="utf-8")
    defaults = inspect.signature(Predictor.predict).parameters
    assert defaults["rule"].default == PredictConfig().rule
    assert defaults["interval"].default == PredictConfig().interval


def test_a_list_of_files_and_arrays_is_one_table(models: list[Model], folder: Path) -> None:
    predictor = Predictor(models)
    paths = sorted(path for path in folder.iterdir() if path.name != "broken.png")
    table = predictor.predict(paths)
    assert csv(table) == csv(predictor.predict(folder).query("error == ''"))
    size = models[0].card.image_size
    arrays = predictor.predict([read_picture(path.read_bytes(), size) for path in paths[:5]])
    assert list(arrays["file"]) == ["0", "1", "2", "3", "4"]
    first = table.head(5).drop(columns="file")
    pd.testing.assert_frame_equal(arrays.drop(columns="file"), first, rtol=0, atol=1e-6)
    alone = predictor.predict(read_picture(paths[0].read_bytes(), size))
    assert alone["logit"][0] == pytest.approx(table["logit"][0], abs=1e-6)


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        ("nowhere", {}, "input=nowhere: no such file or folder"),
        ([], {}, "the list is empty"),
        ("in", {"rule": "best"}, "rule 'best' is unknown; choose one of: 0.5, Youden, sensitivity"),
        (np.zeros((64, 64)), {}, "picture 0 is float64 (64, 64); give a path, or a radiograph as uint8"),
        ([np.zeros((64, 64), np.uint8), 3], {}, "picture 1 is int; give a path"),
        (np.zeros((64, 64, 3), np.uint8), {}, "picture 0 is uint8 (64, 64, 3)"),
    ],
)
def test_mistakes(
    models: list[Model], folder: Path, monkeypatch: pytest.MonkeyPatch, pictures: object, options: dict, message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=re.escape(message)):
        Predictor(models).predict(pictures, **options)


def test_a_checkpoint_names_the_plugins_that_it_needs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored[KEY]["plugins"] == []
    stored["hyper_parameters"]["network"]["head"] = "interface_head"
    stored["hyper_parameters"]["network"]["head_args"] = {}
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="interface_head"):
        load(tmp_path / "other.ckpt")
    stored[KEY]["plugins"] = ["interface_parts"]
    torch.save(stored, tmp_path / "other.ckpt")
    (tmp_path / "interface_parts.py").write_text("raise SystemExit('imported because a checkpoint said so')")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = "other.ckpt was made with plugins=[interface_parts]; name them again: plugins=[interface_parts]"
    with pytest.raises(UserError, match=re.escape(wanted)):
        load(tmp_path / "other.ckpt")
    stored[KEY]["plugins"] = ["not a module; rm -rf"]
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="holds a card whose plugins makes no sense"):
        load(tmp_path / "other.ckpt")


def test_a_checkpoint_of_a_plugin_that_is_loaded(run: Path, tmp_path: Path) -> None:
    parts.heads.register("interface_linear")(lambda width: nn.Linear(width, 1))
    try:
        stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        stored["hyper_parameters"]["network"]["head"] = "interface_linear"
        weights = stored["state_dict"]
        last = {name: weights.pop(name) for name in list(weights) if name.startswith("network.backbone.fc.")}
        weights |= {name.replace("backbone.fc", "head"): value for name, value in last.items()}
        stored[KEY]["plugins"] = ["interface_plugin"]
        torch.save(stored, tmp_path / "plugin.ckpt")
        picture = np.zeros((64, 64), np.uint8)
        known = load_model(run / "checkpoints" / "best.ckpt").logits([picture])
        assert load_model(tmp_path / "plugin.ckpt").logits([picture]) == pytest.approx(known, abs=1e-6)
    finally:
        del parts.heads._parts["interface_linear"]
