"""The jobs of a sweep: what each runs and where, at first and when the sweep is taken up; nothing is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from osteo.app.resume import resumed
from osteo.commands import train
from osteo.config import Config
from osteo.errors import UserError
from osteo.records.record import Job, Run
from osteo.records.sweep import runs_of


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Directory and configuration of every job; each leaves a record as if it had been trained."""
    ran: list[tuple[str, Config]] = []

    def task(config: Config, job: Job) -> bool:
        assert job.sweep is not None
        ran.append((job.directory.relative_to(job.sweep.resolve()).as_posix(), config))
        record = Run(job.directory)
        record.start(job.config_yaml)
        record.set_status("done")
        return True

    monkeypatch.setattr(train, "train_in_processes", task)
    monkeypatch.setattr(train, "show_results", lambda _: True)
    return ran


SWEEPS = {
    "nested": [
        "seed=0,1", "data.split.seed=${seed}", "optimizer.lr=${oc.env:RATE}", "hydra.sweep.subdir=r/s-${seed}",
        "model.head_args={a: ${seed}}", "output_dir=s",
    ],
    "named by overrides": ["seed=0,1", "output_dir=s", "hydra.sweep.subdir=${hydra.job.override_dirname}"],
    "of an experiment": [
        "experiment=cross_validation", "data=phantom", "model.backbone=test_vit", "data.split.fold=1", "output_dir=s"
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("given", SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_that_is_taken_up_runs_what_it_asked_for(
    osteo: Callable, jobs: list[tuple[str, Config]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setenv("RATE", "0.25")
    assert osteo("train", "-m", *given).code == 0
    asked = dict(jobs)
    assert len(asked) == len(jobs) == 2
    records = {place: yaml.safe_load((tmp_path / "s" / place / "config.yaml").read_text()) for place in asked}
    for place in list(asked)[::-1]:  # the second time from what the first has recorded
        jobs.clear()
        shutil.rmtree(tmp_path / "s" / place)  # begun and removed, or not yet begun
        done = osteo("train", "resume=s")
        assert done.code == 0, done.err
        assert dict(jobs) == {place: asked[place]}
        again = {place: yaml.safe_load((tmp_path / "s" / place / "config.yaml").read_text()) for place in asked}
        assert again == records
    assert [run.name for run in runs_of(tmp_path / "s")] == list(asked)


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ("seed=0,1", "seed=0, not 1"),
        ("optimizer=adamw,sgd", "optimizer.name=adamw, not sgd"),
        ("callbacks=ema,early_stopping", "callbacks={'ema': "),
    ],
)
def test_two_jobs_never_share_a_directory(
    osteo: Callable, jobs: list[tuple[str, Config]], tmp_path: Path, swept: str, said: str
) -> None:
    done = osteo("train", "-m", swept, "hydra.sweep.subdir=here", "output_dir=s")
    assert done.code == 1
    assert f"s/here holds the run of another job, with {said}" in done.out
    assert "give every job a directory of its own by hydra.sweep.subdir" in done.out
    assert len(jobs) == 1
    assert Run(tmp_path / "s/here").state == "done"


def test_a_sweep_is_not_taken_up_with_other_files_or_another_environment(
    osteo: Callable, jobs: list[tuple[str, Config]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE", "0.1")
    mine = tmp_path / "mine" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\noptimizer: {weight_decay: 0.002}\n")
    words = ("optimizer.lr=${oc.env:RATE}", "experiment=mine,quickstart", "output_dir=s")
    assert osteo("train", "--config-dir", "mine", "-m", *words).code == 0
    shutil.rmtree(tmp_path / "s/0")
    monkeypatch.setenv("RATE", "0.5")
    done = osteo("train", "resume=s")
    assert done.code == 2
    assert "$RATE is not what it was when s was begun; put it back, or begin a new sweep" in done.err
    monkeypatch.setenv("RATE", "0.1")
    mine.write_text("# @package _global_\noptimizer: {weight_decay: 0.5}\n")
    done = osteo("train", "resume=s")
    assert done.code == 2
    assert "experiment/mine.yaml is not what it was when s was begun" in done.err
    assert len(jobs) == 2


def test_a_sweep_whose_experiment_has_changed_is_refused(
    osteo: Callable, jobs: list[tuple[str, Config]], tmp_path: Path
) -> None:
    (tmp_path / "yaml/experiment").mkdir(parents=True)
    mine = tmp_path / "yaml/experiment/mine.yaml"
    text = "# @package _global_\ntrainer: {max_epochs: 3}\nhydra: {sweeper: {params: {seed: '0,1'}}}\n"
    mine.write_text(text)
    assert osteo("train", "-m", "--config-dir", "yaml", "experiment=mine", "output_dir=s").code == 0
    for old, new in (("0,1", "4,5"), ("epochs: 3", "epochs: 9")):
        mine.write_text(text.replace(old, new))
        done = osteo("train", "resume=s")
        assert (done.code, done.err.count("\n")) == (2, 1)
        key = "hydra.sweeper.params.seed=0,1" if "," in old else "trainer.max_epochs=3"
        assert f"s was begun with {key}, and a file of its configuration has {new.split()[-1]} now" in done.err
    assert len(jobs) == 2


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.launcher.x=${oc.decode:'{_tar${a}'}",
        "hydra.launcher.n_jobs=${callbacks.x}",
        "+hydra.sweeper.params={hydra.job_logging: x}",
        "+hydra.sweeper.params=${callbacks.x}",
        "+callbacks@hydra.callbacks=summary",
        "callbacks.x._target_=${a}",
        "+callbacks.x={_target_: ${a}}",
        "hydra.job.env_set.PYTHONPATH=/tmp",
    ],
)
def test_an_interpolation_hides_no_code(tmp_path: Path, override: str) -> None:
    recorded = {"hydra": {"overrides": {"task": ["seed=0,1"], "hydra": [override]}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="names code to run; begin a new sweep"):
        resumed([f"resume={tmp_path}"])


def test_a_folder_of_yaml_that_came_with_a_sweep_is_named_again(tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    sources = [{"path": str(tmp_path / "evil"), "schema": "file", "provider": "command-line"}]
    recorded = {"hydra": {"overrides": {"task": ["seed=0,1"]}, "runtime": {"config_sources": sources}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="was begun with a --config-dir of its own; name it again"):
        resumed([f"resume={tmp_path}"])


def test_the_launcher_and_the_names_of_jobs_are_replayed(tmp_path: Path) -> None:
    hydra = ["hydra/launcher=processes", "hydra.launcher.n_jobs=${oc.env:N}", "hydra.sweep.subdir=${seed}",
             "hydra.job.config.override_dirname.exclude_keys=[seed]", "hydra.sweep.dir=elsewhere"]  # fmt: skip
    task = ["seed=0,1", "data.split.seed=${seed}", "output_dir=s"]
    recorded = {"seed": 0, "hydra": {"overrides": {"task": task, "hydra": hydra}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(recorded))
    assert resumed([f"resume={tmp_path}"]) == ["-m", *task, *hydra[:-1], f"hydra.sweep.dir='{tmp_path}'"]
