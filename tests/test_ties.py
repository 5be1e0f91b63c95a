"""Logits that arithmetic cannot tell apart are ties, on every path that ranks; all others are left as they are."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from osteo.data.phantom import draw
from osteo.evaluation.metrics import evaluate
from osteo.evaluation.systems import validate
from osteo.evaluation.ties import RESOLUTION, join_ties
from osteo.evaluation.torch_metrics import training_metrics
from osteo.networks.network import Network


def test_neighbours_within_the_noise_are_joined_at_their_mean() -> None:
    joined = join_ties([0.3, 0.1 + 4e-9, 0.1, -2.0, 0.1 - 4e-9])
    assert joined == pytest.approx([0.3, 0.1, 0.1, -2.0, 0.1], abs=1e-15)
    assert joined[1] == joined[2] == joined[4]
    assert joined[[0, 3]].tolist() == [0.3, -2.0]
    far = join_ties([900.0, 900.0 + 900 * 0.9 * RESOLUTION])  # relative, above 1
    assert far[0] == far[1]
    near = [1e-3, 1e-3 + 1.1 * RESOLUTION]  # absolute, below
    assert join_ties(near).tolist() == near


def test_distinct_logits_keep_every_bit_and_their_order() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.05, 1.0, 30.0):
        logits = rng.normal(0, scale, 173)
        gaps = np.r_[True, np.diff(np.sort(logits)) > 2 * RESOLUTION * max(1.0, np.abs(logits).max())]
        spaced = rng.permutation(np.sort(logits)[gaps])
        assert len(spaced) > 160
        assert join_ties(spaced).tobytes() == spaced.tobytes()
        joined = join_ties(logits)
        assert (np.diff(joined[np.argsort(logits)]) >= 0.0).all()
        assert np.abs(joined - logits).max() <= 2 * RESOLUTION * max(1.0, np.abs(logits).max())
        assert join_ties(joined).tobytes() == joined.tobytes()


def test_a_dense_spread_is_no_noise() -> None:
    dense = np.random.default_rng(0).permutation(np.arange(20_000) * 1e-7)
    assert join_ties(dense).tobytes() == dense.tobytes()
    usual = np.random.default_rng(1).normal(0, 2, 20_000).astype(np.float32).astype(float)
    joined = join_ties(usual)
    assert len(np.unique(joined)) > 0.95 * len(np.unique(usual))
    labels = (np.random.default_rng(2).random(20_000) < 1 / (1 + np.exp(-usual))).astype(int)
    assert evaluate(joined, labels)["auroc"] == pytest.approx(evaluate(usual, labels)["auroc"], abs=1e-6)


def test_what_is_not_finite_or_not_there_is_kept() -> None:
    odd = join_ties([np.inf, 1.0, -np.inf, np.nan, np.inf])
    assert np.array_equal(odd, [np.inf, 1.0, -np.inf, np.nan, np.inf], equal_nan=True)
    assert join_ties([]).shape == (0,)
    assert join_ties([0.5]).tolist() == [0.5]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_picture_has_one_logit_in_every_batch(backbone: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = Network(backbone, image_size=160).eval().to(memory_format=memory_format)
    generator = torch.Generator().manual_seed(0)
    for picture in (torch.zeros(1, 1, 160, 160), torch.rand(1, 1, 160, 160, generator=generator)):
        logits = []
        with torch.inference_mode():
            for size in (1, 2, 3, 5, 8, 16):
                logits += network(picture.repeat(size, 1, 1, 1).contiguous(memory_format=memory_format)).tolist()
        assert np.ptp(logits) < RESOLUTION / 2
        assert len(set(join_ties(logits).tolist())) == 1


NOISY = 1.7 + np.array([0.0, 4e-9, -3e-7, 2.4e-7, 4e-9, -1.2e-7, 0.0, 3e-7])
LABELS = [0, 1, 0, 1, 1, 0, 0, 1]


def test_noise_has_an_auroc_of_one_half() -> None:
    assert evaluate(NOISY, LABELS)["auroc"] == 0.5
    assert evaluate(-NOISY, LABELS)["auroc"] == 0.5
    found, expected = (
        validate(pd.DataFrame({"image_id": "a", "split": "val", "logit": logits, "label": LABELS}))
        for logits in (NOISY, 1.7)
    )
    assert list(found.thresholds.values()) == pytest.approx(list(expected.thresholds.values()), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 8.0])  # where a probability in float32 has lost most digits of its logit
def test_training_follows_ties_over_batches(shift: float) -> None:
    metrics = training_metrics()
    for part in (slice(0, 3), slice(3, 8)):
        logits = torch.from_numpy(NOISY + shift).float()[part]
        metrics.update(logits=logits, preds=logits.sigmoid(), target=torch.tensor(LABELS[part]))
    found = metrics.compute()
    assert float(found["auroc"]) == 0.5
    assert float(found["accuracy"]) == 0.5


def test_training_follows_the_auroc_of_the_record() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(3.0, 4.0, 200).astype(np.float32)
    labels = (rng.random(200) < 0.4).astype(int)
    metrics = training_metrics()
    for start in range(0, 200, 7):
        part = torch.from_numpy(logits[start : start + 7])
        metrics.update(logits=part, preds=part.sigmoid(), target=torch.from_numpy(labels[start : start + 7]))
    found, recorded = metrics.compute(), evaluate(logits, labels)
    assert float(found["auroc"]) == pytest.approx(recorded["auroc"], abs=1e-6)
    assert float(found["accuracy"]) == pytest.approx(recorded["accuracy"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["black", "identical"])
def test_a_run_on_pictures_that_are_all_alike(osteo: Callable, tmp_path: Path, kind: str, precision: str) -> None:
    """Training's curve, metrics.json, the report and a later evaluation: all one half."""
    picture = draw(np.random.default_rng(0), -1.0, height=96, width=72)
    for name in ("normal", "osteoporosis"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(21):
            cv2.imwrite(str(tmp_path / "pictures" / name / f"{name}{number}.png"), picture * (kind == "identical"))
    data = ["data=folder", f"data.root={tmp_path / 'pictures'}", "data.split.grouped=false"]
    trained = osteo(
        "train", *data, "data.image_size=64", "data.batch_size=5", "model.backbone=test_resnet", "output_dir=run",
        "trainer.max_epochs=1", "trainer.accelerator=cpu", f"trainer.precision={precision}",
        "logger.wandb.mode=disabled",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["val/auroc"], metrics["test/auroc"]) == (0.5, 0.5)
    assert pd.read_csv(tmp_path / "run" / "history.csv")["val/auroc"].tolist() == [0.5]
    if precision == "bf16-mixed":
        return
    reported = osteo("report", "run", "draws=100", "pictures=false")
    assert reported.code == 0, reported.err
    comparison = pd.read_csv(tmp_path / "run" / "tables" / "comparison.csv").set_index("system")
    assert comparison.loc["test_resnet", "auroc"] == 0.5
    evaluated = osteo("evaluate", "ckpt=run", *data, "split=all", "output_dir=evaluated")
    assert evaluated.code == 0, evaluated.err
    assert json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["test/auroc"] == 0.5
