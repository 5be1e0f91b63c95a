"""Callbacks of a run: its curves, its progress bar, checkpoints that appear whole, and averaged weights."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.nn import Parameter
from torch.optim import Optimizer

from osteo.errors import counted, diagnose
from osteo.networks.averages import MovingAverage
from osteo.networks.network import Network, is_norm
from osteo.records.snapshots import CheckpointWriter
from osteo.task import LAST_EPOCH, is_better

log = logging.getLogger(__name__)


class History(Callback):
    """Collects loss, metrics, learning rate and seconds of every epoch and hands them on when it has ended.

    Args:
        write: gets all rows so far.
        level: of the line that is logged per epoch.
        title: which job of a sweep it is of, in that line.
    """

    def __init__(self, write: Callable[..., None], level: int = logging.DEBUG, title: str = "") -> None:
        self.rows: list[dict[str, float]] = []
        self._write, self._level, self._start = write, level, f"{title}, " if title else ""
        self._since = self._trained = self._lr = self._pictures = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after these rows."""
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the rows of epochs that a run which goes on repeats, since no checkpoint of them was written."""
        if self.rows:
            self._write(self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock and notes the learning rate of the epoch's first step."""
        self._since, self._pictures = time.perf_counter(), 0.0
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts pictures; validation follows the last batch and is not training time."""
        self._pictures += len(batch.labels) * trainer.world_size
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # steps that were launched are not yet made
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has run by now: Lightning runs it inside the training epoch."""
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        costs = {
            "seconds": round(time.perf_counter() - self._since, 3),
            "pictures_per_second": round(self._pictures / (self._trained - self._since), 1),
            "lr": self._lr,
        }
        epoch = trainer.current_epoch
        self.rows.append({"epoch": epoch, "step": trainer.global_step, **costs, **values})
        self._write(self.rows)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **costs}, step=trainer.global_step - 1)
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.log(self._level, "%sepoch %d: %s, %.1f s", self._start, epoch, metrics, costs["seconds"])


class EpochBar(TQDMProgressBar):
    """Lightning's bar, for a terminal: one line per epoch, which names the job of a sweep."""

    BAR_FORMAT = "{desc}|{bar}| {n_fmt}/{total_fmt} [{remaining}{postfix}]"  # short, so that AUROC fits 80 columns

    def __init__(self, title: str = "") -> None:
        super().__init__(refresh_rate=5, leave=True)  # drawing it at every step costs more than a small step
        self.start = f"{title}, " if title else ""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Names the epoch, counted from 1 as people count."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(
            f"{self.start}epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        )

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The AUROC on validation and the loss of training, once there are any."""
        known = super().get_metrics(trainer, pl_module)
        return {key.rpartition("/")[2]: known[key] for key in ("val/auroc", "train/loss") if key in known}

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: this is a fraction of an epoch."""
        return Tqdm(disable=True)

    init_predict_tqdm = init_validation_tqdm


