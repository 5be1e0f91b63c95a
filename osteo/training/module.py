"""How a network learns: one step, thin hooks, and everything of a checkpoint that a network is built from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from osteo import graphs
from osteo.config import OptimizerConfig
from osteo.errors import UserError
from osteo.evaluation.torch_metrics import Epoch
from osteo.networks.lineage import KEY as SEEN
from osteo.networks.lineage import Seen
from osteo.networks.network import Network
from osteo.networks.outputs import facts_of, positive_logit
from osteo.networks.weights import first_not_finite
from osteo.reading.covariates import Covariates
from osteo.task import direction
from osteo.training.losses import make_loss, targets_of
from osteo.training.optim import check_optimizer, enter, make_optimizer, make_schedule

ADVICE = "lower optimizer.lr, set trainer.gradient_clip_val, or use trainer.precision=32-true"
"""What to do where numbers are not finite any more."""


class Batch(Protocol):
    """What a step needs of a batch."""

    @property
    def pictures(self) -> Tensor:
        """Float (B, 1, S, S) in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """Float (B,): labels, see osteo.task; or T-scores, where these are what is asked."""

    @property
    def rows(self) -> Tensor:
        """int64 (B,), which pictures these are."""

    @property
    def targets(self) -> Tensor | None:
        """Float (B,) in [0, 1], the share of osteoporosis in each picture where pictures are mixed; else None."""

    @property
    def covariates(self) -> Tensor | None:
        """Float (B, F), features of the patients where the network takes them; else None."""


class Prediction(NamedTuple):
    """What a network gives for a batch of pictures."""

    rows: Tensor
    logits: Tensor
    """of the positive class (B,)"""
    outputs: Tensor
    """of the task, (B,) or (B, K); those of a binary one are its logits"""


