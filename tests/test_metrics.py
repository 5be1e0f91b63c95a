"""Known metrics on known predictions, the same as torchmetrics', and one that a plugin brings."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from torchmetrics.functional import classification as torchmetrics

from osteo import parts
from osteo.errors import UserError
from osteo.evaluation.metrics import BUILT_IN, all_metrics, evaluate, weighted_metrics
from osteo.evaluation.ties import join_ties
from osteo.parts import Metrics

# (normal right, normal wrong, osteoporosis wrong, osteoporosis right) in the paper's Fig. 6, and its Table 2
PAPER = {
    "densenet201": ((18, 5, 2, 22), (0.8511, 0.8574, 0.8496, 0.8500)),
    "resnet50": ((17, 6, 3, 21), (0.8085, 0.8139, 0.8071, 0.8071)),
    "densenet121": ((18, 5, 6, 18), (0.7660, 0.7663, 0.7663, 0.7660)),
}
RECORDED = ["accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc", "sensitivity", "specificity"]


@pytest.mark.parametrize("backbone", PAPER)
def test_table_2_of_the_paper_follows_from_its_confusion_matrices(backbone: str) -> None:
    (right, wrong, missed, found), expected = PAPER[backbone]
    logits = [-2.0] * right + [2.0] * wrong + [-2.0] * missed + [2.0] * found
    labels = [0] * (right + wrong) + [1] * (missed + found)
    values = evaluate(logits, labels)
    table = tuple(round(values[name], 4) for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro"))
    assert table == expected
    assert values["confusion_matrix"] == [[right, wrong], [missed, found]]
    assert values["sensitivity"] == pytest.approx(found / 24, abs=1e-6)
    assert values["specificity"] == pytest.approx(right / 23, abs=1e-6)


def test_auroc_counts_pairs_in_order_and_half_of_the_ties() -> None:
    # pairs (normal, osteoporosis): 6 in all; in order 4, tied 1, reversed 1
    values = evaluate([0.0, 1.0, 1.0, 2.0, 0.5], [0, 0, 1, 1, 1])
    assert values["auroc"] == pytest.approx(4.5 / 6, abs=1e-6)


def test_logits_far_out_keep_their_order() -> None:
    assert evaluate([-90.0, -80.0, 20.0, 30.0], [0, 1, 0, 1])["auroc"] == pytest.approx(0.75)


def test_what_needs_both_classes_is_none_without_them() -> None:
    values = evaluate([-1.0, 1.0], [0, 0])
    assert values["auroc"] is None
    assert values["sensitivity"] is None
    assert values["specificity"] == 0.5
    assert not any(isinstance(v, float) and math.isnan(v) for v in values.values())


def test_a_record_has_these_names_in_this_order() -> None:
    assert list(evaluate([-1.0, 1.0], [0, 1])) == [*RECORDED, "confusion_matrix"]
    assert [metric.title for metric in BUILT_IN] == [
        "accuracy", "precision", "recall", "F1", "AUROC", "average precision", "sensitivity", "specificity",
        "Brier score",
    ]  # fmt: skip
    assert [metric.name for metric in BUILT_IN if metric.direction == "min"] == ["brier"]


def of_torchmetrics(logits: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float | list]:
    probabilities = torch.tensor(expit(logits))  # torch's differ in the last bit, which makes and breaks ties at 1
    truth = torch.tensor(labels)
    calls = (probabilities > threshold).long()
    macro = {"num_classes": 2, "average": "macro"}
    return {
        "accuracy": float(torchmetrics.binary_accuracy(calls, truth)),
        "precision_macro": float(torchmetrics.multiclass_precision(calls, truth, **macro)),
        "recall_macro": float(torchmetrics.multiclass_recall(calls, truth, **macro)),
        "f1_macro": float(torchmetrics.multiclass_f1_score(calls, truth, **macro)),
        "auroc": float(torchmetrics.binary_auroc(probabilities, truth)),
        "sensitivity": float(torchmetrics.binary_recall(calls, truth)),
        "specificity": float(torchmetrics.binary_specificity(calls, truth)),
        "confusion_matrix": torchmetrics.binary_confusion_matrix(calls, truth).tolist(),
    }


@pytest.mark.filterwarnings("ignore:No (positive|negative) samples")
def test_random_records_are_those_of_torchmetrics() -> None:
    """With ties, with calls of one class alone, with classes that are absent, and with thresholds far out."""
    rng = np.random.default_rng(0)
    absent = 0
    for case in range(400):
        count = int(rng.integers(1, 60))
        labels = (rng.random(count) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], p=[0.1, 0.2, 0.4, 0.2, 0.1])).astype(int)
        logits = rng.normal(size=count) * rng.choice([0.3, 3.0, 20.0]) + rng.uniform(0, 3) * labels
        logits = join_ties(logits.round(int(rng.choice([0, 1, 9]))))  # of 400, one has two that differ by 9e-7
        threshold = float(rng.choice([0.0, 1e-6, 0.5, 0.9, 1.0 - 1e-6, 1.0]))
        ours, expected = evaluate(logits, labels, threshold=threshold), of_torchmetrics(logits, labels, threshold)
        present = set(labels.tolist())
        absent += len(present) == 1
        for name, value in expected.items():
            if name == "confusion_matrix":
                assert ours[name] == value, case
            elif set(all_metrics()[name].needs) <= present:
                assert ours[name] == pytest.approx(value, abs=1e-6), (case, name)
            else:
                assert ours[name] is None, (case, name)
    assert 40 < absent < 200


def test_a_class_that_no_draw_took_leaves_what_needs_it_undefined() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    values = weighted_metrics(np.array([0, 0, 1]), np.array([[0.2, 0.7, 0.9]]))(weights)
    by_name = dict(zip(all_metrics(), values.T, strict=True))
    assert np.isfinite(values[0]).all()
    assert {name for name, (_, without) in by_name.items() if np.isfinite(without)} == {
        "accuracy", "specificity", "brier"
    }  # fmt: skip
    assert by_name["accuracy"][1] == 0.5


def test_nothing_measured_is_none() -> None:
    values = evaluate([], [])
    assert [values[name] for name in RECORDED] == [None] * len(RECORDED)
    assert values["confusion_matrix"] == [[0, 0], [0, 0]]


# --- a metric of a plugin --------------------------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """The register, which forgets afterwards what a test has added."""
    for kept in ("_parts", "_origins"):
        monkeypatch.setattr(parts.metrics, kept, dict(getattr(parts.metrics, kept)))
    return parts.metrics


def add_balanced_error(register: Metrics) -> None:
    @register.register("balanced_error", title="balanced error", direction="min")
    def balanced_error(weights: np.ndarray, labels: np.ndarray, _: np.ndarray, calls: np.ndarray) -> np.ndarray:
        missed = weights @ ((labels == 1) & ~calls) / (weights @ (labels == 1))
        alarms = weights @ ((labels == 0) & calls) / (weights @ (labels == 0))
        return (missed + alarms) / 2


@pytest.mark.slow
def test_a_metric_of_a_plugin_stands_everywhere(
    osteo: Callable, tiny: list[str], tmp_path: Path, register: Metrics
) -> None:
    add_balanced_error(register)
    trained = osteo("train", "-m", *tiny, "seed=0,1", "output_dir=sweep", "logger.wandb.mode=disabled")
    assert trained.code == 0, trained.err
    assert "balanced error" in trained.out
    recorded = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())
    for split in ("test", "val"):
        recall = recorded[f"{split}/recall_macro"]
        assert recorded[f"{split}/balanced_error"] == pytest.approx(1.0 - recall, abs=2e-6)
    board = pd.read_csv(tmp_path / "sweep" / "leaderboard.csv")
    assert "test/balanced_error" in board
    done = osteo("report", "sweep", "draws=100", "pictures=false")
    assert done.code == 0, done.err
    numbers = pd.read_csv(tmp_path / "sweep" / "tables" / "comparison.csv")
    assert numbers["balanced_error_low"].isna().all()  # fewer than four pictures of a class were tested
    assert numbers["balanced_error"].to_numpy() == pytest.approx(1.0 - numbers["recall_macro"].to_numpy())
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert re.search(r"<th [^>]*>balanced error</th>", page)
    assert "Lower is better for Brier score, balanced error" in page


@pytest.mark.parametrize(
    ("name", "facts", "measure", "message"),
    [
        (
            "auroc",
            {},
            lambda w, y, p, c: w[:, 0],
            "auroc is registered twice, by osteo.evaluation.metrics.auroc",
        ),
        ("ppv", {"title": "AUROC"}, lambda w, y, p, c: w[:, 0], "has the title of metric=auroc, 'AUROC'"),
        ("ppv", {}, lambda w, y, p, c: w, r"gives shape \(2, 4\) for 2 rows of weights, not \(2,\)"),
        ("ppv", {}, lambda w, y, p: w, "cannot be computed .TypeError"),
        ("ppv", {"direction": "up"}, lambda w, y, p, c: w[:, 0], "direction .up. is unknown"),
        (
            "ppv/90",
            {},
            lambda w, y, p, c: w[:, 0],
            "metric=ppv/90 of tests.test_metrics cannot be the name of a column",
        ),
    ],
)
def test_a_metric_that_breaks_its_contract_is_refused_at_once(
    register: Metrics, name: str, facts: dict, measure: Callable, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        register.register(name, **({"title": "a title"} | facts))(measure)
