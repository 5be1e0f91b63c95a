"""Optimisers and learning-rate schedules by name: timm's, and torch's one-cycle."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from osteo import libraries
from osteo.errors import UserError, first_line


def check_optimizer(settings: Mapping[str, Any]) -> None:
    """Refuses an optimiser, a schedule or an argument that does not exist, as `libraries.check_optimizer` does.

    Raises:
        UserError: one line with the nearest names; or the optimiser needs a package that is not installed.
    """
    libraries.check_optimizer(settings)
    _class_of(settings["name"])


def make_optimizer(network: nn.Module, settings: Mapping[str, Any], *, fused: bool) -> Optimizer:
    """The optimiser of a network; biases and norms are not decayed, frozen parameters are left out.

    Args:
        network: to be trained.
        settings: the fields of `OptimizerConfig`.
        fused: one kernel for all parameters, where the optimiser has such a form.

    Raises:
        UserError: the optimiser refuses its arguments.
    """
    name, decay = settings["name"], settings["weight_decay"]
    arguments = dict(settings.get("args") or {})
    if name == "sgd":
        arguments.setdefault("nesterov", False)  # timm's sgd is Nesterov's; the field's is not
    if has_fused(name):
        arguments["fused"] = fused
    try:
        return create_optimizer_v2(
            _groups(network, decay, settings.get("layer_decay")),
            opt=name,
            lr=settings["lr"],
            weight_decay=decay,
            momentum=settings["momentum"],
            **arguments,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer.name={name} refuses its arguments: {first_line(error)}") from error


def make_schedule(
    optimizer: Optimizer, settings: Mapping[str, Any], *, steps: int, epochs: int, mode: Literal["min", "max"]
) -> LRScheduler | Scheduler | None:
    """The learning-rate schedule, or None where the rate is constant.

    Args:
        optimizer: whose rate it sets.
        settings: the fields of `OptimizerConfig`.
        steps: of the whole training.
        epochs: of the whole training.
        mode: min or max, what the monitored value is better at (plateau).
    """
    name = settings["schedule"]
    if name == "constant":
        _scaled(optimizer)
        return None
    if name == "one_cycle":
        warmup = settings["warmup"]
        if warmup * steps == 1.0:  # a rise that ends at its first step is divided by its length, zero
            warmup *= 1.001
        rates = [settings["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=rates, total_steps=steps, pct_start=warmup)
    arguments = dict(settings.get("schedule_args") or {})
    if name == "plateau":
        return ReduceLROnPlateau(_scaled(optimizer), mode, **arguments)
    made: Scheduler = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=epochs,
        step_on_epochs=False,
        updates_per_epoch=max(1, math.ceil(steps / epochs)),
        **{"warmup_epochs": 0, **arguments},
    )[0]
    made.step_update(0)
    return made


def enter(schedule: LRScheduler | Scheduler, step: int) -> None:
    """Sets the learning rate of a schedule that is taken up after so many steps.

    It follows from the step and from the length of the training alone, which may be longer than when it was begun.
    """
    if isinstance(schedule, Scheduler):
        schedule.step_update(step)
    elif isinstance(schedule, OneCycleLR):
        schedule.last_epoch, schedule._step_count = step - 1, step + 1
        schedule.step()


def _scaled(optimizer: Optimizer) -> Optimizer:
    """The optimiser with the rates that its groups' layers ask for; timm's schedules see to that themselves."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def _groups(network: Any, decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """What is decayed first, then what is not; with `layer_decay` by layers, the last of which is the head."""
    if layer_decay is None:
        groups: list[dict[str, Any]] = param_groups_weight_decay(network, decay)
        return groups[::-1]  # as osteo's checkpoints have them
    groups = param_groups_layer_decay(network.backbone, decay, layer_decay=layer_decay)
    if network.head is not None:
        groups += [{**group, "lr_scale": 1.0} for group in param_groups_weight_decay(network.head, decay)]
    return groups


def has_fused(name: str) -> bool:
    """Whether an optimiser has a form with one kernel for all parameters."""
    return "fused" in inspect.signature(_class_of(name)).parameters


def _class_of(name: str) -> Callable[..., Optimizer]:
    try:
        return get_optimizer_class(name, bind_defaults=False)
    except (AssertionError, ImportError) as error:  # those of apex and bitsandbytes
        raise UserError(f"optimizer.name={name} cannot be used here: {first_line(error)}") from error
