"""The jobs of a sweep in processes of one machine, and on a cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.faults import differs
from hydra_plugins import osteo_processes
from hydra_plugins.osteo_processes import ProcessesLauncher
from osteo.config import Config, TrainerConfig
from osteo.data.datamodule import KneeDataModule
from osteo.records.record import Job, Run
from osteo.training import distributed, hardware
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


@pytest.mark.slow
def test_processes_side_by_side_and_one_of_them_killed(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    """The kill of a training is an error of its job only, and the sweep goes on with what was cut off."""
    names = "model.backbone=test_resnet,test_vit,inception_v4"  # which takes no picture as small as these
    words = [*words, "trainer.max_epochs=30"]
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
    assert "data.image_size=64 does not fit model.backbone=inception_v4" in status["2"]["error"]
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


@pytest.mark.parametrize(
    ("n_jobs", "jobs_per_gpu", "trainer", "at_once"),
    [
        (None, 3, {}, 6),
        (None, 1, {}, 2),
        (4, 3, {}, 4),
        (None, 1, {"accelerator": "cpu"}, 2),
        (5, 1, {"accelerator": "cpu"}, 5),
        (None, 3, {"devices": [1]}, 3),
        (None, 1, {"devices": 2}, 1),
    ],
)
def test_as_many_jobs_at_once_as_the_gpus_take(
    monkeypatch: pytest.MonkeyPatch, n_jobs: int | None, jobs_per_gpu: int, trainer: dict, at_once: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 1, **trainer}})
    launcher = ProcessesLauncher(n_jobs=n_jobs, jobs_per_gpu=jobs_per_gpu, pre_dispatch="n_jobs")
    launcher.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    assert launcher.at_once == at_once
    monkeypatch.setattr(launcher.plugin, "launch", lambda jobs, first: [launcher.plugin.joblib["n_jobs"], first])
    assert launcher.launch([["seed=0"]] * 3, 7) == [min(at_once, 3), 7]


@pytest.mark.parametrize(
    ("gpus", "arguments", "message"),
    [
        (2, ["jobs_per_gpu=0"], "hydra.launcher.jobs_per_gpu=0 is not allowed; give a number from 1"),
        (2, ["jobs_per_gpu=two"], "hydra.launcher.jobs_per_gpu=two is not allowed; give a number from 1"),
        (2, ["n_jobs=0"], "hydra.launcher.n_jobs=0 is not allowed; give a number from 1, -1 for one per core, or null"),
        (0, ["jobs_per_gpu=3"], "hydra.launcher.jobs_per_gpu=3 shares GPUs out, and there is none to train on"),
        (2, ["n_jobs=5"], "n_jobs=5 is more than 2 GPUs take with hydra.launcher.jobs_per_gpu=1; use jobs_per_gpu=3"),
    ],
)
def test_a_mistake_in_sharing_gpus_is_one_line(
    osteo: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    words = [f"hydra.launcher.{argument}" for argument in arguments]
    done = osteo("train", "-m", "seed=0,1", "hydra/launcher=processes", *words)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every fourth part of 64 GiB, less what CUDA takes for itself; the pictures are resident where they fit that."""
    shares: dict[int, float] = {}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**36))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: shares.update({gpu: share}))
    config, ran = Config(trainer=TrainerConfig(devices=[1])), []
    job = Job(tmp_path, None, "", launcher="ProcessesLauncher", jobs_per_gpu=4, log_config={"version": 1})
    distributed._train_in_process(lambda *given: ran.append(given), config, job)
    assert ran == [(config, job)]
    assert shares == {1: 1 / 4 - 2**29 / 2**36}

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 2**30, 2**36))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: shares[1])
    for kind in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, kind, lambda _: 2**29)
    module = KneeDataModule.__new__(KneeDataModule)
    for size, fits in ((15 * 2**28, True), (15 * 2**28 + 1, False)):
        module._store = torch.empty(size, dtype=torch.uint8, device="meta")
        assert module._fits(torch.device("cuda", 1)) is fits


def test_a_job_runs_on_the_gpu_that_has_the_fewest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    monkeypatch.setenv("OSTEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(distributed, "spawn", lambda count, _, __, config, ___: started.append(config.trainer.devices))
    for devices in (1, [1]):
        config = Config(trainer=TrainerConfig(devices=devices))
        job = Job(tmp_path / "run", None, "", launcher="ProcessesLauncher")
        with hardware.free_gpu(tmp_path / "cache" / "gpus", 2):  # another job has the first
            distributed._start_processes(print, config, job)
        Run(job.directory).release()
    assert started == [[1], [1]]


def test_mps_is_named_where_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert "CUDA MPS is not running" in osteo_processes.mps()
    (tmp_path / "control").touch()
    assert osteo_processes.mps() == f"at the same time by CUDA MPS ({tmp_path})"


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(
    osteo: Callable, monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert osteo("--version").code == 0
    assert os.environ["OMP_WAIT_POLICY"] == kept


CORES = len(os.sched_getaffinity(0))


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, str(CORES)])
def test_jobs_side_by_side_share_the_cores_out(tmp_path: Path, given: str | None) -> None:
    """Unless the user has said how many threads there are to be."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [given or str(max(1, CORES // 2))] * 2


THREADS = """
from hydra_plugins.osteo_processes import ProcessesLauncher
from joblib import Parallel, delayed
from omegaconf import OmegaConf

def threads():
    import torch
    return torch.get_num_threads()

launcher = ProcessesLauncher(n_jobs=2, jobs_per_gpu=1)
launcher.setup(hydra_context=None, task_function=None, config=OmegaConf.create())
launcher.plugin.launch = lambda jobs, _: Parallel(**launcher.plugin.joblib)(delayed(threads)() for _ in jobs)
print(*launcher.launch([[], []], 0))
"""


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


@pytest.mark.slow
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
        assert "run 2: ended by the cluster" in output
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
