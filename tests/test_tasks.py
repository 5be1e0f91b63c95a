"""Tasks end to end: what a network's outputs say, and a training of each through all that its checkpoint serves."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sklearn
from starlette.testclient import TestClient

from osteo import parts
from osteo.cli import main
from osteo.command_settings import EvaluateConfig, ServeConfig
from osteo.config import LossConfig
from osteo.data.phantom import write_archives
from osteo.errors import UserError
from osteo.evaluation.agreement import AGREEMENT
from osteo.evaluation.gradcam import grad_cam
from osteo.evaluation.outcomes import check_run
from osteo.inference.answer import answer
from osteo.inference.card import KEY
from osteo.inference.evaluate import ask, intervals_of_task
from osteo.inference.model import load_model, load_models, to_batch
from osteo.networks.network import Network
from osteo.networks.outputs import (
    Cuts,
    columns_of,
    details_of,
    log_probabilities,
    positive_logit,
)  # fmt: skip
from osteo.reading.pictures import decode
from osteo.records.content import DamagedError
from osteo.records.record import Run
from osteo.serving.server import as_json, make_app
from osteo.task import (
    CLASSES,
    PREDICTED_T_SCORE,
    T_SCORE_CUTS,
    TASKS,
    call_by_details,
    cut_logits,
    probability_columns,
    who_class,
)  # fmt: skip
from osteo.training import fit
from osteo.training.checkpoints import read_checkpoint
from osteo.training.losses import balanced_weights, best_outputs, make_loss, targets_of
from osteo.training.module import Classifier

NAMES = ("three_class", "ordinal", "t_score", "osteopenia_or_worse")
ON_PAGES = {
    "three_class": ("normal bone density, osteopenia or osteoporosis", "the most probable class"),
    "ordinal": ("normal bone density, osteopenia or osteoporosis", "the most probable class"),
    "t_score": ("the T-score", "by the WHO&#39;s cuts of its T-score"),
    "osteopenia_or_worse": ("osteopenia or osteoporosis against normal bone density", ""),
}
"""What the page of `osteo serve` asks, and how it says that pictures are called, where it says so."""
COUNTS = {"normal": 9, "osteopenia": 10, "osteoporosis": 9}
QUICK = [
    "data.image_size=32", "data.batch_size=6", "data.split.train=0.4", "data.split.val=0.3",
    "model.backbone=test_resnet", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "optimizer.lr=0.05", "logger.wandb.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def sheeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom archive of three classes with its clinical sheet."""
    root = tmp_path_factory.mktemp("tasks") / "archives"
    write_archives(root, seed=3, kaggle={}, mendeley=COUNTS)
    return root / "mendeley"


@pytest.fixture(scope="module")
def data(sheeted: Path) -> list[str]:
    return ["data=mendeley", f"data.mendeley={sheeted}"]


