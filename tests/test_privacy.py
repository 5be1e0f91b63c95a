"""What leaves the machine: numbers and names, of a real sweep, its report and its predictions."""

import getpass
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from matplotlib.figure import Figure

from osteo.config import Config, WandbConfig
from osteo.errors import UserError
from osteo.files import public
from osteo.inference import export
from osteo.inference.model import load_model
from osteo.records.record import Run
from osteo.records.tracked import Place, is_wanted
from osteo.training import tracking
from osteo.training.fit import check_parts
from osteo.training.tracking import WandbLogger, choose_mode
from tests.fake_wandb import KEY, FakeWandb, ToldRun
from tests.test_wandb_trouble import WORDS, server

__all__ = ["server"]
PATIENT = "DOE^JANE"
PLANTED = ("Q9ROE", "Seamstress", "Pott-wrist", "Great-aunt", "Zebra-note", "1.51937", "77.38264", "3.19482")
"""In a clinical sheet: a name, in free columns, and the beginnings of numbers."""
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"<svg", b"data:image", b"iVBORw0", b"/9j/", b"\x93NUMPY")


@pytest.fixture(scope="module")
def patients(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose files are named after patients."""
    folder = shutil.copytree(archives / "kaggle", tmp_path_factory.mktemp("clinic") / "clinic")
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        path.rename(path.with_name(f"{PATIENT}-{number:02d}{path.suffix}"))
    return folder


@pytest.mark.slow
def test_nothing_but_numbers_and_names_leaves(
    osteo: Callable, patients: Path, server: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep, its report and predictions, with a server that keeps every byte that it is sent."""
    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 30)
    monkeypatch.setenv("WANDB_HOST", "radiology-7")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    words = [*WORDS, f"data.root={patients}", "trainer.max_epochs=1", "seed=0,1", "data.split.fold=1"]
    words += [f"data.clinical={planted_sheet(patients, tmp_path)}", "covariates=[age,sex,bmi,fracture,family_history]"]
    words += ["data.clinical_columns=[Vorname:diagnosis,Datei:picture]", "model.fusion=late"]
    done = osteo("train", "-m", *words, "output_dir=sweep")
    assert done.code == 0, done.err
    sheet = [words[-4].removeprefix("data."), "clinical_columns=[Datei:picture]"]
    answered = osteo("predict", "sweep/0", f"input={patients}", *sheet, "interval=false", "output_dir=answers")
    assert answered.code == 0, answered.err
    module = load_model(tmp_path / "sweep/0/checkpoints/best.ckpt")
    export.write_exported(module, tmp_path / "answers/exported.ts.pt")
    assert len(server.runs) == 2
    assert osteo("report", "sweep", "draws=100").code == 0
    (first, second, report) = server.runs.values()
    check_group([first, second])
    assert (report.first["displayName"], report.first["groupName"], report.exit_code) == ("report", "sweep", 0)
    assert (tmp_path / "sweep/figures/samples.png").exists()

    sent = b"".join(server.heard)
    secrets = [PATIENT, PATIENT[:3], str(tmp_path), str(patients.parent), str(Path.home()) + "/", "radiology-7"]
    secrets += [f'"{name}"' for name in (getpass.getuser(), socket.gethostname())]
    planted = [*PLANTED, *(age_of(n) for n in range(99))]
    secrets += [*planted, "Vorname", "Sheet-of-Roe"]
    assert [secret for secret in secrets if secret.encode() in sent] == []
    assert [kind for kind in PICTURES if kind in sent] == []
    said = [done.out, done.err, *(path.read_text() for path in tmp_path.glob("sweep/**/*.log"))]
    said += [answered.out, answered.err]
    said += [path.read_bytes().decode("latin-1") for path in tmp_path.glob("answers/**/*.*") if path.is_file()]
    said += [path.read_text() for path in tmp_path.glob("sweep/*/manifest.csv")]
    said += [path.read_text() for path in (*tmp_path.glob("sweep/report.*"), *tmp_path.glob("sweep/tables/*"))]
    assert len(said) >= 4
    assert any("age, sex, BMI, fracture and family history" in text for text in said), "in aggregates alone"
    assert [word for word in planted if any(word in text for text in said)] == []
    files = {name for run in server.runs.values() for name in run.files}
    assert {name for name in files if not name.endswith(".table.json")} == {"config.yaml", "wandb-summary.json"}
    tables = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/wandb/*/files/media/table/**/*.json")]
    assert len(tables) == 2 * 4 + 8
    assert {type(cell) for table in tables for row in table["data"] for cell in row} <= {int, float, str, type(None)}

    (named,) = tmp_path.glob("sweep/wandb/*-" + Run(tmp_path / "sweep/0").status()["id"])
    (path,) = named.glob("files/media/table/test/predictions_*.table.json")
    table = json.loads(path.read_text())
    told = pd.DataFrame(table["data"], columns=table["columns"]).set_index("row")
    kept = pd.read_csv(tmp_path / "sweep/0/predictions.csv").query("split == 'test'")
    assert list(told.columns) == ["source", "split", "label", "logit", "probability"]
    assert list(told.index) == list(kept.index)
    assert told["probability"].tolist() == pytest.approx(kept["probability"].tolist())


