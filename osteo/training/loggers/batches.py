"""The loss of every batch, for those who ask for it."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

LOSS = "train/loss_step"
"""What the loss of a batch is called, as Lightning would."""


class BatchLoss(Callback):
    """Gives every logger the loss of each training batch, by the batch's number; read from the device once an epoch."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss on its device: a CUDA graph writes the next one to the same place."""
        self._losses.append(outputs["loss"].detach().clone())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands on the losses of the epoch."""
        values = torch.stack(self._losses).tolist()
        first = trainer.current_epoch * len(values)
        for logger in trainer.loggers:
            for number, value in enumerate(values):
                logger.log_metrics({LOSS: value * trainer.accumulate_grad_batches}, step=first + number)
        self._losses.clear()