@pytest.fixture(scope="module")
def runs(data: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A training of each task."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            arguments = ["train", f"task={name}", *data, *QUICK, "keep=all", f"output_dir={folder / name}"]
            patch.setattr(sys, "argv", ["osteo", *arguments])
            with pytest.raises(SystemExit, match="0"):
                main()
    return {name: Run(folder / name) for name in NAMES}


def some(task: str, count: int, *, scale: float = 1.0) -> torch.Tensor:
    """Outputs of a task, as a network could give them."""
    drawn = scale * torch.randn(count, TASKS[task].outputs, generator=torch.Generator().manual_seed(0))
    if task == "ordinal":
        drawn = drawn.sort(1, descending=True)[0]
    return drawn.squeeze(1) if TASKS[task].outputs == 1 else drawn


# --- what outputs say ------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_numpy() -> None:
    outputs = some("three_class", 50, scale=3.0).double()
    expected = np.exp(outputs.numpy())
    expected /= expected.sum(1, keepdims=True)
    assert log_probabilities("nominal", outputs).exp().numpy() == pytest.approx(expected)
    outputs = some("ordinal", 50, scale=3.0).double()
    beyond = 1.0 / (1.0 + np.exp(-outputs.numpy()))
    expected = np.stack([1.0 - beyond[:, 0], beyond[:, 0] - beyond[:, 1], beyond[:, 1]], axis=1)
    assert log_probabilities("ordinal", outputs).exp().numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["three_class", "ordinal"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_last_probability_is_that_of_the_positive_logit(name: str, scale: float) -> None:
    kind = TASKS[name].kind
    outputs = some(name, 100, scale=scale)
    probabilities = log_probabilities(kind, outputs).exp()
    assert probabilities.sum(1) == pytest.approx(torch.ones(100), abs=1e-5)
    assert probabilities[:, -1].numpy() == pytest.approx(positive_logit(kind, outputs).sigmoid().numpy(), abs=1e-6)


@pytest.mark.parametrize("name", ["three_class", "ordinal"])
def test_gradients_are_finite_where_outputs_are_extreme(name: str) -> None:
    task = TASKS[name]
    extremes = {"three_class": [[50.0, -50.0, 0.0], [-50.0, 50.0, 50.0]],
                "ordinal": [[50.0, -50.0], [50.0, 50.0], [-50.0, -50.0], [50.0, 49.999998]]}[name]  # fmt: skip
    outputs = torch.tensor(extremes, requires_grad=True)
    for label in range(3):
        target = targets_of(task, torch.full((len(extremes),), float(label)), 0.1)
        losses = make_loss("cross_entropy", {}, task.kind)(outputs, target)
        (gradient,) = torch.autograd.grad(losses.sum() + positive_logit(task.kind, outputs).sum(), outputs)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("first", "gap"), [(0.0, 0.0), (-30.0, -200.0), (100.0, 80.0), (3.0, -1e4)])
def test_cuts_are_in_order_whatever_is_learnt(first: float, gap: float) -> None:
    cuts = Cuts(2)
    with torch.no_grad():
        cuts.first.fill_(first)
        cuts.gaps.fill_(gap)
    outputs = cuts(torch.linspace(-5.0, 5.0, 11)[:, None])
    assert (outputs[:, 0] > outputs[:, 1]).all()
    assert log_probabilities("ordinal", outputs).isfinite().all()
    cuts.begin_at([2.0, -1.5])
    assert cuts(torch.zeros(1, 1)).tolist() == [pytest.approx([2.0, -1.5], abs=1e-5)]


def test_a_t_score_at_a_cut_is_called_as_the_who_does() -> None:
    normal, osteoporosis = T_SCORE_CUTS
    scores = torch.tensor([0.0, -0.99, normal, -2.49, osteoporosis, -4.0])
    called = [call_by_details(TASKS["t_score"], {PREDICTED_T_SCORE: float(score)}) for score in scores]
    assert called == [name for name in CLASSES for _ in range(2)]
    logits = positive_logit("regression", scores)
    assert (logits.sigmoid() > 0.5).tolist() == [False] * 4 + [True] * 2  # in float32, too
    assert logits.numpy() == pytest.approx(cut_logits(scores.double().numpy()), abs=1e-6)
    assert columns_of(TASKS["t_score"], scores)["probability"][4] > 0.5
    probabilities = dict(zip(probability_columns(TASKS["ordinal"]), [0.1, 0.5, 0.4], strict=True))
    assert call_by_details(TASKS["ordinal"], probabilities) == "osteopenia"
    assert call_by_details(TASKS["binary"], {}) is None


def test_details_are_what_predictions_csv_has() -> None:
    assert details_of(TASKS["osteopenia_or_worse"], torch.zeros(2)) == {}
    assert list(details_of(TASKS["t_score"], torch.zeros(2))) == ["predicted_t_score"]
    details = details_of(TASKS["ordinal"], some("ordinal", 5))
    assert list(details) == probability_columns(TASKS["ordinal"])
    assert sum(details.values()) == pytest.approx(np.ones(5))


# --- losses and where training begins --------------------------------------------------------------------------------


def test_targets_weights_and_best_outputs_by_hand() -> None:
    three = TASKS["three_class"]
    assert targets_of(three, torch.tensor([2.0]), 0.3).tolist() == [pytest.approx([0.1, 0.1, 0.8])]
    assert targets_of(TASKS["t_score"], torch.tensor([-1.7]), 0.0).tolist() == [pytest.approx(-1.7)]
    assert targets_of(TASKS["binary"], torch.tensor([1.0]), 0.2).tolist() == [pytest.approx(0.9)]
    labels = [0] * 2 + [1] * 5 + [2] * 3
    weights = balanced_weights(labels)
    assert weights == pytest.approx((10 / 6, 10 / 15, 10 / 9))
    assert sum(weights[label] for label in labels) == pytest.approx(10)
    assert best_outputs(three, labels) == pytest.approx([log(0.2), log(0.5), log(0.3)])
    assert best_outputs(three, labels, weights=weights) == pytest.approx([log(1 / 3)] * 3)
    assert best_outputs(three, labels, 0.3)[0] == pytest.approx(log(0.2 * 0.7 + 0.1))
    assert best_outputs(TASKS["ordinal"], labels) == pytest.approx([log(0.8 / 0.2), log(0.3 / 0.7)])
    assert best_outputs(TASKS["t_score"], [-1.0, -2.0, -4.5]) == pytest.approx([-2.5])
    assert best_outputs(TASKS["osteopenia_or_worse"], [0, 1, 1, 1]) == pytest.approx([log(3)])


@pytest.mark.parametrize("head", ["linear", "standardised"])
@pytest.mark.parametrize("name", ["three_class", "ordinal", "t_score"])
def test_training_begins_with_the_shares_or_the_mean(name: str, head: str) -> None:
    manifest = pd.DataFrame({"split": "train", "label": [0] * 2 + [1] * 5 + [2] * 3})
    if name == "t_score":
        manifest["t_score"] = np.linspace(-4.0, 0.5, 10)
    loss = {"name": "squared_error" if name == "t_score" else "cross_entropy"}
    module = Classifier({"backbone": "test_resnet", "image_size": 32, "task": name, "head": head}, loss=loss)
    fit.begin_at_share(module, LossConfig(), manifest)
    truth = torch.tensor(manifest["t_score" if name == "t_score" else "label"].to_numpy(), dtype=torch.float32)
    with torch.no_grad():
        outputs = module.train()(torch.rand(10, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
        found = float(module._losses(outputs, truth, 0.0).mean())
    if name == "t_score":
        assert outputs.tolist() == pytest.approx([-1.75] * 10, abs=1e-5)
        assert found == pytest.approx(float(truth.var(correction=0)), abs=0.02)
    else:
        shares = np.array([0.2, 0.5, 0.3])
        assert log_probabilities(module.task.kind, outputs).exp().mean(0).numpy() == pytest.approx(shares, abs=1e-4)
        assert found == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.02)


@pytest.mark.parametrize("name", ["three_class", "ordinal", "t_score"])
def test_views_tiles_stages_and_heads_give_the_outputs_of_the_task(name: str) -> None:
    task, pictures = TASKS[name], torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    shape = (3,) if task.outputs == 1 else (3, task.outputs)
    for arguments in ({"patches": 2}, {"tta": ["hflip"]}, {"stages": True}, {"head": "standardised", "patches": 2},
                      {"stages": True, "tta": ["hflip"], "head": "standardised"}):  # fmt: skip
        network = Network("test_resnet", image_size=64, task=name, **arguments).eval()
        with torch.no_grad():
            outputs = network(pictures)
            assert outputs.shape == shape
            expected = positive_logit(task.kind, outputs)
            if "tta" not in arguments:
                assert network.classify(network.features(pictures)).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
                assert network(network.pooled(pictures)).numpy() == pytest.approx(outputs.numpy(), abs=1e-4)
        assert network.untrained().task is task


def test_a_head_of_ones_own_is_told_how_many_outputs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.heads._parts, "wide", lambda width, outputs=1: torch.nn.Linear(width, outputs))
    monkeypatch.setitem(parts.heads._parts, "narrow", lambda width: torch.nn.Linear(width, 1))
    assert Network("test_resnet", image_size=32, task="three_class", head="wide").head.out_features == 3
    for task in ("ordinal", "t_score", "osteopenia_or_worse"):
        Network("test_resnet", image_size=32, task=task, head="narrow")
    with pytest.raises(UserError, match=r"^model\.head=narrow .*'outputs'"):
        Network("test_resnet", image_size=32, task="three_class", head="narrow")


# --- a training of each task -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_those_of_scikit_learn(runs: dict[str, Run], name: str) -> None:
    task, record = TASKS[name], runs[name]
    check_run(record)
    predictions, recorded = record.read_predictions(), record.read_metrics()
    further = {"t_score": ["predicted_t_score", "t_score"]}.get(name, probability_columns(task))
    known = ["image_id", "source", "group", "split", "label", "logit", "probability"]
    assert list(predictions) == [*known, *further]
    for split in ("val", "test"):
        rows = predictions[predictions["split"] == split]
        assert len(rows) >= 6
        of_split = {key.partition("/")[2]: value for key, value in recorded.items() if key.startswith(f"{split}/")}
        expected = expected_t_scores(rows) if name == "t_score" else expected_classes(rows, further)
        assert {key: of_split[key] for key in expected} == pytest.approx(expected, abs=2e-6)
        confusion = expected_confusion(rows, task.kind, further)
        assert of_split["confusion_matrix"] == confusion.tolist()
        assert confusion.sum() == len(rows)


def expected_classes(rows: pd.DataFrame, columns: list[str]) -> dict[str, float]:
    truth, positive = rows["label"], rows["label"] == rows["label"].max()
    called = rows[columns].to_numpy().argmax(1) if columns else (rows["probability"] > 0.5).astype(int)
    scores = {name: sklearn.roc_auc_score(truth == label, rows[name]) for label, name in enumerate(columns)}
    further = {
        "auroc_macro": sum(scores.values()) / max(len(scores), 1),
        "balanced_accuracy": sklearn.balanced_accuracy_score(truth, called),
        "quadratic_weighted_kappa": sklearn.cohen_kappa_score(truth, called, weights="quadratic"),
        **{name.replace("probability", "auroc"): value for name, value in scores.items()},
    }
    return {
        "accuracy": sklearn.accuracy_score(truth, called),
        "precision_macro": sklearn.precision_score(truth, called, average="macro", zero_division=0),
        "recall_macro": sklearn.recall_score(truth, called, average="macro"),
        "f1_macro": sklearn.f1_score(truth, called, average="macro"),
        "auroc": sklearn.roc_auc_score(positive, rows["logit"]),
        **(further if columns else {}),
    }


def expected_t_scores(rows: pd.DataFrame) -> dict[str, float]:
    true, predicted = rows["t_score"], rows["predicted_t_score"]
    differences = predicted - true
    reach = 1.96 * differences.std(ddof=1)
    return {
        "mean_absolute_error": sklearn.mean_absolute_error(true, predicted),
        "bias": differences.mean(),
        "agreement_low": differences.mean() - reach,
        "agreement_high": differences.mean() + reach,
        "pearson_r": np.corrcoef(true, predicted)[0, 1],
        "accuracy": sklearn.accuracy_score(true <= -2.5, predicted <= -2.5),
        "auroc": sklearn.roc_auc_score(true <= -2.5, -predicted),
    }


def expected_confusion(rows: pd.DataFrame, kind: str, columns: list[str]) -> np.ndarray:
    if kind == "regression":
        return sklearn.confusion_matrix(
            rows["t_score"] <= -2.5, rows["predicted_t_score"] <= -2.5, labels=[False, True]
        )
    if kind == "binary":
        return sklearn.confusion_matrix(rows["label"], rows["probability"] > 0.5, labels=[0, 1])
    return sklearn.confusion_matrix(rows["label"], rows[columns].to_numpy().argmax(1), labels=[0, 1, 2])


@pytest.mark.parametrize(
    ("name", "metric"), [("three_class", "auroc_osteopenia"), ("ordinal", "confusion_matrix"), ("t_score", "bias")]
)
def test_a_value_that_was_tampered_with_is_named(runs: dict[str, Run], name: str, metric: str) -> None:
    record = runs[name]
    metrics = record.read_metrics()
    value = metrics[f"test/{metric}"]
    try:
        record.write_metrics(
            {**metrics, f"test/{metric}": [[9, 0, 0]] * 3 if isinstance(value, list) else value / 2 + 0.01}
        )
        with pytest.raises(DamagedError, match=f"damaged: test/{metric} is .*, but predictions.csv gives"):
            check_run(record)
    finally:
        record.write_metrics(metrics)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_says_the_same_wherever_it_is_asked(runs: dict[str, Run], sheeted: Path, name: str) -> None:
    task, record = TASKS[name], runs[name]
    data, predictions = record.read_settings().data, record.read_predictions()
    models = load_models([str(record.directory)])
    manifest, logits, details = ask(models, EvaluateConfig(ckpt=str(record.directory), data=data))
    columns = list(details_of(task, some(name, 1)))
    asked = pd.DataFrame({"logit": logits[0], **details}, index=manifest.loc[manifest["split"] == "test", "image_id"])
    trained = predictions[predictions["split"] == "test"].set_index("image_id").loc[asked.index]
    assert asked[["logit", *columns]].to_numpy() == pytest.approx(trained[["logit", *columns]].to_numpy(), abs=1e-4)
    path = manifest.loc[manifest["split"] == "test", "path"].iloc[0]
    grey = decode(Path(path).read_bytes())
    found = answer(models, [grey], rule="0.5", interval=False)[0]
    assert [*found.details.values()] == pytest.approx(trained[columns].iloc[0].to_list(), abs=1e-4)
    if not found.inspection.flags:
        if name == "t_score":
            score = found.details["predicted_t_score"]
            expected = task.class_names[int(score <= -1.0) + int(score <= -2.5)]
        elif columns:
            expected = task.class_names[int(np.argmax(list(found.details.values())))]
        else:
            expected = task.class_names[int(found.calibrated > 0.5)]
        assert found.call == expected
    settings = ServeConfig(ckpt=str(record.directory))
    page = TestClient(make_app(models, settings), base_url="http://127.0.0.1").get("/").text
    heading, called = ON_PAGES[name]
    assert f"<h1>Knee radiograph: {heading}</h1>" in page
    say = f"<li>A picture is called {called}; the threshold applies to osteoporosis against the rest alone"
    assert (say in page) == bool(called)
    said = as_json(models, grey, found, settings)
    assert (said["positive"], said["details"]) == (task.class_names[-1], found.details)
    assert said["overlay"]
    heat = grad_cam(models[0].network, to_batch([models[0].prepare(grey)]))
    assert np.isfinite(np.asarray(heat)).all()
    assert ("osteopenia" in models[0].card.intended_use) == (name not in ("binary", "t_score"))


@pytest.mark.parametrize("name", [name for name in NAMES if TASKS[name].kind != "binary"])
def test_evaluate_gives_intervals_of_what_the_task_is_measured_by(runs: dict[str, Run], name: str) -> None:
    predictions, recorded = runs[name].read_predictions(), runs[name].read_metrics()
    table = intervals_of_task(predictions[predictions["split"] == "test"], TASKS[name]).set_index("metric")
    of_classes = ["accuracy", "quadratic_weighted_kappa", "auroc_osteopenia"]
    for metric in ["mean_absolute_error"] if name == "t_score" else of_classes:
        assert table["95 % interval"][metric].startswith(f"{recorded[f'test/{metric}']:.3f}")


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A phantom archive without osteopenia, and without a sheet."""
    root = tmp_path_factory.mktemp("two") / "archives"
    write_archives(root, seed=4, kaggle={"normal": 5, "osteoporosis": 5}, mendeley={})
    return ["data=kaggle", f"data.kaggle={root / 'kaggle'}", "data.clean=false"]


@pytest.mark.parametrize("name", ["three_class", "t_score"])
def test_data_without_osteopenia_measure_what_they_can(
    osteo: Callable, runs: dict[str, Run], two_classes: list[str], name: str
) -> None:
    done = osteo("evaluate", str(runs[name].directory), *two_classes, "split=all", "output_dir=two")
    assert done.code == 0, done.err
    record = Run(Path("two"))
    found, rows = record.read_metrics(), pd.read_csv("two/predictions.csv")
    truth = rows["image_id"].str.contains("osteoporosis", case=False)
    assert found["test/auroc"] == pytest.approx(sklearn.roc_auc_score(truth, rows["logit"]), abs=1e-6)
    assert len(rows) == 10
    counts = np.array(found["test/confusion_matrix"])
    assert done.out.count("no value") == 1, done.out
    if name == "t_score":
        assert "no test picture has a T-score: errors, bias, limits of agreement and r have no value (-)" in done.out
        assert [found[f"test/{metric.name}"] for metric in AGREEMENT] == [None] * len(AGREEMENT)
        assert counts.tolist() == sklearn.confusion_matrix(truth, rows["predicted_t_score"] <= -2.5).tolist()
        return
    assert "no test picture is of class osteopenia: its AUROC and the means over the classes have no value" in done.out
    undefined = ["auroc_osteopenia", "auroc_macro", "precision_macro", "recall_macro", "f1_macro"]
    assert {metric for metric, value in found.items() if value is None} == {f"test/{metric}" for metric in undefined}
    assert counts.sum(axis=1).tolist() == [5, 0, 5]
    table = pd.read_csv("two/intervals_of_task.csv").set_index("metric")["95 % interval"]
    assert [table[metric] for metric in undefined] == ["-"] * 5
    assert table["auroc_osteoporosis"].startswith(f"{found['test/auroc']:.3f} (")


@pytest.mark.parametrize(("name", "task"), [("three_class", "binary"), ("ordinal", "three_class")])
def test_evaluate_asks_what_the_model_was_trained_for(
    osteo: Callable, runs: dict[str, Run], data: list[str], name: str, task: str
) -> None:
    done = osteo("evaluate", str(runs[name].directory), *data, f"data.task={task}", "output_dir=other")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert f"data.task={task} differs from task={name}, for which {name}/checkpoints/best.ckpt was trained" in done.err


def test_a_table_of_answers_has_the_details(osteo: Callable, runs: dict[str, Run], sheeted: Path) -> None:
    osteopenia = str(next(sheeted.rglob("osteopenia")))
    for name, columns in (("ordinal", probability_columns(TASKS["ordinal"])), ("t_score", ["predicted_t_score"])):
        done = osteo(
            "predict", str(runs[name].directory), f"input={osteopenia}", "interval=false", f"output_dir={name}"
        )
        assert (done.code, done.err) == (0, ""), done.err
        assert "probability and range are for osteoporosis against the rest" in done.out
        assert ("predicted t" if name == "t_score" else "normal  osteopenia  osteoporosis") in done.out
        table = pd.read_csv(Path(name) / "predictions.csv")
        assert list(table)[-len(columns) :] == columns
        assert len(table) >= COUNTS["osteopenia"]
        called = table[table["call"].isin(["normal", "osteopenia", "osteoporosis"])]
        scores = called[columns].to_numpy()
        expected = [[*CLASSES][row.argmax()] if name == "ordinal" else who_class(row[0]) for row in scores]
        assert called["call"].tolist() == expected


@pytest.mark.parametrize(("name", "suffix"), [("ordinal", ".onnx"), ("t_score", ".ts.pt"), ("three_class", ".ts.pt")])
def test_an_exported_file_says_the_same(runs: dict[str, Run], tmp_path: Path, name: str, suffix: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    from osteo.inference import export

    model = load_model(runs[name].best_checkpoint)
    pictures = list(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    export.write_exported(model, tmp_path / f"file{suffix}")
    exported = export.open_exported(tmp_path / f"file{suffix}")
    logits, probabilities, third = (np.asarray(value) for value in exported.run(np.stack(pictures)))
    assert exported.card["task"] == name
    assert logits == pytest.approx(model.logits(pictures), abs=1e-4)
    assert probabilities == pytest.approx(1 / (1 + np.exp(-logits / model.card.temperature)), abs=1e-5)
    expected = np.stack(list(details_of(model.network.task, model.outputs(pictures)).values()), axis=-1)
    assert third.reshape(expected.shape) == pytest.approx(expected, abs=1e-4)
    assert len(export.outputs_of(model.network.task)) == 3
    assert export.difference(exported, model, pictures) < 1e-4
    spoilt = replace(exported, run=lambda given: [*exported.run(given)[:2], np.asarray(exported.run(given)[2]) + 0.5])
    assert export.difference(spoilt, model, pictures) == pytest.approx(0.5, abs=1e-4)


def test_a_killed_run_goes_on_with_its_t_scores(osteo: Callable, runs: dict[str, Run], tmp_path: Path) -> None:
    run = Run(shutil.copytree(runs["t_score"].directory, tmp_path / "run"))
    before = run.read_predictions()
    (run.directory / "predictions.csv").unlink()
    run.set_status("running")
    done = osteo("train", f"resume={run.directory}", "trainer.max_epochs=2")
    assert done.code == 0, done.err
    assert run.read_history()["epoch"].tolist() == [0, 1]
    after = run.read_predictions()
    assert after["t_score"].tolist() == before["t_score"].tolist()
    check_run(run)
    assert "t_score" not in run.read_manifest()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=four_class"], "task 'four_class' is unknown; choose one of: binary, osteopenia_or_worse, three_class,"),
        (["data.task=ordinal"], "data.task=ordinal follows task=binary; leave it out, and set task alone"),
        (["loss=focal", "task=three_class"],
         "loss=focal does not go with task=three_class, which takes cross_entropy"),
        (["loss=cross_entropy"], "loss=cross_entropy does not go with task=binary, which takes bce or focal"),
        (["augment.mixup=0.2", "task=three_class"], "augment.mixup goes with two classes, not with task=three_class"),
        (["loss.class_weights=balanced", "task=t_score"], "loss.class_weights go with classes, not with task=t_score"),
        (["loss.label_smoothing=0.1", "task=t_score"], "loss.class_weights go with classes, not with task=t_score"),
        (["loss=huber", "loss.args={delt: 1}", "task=t_score"], "delt"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(osteo: Callable, data: list[str], arguments: list[str], message: str) -> None:
    done = osteo("train", *data, *QUICK, *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1, done.err
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("three_class", "task=three_class cannot be used: the data have no pictures of class osteopenia"),
        ("t_score", "no pictures of class osteopenia"),
        ("osteopenia_or_worse", "task=osteopenia_or_worse cannot be used: the data have no pictures of class osteop"),
    ],
)
def test_data_that_cannot_serve_a_task_are_refused(osteo: Callable, tiny: list[str], task: str, message: str) -> None:
    done = osteo("train", *tiny, f"task={task}", "logger.wandb.mode=disabled")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err


@pytest.mark.parametrize(
    ("loss", "task", "message"),
    [
        (lambda outputs, targets: (outputs - targets) ** 2, "three_class",
         "loss=mine with task=three_class gives shape (4, 3) for 4 pictures, not (4,); see osteo.parts.MakeLoss"),
        (lambda outputs, targets: (outputs - targets) ** 2, "ordinal", "with task=ordinal cannot be computed (Ru"),
        (lambda outputs, targets: ((outputs - targets) ** 2).mean(), "binary", "gives shape () for 4 pictures"),
        (lambda outputs, targets: 0.5, "t_score", "gives a float for 4 pictures, not (4,)"),
    ],
)  # fmt: skip
def test_a_loss_that_does_not_fit_the_task_is_one_line(
    monkeypatch: pytest.MonkeyPatch, loss: Callable, task: str, message: str
) -> None:
    monkeypatch.setitem(parts.losses._parts, "mine", lambda: loss)
    network = {"backbone": "test_resnet", "image_size": 32, "task": task}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Classifier(network, loss={"name": "mine"})
    assert "\n" not in str(caught.value)


def test_a_loss_of_one_number_per_picture_fits_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        parts.losses._parts, "mine", lambda: lambda outputs, targets: outputs.flatten(1).sum(1) * targets.sum()
        if outputs.ndim > 1 else outputs * targets,
    )  # fmt: skip
    for kind in ("binary", "nominal", "ordinal", "regression"):
        assert make_loss("mine", {}, kind)


def test_t_scores_need_a_sheet(osteo: Callable, sheeted: Path) -> None:
    classes = next(sheeted.rglob("osteopenia")).parent
    done = osteo("train", "data=folder", f"data.root={classes}", *QUICK, "task=t_score")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "task=t_score cannot be used: no picture has a T-score" in done.err


def test_models_of_two_tasks_do_not_answer_together(osteo: Callable, runs: dict[str, Run], sheeted: Path) -> None:
    pair = f"ckpt=[{runs['three_class'].directory},{runs['ordinal'].directory}]"
    done = osteo("predict", pair, f"input={sheeted}")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "task=three_class" in done.err
    assert "only models of one task answer together" in done.err


def test_a_report_of_two_tasks_says_so(osteo: Callable, runs: dict[str, Run]) -> None:
    done = osteo("report", str(runs["three_class"].directory.parent))
    assert done.code == 2
    assert "the runs are of different tasks (" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "four_class", "task makes no sense"),
        ("task", ["ordinal"], "task makes no sense"),
        ("task", "binary", "class_names makes no sense"),
        ("class_names", ["normal", "osteoporosis"], "class_names makes no sense"),
        ("task", "three_class", r"task \(three_class\) is not that of its network \(ordinal\)"),
    ],
)
def test_a_card_of_another_task_is_refused(
    runs: dict[str, Run], tmp_path: Path, key: str, value: object, message: str
) -> None:
    stored = read_checkpoint(runs["ordinal"].best_checkpoint)
    stored[KEY] = {**stored[KEY], key: value}
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "other.ckpt")


def test_a_binary_checkpoint_from_before_there_were_tasks_loads(run: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(Run(run).best_checkpoint)
    assert "task" not in stored["hyper_parameters"]["network"]
    del stored[KEY]["task"]
    torch.save(stored, tmp_path / "old.ckpt")
    model, same = load_model(tmp_path / "old.ckpt"), load_model(Run(run).best_checkpoint)
    assert (model.card.task, model.network.task) == ("binary", TASKS["binary"])
    assert model.card.facts() == same.card.facts()
    picture = cv2.resize(np.eye(64, dtype=np.uint8) * 200, (64, 64))
    assert model.logits([picture]).tolist() == same.logits([picture]).tolist()


def test_wandb_gets_the_calls_of_the_task_and_nothing_of_the_sheet() -> None:
    from osteo.training.tracking import WandbLogger

    logger = WandbLogger.__new__(WandbLogger)
    known = {"image_id": list("abc"), "group": list("abc"), "source": "m", "split": "test", "label": [0, 1, 2]}
    for name, outputs, called in (
        ("three_class", torch.eye(3), {("normal", "normal"), ("osteopenia", "osteopenia")}),
        ("t_score", torch.tensor([0.0, -2.0, -3.0]), {("no osteoporosis", "no osteoporosis")}),
    ):
        logger._task = TASKS[name]
        table = pd.DataFrame(known).assign(**columns_of(logger._task, outputs), t_score=[0.1, -1.9, -3.2])
        logged: dict[str, Any] = {}
        logger.__dict__ |= {"_run": SimpleNamespace(summary=logged), "_send": logged.update}
        logger.result({}, table)
        sent = logged["test/predictions"]
        assert [column for column in sent.columns if column in ("image_id", "group", "t_score")] == []
        cells = {(truth, call) for truth, call, count in logged["test/confusion"].table.data if count}
        assert cells == {*called, ("osteoporosis", "osteoporosis")}
