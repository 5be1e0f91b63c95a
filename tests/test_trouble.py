"""What goes wrong at night: each job that fails has an end of its own, and the others have theirs."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from timm.models import _registry

from osteo.data.datamodule import KneeDataModule
from osteo.data.prepare import Prepared
from osteo.errors import LostDeviceError, MachineError, OutOfMemoryError, diagnose
from osteo.records.record import Run
from tests.test_training import noise

OSTEO = str(Path(sys.executable).with_name("osteo"))
CUDA_GONE = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"
CUDA_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB\nmore"


def crash(pictures: torch.Tensor) -> None:
    raise ValueError("a bug in this backbone")


def run_out(pictures: torch.Tensor) -> None:
    if len(pictures) > 4:
        raise torch.OutOfMemoryError(CUDA_FULL)


def lose_gpu(pictures: torch.Tensor) -> None:
    raise RuntimeError(CUDA_GONE)


def not_a_number(pictures: torch.Tensor) -> None:
    pictures.fill_(float("nan"))


STAND_INS = {"trouble_crash": crash, "trouble_memory": run_out, "trouble_gpu": lose_gpu, "trouble_nan": not_a_number}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones in timm's registry that fail as real ones do."""

    def maker(fail: Callable[[torch.Tensor], None]) -> Callable[..., torch.nn.Module]:
        def make(**arguments: Any) -> torch.nn.Module:
            arguments = {name: value for name, value in arguments.items() if not name.startswith("pretrained")}
            network = timm.create_model("test_resnet", **arguments)
            network.register_forward_pre_hook(lambda _, inputs: None if inputs[0].is_meta else fail(inputs[0]))
            return network

        return make

    for name, fail in STAND_INS.items():
        monkeypatch.setitem(_registry._model_entrypoints, name, maker(fail))
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, timm.get_pretrained_cfg("test_resnet"))


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    return [*(word for word in tiny if not word.startswith("model.backbone")), "logger.wandb.mode=disabled"]


@pytest.mark.slow
def test_a_night_of_eight_jobs(osteo: Callable, words: list[str], tmp_path: Path, stand_ins: None) -> None:
    good = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
    bad = ["trouble_crash", "trouble_nan", "trouble_memory", "inception_v4"]
    names = [name for pair in zip(good, bad, strict=True) for name in pair]
    swept = osteo("train", "-m", *words, f"model.backbone={','.join(names)}", "output_dir=night")
    assert swept.code == 1
    records = {name: Run(tmp_path / "night" / str(number)) for number, name in enumerate(names)}
    assert {name: record.state for name, record in records.items()} == {
        name: "done" if name in good else "failed" for name in names
    }
    errors = {name: records[name].status()["error"] for name in bad}
    assert errors["trouble_crash"] == "ValueError: a bug in this backbone"
    assert "not finite" in errors["trouble_nan"]
    assert errors["trouble_memory"] == (
        "memory ran out with data.batch_size=8 (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
        " capacity of 79.1 GiB); use data.batch_size=4 trainer.accumulate_grad_batches=2, or trainer.halve_batch=true"
    )
    assert "data.image_size=64 does not fit model.backbone=inception_v4" in errors["inception_v4"]
    assert sorted(pd.read_csv(tmp_path / "night/leaderboard.csv")["backbone"]) == sorted(good)
    assert swept.err.count("Traceback") + swept.out.count("Traceback") == 1  # a bug's, and only a bug's
    assert "go on        osteo train resume=night" in swept.out
    print(osteo("status", "night").out)
    stamps = {name: (records[name].directory / "metrics.json").stat().st_mtime_ns for name in good}
    resumed = osteo("train", "resume=night")
    assert resumed.code == 1
    assert resumed.out.count("it starts again") == 3  # what never began has nothing to begin anew
    assert stamps == {name: (records[name].directory / "metrics.json").stat().st_mtime_ns for name in good}


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_if_asked(
    osteo: Callable, words: list[str], tmp_path: Path, stand_ins: None
) -> None:
    words = [*words, "model.backbone=trouble_memory", "trainer.max_epochs=2"]
    alone = osteo("train", *words, "output_dir=alone")
    assert alone.code == 2
    assert "memory ran out with data.batch_size=8" in alone.err
    done = osteo("train", *words, "output_dir=halved", "trainer.halve_batch=true")
    assert done.code == 0, done.err
    assert "the run starts again with 4, 2 per step" in done.out
    record = Run(tmp_path / "halved")
    settings = record.read_config()
    assert (settings["data"]["batch_size"], settings["trainer"]["accumulate_grad_batches"]) == (4, 2)
    assert list(record.read_table("history.csv")["step"]) == [3, 6]  # 18 pictures: five batches, three steps
    again = osteo("rerun", "halved", "output_dir=again")
    assert "metrics are identical" in again.out, again.err


