"""The curves of a run, a row an epoch, and the progress bar."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from osteo.files import whole
from osteo.task import direction

log = logging.getLogger(__name__)


class History(Callback):
    """Collects loss, metrics, learning rate and seconds of every epoch and hands them on when it has ended.

    Args:
        write: gets all rows so far.
        tell: gets the newest row.
        level: of the line that is logged an epoch.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Mapping[str, float]]], None],
        tell: Callable[[Mapping[str, float]], None],
        level: int = logging.DEBUG,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._write, self._tell, self._level = write, tell, level
        self._since = self._trained = self._lr = 0.0
        self._pictures = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after these rows."""
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock and notes the learning rate of the epoch's first step."""
        self._since = time.perf_counter()
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._pictures = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts pictures; validation follows the last batch and is not training time."""
        self._pictures += len(batch.labels) * trainer.world_size
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has run by now: Lightning runs it inside the training epoch."""
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.perf_counter() - self._since, 3),
            "pictures_per_second": round(self._pictures / (self._trained - self._since), 1),
            "lr": self._lr,
            **values,
        }
        self.rows.append(row)
        self._write(self.rows)
        self._tell(row)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.log(self._level, "epoch %d: %s, %.1f s", row["epoch"], shown, row["seconds"])


class EpochBar(TQDMProgressBar):
    """Lightning's bar, for a terminal; one line an epoch."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=True)  # drawing it at every step costs more than a small step

    def init_validation_tqdm(self) -> Tqdm:
        """No second bar: validation is a fraction of an epoch."""
        return Tqdm(disable=True)

    def init_predict_tqdm(self) -> Tqdm:
        """No bar: predictions take seconds."""
        return Tqdm(disable=True)


BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


class Checkpoints(Callback):
    """Keeps the best epoch and the last two, each with all that the next epoch starts from.

    Every epoch starts its random numbers from the seed and its own number, so that nothing else need be restored.

    Args:
        folder: for the files.
        monitor: what the best epoch is best at; the lowest where it is a loss, else the highest.
        seed: of the run.
    """

    def __init__(self, folder: Path, monitor: str, seed: int) -> None:
        self.folder, self.monitor, self.seed = folder, monitor, seed
        self.best: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws this epoch's random numbers."""
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch + (trainer.global_rank << 48)) % 2**63)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps this epoch as the last, and as the best where it is; validation has run by now."""
        score = float(trainer.callback_metrics[self.monitor])
        score = -score if direction(self.monitor) == "min" else score
        is_best = self.best is None or score > self.best
        if is_best:
            self.best = score
        last, best = self.folder / LAST, self.folder / BEST
        if not trainer.is_global_zero:
            trainer.save_checkpoint(last)  # takes part; nothing is written
            return
        with whole(last) as aside:
            trainer.save_checkpoint(aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())  # so that a power failure finds a whole file under the new name
            if is_best:
                with whole(best) as twin:
                    twin.hardlink_to(aside)
            if last.exists():
                last.replace(self.folder / PREVIOUS)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best = state_dict["best"]


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from: the last one, or the one before it where the last cannot be read."""
    for name in (LAST, PREVIOUS):
        try:
            torch.load(folder / name, weights_only=True, map_location="meta", mmap=True)
        except Exception:  # noqa: BLE001  what a damaged file raises depends on where it is damaged
            continue
        return folder / name
    return None
