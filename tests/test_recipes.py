"""Ingredients of a transfer recipe, by hand and all at once: mixup, frozen norms, unfreezing, averaged weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.stats import beta
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.faults import differs
from osteo import Classifier, KneeDataModule
from osteo.config import AugmentConfig
from osteo.data.prepare import Prepared
from osteo.errors import UserError
from osteo.networks.averages import MovingAverage
from osteo.networks.network import Network, is_norm
from osteo.records.record import Run
from osteo.training.augment import Online
from osteo.training.callbacks import (
    Averaging,
    Checkpoints,
    ExponentialMovingAverage,
    StochasticWeightAveraging,
    Unfreezing,
)
from osteo.training.draws import Mixup
from tests.test_training import data, noise, trainer

Weights = dict[str, torch.Tensor]


def weights_of(module: nn.Module) -> Weights:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def mixing(count: int, **settings: Any) -> KneeDataModule:
    augment = Online(AugmentConfig(), seed=1)
    return KneeDataModule(Prepared(*noise(count)), augment=augment, mix=Mixup(0.8, seed=1), **settings)


def test_shares_are_those_of_a_beta_distribution_and_partners_are_uniform() -> None:
    partners, shares = Mixup(0.4, seed=2)(torch.arange(100_000), 10)
    assert (torch.bincount(partners, minlength=10) / 10_000).tolist() == pytest.approx([1.0] * 10, abs=0.05)
    for share in (0.6, 0.75, 0.9, 0.99):  # the larger of a share and what is left
        expected = 1.0 - 2.0 * beta(0.4, 0.4).cdf(1.0 - share)
        assert float((shares < share).double().mean()) == pytest.approx(expected, abs=0.01)


def test_a_mixed_picture_is_the_mean_of_two_augmented_ones_whatever_its_batch() -> None:
    module, alone = (mixing(12, batch_size=4) for _ in range(2))
    batch = module.gather(torch.arange(12), "train", augmented=True, epoch=3)
    partners, shares = Mixup(0.8, seed=1)(3 * 12 + torch.arange(12), 12)
    module.mix = None
    pure = module.gather(torch.arange(12), "train", augmented=True, epoch=3)
    assert pure.targets is None
    assert torch.equal(batch.pictures, torch.lerp(pure.pictures[partners], pure.pictures, shares.view(-1, 1, 1, 1)))
    assert torch.allclose(batch.targets, shares * pure.labels + (1 - shares) * pure.labels[partners])
    assert torch.equal(batch.labels, pure.labels)
    assert 0 < int((batch.targets != batch.labels).sum()) < 12
    part = alone.gather(torch.tensor([7, 2]), "train", augmented=True, epoch=3)
    assert torch.equal(part.pictures, batch.pictures[[7, 2]])


def test_the_loss_of_a_mixed_picture_is_that_of_its_parts_each_by_its_class() -> None:
    torch.manual_seed(0)
    weights, smoothing = (2.0, 0.5), 0.2
    learner = Classifier(
        {"backbone": "test_resnet", "image_size": 64}, {"lr": 1e-9}, {"weights": weights, "label_smoothing": smoothing}
    )
    fitter, module = trainer(max_epochs=1, limit_val_batches=0, accumulate_grad_batches=3), mixing(8, batch_size=8)
    fitter.fit(learner, module)
    batch = module.gather(torch.arange(8), "train", augmented=True)
    learner.train()
    with torch.no_grad():
        probability = learner(batch.pictures).sigmoid()
    ill = -0.5 * (0.9 * probability.log() + 0.1 * (1 - probability).log())
    well = -2.0 * (0.1 * probability.log() + 0.9 * (1 - probability).log())
    expected = (batch.targets * ill + (1 - batch.targets) * well).mean()
    assert float(fitter.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-3)
    right = ((probability > 0.5) == batch.labels.bool()).float().mean()  # of the larger part
    assert float(fitter.callback_metrics["train/accuracy"]) == pytest.approx(float(right))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_frozen_norms_keep_parameters_and_statistics_and_the_rest_moves(backbone: str) -> None:
    learner = Classifier({"backbone": backbone, "image_size": 64, "freeze": "norms"}, {"schedule": "constant"})
    norms = {name for name, layer in learner.network.backbone.named_modules() if is_norm(layer)}
    plain = Classifier(backbone, image_size=64).network.backbone
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    assert norms == {name for name, layer in plain.named_modules() if isinstance(layer, kinds)} != set()
    before = weights_of(learner.network.backbone)
    average = ExponentialMovingAverage(0.99)
    trainer(max_epochs=1, limit_val_batches=0, callbacks=[average]).fit(learner, data(8, batch_size=4))
    after = weights_of(learner.network.backbone)
    assert set(after) == set(plain.state_dict())
    assert moved(before, after) == {name for name in before if name.rpartition(".")[0] not in norms}


def test_norms_are_frozen_only_where_weights_are_given(osteo: Callable, tiny: list[str]) -> None:
    done = osteo("train", *tiny, "model.freeze=norms", "output_dir=run")
    assert done.code != 0
    assert "model.freeze=norms: freezing needs weights: set model.pretrained=true or model.weights_file" in done.err


class Watch(Callback):
    """What moves in each epoch."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = weights_of(pl_module.network.backbone)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.moved.append(moved(self._before, weights_of(pl_module.network.backbone)))


