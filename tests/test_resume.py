"""A run or a sweep that was killed goes on, and ends as if nothing had happened."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from timm.scheduler.scheduler import Scheduler
from torch.optim import SGD

from benchmarks.faults import differs, harness
from osteo.app import hydra as application
from osteo.command_settings import ReportConfig
from osteo.config import Config, OptimizerConfig
from osteo.records.record import Run
from osteo.training.checkpoints import build_module, newest, read_checkpoint
from osteo.training.module import Classifier
from osteo.training.optim import enter, make_schedule
from tests.test_tracking import of_type, offline_runs

USED = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "hparams_name", "hyper_parameters", "osteo"}
"""What a checkpoint has that is used and trained no further."""
OSTEO = str(Path(sys.executable).with_name("osteo"))


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    """A run in which chance has a part: dropout, augmentation, order."""
    kept = [word for word in tiny if not word.startswith("trainer.max_epochs")]
    return [*kept, "trainer.max_epochs=6", "model.drop_rate=0.3", "logger.wandb.mode=offline", "keep=all"]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    return subprocess.Popen(
        [OSTEO, "train", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_epochs(run: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        is_written = (run / "checkpoints/last.ckpt").exists()  # by a thread: curves of later epochs may come first
        if is_written and len(pd.read_csv(run / "history.csv")) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} epochs: {process.poll()}")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["KILL", "TERM", "INT"])
def test_a_killed_run_ends_as_one_that_was_not(
    osteo: Callable, words: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    assert osteo("train", *words, "output_dir=whole").code == 0
    process = start(tmp_path, *words, "output_dir=killed")
    wait_for_epochs(tmp_path / "killed", 2, process)
    process.send_signal(how)
    process.wait(30)
    record = Run(tmp_path / "killed")
    assert record.state == "interrupted"
    before = len(record.read_table("history.csv"))
    assert before < 6
    if how != signal.SIGKILL:  # the signal may come between the curves and the checkpoint of an epoch
        assert read_checkpoint(record.checkpoints / "last.ckpt")["epoch"] >= before - 2
    identity = record.status()["id"]
    shown = osteo("status", "killed")
    assert "interrupted" in shown.out
    assert f"{before} of 6" in shown.out
    assert "osteo train resume=killed" in shown.out
    done = osteo("train", "resume=killed")
    assert done.code == 0, done.err
    assert "going on after last.ckpt" in done.out
    assert differs(Run(tmp_path / "whole"), record) == []
    assert (record.state, record.status()["id"]) == ("done", identity)
    told = offline_runs(tmp_path / "killed")
    begun = [of_type(records, "run") for records in told]  # SIGKILL may come before W&B wrote a word
    assert {runs[0]["run_id"] for runs in begun if runs} == {identity}
    again = osteo("train", "resume=killed")
    assert again.code == 0
    assert "is done" in again.out


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    osteo: Callable, words: list[str], tmp_path: Path
) -> None:
    assert osteo("train", *words, "output_dir=whole").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    last = tmp_path / "damaged" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    record = Run(tmp_path / "damaged")
    record.set_status("running")
    assert (
        newest(record.checkpoints, build_module(read_checkpoint(record.best_checkpoint), record.best_checkpoint))
        == record.checkpoints / "previous.ckpt"
    )
    done = osteo("train", "resume=damaged")
    assert done.code == 0, done.err
    assert differs(Run(tmp_path / "whole"), record) == []


@pytest.mark.slow
def test_a_sweep_repeats_what_failed_and_nothing_else(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    """Good jobs, one whose loss is not finite, some whose weights are damaged, and one killed in the middle."""
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04")
    swept = osteo(
        "train", "-m", *words, "model.weights_file=null,damaged.pth", "optimizer.lr=1e-3,1e30,2e-3", "output_dir=sweep"
    )  # fmt: skip
    assert swept.code == 1
    states = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/status.json")}
    assert [states[str(job)]["state"] for job in range(6)] == ["done", "failed", "done"] + ["failed"] * 3
    assert "damaged.pth" in states["3"]["error"]
    assert "job 4 of 6 failed (sweep/3): " in swept.out
    assert "- run 3 failed: " in swept.out
    assert "not finite" in states["1"]["error"]
    assert "Traceback" not in swept.err
    stamp = (tmp_path / "sweep/0/metrics.json").stat().st_mtime_ns
    kept = Run(tmp_path / "sweep/2")
    before = (kept.directory / "metrics.json").read_bytes()
    kept.set_status("running")  # as a killed one would stand
    (kept.directory / "metrics.json").unlink()
    status = osteo("status", "sweep")
    assert status.code == 1
    assert "6 runs: 4 failed, 1 done, 1 interrupted" in status.out
    resumed = osteo("train", "-m", "resume=sweep")
    assert resumed.code == 1
    assert "not done" in resumed.out
    assert (tmp_path / "sweep/0/metrics.json").stat().st_mtime_ns == stamp
    assert (kept.directory / "metrics.json").read_bytes() == before
    assert resumed.out.count("it starts again") == 1
    assert len(pd.read_csv(tmp_path / "sweep/leaderboard.csv")) == 2


@pytest.mark.slow
def test_what_a_job_held_is_gone_before_the_next(osteo: Callable, tiny: list[str]) -> None:
    gc.collect()  # what other tests left
    before = sum(isinstance(thing, Classifier) for thing in gc.get_objects())
    assert osteo("train", "-m", *tiny, "seed=0,1,2", "output_dir=sweep", "logger.wandb.mode=disabled").code == 0
    assert sum(isinstance(thing, Classifier) for thing in gc.get_objects()) <= before


def test_fail_fast_ends_a_sweep_with_its_first_failure(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04")
    swept = osteo(
        "train", "-m", *words, "model.weights_file=damaged.pth,null", "output_dir=sweep", "fail_fast=true"
    )  # fmt: skip
    assert swept.code == 1
    assert [path.name for path in sorted((tmp_path / "sweep").glob("[0-9]"))] == ["0"]
    assert "damaged.pth" in swept.out
    assert "job 1 of 2 failed, so the sweep ends (fail_fast=true)" in swept.err


def test_an_interrupted_run_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(application.SweepStart, "begun", [])
    stopped = application.Application(lambda *_: True, directory=tmp_path / "run")
    assert application.describe_interruption(ReportConfig, stopped) == "interrupted"
    assert application.describe_interruption(Config, stopped).startswith("interrupted before training began")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    Run(tmp_path / "run").set_status("interrupted")
    for end in ("nothing has been learnt yet; begin again: osteo train resume=run",
                "every epoch that had ended is kept; go on: osteo train resume=run"):  # fmt: skip
        assert application.describe_interruption(Config, stopped).endswith(end)
        (tmp_path / "run/checkpoints/last.ckpt").touch()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nowhere"], "resume=nowhere is neither a run (config.yaml) nor a sweep (multirun.yaml)"),
        (["resume=nowhere", "seed=3"], "resume goes on with what was recorded, so seed=3 cannot be changed"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(
    osteo: Callable, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = osteo("train", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    ["+hydra.callbacks.x={_target_: os.system, command: touch pwned}", "hydra.job_logging.version=1",
     "hydra.launcher._target_=os.system", "+_target_=os.system", "hydra.searchpath=[file:///tmp/evil]"],
)  # fmt: skip
def test_a_sweep_from_elsewhere_runs_no_code(osteo: Callable, tmp_path: Path, override: str) -> None:
    (tmp_path / "theirs").mkdir()
    recorded = {"hydra": {"overrides": {"task": ["seed=0,1"], "hydra": [override]}}}
    (tmp_path / "theirs/multirun.yaml").write_text(json.dumps(recorded))
    done = osteo("train", "resume=theirs")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "which names code to run; begin a new sweep" in done.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("_target_: os.system\nseed: 0\n")
    (tmp_path / "run/status.json").write_text('{"state": "running", "error": null, "id": "0"}')
    done = osteo("train", "resume=run")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_run(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    process = start(tmp_path, *words, "trainer.max_epochs=10000", "output_dir=run")
    try:
        wait_for_epochs(tmp_path / "run", 1, process)
        assert Run(tmp_path / "run").state == "running"
        done = osteo("train", "resume=run")
        assert done.code == 2
        assert "another process works on run" in done.err
        assert "running" in osteo("status", "run").out
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert Run(tmp_path / "run").state == "interrupted"


def test_other_pictures_are_noticed(osteo: Callable, words: list[str], archives: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(archives / "kaggle", tmp_path / "pictures")
    words = [*(word for word in words if not word.startswith("data.root")), f"data.root={copy}"]
    assert osteo("train", *words, "output_dir=run").code == 0
    Run(tmp_path / "run").set_status("running")
    first = sorted(path for path in copy.rglob("*") if path.is_file())[0]
    first.unlink()
    done = osteo("train", "resume=run")
    assert done.code == 2
    assert "2 pictures changed, or moved to another split, since the run began" in done.err


@pytest.mark.slow
def test_rerun_finds_the_same_metrics_or_says_what_differs(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    assert osteo("train", *words, "output_dir=run").code == 0
    same = osteo("rerun", "run", "output_dir=again")
    assert same.code == 0, same.err
    assert "metrics are identical, and the logits too" in same.out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics | {"test/auroc": 0.123}))
    facts = json.loads((tmp_path / "run/environment.json").read_text())
    facts["libraries"]["torch"] = "1.0"
    (tmp_path / "run/environment.json").write_text(json.dumps(facts))
    other = osteo("rerun", "run", "output_dir=third")
    assert other.code == 1
    assert "test/auroc: 0.123 before" in other.out
    assert f"torch was 1.0 and is {torch.__version__.split('+')[0]}" in other.out
    nothing = osteo("rerun", "nowhere")
    assert (nothing.code, nothing.err.count("\n")) == (2, 1)
    assert "is not a finished run" in nothing.err


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """`python -m benchmarks faults` does it thirty times, and ten times to sweeps."""
    for row in harness(2, 1, tmp_path):
        assert (row["lost"], row["torn files"], row["differ"]) == (0, 0, "-"), row
        assert row["kills"] >= 1


@pytest.mark.slow
def test_a_run_that_is_done_is_given_more_epochs(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    short = [*words, "logger.wandb.mode=disabled", "optimizer.schedule=constant"]
    assert osteo("train", *short, "trainer.max_epochs=4", "output_dir=whole").code == 0
    assert osteo("train", *short, "trainer.max_epochs=2", "output_dir=run").code == 0
    record = Run(tmp_path / "run")
    before, files = record.read_table("history.csv"), {path: path.read_bytes() for path in record.directory.iterdir()
                                                       if path.suffix in (".csv", ".json")}  # fmt: skip
    for epochs, message in ((2, "was to have 2 epochs; trainer.max_epochs=2 must be larger"), (0, "is too small")):
        refused = osteo("train", "resume=run", f"trainer.max_epochs={epochs}")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err or "must be larger" in refused.err
        assert {path: path.read_bytes() for path in files} == files
    done = osteo("train", "resume=run", "trainer.max_epochs=4")
    assert done.code == 0, done.err
    assert "going on after last.ckpt" in done.out
    after = record.read_table("history.csv")
    assert list(after["epoch"]) == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(after[:2], before)
    assert differs(Run(tmp_path / "whole"), record) == []  # constant rate: as if it had been begun with four
    trainer = record.read_config()["trainer"]
    assert (trainer["max_epochs"], trainer["extended_from"]) == (4, [2])
    assert (record.state, record.read_json("environment.json")["epochs"]) == ("done", 4)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        (record.checkpoints / name).write_bytes(b"")
    refused = osteo("train", "resume=run", "trainer.max_epochs=5")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "no checkpoint can be resumed from: run/checkpoints/last.ckpt is not a checkpoint of osteo" in refused.err
    assert (record.state, record.read_config()["trainer"]["max_epochs"]) == ("done", 4)


def test_a_run_that_is_done_keeps_its_best_epoch_without_its_optimiser(
    osteo: Callable, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "logger.wandb.mode=disabled", "trainer.max_epochs=2", "callbacks=[ema]"]
    for keep in ("all", "best"):
        assert osteo("train", *words, f"keep={keep}", f"output_dir={keep}").code == 0
    runs = [Run(tmp_path / keep) for keep in ("all", "best")]
    assert [sorted(path.name for path in run.checkpoints.iterdir()) for run in runs] == [
        ["best.ckpt", "last.ckpt", "previous.ckpt"], ["best.ckpt"],
    ]  # fmt: skip
    first, second = (read_checkpoint(run.best_checkpoint) for run in runs)
    assert set(first) == set(second) == USED
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    weights = sum(value.numel() * value.element_size() for value in second["state_dict"].values())
    assert runs[1].best_checkpoint.stat().st_size < 1.2 * weights
    assert {"current_model_state", "optimizer_states"} <= set(read_checkpoint(runs[0].checkpoints / "last.ckpt"))

    before = {path: path.read_bytes() for path in runs[1].directory.rglob("*") if path.suffix in (".ckpt", ".json")}
    refused = osteo("train", "resume=best", "trainer.max_epochs=4")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "best cannot be given more epochs: when it was done, last.ckpt was removed" in refused.err
    assert "train with keep=all what may be given more later" in refused.err
    assert {path: path.read_bytes() for path in before} == before

    (runs[1].directory / "status.json").unlink()
    done = osteo("train", "resume=best")
    assert (done.code, runs[1].state) == (0, "done"), done.err
    assert "epoch 0" not in done.out
    wrong = osteo("train", *words, "keep=last")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "keep 'last' is unknown; choose one of: best, all" in wrong.err


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "poly"])
def test_a_longer_schedule_is_entered_at_its_step(name: str) -> None:
    def training(steps: int) -> tuple[SGD, object]:
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        settings = asdict(OptimizerConfig(lr=0.1, schedule=name))
        return optimizer, make_schedule(optimizer, settings, steps=steps, epochs=steps // 2, mode="min")

    def rates(optimizer: SGD, schedule: object, steps: range) -> list[tuple[float, float]]:
        found = []
        for step in steps:
            found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            schedule.step_update(step + 1) if isinstance(schedule, Scheduler) else schedule.step()
        return found

    whole = rates(*training(20), range(20))
    optimizer, schedule = training(10)
    rates(optimizer, schedule, range(10))
    longer, entered = training(20)
    longer.load_state_dict(optimizer.state_dict())
    enter(entered, 10)
    assert rates(longer, entered, range(10, 20)) == whole[10:]


@pytest.mark.slow
def test_a_run_without_its_status_goes_on_as_it_was_configured(
    osteo: Callable, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "logger.wandb.mode=disabled", "trainer.max_epochs=2"]
    assert osteo("train", *words, "output_dir=run").code == 0
    record, before = Run(tmp_path / "run"), (tmp_path / "run/config.yaml").read_bytes()
    metrics = (tmp_path / "run/metrics.json").read_bytes()
    (tmp_path / "run/status.json").unlink()
    refused = osteo("train", *words, "output_dir=run")
    assert "run holds a run already; choose another output_dir, or go on with it" in refused.err
    done = osteo("train", "resume=run")
    assert done.code == 0, done.err
    assert record.state == "done"
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    assert (tmp_path / "run/metrics.json").read_bytes() == metrics


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("status.json", "", "run/status.json is damaged; delete it, and resume continues the run after its last"),
        ("status.json", "[]", "run/status.json is damaged; delete it"),
        ("status.json", '{"state": "finished"}', "run/status.json is damaged; delete it"),
        ("config.yaml", "", "run/config.yaml is empty; restore it from a copy"),
        ("config.yaml", "seed: 3\ndata: {name: folder}\n", "run/config.yaml is damaged: it lacks model"),
        ("config.yaml", "seed: [", "run/config.yaml is damaged: not YAML"),
        ("config.yaml", "seed: many\n", "run/config.yaml is damaged: it lacks data"),
        ("multirun.yaml", "", "run/multirun.yaml is damaged (it holds no sweep)"),
        ("multirun.yaml", "hydra: [", "run/multirun.yaml is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_trained(
    osteo: Callable, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "run").mkdir()
    files = {"config.yaml": OmegaConf.to_yaml(OmegaConf.structured(Config)), name: content}
    files.setdefault("status.json", '{"state": "running", "error": null, "id": "0"}')
    for path, text in files.items():
        (tmp_path / "run" / path).write_text(text)
    done = osteo("train", "resume=run")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert {path: (tmp_path / "run" / path).read_text() for path in files} == files
