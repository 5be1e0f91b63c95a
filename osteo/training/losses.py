"""What training makes small: losses by name, with label smoothing and class weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from osteo import parts
from osteo.checks import check_arguments
from osteo.errors import unknown

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Logits (B,) and targets in [0, 1] (B,) -> one loss per picture (B,)."""


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


BUILT_IN: Mapping[str, Callable[..., LossFunction]] = {"bce": bce, "focal": focal}


def make_loss(name: str, arguments: Mapping[str, Any]) -> LossFunction:
    """The loss of a name.

    Args:
        name: bce, focal, or what a plugin has registered.
        arguments: of the loss.

    Raises:
        UserError: there is no such loss or argument.
    """
    known = {**{name: parts.losses[name] for name in parts.losses}, **BUILT_IN}
    if name not in known:
        raise unknown("loss.name", name, known)
    check_arguments(known[name], arguments, "loss.args")
    return known[name](**arguments)


Target = TypeVar("Target", Tensor, float)


def smooth(labels: Target, share: float) -> Target:
    """Labels moved towards one half (Szegedy et al. 2016): 0 becomes share / 2, 1 becomes 1 - share / 2."""
    return labels * (1.0 - share) + share / 2.0 if share else labels


def balanced_weights(labels: Sequence[int]) -> tuple[float, float]:
    """Weights of a picture of each class with which both classes weigh the same, 1 on average over the pictures."""
    positive = sum(labels)
    negative = len(labels) - positive
    return len(labels) / (2 * negative), len(labels) / (2 * positive)


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