@pytest.mark.slow
def test_a_lost_gpu_ends_the_sweep_and_nothing_is_lost(
    osteo: Callable, words: list[str], tmp_path: Path, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "test_resnet,trouble_gpu,test_vit"
    swept = osteo("train", "-m", *words, f"model.backbone={names}", "output_dir=s")
    assert swept.code == 1
    assert (
        "the GPU failed (unspecified launch failure); see nvidia-smi; this process cannot run another job" in swept.err
    )
    assert Run(tmp_path / "s/1").state == "interrupted"
    assert not (tmp_path / "s/2").exists()
    monkeypatch.setitem(_registry._model_entrypoints, "trouble_gpu", timm.model_entrypoint("test_resnet"))
    resumed = osteo("train", "resume=s")
    assert resumed.code == 0, resumed.out
    assert [Run(tmp_path / "s" / n).state for n in "012"] == ["done"] * 3


def test_known_troubles_are_told_apart() -> None:
    assert isinstance(diagnose(OSError(28, "No space left on device", "/a/b/last.ckpt")), MachineError)
    full = OSError(28, "No space left", "/a/b/last.ckpt")
    assert str(diagnose(full)) == "/a/b/last.ckpt cannot be written: the disk is full"
    within = OSError(28, "No space left", str(Path.cwd() / "run/last.ckpt"))
    assert str(diagnose(within)) == "run/last.ckpt cannot be written: the disk is full"
    assert isinstance(
        diagnose(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")), OutOfMemoryError
    )
    assert isinstance(diagnose(MemoryError()), OutOfMemoryError)
    assert isinstance(diagnose(RuntimeError(CUDA_GONE)), LostDeviceError)
    for other in (RuntimeError("CUDA error: device-side assert triggered"), FileNotFoundError(2, "x"), ValueError("x")):
        assert diagnose(other) is other


@pytest.mark.slow
def test_two_sweeps_at_once_share_pictures_but_no_directory(words: list[str], tmp_path: Path) -> None:
    """Begun in the same second, as two terminals or two cron jobs do."""
    cache = {**os.environ, "OSTEO_CACHE": str(tmp_path / "cache")}
    command = [OSTEO, "train", "-m", *words, "model.backbone=test_resnet,test_vit"]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path, "env": cache}
    both = [subprocess.Popen([*command, f"output_dir={name}"], **said) for name in ("one", "other")]
    third = subprocess.Popen([*command, "output_dir=one"], **said)
    diagnose = [process.communicate(timeout=200)[0] for process in (*both, third)]
    codes = [both[0].returncode, both[1].returncode, third.returncode]
    assert sorted([codes[0], codes[2]]) == [0, 2], diagnose
    assert codes[1] == 0, diagnose[1]
    refused = diagnose[0] if codes[0] == 2 else diagnose[2]
    assert "another process works on one" in refused or "one holds runs already" in refused
    assert [Run(tmp_path / sweep / n).state for sweep in ("one", "other") for n in "01"] == ["done"] * 4
    assert len([path for path in (tmp_path / "cache/stores").iterdir() if not path.name.startswith(".")]) == 2
    first, second = (Run(tmp_path / sweep / "0").read_table("predictions.csv") for sweep in ("one", "other"))
    assert first.equals(second)


def test_pictures_are_only_read(osteo: Callable, words: list[str], archives: Path, tmp_path: Path) -> None:
    """A folder of pictures that nobody may write to; root may, so what is there is compared too."""
    pictures = shutil.copytree(archives / "kaggle", tmp_path / "pictures")
    before = {path: path.stat() for path in [pictures, *pictures.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    words = [*(word for word in words if not word.startswith("data.root")), f"data.root={pictures}"]
    done = osteo("train", *words, "model.backbone=test_resnet", "output_dir=run", f"data.cache={tmp_path / 'cache'}")
    assert done.code == 0, done.err
    after = {path: path.stat() for path in [pictures, *pictures.rglob("*")]}
    assert {path: stat.st_mtime_ns for path, stat in after.items()} == {p: s.st_mtime_ns for p, s in before.items()}
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(
    "text",
    [
        CUDA_FULL,
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "cudaMalloc failed: 2",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "NCCL error in: NCCLUtils.cpp:77\nLast error:\nFailed to CUDA calloc 10485760 bytes",
        "MPS backend out of memory (MPS allocated: 8.90 GB, other allocations: 96.00 KB, max allowed: 9.07 GB)",
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    ],
)
def test_memory_that_ran_out_is_no_lost_device(text: str) -> None:
    """The texts are those of torch, NVIDIA's libraries and NCCL."""
    trouble = diagnose(RuntimeError(text))
    assert isinstance(trouble, OutOfMemoryError)
    assert str(trouble) in text.splitlines()
    assert isinstance(diagnose(torch.OutOfMemoryError(text)), OutOfMemoryError)


def test_real_errors_of_memory() -> None:
    for ask in (lambda: torch.empty(2**60), lambda: np.empty(2**60, np.uint8), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            ask()
        assert isinstance(diagnose(raised.value), OutOfMemoryError)
    assert str(diagnose(MemoryError())) == "out of memory"


def test_what_a_gpu_says_after_memory_ran_out_is_memory() -> None:
    """As where a CUDA graph was being captured: the error of the end of the capture hides the first."""
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert isinstance(diagnose(error), LostDeviceError)
    error.__context__ = torch.OutOfMemoryError(CUDA_FULL)
    assert str(diagnose(error)) == CUDA_FULL.splitlines()[0]


@pytest.mark.parametrize("text", [CUDA_GONE, "CUDA error: an illegal memory access was encountered"])
def test_a_lost_device_is_no_memory(text: str) -> None:
    assert isinstance(diagnose(RuntimeError(text)), LostDeviceError)


@pytest.mark.parametrize("text", ["", "expected scalar type Float", "cuDNN error: CUDNN_STATUS_BAD_PARAM"])
def test_a_bug_is_neither(text: str) -> None:
    error = RuntimeError(text)
    assert diagnose(error) is error


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks of earlier tries stand in memory whenever a backbone is built whose memory runs out."""
    made: list[weakref.ref[torch.nn.Module]] = []
    found: list[int] = []

    def make(**arguments: Any) -> torch.nn.Module:
        arguments = {name: value for name, value in arguments.items() if not name.startswith("pretrained")}
        network = timm.create_model("test_resnet", **arguments)
        if not next(network.parameters()).is_meta:
            found.append(sum(other() is not None for other in made))
            made.append(weakref.ref(network))
        network.register_forward_pre_hook(lambda _, inputs: None if inputs[0].is_meta else run_out(inputs[0]))
        return network

    monkeypatch.setitem(_registry._model_entrypoints, "trouble_memory", make)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, "trouble_memory", timm.get_pretrained_cfg("test_resnet"))
    return found


@pytest.mark.slow
def test_the_next_try_and_the_next_job_find_the_memory_free(
    osteo: Callable, words: list[str], tmp_path: Path, held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: emptied.append(len(held)))
    words = [*words, "model.backbone=trouble_memory"]
    done = osteo("train", *words, "output_dir=halved", "trainer.halve_batch=true")
    assert done.code == 0, done.err
    assert held == [0, 0]
    assert emptied[:1] == [1]  # before the second try
    swept = osteo("train", "-m", *words, "seed=0,1", "output_dir=sweep")
    assert swept.code == 1
    assert held == [0] * 4
    assert emptied == [1, 2, 3, 4]


@pytest.mark.slow
def test_memory_that_runs_out_in_an_answer_names_what_to_do(
    osteo: Callable, run: Path, knees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(CUDA_FULL)

    monkeypatch.setattr("osteo.networks.network.Network.normalise", full)
    asked = osteo("predict", str(run), f"input={knees}")
    assert asked.code == 2
    assert asked.err.strip().splitlines()[-1] == (
        "osteo predict: memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        " 79.1 GiB); use accelerator=cpu, or stop what else uses the device"
    )


def test_what_torch_keeps_for_itself_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    table, store = noise(8)
    module = KneeDataModule(Prepared(table, store), batch_size=8)
    size, gpu = module._store.nbytes, torch.device("cuda", 0)
    known = {"memory_reserved": 3 * size, "memory_allocated": size, "get_per_process_memory_fraction": 1.0}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    for free, fits in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 100 * size))
        assert module._fits(gpu) is fits