class Checkpoints(Checkpoint):
    """Keeps the best epoch and the last two, each with all that the next epoch starts from.

    Every epoch starts its random numbers from the seed and its number, so that nothing else need be restored. Lightning
    calls a `Checkpoint` after all other callbacks, early stopping among them, so that it keeps what they have counted.
    Files are written by a thread while the next epoch is trained; however a fit ends, it ends when they are written.

    Args:
        folder: for the files.
        monitor: what the best epoch is best at; see `osteo.task.direction`.
        seed: of the run.
    """

    def __init__(self, folder: Path, monitor: str, seed: int) -> None:
        self.monitor, self.seed = monitor, seed
        self.writer = CheckpointWriter(folder)
        self.best: float | None = None
        self.stopped: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run that was cut off after it had been told to end, unless it has been given more epochs."""
        trainer.should_stop = trainer.should_stop or self.stopped == trainer.max_epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws this epoch's random numbers."""
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch + (trainer.global_rank << 48)) % 2**63)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps this epoch as the last, and as the best where it is; validation has run by now.

        An epoch whose validation is not finite is never the best, not even as the first.
        """
        followed: dict[str, Any] = {**trainer.callback_metrics, LAST_EPOCH: trainer.current_epoch}
        losses = [followed[name] for name in ("val/loss", "train/loss") if name in followed]  # the first of those
        score, loss = float(followed[self.monitor]), float(losses[0])
        is_finite = math.isfinite(score) and math.isfinite(loss)
        is_best = is_finite and (self.best is None or is_better(self.monitor, score, self.best))
        if is_best:
            self.best = score
        self.stopped = trainer.max_epochs if trainer.should_stop else None
        checkpoint = checkpoint_of(trainer)
        if checkpoint is not None:
            self.writer.keep(checkpoint, is_best=is_best)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits until all is written: what follows reads the best epoch."""
        self.writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Waits until all is written, so that the run goes on from its last epoch."""
        try:
            self.writer.flush()
        except Exception as error:  # noqa: BLE001  the first exception is the one to be raised
            log.error("%s", diagnose(error))

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and of how many epochs the run was told to end early."""
        return {"best": self.best, "monitor": self.monitor, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint; older ones kept a loss with its sign turned."""
        best, self.stopped = state_dict["best"], state_dict.get("stopped")
        if best is None or not math.isfinite(best):
            self.best = None
        else:
            self.best = best if "monitor" in state_dict else abs(best)


class _Taken(TorchCheckpointIO):
    """Takes a checkpoint in the place of a file."""

    checkpoint: dict[str, Any] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.checkpoint = checkpoint


def checkpoint_of(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning would write, with tensors that training goes on to change; in the first process alone.

    All processes take part.
    """
    usual, taken = trainer.strategy.checkpoint_io, _Taken()
    trainer.strategy.checkpoint_io = taken
    try:
        trainer.save_checkpoint("")
    finally:
        trainer.strategy.checkpoint_io = usual
    return taken.checkpoint


class Averaging(WeightAveraging):
    """An average of weights that lies on their device."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves it there: Lightning makes it before it moves the weights, and would copy them back in every step."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)  # and the number of steps stays where nothing waits for it


class StochasticWeightAveraging(Averaging):
    """The mean of the weights after each of the last epochs (Izmailov et al. 2018).

    Validation and checkpoints see the mean from its first epoch on, and the weights themselves before.

    Args:
        start: share of the epochs after which averaging begins, from 0 to 1.
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__(use_buffers=True)
        if not 0.0 <= start < 1.0:
            raise ValueError(f"start={start} must be at least 0 and less than 1")
        self.start = start
        self._first = self._steps = 0

    @property
    def _has_begun(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes when averaging begins."""
        epochs = trainer.max_epochs or 1
        self._first, self._steps = int(self.start * epochs), int(trainer.estimated_stepping_batches) // epochs

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the weights of this moment belong to the mean: after the last step of an epoch."""
        if step_idx is None:
            return False
        epoch, left = divmod(step_idx + 1, self._steps)
        return left == 0 and (epoch > self._first or self._has_begun)  # the second: a run that was given more epochs

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the mean, once there is one."""
        if self._has_begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the weights that are trained."""
        if self._has_begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the mean, once there is one."""
        if self._has_begun:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Goes on from a checkpoint, which has a mean only once there was one."""
        if "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the mean in the module."""
        if self._has_begun:
            super().on_train_end(trainer, pl_module)


class ExponentialMovingAverage(Averaging):
    """An exponential moving average of the weights, which validation and checkpoints see.

    Lightning's own has the same decay from the first step on, so that the average of a short run is largely one of
    weights that had hardly been trained: of 135 steps at 0.99, the first keeps a quarter. Here, as in timm's
    ModelEmaV3, the decay at step n is 1 - n ** (-2/3) until it reaches `decay`.

    Args:
        decay: the largest share of the average that a step keeps, from 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be at least 0 and less than 1")
        self.decay = decay
        super().__init__(use_buffers=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average, in place of torch's, which waits for the device several times a step."""
        if stage == "fit":
            self._average_model = MovingAverage(pl_module, self.decay)


class Unfreezing(Callback):
    """Trains the classifier alone at first, then the backbone too, at once or by groups of layers from last to first.

    The second is Howard and Ruder's (2018) gradual unfreezing. Until its turn a group keeps its weights, and its norms
    their statistics. Lightning's BaseFinetuning gives the optimiser a group of parameters more for all that it thaws;
    here it has all of them from the start, each with its own rate, so that any schedule goes with it, and what is
    trained follows from the epoch alone when a run is taken up.

    Args:
        epochs: before a group's turn comes, 1 or more.
        gradually: by groups of layers as timm has them; false for the whole backbone at once.
    """

    def __init__(self, epochs: int, *, gradually: bool = True) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be at least 1")
        self.epochs, self.gradually = epochs, gradually
        self._groups: list[list[Parameter]] = []
        self._waiting: set[Parameter] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the groups, and says so where some of them will never be trained."""
        network: Network = pl_module.network  # type: ignore[assignment]
        last = set(network.classifier().parameters())
        whole_backbone = [p for p in network.parameters() if p.requires_grad and p not in last]
        self._groups = network.parameter_groups() if self.gradually else [whole_backbone]
        groups, epochs = len(self._groups), trainer.max_epochs or 1
        if (never := groups - (epochs - 1) // self.epochs) > 0:
            log.warning(
                "%d of %d groups of layers of the backbone are not trained in %s",
                never,
                groups,
                counted(epochs, "epoch"),
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the groups that wait no gradient; several processes expect it of all, and drop it."""
        turns = trainer.current_epoch // self.epochs
        self._waiting = {parameter for group in self._groups[turns:] for parameter in group}
        for parameter in (parameter for group in self._groups for parameter in group):
            parameter.requires_grad_(parameter not in self._waiting or trainer.world_size > 1)
        pl_module.train()
        for layer in pl_module.network.modules():  # type: ignore[union-attr]
            if is_norm(layer) and not self._waiting.isdisjoint(layer.parameters(recurse=False)):
                layer.eval()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps the optimiser from what waits."""
        for parameter in self._waiting:
            parameter.grad = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves everything as it was."""
        for parameter in self._waiting:
            parameter.requires_grad_(True)
