"""Two processes train as one would, and stand or fall together."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from benchmarks.faults import differs
from osteo.data.datamodule import Shares
from osteo.data.phantom import write_archives
from osteo.errors import UserError
from osteo.records.record import Run
from osteo.training.distributed import SyncBatchNorm, spawn
from osteo.training.ranks import rank
from tests.test_resume import start, wait_for_epochs

CURVES = ["train/loss", "train/auroc", "train/accuracy", "val/loss", "val/auroc", "val/accuracy"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Batches of seven, and an odd number of pictures that validate and that test."""
    root = tmp_path_factory.mktemp("odd") / "archives"
    write_archives(root, seed=3, kaggle={"normal": 15, "osteoporosis": 14}, mendeley={})
    return [
        "data=folder", f"data.root={root / 'kaggle'}", "data.image_size=64", "data.batch_size=7",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "logger.wandb.mode=offline",
    ]  # fmt: skip


@pytest.mark.parametrize(("items", "batch", "count"), [(20, 8, 2), (17, 8, 3), (5, 4, 4), (3, 8, 2)])
def test_every_item_goes_to_one_process(items: int, batch: int, count: int) -> None:
    batches = BatchSampler(SequentialSampler(range(items)), batch, drop_last=False)
    shares = [Shares(batches, rank, count) for rank in range(count)]
    assert sorted(item for share in shares for part in share for item in part) == list(range(items))
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> tuple[list[str], Run, Run]:
    """How they were run, one process and two: a vision transformer, whose layers see one picture at a time."""
    folder = tmp_path_factory.mktemp("pair")
    words = [*words, "model.backbone=test_vit", "trainer.max_epochs=4", "optimizer.lr=3e-3"]
    words += ["trainer.accumulate_grad_batches=2"]  # of three batches: 7 + 7, then a short one alone
    for name, devices in (("one", 1), ("two", 2)):
        process = start(folder, *words, f"trainer.devices={devices}", f"output_dir={name}")
        assert process.wait() == 0
    return words, Run(folder / "one"), Run(folder / "two")


