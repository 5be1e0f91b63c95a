"""Optimisers, schedules and losses by name: values, decay groups, layer-wise rates, and what is refused."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers

from osteo.errors import UserError
from osteo.libraries import OWN_SCHEDULES, known
from osteo.networks.network import Network
from osteo.training.losses import balanced_weights, make_loss, smooth
from osteo.training.module import Classifier
from osteo.training.optim import check_optimizer, make_optimizer, make_schedule
from tests.test_training import data, trainer

DEFAULT: dict[str, Any] = {
    "name": "adamw", "lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9, "args": {}, "layer_decay": None,
    "schedule": "constant", "schedule_args": {}, "warmup": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Network:
    return Network("test_resnet", image_size=64)


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb", "lion", "nadamw", "rmsprop", "adafactor", "muon"])
def test_an_optimiser_of_timm_s_makes_the_loss_smaller(name: str) -> None:
    torch.manual_seed(0)
    learner = Network("test_vit", image_size=160)
    pictures, labels = torch.rand(4, 1, 160, 160), torch.tensor([0.0, 1.0, 0.0, 1.0])
    loss = make_loss("bce", {})
    optimizer = make_optimizer(learner, {**DEFAULT, "name": name, "lr": 1e-3, "weight_decay": 0.0}, fused=True)
    first = loss(learner(pictures), labels).mean().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss(learner(pictures), labels).mean().backward()
        optimizer.step()
    assert loss(learner(pictures), labels).mean().item() < first - 0.01


def test_sgd_is_the_field_s_and_not_nesterov_s(network: Network) -> None:
    made = make_optimizer(network, {**DEFAULT, "name": "sgd"}, fused=True)
    assert type(made) is torch.optim.SGD
    assert made.defaults["nesterov"] is False
    assert made.defaults["momentum"] == 0.9
    assert made.defaults["fused"] is True
    other = make_optimizer(network, {**DEFAULT, "name": "sgd", "args": {"nesterov": True}}, fused=False)
    assert other.defaults["nesterov"] is True
    assert not other.defaults["fused"]


def test_arguments_reach_the_optimiser(network: Network) -> None:
    made = make_optimizer(network, {**DEFAULT, "args": {"betas": [0.8, 0.95]}}, fused=False)
    assert tuple(made.defaults["betas"]) == (0.8, 0.95)


def test_layers_get_rates_that_fall_towards_the_input() -> None:
    learner = Network("test_vit", image_size=160)
    settings = {**DEFAULT, "layer_decay": 0.5}
    made = make_optimizer(learner, settings, fused=False)
    assert make_schedule(made, settings, steps=10, epochs=2, mode="min") is None
    rate = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    named = {name: rate[id(p)] for name, p in learner.backbone.named_parameters()}
    assert len(rate) == len(list(learner.parameters()))
    assert named["head.weight"] == pytest.approx(1e-2)
    blocks = [named[f"blocks.{n}.attn.qkv.weight"] for n in range(len(learner.backbone.blocks))]
    assert all(later == pytest.approx(2 * earlier) for earlier, later in pairwise(blocks))
    assert named["patch_embed.proj.weight"] < blocks[0]
    decayed = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decayed[id(learner.backbone.head.bias)] == 0.0
    assert decayed[id(learner.backbone.head.weight)] == 0.1


def rates(name: str, steps: int, epochs: int, **settings: Any) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    chosen = {**DEFAULT, "lr": 1.0, "schedule": name, **settings}
    schedule: Any = make_schedule(optimizer, chosen, steps=steps, epochs=epochs, mode="min")
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step_update(step + 1)
    return found


def test_a_cosine_is_a_cosine() -> None:
    expected = [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    assert rates("cosine", 40, 10) == pytest.approx(expected, abs=1e-6)


def test_steps_and_warm_up_are_counted_in_epochs() -> None:
    found = rates(
        "step", 40, 10, schedule_args={"decay_epochs": 5, "decay_rate": 0.1, "warmup_epochs": 2, "warmup_lr": 0}
    )
    assert found[0] == 0.0
    assert found[4] == pytest.approx(0.5)
    assert found[8:20] == pytest.approx([1.0] * 12)
    assert found[20:40] == pytest.approx([0.1] * 20)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "adamwx"}, r"optimizer.name 'adamwx' is unknown among \d+ names; the nearest are: adamw"),
        ({"args": {"beta": 1}}, r"optimizer.args 'beta' is unknown; choose one of: betas"),
        ({"args": {"lr": 1}}, "optimizer.args.lr has a key of its own or is set by osteo; leave it out here"),
        ({"schedule": "cosin"}, "optimizer.schedule 'cosin' is unknown; choose one of: one_cycle, constant, plateau"),
        ({"schedule_args": {"warmup_epochs": 1}}, "optimizer.schedule_args goes with one of plateau, cosine"),
        ({"schedule": "cosine", "schedule_args": {"warmup": 1}}, "optimizer.schedule_args 'warmup' is unknown"),
        ({"schedule": "plateau", "schedule_args": {"patience_epochs": 1}}, "'patience_epochs' is unknown"),
    ],
)
def test_what_does_not_exist_is_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_optimizer({**DEFAULT, **changed})


def test_an_optimiser_that_refuses_a_value_is_one_line(network: Network) -> None:
    with pytest.raises(UserError, match=r"optimizer.name=adamw refuses its arguments: Invalid beta parameter"):
        make_optimizer(network, {**DEFAULT, "args": {"betas": [2.0, 0.9]}}, fused=False)


@pytest.mark.parametrize("name", list_optimizers())
def test_every_name_of_timm_s_is_allowed_where_its_package_is_there(name: str) -> None:
    if name.startswith(("bnb", "fused")):
        with pytest.raises(UserError, match=rf"optimizer.name={name} cannot be used here: (CUDA|APEX) require"):
            check_optimizer({**DEFAULT, "name": name})
    else:
        check_optimizer({**DEFAULT, "name": name})


@pytest.mark.parametrize("schedule", [*OWN_SCHEDULES, *known("schedules")])
def test_every_schedule_is_allowed(schedule: str) -> None:
    check_optimizer({**DEFAULT, "schedule": schedule})


def test_an_old_record_has_fewer_settings() -> None:
    old = {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.9, "schedule": "constant", "warmup": 0.25}
    learner = Classifier({"backbone": "test_resnet", "image_size": 64}, old)
    assert isinstance(learner.configure_optimizers(), torch.optim.SGD)


def test_focal_loss_without_gamma_is_cross_entropy_and_with_it_counts_the_known_less() -> None:
    logits, labels = torch.tensor([-3.0, -0.2, 0.4, 5.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    bce, plain, focal = make_loss("bce", {}), make_loss("focal", {"gamma": 0.0}), make_loss("focal", {"gamma": 2.0})
    assert torch.allclose(bce(logits, labels), plain(logits, labels))
    truth = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(focal(logits, labels), -((1 - truth) ** 2) * truth.log(), atol=1e-6)


def test_smoothing_moves_labels_towards_one_half() -> None:
    labels = torch.tensor([0.0, 1.0])
    assert torch.allclose(smooth(labels, 0.2), torch.tensor([0.1, 0.9]))
    assert smooth(labels, 0.0) is labels


def test_balanced_classes_weigh_the_same() -> None:
    negative, positive = balanced_weights([0] * 30 + [1] * 10)
    assert negative * 30 == pytest.approx(positive * 10) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("loss", "weights", "targets"),
    [({}, (1.0, 1.0), (0.0, 1.0)), ({"weights": (2.0, 0.5)}, (2.0, 0.5), (0.0, 1.0)),
     ({"label_smoothing": 0.5}, (1.0, 1.0), (0.25, 0.75))],
)  # fmt: skip
def test_weights_and_smoothing_reach_the_loss_of_training(
    loss: dict[str, Any], weights: tuple[float, float], targets: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    learner = Classifier({"backbone": "test_resnet", "image_size": 64}, {"lr": 1e-9}, loss)
    fitter, module = trainer(max_epochs=1, limit_val_batches=0), data(8, batch_size=8)
    fitter.fit(learner, module)
    batch = module.gather(torch.arange(8), "train", augmented=False)
    learner.train()
    with torch.no_grad():
        logits = learner(batch.pictures)
    positive = batch.labels == 1
    target = torch.where(positive, targets[1], targets[0])
    each = -(target * logits.sigmoid().log() + (1 - target) * (1 - logits.sigmoid()).log())
    expected = (torch.where(positive, weights[1], weights[0]) * each).mean()
    assert float(fitter.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=focl", "loss 'focl' is unknown; choose one of: bce, cross_entropy, focal, huber, of_task, squared_"),
        ("loss.name=focl", "loss.name 'focl' is unknown; choose one of: bce, focal"),
        ("loss.args.gama=1", "loss.args 'gama' is unknown"),
        ("optimizer.name=adamww", "optimizer.name 'adamww' is unknown among"),
        ("optimizer.args.bet=1", "optimizer.args 'bet' is unknown"),
        ("trainer.extra.profilr=simple", "trainer.extra 'profilr' is unknown"),
        ("trainer.extra.max_epochs=3", "trainer.extra.max_epochs has a key of its own"),
        ("callbacks=emma", "callbacks 'emma' is unknown; choose one of: "),
        ("callbacks.x._target_=lightning.pytorch.callbacks.EarlyStoping",
         "class of lightning.pytorch.callbacks 'EarlyStoping' is unknown"),
        ("callbacks.x._target_=os.system", "callbacks.x._target_=os.system is none of lightning, torch"),
        ("callbacks.x._target_=lightning.pytorch.callbacks.callback.os.system", "there is no module"),
        ("callbacks.x._target_=torch.nn.Linear", "callbacks.x"),
        ("logger.x._target_=lightning.pytorch.callbacks.Timer", "is not a Logger of Lightning"),
        ("callbacks.x=3", "callbacks.x=3 is not a part: it needs a _target_"),
        ("logger=[wandb,csvv]", "logger 'csvv' is unknown; choose one of: csv, mlflow, tensorboard, wandb"),
        ("callbacks.x={_target_: lightning.pytorch.callbacks.EarlyStopping, monitr: a}", "callbacks.x 'monitr' is"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_exist_is_one_line_before_anything_starts(
    osteo: Callable, tiny: list[str], override: str, message: str
) -> None:
    done = osteo("train", *tiny, "output_dir=run", override)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert not Path("run").exists()
