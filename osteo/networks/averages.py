"""Averages of weights over the steps of a training."""

from torch import Tensor
from torch.nn import Module
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """An average of weights and buffers whose decay warms up, without waiting for the device in any step.

    Args:
        model: whose weights are averaged.
        decay: the largest share of the average that a step keeps.
    """

    n_averaged: Tensor

    def __init__(self, model: Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._steps: int | None = None  # what n_averaged says, which a checkpoint may have set

    def update_parameters(self, model: Module) -> None:
        """Moves the average towards the weights, all the way after the first step."""
        if self._steps is None:
            self._steps = int(self.n_averaged)
        average = get_ema_multi_avg_fn(min(self.decay, 1.0 - (1.0 + self._steps) ** (-2.0 / 3.0)))
        pairs = [
            (ours.detach(), theirs.detach())
            for ours, theirs in zip(_tensors(self.module), _tensors(model), strict=True)
        ]
        for is_float in (True, False):  # buffers may be counts
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == is_float]
            if chosen:
                average([ours for ours, _ in chosen], [theirs for _, theirs in chosen], self.n_averaged)
        self._steps += 1
        self.n_averaged += 1


def _tensors(model: Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
