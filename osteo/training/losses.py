"""What training makes small: losses by name, with label smoothing and class weights; and where training begins."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from osteo import parts
from osteo.errors import UserError, first_line, unknown
from osteo.libraries import check_arguments, parameters_of
from osteo.networks.outputs import log_probabilities
from osteo.task import TASKS, Kind, Task

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets -> one loss per picture (B,); see `osteo.parts.MakeLoss`."""


def bce() -> LossFunction:
    """Binary cross-entropy."""
    return lambda logits, targets: binary_cross_entropy_with_logits(logits, targets, reduction="none")


def focal(gamma: float = 2.0) -> LossFunction:
    """Binary cross-entropy that counts a picture less the better it is known (Lin et al. 2017).

    Args:
        gamma: how much less; 0 is binary cross-entropy.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        known, unknown_ = logsigmoid(logits), logsigmoid(-logits)
        return -(targets * unknown_.exp() ** gamma * known + (1.0 - targets) * known.exp() ** gamma * unknown_)

    return loss


def _cross_entropy(kind: Kind) -> Callable[..., LossFunction]:
    """The cross-entropy of shares of classes (B, C), as the kind of task makes probabilities of outputs."""
    return lambda: lambda outputs, targets: -(targets * log_probabilities(kind, outputs)).sum(1)


def huber(delta: float = 1.0) -> LossFunction:
    """Half the squared error of a T-score, and beyond an error of `delta` linear in it (Huber 1964)."""
    return lambda outputs, targets: functional.huber_loss(outputs, targets, reduction="none", delta=delta)


def squared_error() -> LossFunction:
    """The squared error of a T-score."""
    return lambda outputs, targets: (outputs - targets) ** 2


BUILT_IN: Mapping[Kind, Mapping[str, Callable[..., LossFunction]]] = {
    "binary": {"bce": bce, "focal": focal},
    "nominal": {"cross_entropy": _cross_entropy("nominal")},
    "ordinal": {"cross_entropy": _cross_entropy("ordinal")},
    "regression": {"huber": huber, "squared_error": squared_error},
}


def make_loss(name: str, arguments: Mapping[str, Any], kind: Kind = "binary") -> LossFunction:
    """The loss of a name.

    Args:
        name: one of `BUILT_IN` for this kind of task, or what a plugin has registered.
        arguments: of the loss.
        kind: of task.

    Raises:
        UserError: there is no such loss or argument, it is that of another kind of task, or does not give one loss per
            picture.
    """
    known = {**{name: parts.losses[name] for name in parts.losses}, **BUILT_IN[kind]}
    if name not in known and any(name in others for others in BUILT_IN.values()):
        raise UserError(f"loss.name={name} does not fit this task, which takes {', '.join(known)}")
    if name not in known:
        raise unknown("loss.name", name, known)
    check_arguments(parameters_of(known[name]), arguments, "loss.args")
    loss = known[name](**arguments)
    if name not in BUILT_IN[kind]:
        _check(loss, name, next(task for task in TASKS.values() if task.kind == kind))
    return loss


def _check(loss: LossFunction, name: str, task: Task) -> None:
    """Tries a registered loss on four pictures."""
    origin, labels = f"loss={name} with task={task.name}", torch.arange(4) % len(task.class_names)
    outputs = torch.linspace(-1.0, 1.0, 4 * task.outputs)
    outputs = outputs if task.outputs == 1 else outputs.reshape(4, -1).flip(1)
    try:
        losses = loss(outputs, targets_of(task, labels.float(), 0.0))
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{origin} cannot be computed ({reason}); see osteo.parts.MakeLoss") from error
    given = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
    if given != "shape (4,)":
        raise UserError(f"{origin} gives {given} for 4 pictures, not (4,); see osteo.parts.MakeLoss")


Target = TypeVar("Target", Tensor, float)


def smooth(labels: Target, share: float) -> Target:
    """Labels moved towards one half (Szegedy et al. 2016): 0 becomes share / 2, 1 becomes 1 - share / 2."""
    return labels * (1.0 - share) + share / 2.0 if share else labels


def targets_of(task: Task, labels: Tensor, share: float) -> Tensor:
    """What a loss takes: smoothed labels (B,), smoothed shares of classes (B, C), or T-scores (B,) as they are."""
    if task.kind == "binary":
        return smooth(labels, share)
    if task.kind == "regression":
        return labels
    count = len(task.class_names)
    return functional.one_hot(labels.long(), count).float() * (1.0 - share) + share / count


def balanced_weights(labels: Sequence[int]) -> tuple[float, ...]:
    """Weights of a picture of each class with which all classes weigh the same, 1 on average over the pictures."""
    classes = range(max(labels) + 1)
    return tuple(len(labels) / (len(classes) * labels.count(label)) for label in classes)


def best_outputs(
    task: Task, truth: Sequence[float], share: float = 0.0, weights: Sequence[float] | None = None
) -> list[float]:
    """The outputs that are best where all pictures are given the same.

    Args:
        task: what is asked.
        truth: labels, each of which occurs; or T-scores.
        share: of label smoothing.
        weights: of a picture of each class; None where all weigh the same.
    """
    if task.kind == "regression":
        return [sum(truth) / len(truth)]
    labels, count = [int(label) for label in truth], len(task.class_names)
    if task.kind == "binary":
        return [log_odds(labels, share, weights)]
    weighed = [labels.count(label) * (weights[label] if weights else 1.0) for label in range(count)]
    shares = [weight / sum(weighed) * (1.0 - share) + share / count for weight in weighed]
    if task.kind == "nominal":
        return [math.log(of_class) for of_class in shares]
    beyond = [sum(shares[cut:]) for cut in range(1, count)]
    return [math.log(of_beyond / (1.0 - of_beyond)) for of_beyond in beyond]


def log_odds(labels: Sequence[int], share: float = 0.0, weights: Sequence[float] | None = None) -> float:
    """The one logit that is best for all pictures: the log odds of their labels, smoothed and weighted as in training.

    Args:
        labels: 0 or 1, both of which occur.
        share: of label smoothing.
        weights: of a picture of each class; None where all weigh the same.
    """
    negative, positive = weights or (1.0, 1.0)
    targets = [(smooth(label, share), positive if label else negative) for label in labels]
    mean = sum(target * weight for target, weight in targets) / sum(weight for _, weight in targets)
    return math.log(mean / (1.0 - mean))
