"""A sweep's dashboard on W&B: an aggregate and a report, made through its own interface, on a server of our own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from osteo.records.record import Run
from osteo.records.sweep import leaderboard, runs_of
from osteo.task import BINARY
from osteo.training.loggers.dashboard import aggregate, column
from osteo.training.loggers.others import confusion, draw
from osteo.training.tracking import FOLDERS
from tests.fake_wandb import FakeWandb
from tests.test_wandb_trouble import WORDS, server

__all__ = ["server"]


@pytest.fixture
def words(archives: Path) -> list[str]:
    kept = [word for word in WORDS if not word.startswith(("model.backbone", "trainer.max_epochs"))]
    return [*kept, f"data.root={archives / 'kaggle'}", "trainer.max_epochs=1"]


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The panels of a report, by their kinds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for block in json.loads(view["spec"])["blocks"]:
        if block["type"] == "panel-grid":
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def test_a_sweep_that_is_online_gets_an_aggregate_and_a_report(
    osteo: Callable, words: list[str], server: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")
    monkeypatch.setattr("osteo.training.tracking.SECONDS_TO_FINISH", 30)
    monkeypatch.setattr("osteo.training.tracking.git_commit", lambda: "5f" * 20)
    online = [*words, "model.backbone=test_resnet,test_vit", "logger.wandb.mode=online", "callbacks=[batch_loss]"]
    done = osteo("train", "-m", *online, "logger.wandb.upload_checkpoint=true", "output_dir=sweep")
    assert done.code == 0, done.err
    trained = list(server.runs.values())
    assert len(trained) == 2
    check_training(trained[0], Run(tmp_path / "sweep/0"), server)

    done = osteo("dashboard", "sweep")
    assert done.code == 0, done.err
    told = [run for run in server.runs.values() if run not in trained]
    assert [(run.first["displayName"], run.first["jobType"], run.first["groupName"]) for run in told] == [
        ("aggregate", "aggregate", "sweep")
    ]
    board = leaderboard(runs_of(tmp_path / "sweep"))
    expected = board.set_index("backbone")["test/auroc"]
    assert told[0].summary["test_vit/test/auroc/mean"] == pytest.approx(expected["test_vit"])
    assert told[0].summary["tables/aggregate"]["_type"] == "table-file"
    assert told[0].history == {}
    (view,) = server.views.values()
    assert (view["displayName"], view["projectName"], view["type"]) == ("osteo sweep", "osteo", "runs")
    shown = panels(view)
    assert {kind: len(found) for kind, found in shown.items()} == {
        "Weave": 1, "Run History Line Plot": 3, "Parallel Coordinates Plot": 1, "Vega2": 1,
    }  # fmt: skip
    curve = shown["Run History Line Plot"][0]
    assert (curve["metrics"], curve["xAxis"], curve["groupBy"]) == (["val/auroc"], "epoch", "model.value.backbone")
    columns = [entry["accessor"] for entry in shown["Parallel Coordinates Plot"][0]["columns"]]
    assert columns[:2] == ["config:model.value.backbone", "summary:test/auroc"]
    assert shown["Vega2"][0]["panelDefId"] == "wandb/confusion_matrix/v1"
    assert "test/confusion_table" in view["spec"]
    assert view["id"] in done.out

    assert osteo("dashboard", "sweep").code == 0  # in the place of the first
    assert (len(server.views), len(server.runs)) == (1, 3)
    sent = b"".join(server.heard)
    assert [secret for secret in (str(tmp_path), str(Path.home()) + "/") if secret.encode() in sent] == []


def check_training(run: Any, record: Run, server: FakeWandb) -> None:
    """What W&B has got of a training: its commit, its log, tables that are no curves, each batch, its checkpoint."""
    assert run.first["commit"] == "5f" * 20
    assert run.first["repo"] is None
    assert any("val/loss" in line for line in run.output)
    assert not [line for line in run.output if str(record.directory) in line]
    assert run.summary["test/predictions"]["_type"] == "table-file"
    keys = {key for row in run.history.values() for key in row}
    assert not {"test/predictions", "test/auroc"} & keys
    batches = [(row["batch"], row["train/loss_step"]) for row in run.history.values() if "batch" in row]
    history = record.read_history()
    assert [number for number, _ in batches] == list(range(len(batches)))
    assert len(batches) == history["step"].iloc[-1]
    assert torch.tensor([loss for _, loss in batches]).mean() == pytest.approx(history["train/loss"].iloc[0], rel=0.2)
    models = [made["input"] for made in server.artifacts if made["input"]["artifactTypeName"] == "model"]
    assert f"model-{record.status()['id']}" in str(models)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_sweep_that_w_and_b_has_not_got_is_one_line(
    osteo: Callable, tiny: list[str], tmp_path: Path, mode: str
) -> None:
    assert osteo("train", *tiny, f"logger.wandb.mode={mode}", "output_dir=run").code == 0
    done = osteo("dashboard", "run")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    told = {
        "offline": "W&B has not got 1 run of run; upload first, by `wandb login` and `wandb sync"
        " run/wandb/offline-run-*`, or see them in the terminal: wandb leet run/wandb",
        "disabled": "run was trained without W&B; train with logger=wandb what is to have a dashboard",
    }
    assert told[mode] in done.err


def test_an_aggregate_has_mean_and_range_per_model() -> None:
    board = pd.DataFrame(
        {"run": list("0123"), "backbone": ["a", "a", "a", "b"], "test/auroc": [0.5, 0.7, 0.9, 0.6],
         "test/accuracy": [0.25, 0.75, None, 1.0]}
    )  # fmt: skip
    table = aggregate(board, board["backbone"]).set_index(["model", "metric"])
    assert table.loc[("a", "test/auroc")].tolist() == pytest.approx([0.7, 0.5, 0.9, 3])
    assert table.loc[("a", "test/accuracy")].tolist() == pytest.approx([0.5, 0.25, 0.75, 2])
    assert table.loc[("b", "test/auroc")].tolist() == pytest.approx([0.6, 0.6, 0.6, 1])
    assert [column(name) for name in ("seed", "data.split.fold")] == [
        "config:seed.value",
        "config:data.value.split.fold",
    ]


def test_a_confusion_matrix_counts_true_classes_by_row() -> None:
    test = pd.DataFrame({"label": [0, 0, 1, 1, 1], "probability": [0.1, 0.8, 0.9, 0.2, 0.7]})
    table = confusion(test, BINARY)
    assert table.to_numpy().tolist() == [[1, 1], [1, 2]]
    assert (list(table.index), table.index.name, table.columns.name) == (["normal", "osteoporosis"], "true", "called")
    texts = {text.get_text() for text in draw(table).axes[0].texts}
    assert texts == {"1", "2"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("going on after last.ckpt", "going on after last.ckpt"),
        ("/home/ann/runs/1/last.ckpt is damaged", "last.ckpt is damaged"),
        ("it is in C:\\Users\\ann\\K.zip, ~/x/K.zip", "it is in K.zip, K.zip"),
        ("torchvision/alexnet reads ../ann/K.zip", "torchvision/alexnet reads K.zip"),
    ],
)
def test_a_line_of_the_log_has_no_folder_of_the_machine(line: str, said: str) -> None:
    assert FOLDERS.sub("", line) == said