def age_of(n: int) -> str:
    """The age of the n-th patient: no two are alike, and none is the mean of all."""
    return f"{50 + n}.729{n:03d}61"


def planted_sheet(patients: Path, folder: Path) -> Path:
    """A clinical sheet of these pictures: words in free columns, values missing, a picture and a row left alone."""
    rows = ["Q9ROE.png;Q9ROE"]
    for n, name in enumerate(sorted(path.name for path in patients.rglob("*.*"))[1:]):
        age, sex, fracture, family = age_of(n), "fm"[n % 2], f"Pott-wrist{n}", "Great-aunt"
        if n % 7 == 3:
            age, fracture, family = "", "no", "no"
        facts = f"{age};{sex};1.51937{n};77.38264;{fracture};{family};-3.19482"
        rows.append(f"{name};Q9ROE{n};Seamstress;{facts};Zebra-note")
    path = folder / "Sheet-of-Roe.csv"
    heading = "Datei;Vorname;Beruf;Age;Sex;Height;Weight;Fracture;Family history;T-Score;Bemerkung"
    path.write_text("\n".join([heading, *rows]) + "\n")
    return path


def check_group(runs: list[ToldRun]) -> None:
    """Runs of one sweep stand beside each other, each by its own name."""
    assert [run.first["displayName"] for run in runs] == ["test_resnet-fold1-seed0", "test_resnet-fold1-seed1"]
    assert [run.first["groupName"] for run in runs] == ["sweep"] * 2
    for seed, run in enumerate(runs):
        assert (run.config["model"]["backbone"], run.config["data"]["split"]["fold"]) == ("test_resnet", 1)
        assert (run.config["seed"], run.config["data"]["root"]) == (seed, "clinic")
        assert {key: run.summary[key] for key in ("backbone", "fold", "seed")} == {
            "backbone": "test_resnet", "fold": 1, "seed": seed,
        }  # fmt: skip
        assert (run.epochs, run.exit_code) == ([0], 0)
        assert run.first["program"] == "osteo"
        assert {run.first["host"], run.first["repo"], run.first["commit"]} == {None}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., set[str]]:
    """What a callback of a user's gets through to W&B's own `log`, in mode disabled: nothing is written."""

    def log(**settings: Any) -> set[str]:
        names: set[str] = set()
        grey = np.zeros((8, 8), np.uint8)
        place = Place(tmp_path, "group", "name", "train", [])
        with WandbLogger(WandbConfig(mode="disabled", **settings), {}, place) as logger:
            monkeypatch.setattr(logger, "_run", SimpleNamespace(log=names.update, finish=lambda _: None, disabled=True,
                                settings=SimpleNamespace(log_dir=tmp_path / "none")))  # fmt: skip
            logger.log_metrics({"loss": 0.5, "seconds": np.float32(1), "tensor": torch.tensor(2.0), "word": "a"})
            logger.log_image("image", [grey])
            logger.log_metrics({"array": grey, "torch": torch.zeros(8, 8), "list": [grey], "nested": {"x": grey}})
            logger.log_metrics({"table": wandb.Table(["a"], [[1]]), "shown": wandb.Table(["a"], [[wandb.Image(grey)]])})
            logger.log_metrics({"histogram": wandb.Histogram([1, 2, 3]), "figure": Figure()})
            logger.figures({"samples": tmp_path / "gone.png"})
        return names

    return log


def test_pictures_of_a_callback_leave_where_they_are_asked_for(logged: Callable, caplog: Any) -> None:
    plain = {"loss", "seconds", "tensor", "word", "table", "histogram"}
    assert logged() == plain
    assert caplog.text.count("image is left out; logger.wandb.upload_pictures=true sends pictures") == 1
    shown = {"image", "array", "torch", "list", "nested", "shown", "figure"}
    assert logged(upload_pictures=True) == plain | shown


