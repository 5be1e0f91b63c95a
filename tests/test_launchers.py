"""The jobs of a sweep in processes of one machine, and on a cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from benchmarks.faults import differs
from osteo.config import TrainerConfig
from osteo.records.record import Run
from osteo.training import hardware
from tests import slurm

OSTEO = str(Path(sys.executable).with_name("osteo"))


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    kept = [word for word in tiny if not word.startswith(("model.backbone", "trainer.max_epochs"))]
    return [*kept, "logger.wandb.mode=disabled"]


def sweep(folder: Path, environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [OSTEO, "train", "-m", *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def epochs(run: Path) -> int:
    is_written = (run / "checkpoints/last.ckpt").exists()  # by a thread: curves of later epochs may come first
    return len(pd.read_csv(run / "history.csv")) if is_written else 0


def test_processes_side_by_side_and_one_of_them_killed(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    """The kill of a training is an error of its job only, and the sweep goes on with what was cut off."""
    names = "model.backbone=test_resnet,test_vit,test_resnut"
    words = [*words, "trainer.max_epochs=60"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as each of two on two cores; sums are rounded by threads
    command = [OSTEO, "train", *words, "model.backbone=test_vit", "output_dir=alone"]
    subprocess.run(command, cwd=tmp_path, env=one_thread, check=True)
    swept = sweep(tmp_path, one_thread, *words, names, "output_dir=s", "hydra/launcher=processes")
    slurm.wait_until(lambda: epochs(tmp_path / "s/1") >= 2, 300, "two epochs of the second job")
    children = psutil.Process(swept.pid).children(recursive=True)
    logs = {child: [file.path for file in child.open_files()] for child in children}
    [victim] = [c for c in children if str(tmp_path / "s/1/train.log") in logs[c] and "spawn_main" in c.cmdline()[-2]]
    victim.send_signal(signal.SIGKILL)
    output, _ = swept.communicate(timeout=300)
    assert swept.returncode == 1, output
    status = {number: Run(tmp_path / "s" / number).status() for number in "012"}
    assert status["0"]["state"] == "done"
    assert status["1"]["state"] == "interrupted"
    assert status["1"]["error"].startswith("its process was ended by SIGKILL"), output
    assert "test_resnut" in status["2"]["error"]
    assert "go on        osteo train resume=s" in output
    resumed = sweep(tmp_path, one_thread, "resume=s")
    output, _ = resumed.communicate(timeout=300)
    assert "going on after last.ckpt" in output, output
    assert differs(Run(tmp_path / "alone"), Run(tmp_path / "s/1")) == []


def test_every_process_takes_the_gpu_that_has_the_fewest(tmp_path: Path) -> None:
    with hardware.free_gpu(tmp_path, 2) as first, hardware.free_gpu(tmp_path, 2) as second:
        assert {first, second} == {0, 1}
        with hardware.free_gpu(tmp_path, 2) as third:
            assert third == 0
    with hardware.free_gpu(tmp_path, 2) as again:
        assert again == 0


@pytest.mark.parametrize(("devices", "processes"), [(None, 1), (3, 3), ([0, 5], 2), ("auto", 8)])
def test_a_run_takes_one_gpu_of_eight_unless_it_is_given_more(
    monkeypatch: pytest.MonkeyPatch, devices: Any, processes: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    limits = TrainerConfig() if devices is None else TrainerConfig(devices=devices)
    assert hardware.count_processes(limits, "cuda") == processes


@pytest.mark.parametrize("choice", ["hydra/launcher=processes", "hydra/launcher=slurm"])
def test_an_extra_that_is_missing_is_one_line(
    osteo: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    from osteo.app import extras as launchers

    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    done = osteo("train", "-m", choice, "seed=0,1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "pip install 'osteo[" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slurm
@pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))
def test_a_sweep_on_a_cluster_that_requeues_a_job_and_cancels_another(words: list[str], tmp_path: Path) -> None:
    words = [*words, "model.backbone=test_resnet", "trainer.max_epochs=40"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a job with one core
    subprocess.run([OSTEO, "train", *words, "seed=1", "output_dir=alone"], cwd=tmp_path, env=one_thread, check=True)
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    with slurm.running(cluster) as environment:
        on_it = [*words, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
        swept = sweep(tmp_path, environment, *on_it, "seed=range(6)", "output_dir=s")
        slurm.wait_until(lambda: epochs(tmp_path / "s/1") >= 2, 300, "two epochs of job 1")
        [array] = {path.name.split("_")[0] for path in (tmp_path / "s/slurm").glob("*_submitted.pkl")}
        slurm.output_of(environment, "scontrol", "requeue", f"{array}_1")
        # SLURM lets a requeued job wait for two minutes
        slurm.wait_until(
            lambda: "PENDING" in slurm.output_of(environment, "squeue", "-j", f"{array}_1", "-o", "%T"), 60, "it"
        )
        slurm.output_of(environment, "scontrol", "update", f"JobId={array}_1", "StartTime=now")
        slurm.wait_until(lambda: epochs(tmp_path / "s/2") >= 1, 300, "an epoch of job 2")
        slurm.output_of(environment, "scancel", f"{array}_2")
        output, _ = swept.communicate(timeout=300)
        print(output)
        assert swept.returncode == 1, output
        assert "job 2: ended by the cluster" in output
        assert "Traceback" not in output
        records = [Run(tmp_path / "s" / str(number)) for number in range(6)]
        assert [record.state for record in records] == ["done", "done", "interrupted", "done", "done", "done"]
        log = (tmp_path / "s/slurm" / f"{array}_1_0_log.out").read_text()
        print(log)
        assert log.count(" - Job completed successfully") == 1
        assert "going on after last.ckpt" in log
        assert differs(Run(tmp_path / "alone"), records[1]) == []
        stamps = [(record.directory / "metrics.json").stat().st_mtime_ns for record in records if record != records[2]]
        resumed = subprocess.run(
            [OSTEO, "train", "resume=s"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert records[2].state == "done"
        assert stamps == [(r.directory / "metrics.json").stat().st_mtime_ns for r in records if r != records[2]]
        assert json.loads((tmp_path / "s/2/metrics.json").read_text())["test/auroc"] >= 0


WORKERS = """
import os, sys, time
from joblib import Parallel, delayed
from osteo.training.ranks import follow

def work(parent):
    follow(parent)
    print(os.getpid(), flush=True)
    time.sleep(60)

Parallel(n_jobs=2)(delayed(work)(os.getpid()) for _ in range(2))
"""


def test_the_processes_of_a_sweep_end_with_it_when_it_is_killed(tmp_path: Path) -> None:
    """SIGTERM is no other: a sweep has no handler for it."""
    parent = subprocess.Popen([sys.executable, "-c", WORKERS], cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    assert all(worker.is_running() for worker in workers)
    parent.kill()
    parent.wait()
    slurm.wait_until(lambda: not any(worker.is_running() for worker in workers), 10, "the end of the workers")
