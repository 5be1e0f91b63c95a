"""Which of a training's processes this is; costs nothing to import."""

import logging
import os
import time
import warnings
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from osteo.records.record import Run


def launched() -> Literal["srun", "processes"] | None:
    """What started this process as one of several: SLURM's srun, osteo or torchrun; None for a process alone."""
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        return "processes"
    return "srun" if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None


def rank() -> int:
    """The number of this process among those of one training; 0 keeps the record."""
    return _from_environment(srun="SLURM_PROCID", processes="RANK", alone=0)


def started() -> int:
    """How many processes train together, this one among them."""
    return _from_environment(srun="SLURM_STEP_NUM_TASKS", processes="WORLD_SIZE", alone=1)


def _from_environment(*, srun: str, processes: str, alone: int) -> int:
    how = launched()
    return alone if how is None else int(os.environ[srun if how == "srun" else processes])


class Follower(Run):
    """A run whose record another process of the same training keeps."""

    def _leave(self, *_: Any, **__: Any) -> None:
        """The first process does it."""

    start = go_on = clear = hold = release = set_status = finish = _leave
    write_manifest = write_history = write_predictions = write_metrics = write_environment = _leave


def quieten() -> None:
    """Keeps what libraries say of every training to themselves; only the first of several processes logs."""
    if rank():
        logging.disable(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric", "timm"):  # timm tells the whole path of a file of weights
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line per retry
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*have no `validation_step`.*")  # of a pretraining
    warnings.filterwarnings("ignore", message="No (posi|nega)tive samples in targets.*")  # of a short split
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # model.freeze
    warnings.filterwarnings("ignore", message=".*(custom batch sampler|`srun` command).*")
    # torch 2.11 does not know the new name; a channels_last gradient of a 1 x 1 kernel has two ways to be contiguous
    warnings.filterwarnings("ignore", message="(?s).*(`broadcast_buffers` is deprecated|Grad strides do not match).*")


def record_of(directory: Path) -> Run:
    """The run in a directory, which only the first process of a training writes."""
    return Follower(directory) if rank() else Run(directory)


@cache
def follow(process: int | None = None) -> None:
    """Ends this process with the one that has started it, which may be killed, so that no two work on one run.

    Args:
        process: its id, where it is joblib's kind of process, which knows its parent by that alone.
    """
    Thread(target=_follow, args=(process,), daemon=True).start()


def _follow(process: int | None) -> None:
    if process is None:
        parent = parent_process()
        assert parent is not None
        parent.join()
    while process is not None and os.getppid() == process:
        time.sleep(1.0)
    os._exit(1)
