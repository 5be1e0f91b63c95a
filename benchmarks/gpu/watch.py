"""Watches `osteo train` from inside: a plugin that appends what it sees to $OSTEO_WATCH, a line of JSON each.

`plugins=[benchmarks.gpu.watch]` notes where each job begins and ends and what memory is left taken then; with
$OSTEO_MEMORY it has so many GiB of the GPU alone. Two callbacks note the parts of an epoch, and where the host waits
for the GPU.
"""

import collections
import functools
import json
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from osteo.app import hydra as application
from osteo.training.module import Batch, Classifier

WAITING = ("item", "tolist", "cpu", "nonzero", "unique", "__bool__", "__float__", "__int__")
"""What of a tensor's would wait for a GPU: on the CPU, they stand in for it."""


def note(what: str, **figures: Any) -> None:
    """Appends a line."""
    with Path(os.environ["OSTEO_WATCH"]).open("a") as file:
        file.write(json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **figures}) + "\n")


def has_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def now() -> float:
    """The time when the GPU has done all that it was told."""
    if has_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory() -> dict[str, int]:
    """MiB that tensors take, that torch holds, and that are taken of the GPU; without one, of the process."""
    if has_gpu():
        free, total = torch.cuda.mem_get_info()
        taken = {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
        return {name: size >> 20 for name, size in {**taken, "taken": total - free}.items()}
    status = Path("/proc/self/status").read_text().splitlines()
    return {"resident": next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmRSS"))}


def watched(run: Callable[..., bool]) -> Callable[..., bool]:
    """`run_job`, with its begin and its end noted."""

    @functools.wraps(run)
    def run_and_note(raw: Any, *arguments: Any) -> bool:
        note("begin", backbone=raw.model.backbone)
        try:
            return run(raw, *arguments)
        finally:
            note("end", memory=memory())

    return run_and_note


class Clock(Callback):
    """The parts of every epoch, in seconds."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch ends where the next begins."""
        self._close(trainer)
        self._marks = [now()]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The first step begins an epoch; the last one comes before validation."""
        if batch_idx in (0, int(trainer.num_training_batches) - 1):
            self._marks.append(now())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows are metrics, records and checkpoints."""
        self._marks.append(now())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch."""
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        if len(self._marks) == 4:
            begun, first, trained, validated = self._marks
            parts = {"first": first - begun, "others": trained - first, "validation": validated - trained}
            note("epoch", steps=int(trainer.num_training_batches), **parts, rest=now() - validated)
        self._marks = []


class Waits(Callback):
    """Where the host waits for the GPU in the steps of the second epoch, and from there to the third epoch."""

    def __init__(self) -> None:
        self._found: collections.Counter[str] = collections.Counter()
        self._kept: warnings.catch_warnings[None] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins with the second step: the first one begins an epoch, too."""
        if trainer.current_epoch == 1 and batch_idx == 1:
            self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last step, the end of the epoch."""
        if trainer.current_epoch == 1 and batch_idx == int(trainer.num_training_batches) - 1:
            self._end("waits in steps", steps=batch_idx)
            self._begin()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the epoch's end."""
        if trainer.current_epoch == 2:
            self._end("waits at an epoch's end")

    def _begin(self) -> None:
        self._found.clear()
        self._kept = warnings.catch_warnings()
        self._kept.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._count
        if has_gpu():
            torch.cuda.set_sync_debug_mode("warn")
        else:
            wait_on_cpu()

    def _end(self, what: str, **more: int) -> None:
        if has_gpu():
            torch.cuda.set_sync_debug_mode("default")
        if self._kept is not None:
            self._kept.__exit__(None, None, None)
            self._kept = None
            note(what, where=self._found.most_common(20), count=self._found.total(), **more)

    def _count(self, message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" not in str(message) or threading.current_thread() is not threading.main_thread():
            return  # a thread that waits holds up no step
        frames = traceback.extract_stack()
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/osteo/" in f.filename]
        self._found[" <- ".join([f"{'/'.join(Path(filename).parts[-2:])}:{lineno}", *ours[:-3:-1]])] += 1


@functools.cache
def wait_on_cpu() -> None:
    """Has the CPU's tensors warn where a GPU's would wait."""

    def warning(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def warn(*arguments: Any, **named: Any) -> Any:
            warnings.warn(f"{name} is a synchronizing operation", stacklevel=2)
            return method(*arguments, **named)

        return warn

    for name in WAITING:
        setattr(torch.Tensor, name, warning(name, getattr(torch.Tensor, name)))


def limit_memory(gib: float) -> None:
    """Leaves so many GiB of the GPU to this process; on the CPU, batches above eight stand for what takes more."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
        return
    step = Classifier.training_step

    def too_large(module: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        if len(batch.labels) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(module, batch, batch_idx)

    Classifier.training_step = too_large


application.run_job = watched(application.run_job)
if limited := os.environ.get("OSTEO_MEMORY"):
    limit_memory(float(limited))
