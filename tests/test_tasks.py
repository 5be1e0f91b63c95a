"""Tasks end to end: what a network's outputs say, and a training of each through all that its checkpoint is used for."""

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from math import log
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sklearn

from osteo import parts
from osteo.cli import main
from osteo.config import EvaluateConfig, LossConfig, ServeConfig
from osteo.data.phantom import write_archives
from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.evaluation.outcomes import check_run
from osteo.inference.answer import answer
from osteo.inference.card import KEY
from osteo.inference.evaluate import ask
from osteo.inference.model import load_model, load_models, to_batch
from osteo.networks.network import Network
from osteo.networks.outputs import (
    Cuts,
    call_classes,
    columns_of,
    details_of,
    log_probabilities,
    positive_logit,
)  # fmt: skip
from osteo.reading.pictures import decode
from osteo.records.content import DamagedError
from osteo.records.record import Run
from osteo.serving.server import as_json
from osteo.task import T_SCORE_CUTS, TASKS, cut_logits, probability_columns
from osteo.training import fit
from osteo.training.losses import balanced_weights, best_outputs, make_loss, targets_of
from osteo.training.module import Classifier, read_checkpoint

NAMES = ("three_class", "ordinal", "t_score", "osteopenia_or_worse")
COUNTS = {"normal": 9, "osteopenia": 10, "osteoporosis": 9}
QUICK = [
    "data.image_size=32", "data.batch_size=6", "data.split.train=0.4", "data.split.val=0.3",
    "model.backbone=test_resnet", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "logger.wandb.mode=disabled",
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
            arguments = ["train", f"task={name}", *data, *QUICK, f"output_dir={folder / name}"]
            patch.setattr(sys, "argv", ["osteo", *arguments])
            with pytest.raises(SystemExit, match="0"):
                main()
    return {name: Run(folder / name) for name in NAMES}


def some(task: str, count: int, *, scale: float = 1.0) -> torch.Tensor:
    """Outputs of a task, as a network could give them."""
    drawn = scale * torch.randn(count, TASKS[task].outputs, generator=torch.Generator().manual_seed(0))
    if task == "ordinal":
        drawn = drawn.sort(1, descending=True).values
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
    assert call_classes("regression", scores).tolist() == [0, 0, 1, 1, 2, 2]
    logits = positive_logit("regression", scores)
    assert (logits.sigmoid() > 0.5).tolist() == [False] * 4 + [True] * 2  # in float32, too
    assert logits.numpy() == pytest.approx(cut_logits(scores.double().numpy()), abs=1e-6)
    assert columns_of(TASKS["t_score"], scores)["probability"][4] > 0.5
    assert call_classes("nominal", torch.tensor([[0.1, 0.3, 0.2]])).tolist() == [1]
    assert call_classes("binary", torch.tensor([0.0, 0.1])).tolist() == [0, 1]


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
    with pytest.raises(UserError, match="^model.head=narrow .*'outputs'"):
        Network("test_resnet", image_size=32, task="three_class", head="narrow")