@pytest.mark.parametrize(
    ("backbone", "schedule", "first", "second"),
    [("test_resnet", "one_cycle", ["fc."], ["layer4."]), ("test_vit", "cosine", ["head."], ["norm.", "blocks.5."])],
)
def test_groups_are_thawed_from_the_head_down(
    backbone: str, schedule: str, first: list[str], second: list[str]
) -> None:
    settings = {"layer_decay": 0.7, "schedule": schedule, "lr": 1e-2}
    learner = Classifier({"backbone": backbone, "image_size": 32}, settings)
    groups, watch = len(learner.network.parameter_groups()), Watch()
    before = weights_of(learner.network.backbone)
    fit = trainer(max_epochs=groups + 2, limit_val_batches=0, callbacks=[Unfreezing(1), watch])
    fit.fit(learner, data(8, batch_size=4))  # two steps: the scale of a residual's last norm begins at zero
    assert watch.moved[0] == {name for name in before if name.startswith(tuple(first))}
    assert watch.moved[1] == {name for name in before if name.startswith(tuple(first + second))}
    assert all(one < two for one, two in zip(watch.moved[:groups], watch.moved[1:], strict=False))
    assert watch.moved[groups] >= {name for name, _ in learner.network.backbone.named_parameters()}
    assert all(parameter.requires_grad for parameter in learner.parameters())


def test_groups_that_never_train_are_told_and_a_backbone_without_groups_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = Classifier("test_vit", {"schedule": "constant"}, image_size=32)
    before, quiet = weights_of(learner.network.backbone), {"max_epochs": 2, "limit_val_batches": 0}
    trainer(**quiet, callbacks=[Unfreezing(epochs=2, gradually=False)]).fit(learner, data(4, batch_size=4))
    assert "1 of 1 groups of layers of the backbone are not trained in 2 epochs" in caplog.messages
    assert moved(before, weights_of(learner.network.backbone)) == {"head.weight", "head.bias"}
    with pytest.raises(UserError, match=r"model.backbone=torchvision/alexnet has no groups of layers, unlike"):
        Network("torchvision/alexnet", image_size=64).parameter_groups()
    with pytest.raises(ValueError, match="epochs=0 must be at least 1"):
        Unfreezing(0)


def test_an_average_warms_up_to_its_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = MovingAverage(module, 0.6)
    seen = []
    for value in (0.0, 1.0, 1.0, 1.0, 1.0):
        nn.init.constant_(module.weight, value)
        average.update_parameters(module)
        seen.append(average.module.weight.item())
    assert (seen[0], int(average.n_averaged)) == (0.0, 5)
    left = 1.0
    for step, found in enumerate(seen[1:], start=2):
        left *= min(0.6, 1.0 - step ** (-2 / 3))
        assert found == pytest.approx(1.0 - left)
    with pytest.raises(ValueError, match=r"decay=1.0 must be at least 0 and less than 1"):
        ExponentialMovingAverage(1.0)


def test_an_average_goes_on_from_its_state_and_waits_for_no_device() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average, other = MovingAverage(module, 0.9), MovingAverage(module, 0.9)
    for step in range(4):
        nn.init.constant_(module[0].weight, float(step))
        module[1].num_batches_tracked.fill_(step)
        if step == 2:
            other.load_state_dict(average.state_dict())
        for one in (average, other) if step >= 2 else (average,):
            one.update_parameters(module)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in average.state_dict().items())
    with FakeTensorMode(allow_non_fake_inputs=True):  # which refuses to say what a tensor holds
        with torch.device("cuda"):
            feigned = nn.Linear(2, 2)
        average.module, average.n_averaged = feigned, torch.zeros((), dtype=torch.int64, device="cuda")
        average.update_parameters(feigned)


@pytest.mark.parametrize("callback", [ExponentialMovingAverage(0.9), StochasticWeightAveraging()])
def test_an_average_lies_where_the_weights_are_trained(callback: Averaging) -> None:
    learner, fit = Classifier("test_resnet", image_size=32), trainer()
    callback.setup(fit, learner, "fit")  # before Lightning moves the weights
    learner.to("meta")
    callback.on_fit_start(fit, learner)
    assert {tensor.device.type for tensor in callback._average_model.module.state_dict().values()} == {"meta"}
    assert callback._average_model.n_averaged.device.type == "cpu"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Everything at once, from weights."""
    weights = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(Network("test_resnet", image_size=32).backbone.state_dict(), weights)
    return [
        f"model.weights_file={weights}", "model.freeze=norms", "optimizer.layer_decay=0.8", "loss.label_smoothing=0.1",
        "loss.class_weights=balanced", "augment.mixup=0.4", "callbacks=[unfreeze_gradually,ema,early_stopping]",
        "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=9", "data.image_size=32",
        "logger.wandb.mode=disabled", "trainer.max_epochs=6", "keep=all",
    ]  # fmt: skip


def interrupt(patch: pytest.MonkeyPatch, *, after: int) -> None:
    """Ctrl-C, once the checkpoint of this epoch or a later one is written."""
    end = Checkpoints.on_train_epoch_end

    def interrupted(self: Checkpoints, trainer: Trainer, pl_module: LightningModule) -> None:
        end(self, trainer, pl_module)
        if trainer.current_epoch >= after:
            raise KeyboardInterrupt

    patch.setattr(Checkpoints, "on_train_epoch_end", interrupted)


@pytest.mark.slow
def test_a_recipe_of_all_of_them_goes_on_as_if_it_had_not_stopped(
    osteo: Callable, tiny: list[str], recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert osteo("train", *tiny, *recipe, "output_dir=whole").code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, after=0)
        assert osteo("train", *tiny, *recipe, "output_dir=cut").code != 0
        assert osteo("train", "resume=cut").code != 0  # after the epoch that ended it early
    assert Run(tmp_path / "cut").state == "interrupted"
    done = osteo("train", "resume=cut")
    assert done.code == 0, done.err
    assert "going on after last.ckpt" in done.out
    assert len(Run(tmp_path / "whole").read_table("history.csv")) == 2  # it was stopped early
    assert differs(Run(tmp_path / "whole"), Run(tmp_path / "cut")) == []
