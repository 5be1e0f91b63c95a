"""A search on a PostgreSQL server: four workers, one killed, and the server restarted; passwords stay unsaid."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from osteo.records.record import Run
from osteo.search import storage
from tests import postgresql, slurm

OSTEO = str(Path(sys.executable).with_name("osteo"))
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(postgresql.why_not() is not None, reason=str(postgresql.why_not())),
]


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    kept = [word for word in tiny if not word.startswith("trainer.max_epochs")]
    return [*kept, "hydra/sweeper=search", "trainer.max_epochs=12", LR]


def epochs(run: Path) -> int:
    return len(pd.read_csv(run / "history.csv")) if (run / "history.csv").exists() else 0


def trials_of(url: str, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url.replace("://", "+psycopg://")).trials


@pytest.mark.slow
def test_four_workers_on_a_server_that_is_restarted(words: list[str], tmp_path: Path) -> None:
    words = [*words, "hydra.sweeper.study=shared", "hydra.sweeper.n_trials=3", "logger.wandb.mode=offline"]
    with postgresql.running() as server:
        environment = {**os.environ, storage.STORAGE: server.url}

        def worker(*arguments: str, log: str) -> "subprocess.Popen[bytes]":
            with (tmp_path / log).open("wb") as said:
                command = [OSTEO, "train", *arguments]
                return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)

        workers = [worker("-m", *words, f"output_dir={name}", log=f"{name}.out") for name in "abcd"]
        slurm.wait_until(
            lambda: all((tmp_path / name / "search.json").exists() for name in "abcd"), 300, "four studies"
        )
        slurm.wait_until(lambda: epochs(tmp_path / "a/1") >= 2, 300, "two epochs of the second trial of a")
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        server.stop()
        slurm.wait_until(
            lambda: any("trying again for" in (tmp_path / f"{name}.out").read_text() for name in "bcd"),
            300,
            "a worker's wait",
        )
        server.start()
        for process, name in zip(workers[1:], "bcd", strict=True):
            assert process.wait(300) == 0, (tmp_path / f"{name}.out").read_text()
        [left] = [trial for trial in trials_of(server.url, "shared") if not trial.state.is_finished()]
        assert worker("resume=a", log="again.out").wait(300) == 0, (tmp_path / "again.out").read_text()
        trials = trials_of(server.url, "shared")
    assert [trial.number for trial in trials] == list(range(12))
    assert trials[left.number].params == left.params
    identities = {Run(tmp_path / name).read_json("search.json")["id"]: name for name in "abcd"}
    owners = [str(trial.user_attrs["job"]).split("/") for trial in trials]
    runs = [Run(tmp_path / identities[identity] / job) for identity, job in owners]
    assert {run.directory for run in runs} == {tmp_path / name / job for name in "abcd" for job in "012"}
    for trial, run in zip(trials, runs, strict=True):
        losses = run.read_history()["val/loss"]
        assert run.state == "done"
        assert run.read_config()["trial"] == trial.number
        assert run.read_config()["optimizer"]["lr"] == trial.params["optimizer.lr"]
        assert trial.intermediate_values == dict(enumerate(losses))
        is_pruned = run.read_environment()["pruned"]
        assert (trial.state, trial.value) == (
            (TrialState.PRUNED, losses.iloc[-1]) if is_pruned else (TrialState.COMPLETE, losses.min())
        )
    best = min((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0)
    assert f"best trial   {best.number}: val/loss {best.value:.4f}" in (tmp_path / "again.out").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"multirun.yaml", "search.json", "config.yaml", "train.log", "b.out"} <= {path.name for path in files}
    assert [path for path in files if postgresql.PASSWORD.encode() in path.read_bytes()] == []


def test_a_job_that_begins_while_the_server_is_away_waits_for_it() -> None:
    asked: list[int] = []
    with postgresql.running() as server:
        url = make_url(server.url)
        server.stop()

        def begin() -> optuna.storages.RDBStorage:
            asked.append(1)
            if len(asked) == 3:
                server.start()
            return storage.open_storage(url)

        assert storage.outlast(url, begin).get_all_studies() == []
    assert len(asked) == 3


def test_a_server_that_cannot_be_used_is_one_line(
    osteo: Callable, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql.running() as server:
        for wrong in (server.url.replace("hunter2", "hunter3"), server.url.replace("/postgres", "/nothing")):
            monkeypatch.setenv(storage.STORAGE, wrong)
            done = osteo("train", "-m", *words, "output_dir=sweep")
            assert (done.code, done.err.count("\n")) == (2, 1)
            assert "the study's storage postgresql://127.0.0.1/" in done.err
            assert "hunter" not in done.out + done.err
        server.stop()
        monkeypatch.setenv(storage.STORAGE, server.url)
        done = osteo("train", "-m", *words, "output_dir=sweep")
        server.start()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot be used: " in done.err
    assert "refused" in done.err
    assert list(tmp_path.iterdir()) == []
