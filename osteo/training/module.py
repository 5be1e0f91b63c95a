"""How a network learns: one step, three thin hooks."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MeanMetric

from osteo.errors import UserError
from osteo.evaluation.metrics import training_metrics
from osteo.training.network import Network


class Batch(Protocol):
    """What a step needs of a batch."""

    @property
    def pictures(self) -> Tensor:
        """Float (B, 1, S, S) in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """Float (B,), 0 normal, 1 osteoporosis."""

    @property
    def rows(self) -> Tensor:
        """int64 (B,), which pictures these are."""


class Predicted(NamedTuple):
    """Logits of a batch of pictures."""

    rows: Tensor
    logits: Tensor


class Classifier(LightningModule):
    """Binary cross-entropy on one logit.

    Args:
        network: arguments of `Network`, plain values.
        optimizer: the fields of `OptimizerConfig`, plain values.
        fast: channels_last and a fused optimiser.

    Raises:
        UserError: the network cannot be built, or the loss stops being finite.
    """

    def __init__(self, network: dict[str, Any], optimizer: dict[str, Any], *, fast: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters({"network": network, "optimizer": optimizer, "fast": fast})
        self.memory_format = torch.channels_last if fast else torch.contiguous_format
        self.network = Network(**network).to(memory_format=self.memory_format)
        self.train_metrics = training_metrics().clone(prefix="train/")
        self.val_metrics = training_metrics().clone(prefix="val/")
        self.train_loss, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps float (B, 1, S, S) in [0, 1] to logits (B,)."""
        logits: Tensor = self.network(pictures.contiguous(memory_format=self.memory_format))
        return logits

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits = self(batch.pictures).float()
        losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        trains, count = stage == "train", len(batch.labels)
        metrics, mean = (self.train_metrics, self.train_loss) if trains else (self.val_metrics, self.val_loss)
        metrics.update(logits.detach().sigmoid(), batch.labels.long())
        mean.update(losses.detach())
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": count}
        self.log(f"{stage}/loss", mean, prog_bar=True, **epoch)
        self.log_dict(metrics, prog_bar=not trains, **epoch)
        return losses.mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a training batch; where it is one of several that make a step, weighted by its share of them."""
        loss, count = self._step(batch, "train"), len(batch.labels)
        if (processes := self.trainer.world_size) > 1:
            total = self.trainer.strategy.reduce(torch.tensor(count, device=self.device), reduce_op="sum")
            loss = loss * (count * processes / total)  # gradients are averaged over processes
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Follows loss and metrics of a validation batch."""
        self._step(batch, "val")

    def predict_step(self, batch: Batch, batch_idx: int) -> Predicted:
        """The logits of a batch, float32 on the CPU."""
        return Predicted(batch.rows.cpu(), self(batch.pictures).float().cpu())

    def on_train_epoch_end(self) -> None:
        """A loss that is not finite ends the run."""
        if not bool(torch.isfinite(self.trainer.callback_metrics["train/loss"])):
            raise UserError(
                f"the training loss is not finite in epoch {self.current_epoch}; lower optimizer.lr,"
                " set trainer.gradient_clip_val, or use trainer.precision=32-true"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser; biases and norms are not decayed; the schedule moves by step."""
        chosen, fused = self.hparams["optimizer"], bool(self.hparams["fast"])
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in self.network.parameters():
            (decayed if parameter.ndim > 1 else plain).append(parameter)
        groups = [{"params": decayed, "weight_decay": chosen["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer
        if chosen["name"] == "sgd":
            optimizer = torch.optim.SGD(groups, lr=chosen["lr"], momentum=chosen["momentum"], fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=chosen["lr"], fused=fused)
        if chosen["schedule"] == "constant":
            return optimizer
        steps, warmup = int(self.trainer.estimated_stepping_batches), chosen["warmup"]
        if warmup * steps == 1.0:  # a rise that ends at its first step is divided by its length, zero
            warmup *= 1.001
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=chosen["lr"], total_steps=steps, pct_start=warmup
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load(checkpoint: Path) -> Classifier:
    """The module of a checkpoint, on the CPU; nothing but tensors and plain values is read from it.

    Raises:
        UserError: there is no such file, or it is no checkpoint of osteo.
    """
    return read_checkpoint(checkpoint)[0]


def read_checkpoint(checkpoint: Path) -> tuple[Classifier, dict[str, Any]]:
    """The module of a checkpoint, as `load` gives it, and all that the file holds.

    Raises:
        UserError: there is no such file, or it is no checkpoint of osteo.
    """
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint.name} in {checkpoint.parent.parent.name}")
    try:
        kept: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
        given = dict(kept["hyper_parameters"])
        given["network"] = {**given["network"], "pretrained": False, "weights_file": None}
        module = Classifier(**given)
        module.load_state_dict(kept["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{checkpoint.name} is no checkpoint of osteo ({type(error).__name__})") from error
    return module, kept