@pytest.mark.slow
def test_two_processes_are_one(pair: tuple[list[str], Run, Run]) -> None:
    _, one, two = pair
    curves = [run.read_table("history.csv") for run in (one, two)]
    assert len(curves[1]) == 4
    np.testing.assert_allclose(curves[1][CURVES], curves[0][CURVES], atol=1e-4)
    assert list(curves[1]["step"]) == list(curves[0]["step"])
    predictions = [run.read_table("predictions.csv") for run in (one, two)]
    told = ["image_id", "split", "label"]
    pd.testing.assert_frame_equal(predictions[1][told], predictions[0][told])  # each picture once, in the same order
    assert (predictions[0]["split"] == "test").sum() % 2 == 1
    np.testing.assert_allclose(predictions[1]["logit"], predictions[0]["logit"], atol=1e-4)
    metrics = [run.read_json("metrics.json") for run in (one, two)]
    assert metrics[1]["test/confusion_matrix"] == metrics[0]["test/confusion_matrix"]
    assert metrics[1]["test/auroc"] == metrics[0]["test/auroc"]
    assert [run.read_json("environment.json")["processes"] for run in (one, two)] == [1, 2]
    assert len(list((two.directory / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_a_killed_training_goes_on_and_its_processes_end_with_it(
    osteo: Callable, pair: tuple[list[str], Run, Run], tmp_path: Path
) -> None:
    words, _, two = pair
    process = start(tmp_path, *words, "trainer.devices=2", "output_dir=killed")
    wait_for_epochs(tmp_path / "killed", 2, process)
    children = [path.parent.name for path in Path("/proc").glob("[0-9]*/stat") if parent(path) == str(process.pid)]
    assert len(children) >= 2
    process.kill()
    process.wait()
    assert Run(tmp_path / "killed").state == "interrupted"
    done = osteo("train", "resume=killed")
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    assert differs(two, Run(tmp_path / "killed")) == []
    assert [child for child in children if parent(Path("/proc", child, "stat")) == "1"] == []


def parent(stat: Path) -> str:
    """The process that has started this one; none where it has ended."""
    try:
        state, number = stat.read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return ""
    return "" if state == "Z" else number


@pytest.mark.slow
def test_batch_normalisation_sees_the_whole_batch(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    """One step of a ResNet; later ones multiply float errors, since batches of a few pictures condition them badly."""
    words = [*words, "model.backbone=test_resnet", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    assert osteo("train", *words, "output_dir=one").code == 0
    assert osteo("train", *words, "output_dir=two", "trainer.devices=2").code == 0
    kept = [tmp_path / name / "checkpoints/last.ckpt" for name in ("one", "two")]
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in kept]
    assert list(weights[0]) == list(weights[1])
    assert any("running_var" in name for name in weights[0])
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, atol=2e-4, rtol=1e-4, msg=name)
    metrics = [Run(tmp_path / name).read_table("history.csv")[CURVES] for name in ("one", "two")]
    np.testing.assert_allclose(metrics[1], metrics[0], atol=1e-4)


def check_layer() -> None:
    """In each process: the layer on its share is what the plain layer is on the whole batch, backwards too."""
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    pictures, target = torch.randn(5, 3, 4, 4) * 2 + 1, torch.randn(5, 3, 4, 4)
    for plain in (nn.BatchNorm2d(3), BatchNormAct2d(3)):
        nn.init.uniform_(plain.weight)
        synced = SyncBatchNorm("cpu").apply(copy.deepcopy(plain))
        whole, share = pictures.clone().requires_grad_(), pictures[rank() :: 2].clone().requires_grad_()
        results = plain(whole), synced(share)
        (results[0] - target).square().sum().backward()
        (results[1] - target[rank() :: 2]).square().sum().backward()
        torch.distributed.all_reduce(synced.weight.grad)
        torch.testing.assert_close(results[1], results[0][rank() :: 2])
        torch.testing.assert_close(share.grad, whole.grad[rank() :: 2])
        torch.testing.assert_close(synced.weight.grad, plain.weight.grad)
        torch.testing.assert_close(synced.state_dict(), plain.state_dict())
        SyncBatchNorm("cpu").revert(synced)
        assert "forward" not in vars(synced)
        torch.testing.assert_close(synced.eval()(pictures), plain.eval()(pictures))
    raise UserError(f"process {rank()} came to the end")


@pytest.mark.slow
def test_the_layer_and_how_a_mistake_comes_back() -> None:
    with pytest.raises(UserError, match=r"process [01] came to the end"):
        spawn(2, check_layer)


@pytest.mark.slow
def test_a_failure_in_every_process_is_one_line(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    words = [*words, "model.backbone=test_vit", "optimizer=sgd", "optimizer.lr=1e30", "trainer.devices=2"]
    done = osteo("train", *words, "output_dir=run")
    assert done.code == 2
    assert "the training loss is not finite in epoch 0" in done.err
    assert "Traceback" not in done.err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_torchrun_starts_the_processes_too(words: list[str], tmp_path: Path) -> None:
    words = [*words, "model.backbone=test_vit", "trainer.max_epochs=1", "trainer.devices=2", "output_dir=run"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "osteo", "train", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 0:") == 1
    assert Run(tmp_path / "run").state == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.devices=3", "output_dir=run"], "2 processes were started together, but trainer.devices=3"),
        (["-m", "seed=0,1", "output_dir=run"], "a sweep starts the processes of its jobs itself"),
        (["trainer.devices=2"], "several processes need one directory: give output_dir=DIR"),
    ],
)
def test_what_processes_started_together_cannot_do(
    osteo: Callable, words: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = osteo("train", *words, "model.backbone=test_vit", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.devices=2", "data.batch_size=1"], "data.batch_size=1 cannot be shared by 2 processes"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 needs a process for every device on every node"),
        (["trainer.devices=[0,1]"], "trainer.devices=[0, 1] lists GPUs; on the CPU give the number of processes"),
    ],
)
def test_what_cannot_be_shared_is_one_line(
    osteo: Callable, words: list[str], arguments: list[str], message: str
) -> None:
    done = osteo("train", *words, "model.backbone=test_vit", *arguments, "output_dir=run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not Path("run").exists()