def test_paths_and_addresses_keep_their_last_name() -> None:
    told = public({"root": "/home/ann/knees/", "zip": "C:\\x\\K.zip", "up": "../K.zip", "n": 3, "list": ["~/a", "b/c"]})
    assert told == {"root": "knees", "zip": "K.zip", "up": "K.zip", "n": 3, "list": ["a", "b/c"]}
    told = public(
        {"data": {"labels": "clinic/DOE_JANE.csv", "patient": "(DOE.*)_", "columns": ["Name:picture"], "root": "a/b"}}
    )
    assert told == {"data": {"labels": "given", "patient": "given", "columns": "given", "root": "b"}}
    assert public({"labels": None, "patient": None, "columns": []}) == {"labels": None, "patient": None, "columns": []}
    addresses = ["\\\\server\\ann\\K.zip", "file:///home/ann/K.zip", "sqlite:////home/ann/m.db", "https://ann:pw@host"]
    assert public(addresses) == ["K.zip", "K.zip", "m.db", "host"]


KEYED = {"WANDB_API_KEY": KEY}


@pytest.mark.parametrize(
    ("variables", "configured", "chosen"),
    [
        ({}, "auto", "offline"),
        (KEYED, "auto", "online"),
        (KEYED | {"WANDB_MODE": "offline"}, "auto", "offline"),
        (KEYED | {"WANDB_MODE": "dryrun"}, "auto", "offline"),
        (KEYED | {"WANDB_MODE": "OFFLINE"}, "auto", "offline"),
        (KEYED | {"WANDB_MODE": ""}, "auto", "online"),
        (KEYED | {"WANDB_MODE": "disabled"}, "auto", "disabled"),
        (KEYED | {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "auto", "disabled"),
        (KEYED | {"WANDB_DISABLED": "false"}, "auto", "online"),
        ({"WANDB_MODE": "online"}, "auto", "online"),
        (KEYED | {"WANDB_MODE": "online"}, "offline", "offline"),
        (KEYED | {"WANDB_MODE": "online"}, "disabled", "disabled"),
        ({"WANDB_MODE": "disabled"}, "online", "online"),
    ],
)
def test_the_variable_decides_and_then_the_key(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], configured: str, chosen: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # what it has read before
    assert is_wanted(WandbConfig(mode=configured)) == (chosen != "disabled")
    if chosen != "disabled":
        assert choose_mode(configured) == chosen
    wandb.teardown()


def test_what_wandb_offline_has_written_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("[default]\nmode = offline\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    assert choose_mode("auto") == "offline"
    wandb.teardown()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WANDB_MODE", "off", "WANDB_MODE 'off' is unknown; choose one of: online, offline, disabled"),
        ("WANDB_QUIET", "perhaps", "W&B refuses WANDB_QUIET: Input should be a valid boolean"),
    ],
)
def test_a_variable_that_w_and_b_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    wandb.teardown()
    with pytest.raises(UserError, match=re.escape(message)):
        check_parts(Config(logger={"wandb": WandbConfig()}))
    check_parts(Config())  # nobody asks W&B
    monkeypatch.undo()
    wandb.teardown()


def test_without_a_key_nobody_is_asked_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    monkeypatch.setattr("wandb.sdk.wandb_login._login", ask)
    wandb.teardown()
    with WandbLogger(WandbConfig(mode="online"), {}, Place(tmp_path, "group", "name", "train", [])):
        pass
    assert "no W&B API key is found, so the run is kept offline; `wandb login` once" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_run_leaves_no_file_of_w_and_b_and_no_path_of_the_machine(
    osteo: Callable, tiny: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without W&B's own code, which cannot be imported here; logger=null is tested with the report."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    phantoms = [f"data.phantom.{name}={{normal:8,osteoporosis:8}}" for name in ("kaggle", "mendeley")]
    phantoms += ["data.phantom.mendeley.osteopenia=0"]
    words = [word for word in tiny if not word.startswith(("data=", "data.root="))]
    done = osteo("train", *words, *phantoms, "output_dir=run")
    assert done.code == 0, done.err
    assert "W&B" not in done.out
    assert not [path for path in tmp_path.rglob("*") if "wandb" in path.name]

    files = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.yaml", "manifest.csv", "environment.json", "status.json", "train.log", "best.ckpt"} <= files.keys()
    places = [str(cache), f"{Path.home()}/", str(tmp_path), str(Path(__file__).parents[1]), sys.prefix]
    assert [(name, place) for name, content in files.items() for place in places if place.encode() in content] == []
    manifest = Run(tmp_path / "run").read_manifest()
    assert len(manifest) == 32
    assert (manifest["path"] == manifest["image_id"]).all()
