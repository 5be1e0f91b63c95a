"""What W&B is told, read back from its offline files with its own reader."""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

WANDB = str(Path(sys.executable).with_name("wandb"))


def oldest_first(paths: Iterable[Path]) -> list[Path]:
    """By when they were last written: two jobs may start within the second that W&B names its folders by."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def offline_runs(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of every offline run below a folder, oldest run first."""
    logs = oldest_first(folder.glob("wandb/offline-run-*/*.wandb"))
    read = [subprocess.run([WANDB, "leet", "inspect", "--json", log], capture_output=True, check=True) for log in logs]
    return [[json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")] for done in read]


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module")
def sweep(
    tmp_path_factory: pytest.TempPathFactory, archives: Path, cache: Path
) -> tuple[Path, list[list[dict[str, Any]]]]:
    """A sweep of three jobs, run as a user would, and what W&B kept of it."""
    folder = tmp_path_factory.mktemp("tracked")
    command = [
        str(Path(sys.executable).with_name("osteo")), "train", "-m", "data=folder", f"data.root={archives / 'kaggle'}",
        "data.image_size=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=2",
        "model.backbone=test_resnet,test_vit,test_convnext", "logger.wandb.mode=offline", "output_dir=sweep",
        "logger.wandb.tags=[mine]",
    ]  # fmt: skip
    # a service that W&B started for runs in this process is not theirs
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "sweep", offline_runs(folder / "sweep")


def test_every_job_is_a_run_of_its_own(sweep: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    started = [of_type(records, "run")[0] for records in sweep[1]]
    assert len({run["run_id"] for run in started}) == len(started) == 3
    assert [run["display_name"] for run in started] == ["test_resnet-seed0", "test_vit-seed0", "test_convnext-seed0"]
    for run, backbone in zip(started, ("test_resnet", "test_vit", "test_convnext"), strict=True):
        assert (run["project"], run["run_group"], run["job_type"]) == ("osteo", "sweep", "train")
        assert run["tags"] == ["train", backbone, "folder", "mine"]
        configuration = run["config"]["update"]
        assert configuration["model"]["backbone"] == backbone
        assert configuration["data"]["split"]["folds"] == 5
        assert configuration["data"]["root"] == "kaggle"
    assert [of_type(records, "exit")[0].get("exit_code", 0) for records in sweep[1]] == [0, 0, 0]


def test_curves_and_summary_are_those_of_the_record(sweep: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    folder, runs = sweep
    for number, records in enumerate(runs):
        kept = pd.read_csv(folder / str(number) / "history.csv")
        rows = [row["item"] for row in of_type(records, "history")]
        for name in ("lr", "seconds", "train/loss", "train/auroc", "val/loss", "val/accuracy"):
            curve = {row["epoch"]: row[name] for row in rows if name in row}
            assert len([row for row in rows if name in row]) == len(curve) == 2  # one point per epoch
            assert [curve[epoch] for epoch in (0, 1)] == pytest.approx(list(kept[name]))
        summary: dict[str, Any] = {}
        for record in of_type(records, "summary"):
            summary |= record.get("update", {})
        metrics = json.loads((folder / str(number) / "metrics.json").read_text())
        measured = {name: value for name, value in metrics.items() if isinstance(value, float)}
        assert {name: summary[name] for name in measured} == pytest.approx(measured)
        best = int(kept["val/loss"].idxmin())
        assert summary["best/epoch"] == best
        assert summary["best/val/auroc"] == pytest.approx(kept.loc[best, "val/auroc"])
        tables = {name.removesuffix("._type") for name, value in summary.items() if value == "table-file"}
        assert tables == {"test/confusion_table", "test/roc_table", "test/pr_table"}
        assert summary["test/predictions"]["_type"] == "table-file"
        assert not [row for row in rows if "test/predictions" in row]  # it would be a chart of one point


def test_nothing_tells_of_the_machine_or_its_user(sweep: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    folder, runs = sweep
    secrets = (str(folder.parents[1]), str(Path.home()), f"/{getpass.getuser()}/")
    for records in runs:
        assert not {"host", "username", "email"} & set(of_type(records, "run")[0])
        for artifact in of_type(records, "artifact"):
            for entry in artifact["manifest"]["contents"]:
                del entry["local_path"]  # where `wandb sync` finds the table to upload; it is not uploaded itself
        text = json.dumps(records)
        assert not [secret for secret in secrets if secret in text]
    for path in (folder / "wandb").rglob("*"):
        if path.is_file() and path.suffix != ".wandb":
            assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path.name


def test_a_server_out_of_reach_never_loses_a_run(
    osteo: Callable, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osteo.training.tracking.SECONDS_TO_REACH", 2)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it has read its environment for an earlier test
    done = osteo("train", *tiny, "output_dir=run", "logger.wandb.mode=online")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    assert "W&B cannot be reached" in done.out
    assert len(offline_runs(tmp_path / "run")) == 1
