"""Checkpoints that appear whole, and what makes a run that goes on the same as one that never stopped."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from osteo.files import whole

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
        score = -score if self.monitor.endswith("loss") else score
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