class Learner(LightningModule):
    """A network that learns: its optimiser and schedule, and no number that is not finite.

    Args:
        network: that is trained.
        optimizer: fields of `OptimizerConfig`.
        monitor: what the best epoch is best at.
        fast: channels_last and a fused optimiser.
    """

    seen: Seen | None = None
    """what the weights that it began with had seen without labels; its checkpoints carry it on"""

    def __init__(self, network: Network, optimizer: Mapping[str, Any], *, monitor: str, fast: bool) -> None:
        super().__init__()
        self.optimizer_settings, self.monitor, self.fast = optimizer, monitor, fast
        self.memory_format = torch.channels_last if fast else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)

    @property
    def trained(self) -> nn.Module:
        """What the optimiser moves."""
        return self.network

    def on_train_epoch_end(self) -> None:
        """A loss or weights that are not finite end the run."""
        self._check_finite(self.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """No loss and no weights that are not finite reach a file, whoever writes it; what they have seen does."""
        self._check_finite(checkpoint["state_dict"])
        if self.seen is not None:
            checkpoint[SEEN] = self.seen.to_dict()

    def _check_finite(self, weights: Mapping[str, Tensor]) -> None:
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not bool(torch.isfinite(loss)):
            raise UserError(f"the training loss is not finite in epoch {self.current_epoch}; {ADVICE}")
        if (name := first_not_finite(weights)) is not None:
            raise UserError(f"the weights are not finite after epoch {self.current_epoch}, {name} first; {ADVICE}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule, which moves by step; one that waits for no progress moves by epoch."""
        clips = self._trainer is not None and self._trainer.gradient_clip_val is not None
        # in mixed precision, Lightning clips no gradients that a fused optimiser could have to unscale
        optimizer = make_optimizer(self.trained, self.optimizer_settings, fused=self.fast and not clips)
        name = self.optimizer_settings["schedule"]
        if name == "constant":  # needs no trainer
            steps, epochs = 0, 1
        else:
            steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 1
        mode = direction(self.monitor)
        schedule = make_schedule(optimizer, self.optimizer_settings, steps=steps, epochs=epochs, mode=mode)
        if schedule is None:
            return optimizer
        interval = "epoch" if name == "plateau" else "step"
        settings: Any = {"scheduler": schedule, "interval": interval, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the state of a schedule that has one (plateau); any other is entered at its step, see `enter`."""
        if self.optimizer_settings["schedule"] != "plateau":
            checkpoint["lr_schedulers"] = []

    def on_train_start(self) -> None:
        """Enters the schedule where a training goes on."""
        for entry in self.trainer.lr_scheduler_configs if self.global_step else ():
            enter(entry.scheduler, self.global_step)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Moves a schedule; timm's need the number of the step."""
        if not isinstance(scheduler, Scheduler):
            super().lr_scheduler_step(scheduler, metric)
        else:
            scheduler.step_update(self.global_step)


class Classifier(Learner):
    """A network for a task, its loss, optimiser and metrics.

    Args:
        network: arguments of `Network`, or the name of a backbone.
        optimizer: fields of `OptimizerConfig`; those that are not given have its defaults.
        loss: name, args and label_smoothing of `LossConfig`, and `weights` of a picture of each class.
        monitor: what the best epoch is best at; a schedule that waits for no progress (plateau) follows it.
        fast: channels_last and a fused optimiser.
        image_size: side of the pictures, in pixels, where `network` is a name alone.

    Raises:
        UserError: the network, the optimiser or the loss cannot be built; the loss or the weights stop being finite, so
            that no checkpoint of them is written; or a logit of a test is not finite.
    """

    def __init__(
        self,
        network: Mapping[str, Any] | str,
        optimizer: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        *,
        monitor: str = "val/loss",
        fast: bool = True,
        image_size: int = 224,
    ) -> None:
        given = {"backbone": network, "image_size": image_size} if isinstance(network, str) else dict(network)
        settings = asdict(OptimizerConfig()) | dict(optimizer or {})
        check_optimizer(settings)
        chosen: dict[str, Any] = {"name": "bce", "args": {}, "label_smoothing": 0.0, "weights": None, **(loss or {})}
        super().__init__(Network(**given), settings, monitor=monitor, fast=fast)
        begun_from = {"weights_file": Path(str(given["weights_file"])).name} if given.get("weights_file") else {}
        values = {"network": given | begun_from, "optimizer": settings, "loss": chosen}  # no path leaves with them
        self.save_hyperparameters(values | {"monitor": monitor, "fast": fast}, logger=False)
        self.smoothing = float(chosen["label_smoothing"])
        self.task = self.network.task
        self.network.begin_at([0.0] * self.task.outputs)
        self.loss = make_loss(chosen["name"], chosen["args"], self.task.kind)
        self.class_weights: Sequence[float] | None = chosen["weights"]
        self.train_epoch, self.val_epoch, self.test_epoch = (
            Epoch(self.task, partial(facts_of, self.task)) for _ in range(3)
        )
        self._pictures = 0  # of the batches since the last step, in this process
        self.graph: Any = "auto"  # trainer.graph
        self._graphs: dict[str, graphs.Graphed] | None = None
        self._learning: tuple[list[bool], list[bool]] | None = None
        self._usual = 1.0  # pictures of the first of them, on average over the processes

    @property
    def backbone(self) -> nn.Module:
        """All layers but the classifier and frozen ones: what Lightning's `BackboneFinetuning` freezes and thaws."""
        last = {id(parameter) for parameter in self.network.classifier().parameters()}
        frozen = self.network.frozen_layers()
        layers = [layer for layer in self.network.modules() if list(layer.parameters(recurse=False))]
        # Lightning takes all that a layer contains, and a transformer with tokens of its own contains its classifier
        return nn.ModuleList(
            layer for layer in layers if layer not in frozen and not any(id(p) in last for p in layer.parameters())
        )

    def fuse(self, covariates: Covariates) -> None:
        """Has the network take covariates beside the picture, as its checkpoints then do."""
        self.network.fuse(covariates)
        self.hparams["network"] = {**self.hparams["network"], "covariates": covariates.to_dict()}

    def forward(self, pictures: Tensor, covariates: Tensor | None = None) -> Tensor:
        """The task's outputs: logits (B,), or (B, K); arguments as of `Network.forward`."""
        if pictures.ndim == 4:
            pictures = pictures.contiguous(memory_format=self.memory_format)
        outputs: Tensor = self.network(pictures, covariates)
        return outputs

    def begin_at(self, outputs: Sequence[float], labels: Tensor, covariates: Tensor | None) -> None:
        """Has the network begin with what is best without looking at a picture, by its loss.

        Args:
            outputs: the best of those that are the same for all pictures.
            labels: of the training pictures, float (N,); T-scores, where these are what is asked.
            covariates: features of their patients, float (N, F), of a network that takes them; then it begins at a
                linear model of them, with a penalty of half the sum of its squared weights.
        """
        if covariates is None:
            self.network.begin_at(outputs)
            return
        assert self.network.fusion is not None
        bias = torch.tensor(outputs, dtype=torch.float64, requires_grad=True)
        weight = torch.zeros_like(self.network.fusion.weight, dtype=torch.float64, requires_grad=True)
        optimizer = LBFGS([bias, weight], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            found = bias + covariates.double() @ weight.T
            found = found.squeeze(1) if self.task.outputs == 1 else found
            loss = self._losses(found, labels.double(), self.smoothing).sum() + weight.square().sum() / 2
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.network.begin_at(bias.tolist(), weight.detach())

    def _answer(
        self, smoothing: float, pictures: Tensor, labels: Tensor, targets: Tensor | None, covariates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The outputs for a batch and its losses (B,)."""
        with graphs.uncached_autocast(pictures.device.type):
            outputs = self(pictures, covariates).float()
        if targets is None:
            return outputs, self._losses(outputs, labels, smoothing)
        # each part of a mixed picture counts as a picture of its class
        ill, well = (self._losses(outputs, torch.full_like(outputs, label), smoothing) for label in (1.0, 0.0))
        return outputs, torch.lerp(well, ill, targets)

    def _learn(self, *parts: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs for a batch, its losses (B,) and their mean, whose gradients are computed."""
        outputs, losses = self._answer(self.smoothing, *parts)
        loss = losses.mean()
        with torch.autocast(outputs.device.type, enabled=False):
            loss.backward()
        return outputs.detach(), losses.detach(), loss.detach()

    def _follow(self, stage: str, batch_idx: int, outputs: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Keeps a batch for the metrics of its epoch: Lightning is told of them once, and computes them when read."""
        epoch: Epoch = getattr(self, f"{stage}_epoch")
        epoch.update(outputs, labels, losses)
        if batch_idx == 0:
            for name, value in epoch.values.items():
                value.update()
                is_shown = name == "loss" or stage != "train"
                self.log(f"{stage}/{name}", value, on_step=False, on_epoch=True, prog_bar=is_shown)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        """Follows a batch that nothing is learnt from."""
        answer = partial(self._answer, 0.0) if self._graphs is None else self._graphs["val"]
        outputs, losses = answer(batch.pictures, batch.labels, None, batch.covariates)
        self._follow(stage, batch_idx, outputs, batch.labels, losses)

    def _losses(self, outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """One loss per picture (B,), weighted by its class."""
        losses = self.loss(outputs, targets_of(self.task, labels, smoothing))
        if self.class_weights is None:
            return losses
        if self.task.has_many_classes:
            return losses * losses.new_tensor(self.class_weights)[labels.long()]
        negative, positive = self.class_weights
        return losses * (negative + (positive - negative) * labels)

    def on_train_start(self) -> None:
        """Forgets the pictures of a training that ended within a step."""
        super().on_train_start()
        self._pictures = 0

    def on_train_epoch_start(self) -> None:
        """Captures steps anew where other layers learn than before."""
        learning = [p.requires_grad for p in self.parameters()], [layer.training for layer in self.modules()]
        if learning != self._learning:
            self._learning, self._graphs = learning, self._make_graphs()

    def on_train_end(self) -> None:
        """Frees what steps were captured in."""
        self._learning = self._graphs = None

    def _make_graphs(self) -> dict[str, graphs.Graphed] | None:
        """A training and a validation step for capture as CUDA graphs, where they can be and are wanted."""
        trainer, device = self.trainer, self.device.type
        batches, precision = trainer.accumulate_grad_batches, str(trainer.precision)
        if not graphs.is_wanted(self.graph, device, trainer.world_size, batches, precision):
            return None
        return {
            "train": graphs.Graphed(self._learn, self.network, is_required=self.graph is True),
            "val": graphs.Graphed(partial(self._answer, 0.0)),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a training batch, weighted by its pictures where several batches make a step.

        These are those of several processes, whose gradients Lightning averages, and those that are accumulated.
        """
        parts, count = (batch.pictures, batch.labels, batch.targets, batch.covariates), len(batch.labels)
        loss: Tensor
        if self._graphs is not None:
            outputs, losses, loss = self._graphs["train"](*parts)
        else:
            outputs, losses = self._answer(self.smoothing, *parts)
            loss = losses.mean()
        self._follow("train", batch_idx, outputs, batch.labels, losses)
        if self._pictures == 0:
            self._usual = self._over_processes(count) / self.trainer.world_size
        self._pictures += count
        return loss * (count / self._usual)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes the gradients, where a graph has not done so."""
        if self._graphs is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forgets the gradients, where a graph does not write them anew."""
        if self._graphs is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Makes the gradient the mean over all pictures of the step: Lightning divides as if the group were full."""
        batches, counted, self._pictures = self.trainer.accumulate_grad_batches, self._pictures, 0
        if batches == 1:
            return
        expected = self._usual * self.trainer.world_size * batches
        pictures = self._over_processes(counted)
        if pictures != expected:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, expected / pictures)

    def _over_processes(self, count: int) -> float:
        if self.trainer.world_size == 1:
            return float(count)
        return float(self.trainer.strategy.reduce(torch.tensor(count, device=self.device), reduce_op="sum"))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Follows loss and metrics of a validation batch."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Follows loss and metrics of a test batch."""
        self._evaluate("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """A loss that is not finite ends the test: a logit is not finite."""
        if not bool(torch.isfinite(self.test_epoch.compute()["loss"])):
            raise UserError("the test loss is not finite, since a logit is not; no metric can be computed")

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """The outputs for a batch, float32 on the CPU."""
        outputs = self(batch.pictures, batch.covariates).float().cpu()
        return Prediction(batch.rows.cpu(), positive_logit(self.task.kind, outputs), outputs)
