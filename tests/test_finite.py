"""Numbers that are not finite end what cannot go on, are an error of their picture, and are never the best."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from osteo import KneeDataModule
from osteo.command_settings import EvaluateConfig, ServeConfig
from osteo.config import Config, DataConfig, ModelConfig, OptimizerConfig
from osteo.data.manifest import typed
from osteo.data.prepare import Prepared
from osteo.errors import UserError
from osteo.evaluation import metrics, systems
from osteo.evaluation.torch_metrics import training_metrics
from osteo.inference import evaluate as inference
from osteo.inference.answer import NOT_FINITE, WITHHELD, answer
from osteo.inference.model import Model
from osteo.inference.predictions import Opened, answer_pictures, to_table
from osteo.networks.network import check_backbone
from osteo.networks.weights import first_not_finite
from osteo.records.record import Run
from osteo.task import NEGATIVE, POSITIVE
from osteo.training import callbacks, fit
from osteo.training.callbacks import Checkpoints
from osteo.training.checkpoints import read_checkpoint
from osteo.training.module import Classifier
from osteo.types import Grey
from tests.test_training import module, noise, trainer

NAN, INF = float("nan"), float("inf")


def data(count: int, batch_size: int) -> KneeDataModule:
    """Pictures of noise that train and validate."""
    table, store = noise(count)
    validation = table.assign(image_id="v/" + table["image_id"], split="val")
    return KneeDataModule(
        Prepared(typed(pd.concat([table, validation], ignore_index=True)), store), batch_size=batch_size
    )


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_tensor_that_is_not_finite_is_found_in_any_kind_of_number(value: float, kind: torch.dtype) -> None:
    largest = torch.full((3,), torch.finfo(kind).max, dtype=kind)
    tensors = {"largest": largest, "empty": torch.zeros(0), "scalar": torch.tensor(0.5), "count": torch.tensor(3)}
    assert first_not_finite(tensors | {"eight bits": torch.ones(2).to(torch.float8_e5m2), "name": "text"}) is None
    spoilt = {"spoilt": torch.tensor([1.0, value], dtype=kind), "later": torch.tensor(value)}
    assert first_not_finite(tensors | spoilt) == "spoilt"


def test_weights_that_are_finite_have_their_device_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], Tensor.__bool__
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: asked.append(1) or plain(tensor))
    assert first_not_finite({str(number): torch.ones(2) for number in range(9)}) is None
    assert len(asked) == 1


@pytest.mark.parametrize("value", [NAN, INF])
def test_no_checkpoint_of_spoilt_weights_is_written_and_the_good_one_stays(tmp_path: Path, value: float) -> None:
    class Spoilt(Classifier):
        def on_validation_epoch_end(self) -> None:
            if self.current_epoch == 1:
                with torch.no_grad():
                    next(self.network.parameters())[0] = value

    torch.manual_seed(0)
    learner = Spoilt({"backbone": "test_resnet", "image_size": 64}, {"schedule": "constant"})
    keeper = ModelCheckpoint(tmp_path / "lightning", save_top_k=-1)  # another's is kept from it, too
    fitter = trainer(max_epochs=3, callbacks=[Checkpoints(tmp_path, "val/loss", 0), keeper], enable_checkpointing=True)
    with pytest.raises(
        UserError, match=r"^the weights are not finite after epoch 1, network.backbone.*; lower optimiz"
    ):
        fitter.fit(learner, data(8, 8))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    assert [read_checkpoint(tmp_path / name)["epoch"] for name in ("best.ckpt", "last.ckpt")] == [0, 0]
    assert len(list((tmp_path / "lightning").glob("*.ckpt"))) == 1


@pytest.mark.parametrize(
    ("monitor", "curve", "best"),
    [
        ("val/loss", [(NAN, NAN), (0.7, 0.5), (NAN, NAN), (0.8, 0.9)], 1),
        ("val/auroc", [(NAN, 1.0), (0.7, 0.5), (0.6, NAN), (0.8, 0.9)], 3),
        ("val/loss", [(NAN, NAN), (INF, NAN)], None),
    ],
)
def test_an_epoch_whose_validation_is_not_finite_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str, curve: list[tuple[float, float]], best: int | None
) -> None:
    monkeypatch.setattr(callbacks, "checkpoint_of", lambda trainer: {"epoch": trainer.current_epoch, "state_dict": {}})
    keeper = Checkpoints(tmp_path / "checkpoints", monitor, 0)
    for epoch, (loss, auroc) in enumerate(curve):
        stand_in: Any = SimpleNamespace(
            callback_metrics={"val/loss": torch.tensor(loss), "val/auroc": torch.tensor(auroc)},
            current_epoch=epoch,
            should_stop=False,
        )
        keeper.on_train_epoch_end(stand_in, stand_in)
    keeper.on_train_end(stand_in, stand_in)
    record = Run(tmp_path)
    if best is None:
        waiting: Any = SimpleNamespace(strategy=SimpleNamespace(barrier=lambda: None))
        with pytest.raises(UserError, match=r"^val/loss was not finite after any epoch, .*; lower optimizer.lr"):
            fit.load_best(waiting, module(), record)
    else:
        assert read_checkpoint(record.best_checkpoint)["epoch"] == best
    spoilt = Checkpoints(tmp_path, monitor, 0)
    spoilt.load_state_dict({"best": NAN, "monitor": monitor})  # as older records have it
    assert spoilt.best is None


def test_metrics_of_a_logit_that_is_not_finite_are_not_numbers() -> None:
    for value in (NAN, INF, -INF):
        followed = training_metrics()
        followed.update(logits=torch.tensor([-1.0, value]), target=torch.tensor([0, 1]))
        followed.update(logits=torch.tensor([-2.0, 2.0]), target=torch.tensor([0, 1]))
        assert all(bool(number.isnan()) for number in followed.compute().values())
    followed.reset()
    followed.update(logits=torch.tensor([-1.0, 0.1, -0.1, 3.0]), target=torch.tensor([0, 1, 1, 1]))
    assert followed.compute() == {"accuracy": 0.75, "auroc": 1.0}


def test_a_rate_beyond_all_measure_fails_in_one_line(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    extreme = ["optimizer.lr=1e30", "optimizer.schedule=constant", "logger.wandb.mode=disabled"]
    short = osteo("train", *tiny, *extreme, "output_dir=short", "trainer.limit_train_batches=1")
    assert (short.code, short.err.count("\n")) == (2, 1), short.err
    assert Run(tmp_path / "short").state == "failed"
    assert "lower optimizer.lr" in Run(tmp_path / "short").status()["error"]
    assert not (tmp_path / "short/metrics.json").exists()


# --- the gradient of accumulated batches -----------------------------------------------------------------------------


def weights_after(count: int, batch_size: int, batches: int, *, clip: float | None = None) -> tuple[list[Tensor], int]:
    """What an epoch of plain gradient descent makes of a network without batch norms, and its number of steps."""
    torch.manual_seed(0)
    plain = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    learner = Classifier({"backbone": "test_vit", "image_size": 64}, plain)
    pictures, store = noise(count)
    rows = KneeDataModule(Prepared(pictures, store), batch_size=batch_size, seed=1)
    fitter = trainer(max_epochs=1, limit_val_batches=0, accumulate_grad_batches=batches, gradient_clip_val=clip)
    fitter.fit(learner, rows)
    return [parameter.detach() for parameter in learner.network.parameters()], fitter.global_step


@pytest.mark.parametrize(
    ("count", "whole", "batch_size", "batches"),
    [
        (14, 14, 4, 4),  # 4 + 4 + 4 + 2: the last batch is short
        (14, 14, 4, 8),  # the only group is half of one
        (14, 8, 4, 2),  # 8, then 4 + 2
        (18, 16, 4, 4),  # 16, then 2 alone
        (16, 8, 4, 2),  # nothing is short
    ],
)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_batches_are_one_large_batch(
    count: int, whole: int, batch_size: int, batches: int, clip: float | None
) -> None:
    large, steps = weights_after(count, whole, 1, clip=clip)
    small, as_many = weights_after(count, batch_size, batches, clip=clip)
    assert as_many == steps
    for one, other in zip(large, small, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


# --- answers and evaluations -----------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(models: list[Model]) -> list[Model]:
    """A model whose second picture of every batch has no finite logit."""

    class Half(Model):
        def positive(self, outputs: Any) -> Any:
            found = super().positive(outputs)
            found[1:2] = NAN
            return found

    first = models[0]
    return [Half(first.path, first.network, first.card, first.guard)]


@pytest.mark.parametrize("interval", [True, False])
def test_a_picture_without_a_finite_logit_is_an_error_of_its_row(
    spoilt: list[Model], models: list[Model], picture: Grey, interval: bool
) -> None:
    pictures = [picture, picture, picture]
    found = answer(spoilt, pictures, rule="0.5", interval=interval)
    assert [one.error for one in found] == ["", NOT_FINITE, ""]
    assert found[1].call == WITHHELD
    opened = [Opened(f"{number}.png", picture) for number in range(3)]
    table = to_table(
        (row for rows in answer_pictures(spoilt, opened, rule="0.5", interval=interval) for row in rows), "0.5"
    )
    assert list(table["error"]) == ["", NOT_FINITE, ""]
    assert table["call"].notna().tolist() == [True, False, True]
    assert table.loc[1, ["logit", "probability", "calibrated"]].isna().all()
    good = answer(models, [picture], rule="0.5", interval=interval)[0]
    assert {good.call, found[0].call} <= {NEGATIVE, POSITIVE}
    assert found[0].logit == pytest.approx(good.logit, abs=1e-5)


def test_the_server_gives_no_answer_without_a_finite_logit(
    models: list[Model], picture: Grey, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    from starlette.exceptions import HTTPException

    from osteo.serving.server import answer_file

    monkeypatch.setattr(Model, "positive", lambda self, outputs: np.full(len(outputs), INF))
    content = cv2.imencode(".png", picture)[1].tobytes()
    with pytest.raises(HTTPException, match=NOT_FINITE):
        answer_file(models, content, ServeConfig(overlay=False))


def test_an_evaluation_without_finite_logits_is_an_error(
    models: list[Model], knees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(ckpt="x", split="all")
    config = replace(config, data=replace(config.data, name="folder", root=str(knees)))
    spoilt = iter([NAN])
    monkeypatch.setattr(Model, "positive", lambda self, outputs: np.array([next(spoilt, 0.5) for _ in outputs]))
    with pytest.raises(UserError, match=r"best.ckpt: 1 of 80 logits are not finite \(the first is that of .*\)"):
        inference.ask(models, config)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_metric_is_computed_of_logits_that_are_not_finite(value: float) -> None:
    with pytest.raises(UserError, match=r"1 of 3 logits are not finite \(the first is that of picture 2\)"):
        metrics.evaluate([-1.0, 1.0, value], [0, 1, 1])
    rows = pd.DataFrame(
        {"image_id": ["a", "b", "c"], "split": ["val", "val", "test"], "label": [0, 1, 1], "logit": [-1.0, value, 0.0]}
    )
    with pytest.raises(UserError, match=r"validation: 1 of 2 logits are not finite \(the first is that of b\)"):
        systems.validate(rows)


def test_a_test_in_a_script_ends_with_an_error(knees: Path) -> None:
    learner = module()
    with torch.no_grad():
        next(learner.network.parameters())[0] = NAN
    with pytest.raises(UserError, match="the test loss is not finite"):
        trainer().test(learner, KneeDataModule(knees, image_size=64, batch_size=8), verbose=False)


# --- before anything slow --------------------------------------------------------------------------------------------


def test_a_batch_of_one_trains_or_is_one_line() -> None:
    def config(backbone: str, side: int) -> Config:
        return Config(
            data=DataConfig(image_size=side, batch_size=1), model=ModelConfig(backbone), optimizer=OptimizerConfig()
        )

    with pytest.raises(UserError, match=r"^data.batch_size=1 is too small: model.backbone=resnet18 has a batch norm"):
        fit.make_module(config("resnet18", 32))  # a map of one pixel
    learner = fit.make_module(config("test_resnet", 64))
    fitter = trainer(max_epochs=1, limit_val_batches=0)
    learner.optimizer_settings["schedule"] = "constant"
    pictures, store = noise(5)
    fitter.fit(learner, KneeDataModule(Prepared(pictures, store), batch_size=1))
    assert (fitter.global_step, bool(torch.isfinite(fitter.callback_metrics["train/loss"]))) == (5, True)


def test_a_backbone_that_does_not_fit_the_size_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        check_backbone("halonet26t", 64)
    assert str(caught.value) == (
        "data.image_size=64 does not fit model.backbone=halonet26t (AssertionError);"
        " the nearest size that fits is 256; its usual size is 256"
    )


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        (
            "train",
            0,
            "the split train has only pictures of normal; to learn from it needs both classes: choose another",
        ),
        ("train", 1, "the split train has only pictures of osteoporosis"),
        ("val", 1, "the split val has only pictures of osteoporosis; to choose thresholds by it needs both classes"),
        ("val", None, "the split val has no picture"),
    ],
)
def test_a_split_of_one_class_is_refused(split: str, label: int | None, message: str) -> None:
    manifest = pd.DataFrame({"split": ["train", "train", "val", "val"], "label": [0, 1, 0, 1]})
    fit.check_classes(manifest)
    with pytest.raises(UserError, match=f"^{message}"):
        fit.check_classes(manifest[(manifest["split"] != split) | (manifest["label"] == label)])
