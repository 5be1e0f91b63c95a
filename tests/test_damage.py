"""A damaged file of a record is named in one line, and what does not need it goes on."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from osteo import files
from osteo.command_settings import StatusConfig
from osteo.commands.status import status
from osteo.errors import UserError
from osteo.evaluation.outcomes import check_run, evaluate_splits
from osteo.evaluation.systems import read_experiment
from osteo.files import link_or_copy, whole, write_json
from osteo.inference.card import KEY, check_origin, read_card
from osteo.inference.model import load_models
from osteo.records.content import ADVICE, DamagedError, read_metrics
from osteo.records.record import Job, Run
from osteo.records.sweep import leaderboard, runs_of, trained, unfinished
from osteo.report.page import write_report
from osteo.report.summary import row, show_runs
from tests.test_systems import write_run

ENVIRONMENT = {"backbone": "resnet18", "seed": 0, "fold": None, "parameters": 9, "epochs": 2, "best_epoch": 1}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The record of a run that has ended."""
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "a", "resnet18")
    run.write_metrics(evaluate_splits(run.read_predictions()))
    run.write_environment(**ENVIRONMENT)
    run.set_status("done")
    return run


def edit(run: Run, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a file of a record as an editor would."""
    path = run.directory / name
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        change(pd.read_csv(path)).to_csv(path, index=False)


def turn_over(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label=1 - table["label"])


def at(column: str, place: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Sets one cell of a table."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.iloc[place, table.columns.get_loc(column)] = value
        return table

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predictions.csv", turn_over, r"row 1 \(folder/0.png\): label 1, but 0 in manifest.csv"),
        ("predictions.csv", lambda t: pd.concat([t, t]), r"row 41 \(folder/0.png\): the picture is listed twice"),
        ("predictions.csv", at("logit", 3, "inf"), r"row 4 \(folder/\d+.png\): logit is inf, no finite number"),
        ("predictions.csv", at("logit", 3, "x"), r"row 4 \(folder/\d+.png\): logit is x, no finite number"),
        ("predictions.csv", at("probability", 2, 0.123), r"row 3 \(folder/\d+.png\): a probability of 0.1230, but its"),
        ("predictions.csv", at("image_id", 2, "b.png"), r"row 3 \(b.png\): the picture is not in manifest.csv"),
        ("predictions.csv", at("split", 0, "val"), r"row 1 \(folder/0.png\): split val, but test in manifest.csv"),
        ("predictions.csv", at("group", 1, "g2"), r"row 2 \(folder/1.png\): group g2, but g1 in manifest.csv"),
        ("predictions.csv", at("source", 1, None), r"row 2 \(folder/1.png\): source nan, but folder in manifest.csv"),
        ("predictions.csv", lambda t: t.drop(columns="logit"), "it lacks the column logit"),
        ("predictions.csv", lambda t: t[1:], r"it lacks 1 picture, folder/0.png of split test first"),
        ("predictions.csv", lambda t: t[:0], "it has no row"),
        ("manifest.csv", lambda t: t.drop(columns="sha256"), "it lacks the column sha256"),
        ("manifest.csv", turn_over, r"row 1 \(folder/0.png\): label 1 of class normal"),
        ("manifest.csv", lambda t: pd.concat([t, t[:1]]), r"row 61 \(folder/0.png\): the picture is listed twice"),
        ("manifest.csv", at("split", 5, "tset"), r"row 6 \(folder/5.png\): there is no split 'tset'"),
        ("manifest.csv", at("width", 5, "wide"), r"row 6 \(folder/5.png\): width is wide, no finite number"),
        ("history.csv", lambda t: t.drop(columns="val/loss"), "it lacks the column val/loss"),
        ("history.csv", lambda t: pd.concat([t, t]), "row 3: epoch 0 is out of order"),
        ("history.csv", at("val/auroc", 1, "x"), "row 2: val/auroc is x, no number"),
        ("metrics.json", lambda m: {**m, "test/auroc": "good"}, "test/auroc is 'good'"),
        ("metrics.json", lambda m: {**m, "val/auroc": 7.5}, "val/auroc is '7.5'"),
        ("metrics.json", lambda m: {**m, "test/brier": -3}, "test/brier is '-3'"),
        ("metrics.json", lambda m: {**m, "test/confusion_matrix": [[1, -1], [1, 1]]}, r"test/conf.* is '\[\["),
        ("metrics.json", lambda m: {**m, "test/confusion_matrix": [1]}, r"test/confusion_matrix is '\[1\]'"),
        ("metrics.json", lambda m: {k: v for k, v in m.items() if k != "val/auroc"}, "it lacks val/auroc"),
        ("metrics.json", lambda m: {**m, "val/auroc": float("nan")}, r"not JSON \(NaN is not a number in JSON\)"),
        ("environment.json", lambda _: [1], "not a JSON object"),
        ("environment.json", lambda e: {**e, "epochs": True}, "epochs is 'True'"),
        ("environment.json", lambda e: {**e, "peak_memory_mib": [1]}, r"peak_memory_mib is '\[1\]'"),
        ("environment.json", lambda e: {**e, "seconds": "x"}, "seconds is 'x'"),
        ("environment.json", lambda e: {**e, "pictures_per_second": -1.0}, "pictures_per_second is '-1.0'"),
        ("environment.json", lambda e: {**e, "pruned": [1]}, r"pruned is '\[1\]'"),
        ("status.json", lambda s: {**s, "state": "dnoe"}, "there is no state 'dnoe'"),
        ("status.json", lambda s: {**s, "error": 7}, "error is '7'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(record: Run, name: str, change: Callable[[Any], Any], message: str) -> None:
    record.check()
    edit(record, name, change)
    expected = f"^a/{name} is damaged: {message}.*; restore it from a copy, leave the run out"
    with pytest.raises(DamagedError, match=expected) as raised:
        record.check()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["status.json", "config.yaml", "manifest.csv", "history.csv", "predictions.csv",
                                  "metrics.json", "environment.json"])  # fmt: skip
def test_a_file_that_is_gone_empty_or_cut_is_named(record: Run, name: str) -> None:
    path = record.directory / name
    content = path.read_bytes()
    for damaged, message in (
        (b"", "is empty"),
        (content[: len(content) // 2], ""),
        (b"\xff\xfe\x00", "not a text file"),
    ):
        path.write_bytes(damaged)
        if message or name not in ("config.yaml", "history.csv"):  # half of these may be whole in itself
            with pytest.raises(DamagedError, match=rf"^a/{name} .*{message}"):
                record.check()
    path.unlink()
    with pytest.raises(DamagedError, match=f"^a/{name} is missing"):
        record.check()


def test_a_change_that_makes_sense_is_said(record: Run) -> None:
    edit(record, "metrics.json", lambda m: {**m, "test/auroc": 0.99})
    record.check()
    assert record.changes() == "metrics.json is no longer as status.json recorded (SHA-256)"
    assert row(record)["error"] == record.changes()


def test_records_of_older_versions_are_read(record: Run) -> None:
    """No hashes, no id, keys of the configuration that were not known then, no group in the predictions."""
    (record.directory / "status.json").write_text('{"state": "done", "error": null}')
    edit(
        record,
        "predictions.csv",
        lambda t: t.drop(columns=["group", "source"]).assign(probability=t["probability"].round(4)),
    )
    text = (record.directory / "config.yaml").read_text()
    (record.directory / "config.yaml").write_text(text.replace("  drop_rate: 0.0\n", ""))
    record.check()
    assert record.changes() == ""
    assert len(read_experiment([record]).systems) == 2
    read = record.read_predictions().merge(record.read_manifest(), on="image_id", suffixes=("", " of manifest"))
    for name in ("group", "source"):
        assert read[name].tolist() == read[f"{name} of manifest"].tolist() != []


def test_metrics_are_those_of_the_predictions(record: Run) -> None:
    check_run(record)
    rows = record.read_predictions().query("split == 'test'")
    assert record.read_metrics()["test/auroc"] == pytest.approx(roc_auc_score(rows["label"], rows["logit"]), abs=1e-6)
    for name, change, message in (
        ("test/auroc", lambda value: value - 3e-6, r"test/auroc is 0\.\d+, but predictions.csv gives 0\.\d+"),
        ("val/sensitivity", lambda _: None, r"val/sensitivity is None, but predictions.csv gives [01]\.\d+"),
        ("test/confusion_matrix", lambda counts: counts[::-1], r"test/confusion_matrix is \[\[.*\]\], but"),
    ):
        metrics = record.read_metrics()
        record.write_metrics({**metrics, name: change(metrics[name])})
        with pytest.raises(DamagedError, match=rf"^a/metrics.json is damaged: {message}.*; restore it"):
            check_run(record)
        record.write_metrics({**metrics, "test/of_a_plugin": 12.5})
        check_run(record)


def test_a_training_without_history_and_checkpoints_is_still_one(record: Run) -> None:
    (record.directory / "history.csv").unlink()
    assert record.is_training
    assert trained(record.directory, Run.check) == ([], ["run a is left out: a/history.csv is missing; " + ADVICE])
    (record.directory / "config.yaml").write_text("ckpt: best.ckpt\n")
    assert not record.is_training


def test_trainings_that_are_not_done_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / "s" / str(seed), "resnet18", seed=seed) for seed in range(4)]
    runs[1].set_status("failed", "CUDA out of memory\nand more")
    runs[2].set_status("running")
    assert unfinished(tmp_path / "s") == [
        "run 1 is left out: its state is failed (CUDA out of memory)",
        "run 2 is left out: its state is interrupted",
    ]
    assert caplog.messages == unfinished(tmp_path / "s")
    (tmp_path / "s/2/status.json").write_text("{")  # for `trained` to name
    runs[1].set_status("done")
    assert unfinished(tmp_path / "s") == []
    assert len(trained(tmp_path / "s", Run.read_metrics)[1]) == 1


@pytest.mark.parametrize(
    ("names", "overrides", "params", "line"),
    [
        ("013", ["seed=0,1,2,3"], None, "without a record in this sweep: 1 run (2)"),
        ("01", ["seed=0,1", "data.split.seed=${seed}", "model=a,b"], {"optimizer.lr": "0.1,0.2"},
         "without a record in this sweep: 6 runs (2, 3, 4, 5, 6, ...)"),
        ("02", ["seed=range(0,9)"], None, "without a record in this sweep: 7 runs (1, 3, 4, 5, 6, ...)"),
        ("02", ["seed=glob(*)"], None, "without a record in this sweep: 1 run (1)"),  # not known how many were to be
        ("ab", ["seed=0,1,2"], None, "without a record in this sweep: 1 run"),
        ("012", ["seed=0,1,2", "data=folder"], None, None),
    ],
)  # fmt: skip
def test_jobs_without_a_record_are_counted(
    tmp_path: Path, names: str, overrides: list[str], params: dict[str, str] | None, line: str | None
) -> None:
    for name in names:
        Run(tmp_path / name).start("trainer: {}")
        Run(tmp_path / name).set_status("done")
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": params}
    write_json(tmp_path / "multirun.yaml", {"hydra": {"overrides": {"task": overrides}, "sweeper": sweeper}})
    assert unfinished(tmp_path) == ([line] if line else [])


def test_status_advises_what_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "s" / str(seed), "resnet18", seed=seed) for seed in range(2)]
    for run in runs:
        run.write_environment(**ENVIRONMENT)
    (runs[1].directory / "metrics.json").write_text("{")
    assert not status(StatusConfig(str(tmp_path / "s")), Job(tmp_path, None, ""))
    printed = capsys.readouterr().out
    assert "damaged      restore the file from a copy, or train the run again" in printed
    assert "osteo train resume" not in printed
    runs[0].set_status("failed", "no")
    assert not status(StatusConfig(str(tmp_path / "s")), Job(tmp_path, None, ""))
    assert "osteo train resume" in capsys.readouterr().out


def test_a_sweep_goes_on_without_its_broken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        run = write_run(tmp_path / "s" / str(seed), "resnet18", seed=seed)
        run.write_environment(**ENVIRONMENT)
        run.set_status("done")
    (tmp_path / "s/0/status.json").write_text("{")
    (tmp_path / "s/1/status.json").unlink()
    (tmp_path / "s/2/metrics.json").write_text('{"val/auroc": [1]}')
    edit(Run(tmp_path / "s/3"), "predictions.csv", turn_over)
    assert [run.directory.name for run in runs_of(tmp_path / "s")] == list("01234")
    usable, lines = trained(tmp_path / "s", Run.check)
    assert [run.directory.name for run in usable] == ["4"]
    assert [line.partition(": ")[2].split()[0] for line in lines] == [
        "s/0/status.json", "s/1/status.json", "s/2/metrics.json", "s/3/predictions.csv"
    ]  # fmt: skip
    assert leaderboard(usable)["run"].tolist() == ["4"]
    states = [row(run)["state"] for run in runs_of(tmp_path / "s")]
    assert states == ["damaged", "damaged", "damaged", "done", "done"]
    assert not show_runs(tmp_path / "s")
    assert "s/0/status.json is damaged: not JSON" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "s/leaderboard.csv")["run"].tolist() == [3, 4]  # predictions are not read for it


CARD = {
    "image_size": 64, "fit": "pad", "class_names": ["normal", "osteoporosis"], "temperature": 1.5,
    "thresholds": {"0.5": 0.5, "Youden": 0.4, "sensitivity": 0.2}, "data_hash": "0", "trained_on": "folder",
    "backbone": "resnet18", "seed": 0, "fold": None, "osteo": "0.1.0", "version": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", -1), ("image_size", 64.0), ("image_size", 10**9), ("fit", "stretch"),
        ("class_names", ["normal"]),
        ("class_names", ["osteoporosis", "normal"]), ("temperature", float("nan")), ("temperature", float("inf")),
        ("temperature", 0), ("temperature", 1e-3), ("temperature", 1e300),
        ("thresholds", {}), ("thresholds", {"0.5": 0.5, "Youden": float("inf"), "sensitivity": 0.2}), ("backbone", 7),
        ("fold", "two"), ("seed", None), ("plugins", ["os.system('x')"]), ("guard", {"mean": torch.zeros(3)}),
        ("guard", None), ("licence", 3),
    ],
)  # fmt: skip
def test_every_value_of_a_card_is_checked(key: str, value: object) -> None:
    assert read_card({KEY: CARD}, "best.ckpt").temperature == 1.5
    with pytest.raises(UserError, match=f"best.ckpt holds a card whose {key} makes no sense"):
        read_card({KEY: {**CARD, key: value}}, "best.ckpt")


def test_the_checkpoint_of_another_run_is_refused(record: Run) -> None:
    own = {**CARD, "image_size": record.read_settings().data.image_size}
    check_origin({KEY: own}, record.best_checkpoint, record)
    check_origin({}, record.best_checkpoint, record)  # of an older version
    for key, value in (("backbone", "vgg16"), ("image_size", 32), ("seed", 7), ("fold", 3)):
        with pytest.raises(
            UserError, match=f"^best.ckpt of run a belongs to another run: its card has {key}={value}, and"
        ):
            check_origin({KEY: {**own, key: value}}, record.best_checkpoint, record)


def test_another_runs_checkpoint_is_noticed_where_it_is_used(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*.log", "wandb"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(r"^seed: 0$", "seed: 1", config, flags=re.M))
    with pytest.raises(UserError, match=r"its card has seed=0, and config\.yaml 1; put the run's own checkpoint back"):
        load_models([str(copy)])
    write_report(copy, draws=100, pictures=False)
    assert "best.ckpt of run run belongs to another run" in (copy / "report.html").read_text()
    (copy / "config.yaml").write_text("{")
    assert load_models([str(copy)])[0].card.seed == 0


def test_a_card_that_lacks_a_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"best\.ckpt holds a card without temperature"):
        read_card({KEY: {key: value for key, value in CARD.items() if key != "temperature"}}, "best.ckpt")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_checkpoints_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    with whole(tmp_path / "best.ckpt", durable=True) as twin:
        link_or_copy(tmp_path / "last.ckpt", twin)
    assert (tmp_path / "best.ckpt").read_bytes() == b"weights"
    assert not (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")


def test_a_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(f"{Path(f'/proc/self/fd/{descriptor}').readlink().name} {(tmp_path / 'status.json').exists()}")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched)
    write_json(tmp_path / "status.json", {"state": "done"})
    assert synced == ["status.json False", f"{tmp_path.name} True"]


@pytest.mark.parametrize(
    ("name", "wrong", "good"),
    [
        ("auroc_osteopenia", 1.2, 1.0), ("auroc_macro", -0.1, 0.0), ("balanced_accuracy", 1.5, None),
        ("quadratic_weighted_kappa", -1.5, -1.0), ("pearson_r", 1.01, 1.0), ("mean_absolute_error", -0.5, 7.0),
    ],
)  # fmt: skip
def test_a_metric_of_a_task_outside_its_range_is_one_line(
    tmp_path: Path, name: str, wrong: float, good: float | None
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({f"test/{name}": wrong}))
    with pytest.raises(DamagedError, match=f"is damaged: test/{name} is '{wrong}'"):
        read_metrics(path, {})
    path.write_text(json.dumps({f"test/{name}": good, "test/bias": -3.0}))
    assert read_metrics(path, {})[f"test/{name}"] == good
