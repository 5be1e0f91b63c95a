"""Ends the poor trials of a search early."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from osteo.search.study import trial_of
from osteo.training.ranks import rank

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports every epoch of a trial to its study, and ends the run where its pruner says so.

    A study that cannot be reached meanwhile does not hold up the run, and is told in the end what it has missed.

    Args:
        sweep: whose job the run is.
        number: of the trial.
        monitor: what trials are compared by.
        epochs: of the run when it is not stopped.

    Raises:
        UserError: there is no such trial.
    """

    def __init__(self, sweep: Path, number: int, monitor: str, epochs: int) -> None:
        self.monitor, self.pruned = monitor, False
        self.trial, self.last = (None, -1) if rank() else trial_of(sweep, number, epochs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run that was cut off after it had been told to."""
        trainer.should_stop = self.pruned

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has run by now; an epoch that is run again after a crash is not reported twice."""
        if self.trial is not None:
            try:
                if trainer.current_epoch > self.last:
                    self.trial.report(float(trainer.callback_metrics[self.monitor]), trainer.current_epoch)
                is_last = trainer.current_epoch + 1 == trainer.max_epochs  # nothing is left to be saved
                self.pruned = not is_last and bool(self.trial.should_prune())  # numpy has a bool of its own
            except Exception as error:  # noqa: BLE001  what a server raises depends on its driver
                log.warning("the study cannot be reached (%s); the run continues", type(error).__name__)
        self.pruned = trainer.strategy.broadcast(self.pruned)
        trainer.should_stop = self.pruned
        if self.pruned:
            log.info("stopped after epoch %d by the search's pruner", trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Whether the run was told to end."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.pruned = state_dict["pruned"]
