"""A search proposes jobs, stops poor ones early, outlives kills and failures, and keeps a password to itself."""

import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial

from osteo.errors import UserError
from osteo.records.record import Run
from osteo.search.settings import SearchSettings
from osteo.search.space import batches, space_of
from osteo.search.study import Search
from tests.test_resume import start, wait_for_epochs

LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    return ["-m", *tiny, "hydra/sweeper=search", "logger.wandb.mode=disabled"]


@pytest.fixture(autouse=True)
def no_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSTEO_STORAGE", raising=False)


def space(*words: str) -> dict[str, optuna.distributions.BaseDistribution]:
    return space_of({word.get_key_element(): word for word in OverridesParser.create().parse_overrides(list(words))})


def study_of(path: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def lowest(run: Path) -> float:
    return pd.read_csv(run / "history.csv")["val/loss"].min()


def test_sweep_overrides_become_distributions() -> None:
    assert space(
        "a=tag(log,interval(1e-5,1e-2))",
        "b=interval(0,1)",
        "c=int(interval(1,5))",
        "d=range(1,10,3)",
        "e=range(0.0,0.5,0.1)",
        "f=8,16,8",
        "g='x y',null,true",
        "h=tag(log,range(1,9))",
    ) == {
        "a": FloatDistribution(1e-5, 1e-2, log=True),
        "b": FloatDistribution(0.0, 1.0),
        "c": IntDistribution(1, 5),
        "d": IntDistribution(1, 7, step=3),
        "e": FloatDistribution(0.0, 0.4, step=0.1),
        "f": CategoricalDistribution(["8", "16"]),
        "g": CategoricalDistribution(["'x y'", "null", "True"]),
        "h": IntDistribution(1, 8, log=True),
    }
    for word in ("a=tag(log,interval(0,1))", "a=interval(2,1)", "a=range(3,3)", "a=tag(lag,interval(1,2))"):
        with pytest.raises(UserError):
            space(word)


def test_jobs_are_launched_in_batches_of_numbers_in_a_row() -> None:
    assert list(batches([0, 2, 3, 4, 7], 2)) == [[0], [2, 3], [4], [7]]


@pytest.mark.slow
def test_failed_trials_are_told_and_repeated(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    more = ["model.backbone=test_resnet,inception_v4", LR, "model.drop_rate=range(0,0.5,0.1)"]
    done = osteo("train", *words, *more, "hydra.sweeper.n_trials=5", "output_dir=sweep")
    assert done.code == 1  # as of any sweep with a failed job
    study = study_of(tmp_path / "sweep/study.db", "sweep")
    failed = [trial.number for trial in study.trials if trial.params["model.backbone"] == "inception_v4"]
    assert 0 < len(failed) < 5
    for trial in study.trials:
        run = Run(tmp_path / "sweep" / str(trial.number))
        assert (run.state, trial.state) == (
            ("failed", TrialState.FAIL) if trial.number in failed else ("done", TrialState.COMPLETE)
        )
        if run.state == "done":
            assert trial.value == lowest(run.directory)
            assert list(trial.intermediate_values.values()) == list(run.read_table("history.csv")["val/loss"])
            assert run.read_config()["optimizer"]["lr"] == trial.params["optimizer.lr"]
            assert run.read_json("environment.json")["pruned"] is False
    assert f"5 trials ({5 - len(failed)} complete, {len(failed)} failed" in done.out
    assert f"best trial   {study.best_trial.number}: val/loss {study.best_value:.4f} with" in done.out
    assert len(pd.read_csv(tmp_path / "sweep/leaderboard.csv")) == 5 - len(failed)

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/metrics.json")}
    again = osteo("train", "resume=sweep")
    assert again.code == 1, again.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/metrics.json")} == stamps
    trials = study_of(tmp_path / "sweep/study.db", "sweep").trials
    assert [trial.params for trial in trials[5:]] == [trials[number].params for number in failed]
    assert {trial.state for trial in trials[5:]} == {TrialState.FAIL}
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/status.json")) == list("01234")

    reported = osteo("report", "sweep", "draws=100", "pictures=false")
    assert reported.code == 0, reported.err
    chosen = f"a search of 5 trials: 0 stopped early, {len(failed)} without a result"
    assert chosen in (tmp_path / "sweep/report.md").read_text()


@pytest.mark.slow
def test_a_poor_trial_is_stopped_early(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    study = optuna.create_study(study_name="shared", storage=f"sqlite:///{tmp_path / 'shared.db'}")
    for _ in range(5):
        study.add_trial(create_trial(value=0.0, intermediate_values=dict.fromkeys(range(4), 0.0)))
    shared = ["hydra.sweeper.storage=sqlite:///shared.db", "hydra.sweeper.study=shared", "hydra.sweeper.n_trials=1"]
    done = osteo("train", *words, *shared, LR, "trainer.max_epochs=4", "keep=all", "output_dir=sweep")
    assert done.code == 0, done.err
    run = Run(tmp_path / "sweep/0")
    facts = run.read_json("environment.json")
    assert (run.state, facts["epochs"], facts["pruned"]) == ("done", 1, True)
    trial = study.trials[5]
    assert (trial.state, trial.value) == (TrialState.PRUNED, lowest(run.directory))
    assert "6 trials (5 complete, 1 pruned" in done.out
    assert "was stopped early by its search" in osteo("rerun", "sweep/0").err

    before = (run.directory / "metrics.json").read_bytes()
    run.set_status("running")  # as if killed when it had been told to end
    (run.directory / "metrics.json").unlink()
    assert osteo("train", "resume=sweep/0").code == 0
    assert run.read_json("environment.json")["epochs"] == 1
    assert (run.directory / "metrics.json").read_bytes() == before

    short = osteo("train", *words, *shared, LR, "trainer.max_epochs=1", "output_dir=short")
    assert "7 trials (6 complete, 1 pruned)" in short.out  # after the last epoch, nothing can be saved

    other = osteo("train", *words, *shared, "optimizer.lr=1e-3,1e-4", "output_dir=other")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "study shared was begun with other values of optimizer.lr" in other.err
    other = osteo("train", *words, *shared, LR, "trainer.monitor=val/auroc", "output_dir=other")
    assert "study shared compares val/loss, not val/auroc" in other.err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_killed_search_ends_as_one_that_was_not(osteo: Callable, words: list[str], tmp_path: Path) -> None:
    words = [*words, LR, "trainer.max_epochs=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    assert osteo("train", *words, "output_dir=whole").code == 0
    process = start(tmp_path, *words, "output_dir=killed")
    wait_for_epochs(tmp_path / "killed/1", 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    stamp = (tmp_path / "killed/0/metrics.json").stat().st_mtime_ns
    states = [trial.state for trial in study_of(tmp_path / "killed/study.db", "killed").trials]
    assert states == [TrialState.RUNNING, TrialState.RUNNING]  # launched, and told of, together
    done = osteo("train", "resume=killed")
    assert done.code == 0, done.err
    assert (tmp_path / "killed/0/metrics.json").stat().st_mtime_ns == stamp
    whole, killed = (study_of(tmp_path / name / "study.db", name).trials for name in ("whole", "killed"))
    assert len(killed) == 3
    for one, other in zip(whole, killed, strict=True):
        assert one.state == other.state == TrialState.COMPLETE
        assert (one.params, one.value, one.intermediate_values) == (
            other.params,
            other.value,
            other.intermediate_values,
        )
        assert other.user_attrs["job"].endswith(f"/{other.number}")
    with sqlite3.connect(tmp_path / "killed/study.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    again = osteo("train", "resume=killed")
    assert again.code == 0
    assert "3 trials (3 complete" in again.out
    assert "Launching" not in again.out


def test_a_worker_that_is_killed_while_it_asks_leaves_no_trial_without_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = {"a": FloatDistribution(0.0, 1.0), "b": IntDistribution(1, 9)}
    search = Search(tmp_path, "study", searched, SearchSettings(), "val/loss", epochs=3)
    suggest = Trial._suggest
    for cut_off in ("a", "b"):
        monkeypatch.setattr(Trial, "_suggest", lambda *given, key=cut_off: ask(suggest, key, *given))
        with pytest.raises(KeyboardInterrupt):
            search.take(0)
    monkeypatch.undo()
    first, [trial] = search.take(0), search.study.trials
    assert first == [f"a={trial.params['a']}", f"b={trial.params['b']}", "trial=0"]
    assert search.take(1)[-1] == "trial=1"


def ask(suggest: Callable, cut_off: str, trial: Trial, key: str, kind: object) -> object:
    if key == cut_off:
        raise KeyboardInterrupt
    return suggest(trial, key, kind)


@pytest.mark.slow
def test_two_workers_share_a_study(words: list[str], tmp_path: Path) -> None:
    shared = [f"hydra.sweeper.storage=sqlite:///{tmp_path / 'shared.db'}", "hydra.sweeper.study=both"]
    words = [*words, *shared, LR, "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none"]
    workers = [start(tmp_path, *words, f"output_dir={name}") for name in "ab"]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    trials = study_of(tmp_path / "shared.db", "both").trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 4
    names = {json.loads((tmp_path / name / "search.json").read_text())["id"]: name for name in "ab"}
    owned = [trial.user_attrs["job"].split("/") for trial in trials]
    assert sorted((names[identity], job) for identity, job in owned) == [(name, job) for name in "ab" for job in "01"]
    for trial, (identity, job) in zip(trials, owned, strict=True):
        assert trial.value == lowest(tmp_path / names[identity] / job)


@pytest.mark.slow
def test_a_password_is_in_no_file(
    osteo: Callable, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://ann:hunter2@localhost/studies"
    refused = osteo("train", *words, LR, f"hydra.sweeper.storage={url}", "output_dir=sweep")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "set $OSTEO_STORAGE" in refused.err
    assert list(tmp_path.iterdir()) == []
    # an SQLite file takes any word in its URL, so that it can stand for a server
    monkeypatch.setenv("OSTEO_STORAGE", f"sqlite:///file:{tmp_path / 'shared.db'}?uri=true&password=hunter2")
    words = [*words, LR, "hydra.sweeper.n_trials=2", "hydra.sweeper.study=one", "logger.wandb.mode=offline"]
    words += ["trainer.max_epochs=2", "hydra.sweeper.sampler=random", "hydra.sweeper.pruner=hyperband"]
    done = osteo("train", *words, "output_dir=sweep")
    assert done.code == 0, done.err
    assert "hunter2" not in done.out + done.err
    assert len(study_of(tmp_path / "shared.db", "one").trials) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"multirun.yaml", "search.json", "config.yaml", "train.log"} <= {path.name for path in files}
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []
    monkeypatch.delenv("OSTEO_STORAGE")
    assert "does not know run 0 of this sweep; is $OSTEO_STORAGE what it was?" in osteo("train", "resume=sweep").err
    monkeypatch.setenv("OSTEO_STORAGE", "postgresql//ann:hunter2@localhost")
    broken = osteo("train", *words, "output_dir=broken")
    assert (broken.code, broken.err.count("\n")) == (2, 1)
    assert "$OSTEO_STORAGE is not a URL" in broken.err
    assert "hunter2" not in broken.out + broken.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to search"),
        (["experiment=quickstart"], "nothing to search"),  # the command line's backbone replaces its three
        (["+hydra.sweeper.params.seed='0,a'"], "seed=a: must be a whole number"),
        (["hydra.sweeper.storage=sqlite:////no/study.db", LR], "storage /no/study.db cannot be used: unable to open"),
        (
            ["hydra.sweeper.storage='mysql://h/d?passwd=x'", LR],
            "would record the password; set $OSTEO_STORAGE",
        ),
        (["augment=online,nope"], "augment 'nope' is unknown"),
        (["hydra.sweeper.n_trial=3", LR], "key 'hydra.sweeper.n_trial' is unknown; choose one of: n_trials, "),
        (["hydra.sweeper.pruner=medium", LR], "hydra.sweeper.pruner 'medium' is unknown; choose one of: median"),
        (["trainer.monitor=val/loss,val/auroc"], "cannot search trainer.monitor or trial"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    osteo: Callable, words: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = osteo("train", *words, *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_is_named(
    osteo: Callable, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = osteo("train", *words, LR)
    assert done.code == 2
    assert done.err == "osteo train: hydra/sweeper=search needs Optuna: pip install 'osteo[search]'\n"
    assert list(tmp_path.iterdir()) == []
