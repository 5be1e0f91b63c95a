"""Checkpoints that are copied within memory and written by a thread, so that no epoch waits for the disk."""

import io
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from threading import Condition, Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osteo.files import link_or_copy, whole
from osteo.records.record import BEST, LAST, PREVIOUS

INTERVAL = 10.0
"""Seconds from the end of one write to the next, so that a slow disk is not always busy."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes what torch.save would, whose own writer does not report a full disk."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    path.write_bytes(content.getbuffer())


class Snapshot:
    """A copy of a checkpoint in the machine's memory, pinned where its tensors are on a GPU; it can be taken again."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._checkpoint: dict[str, Any] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, checkpoint: Mapping[str, Any]) -> None:
        """Copies all that a checkpoint holds; where nothing has changed its shape, into the memory of the copy before.

        From a GPU it copies in the order of the current stream, and does not wait.
        """
        tensors = list({id(tensor): tensor for tensor in _tensors(checkpoint)}.values())
        if [(t.shape, t.dtype) for t in tensors] != [(b.shape, b.dtype) for b in self._buffers]:
            self._buffers = [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in tensors]
        if tensors:
            torch._foreach_copy_(self._buffers, tensors, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            self._copied = torch.cuda.Event()
            self._copied.record()
        copies = zip(tensors, self._buffers, strict=True)
        self._checkpoint = deepcopy(dict(checkpoint), {id(tensor): copy for tensor, copy in copies})

    def save(self, path: Path) -> None:
        """Writes the checkpoint; see `save_checkpoint`."""
        if self._copied is not None:
            self._copied.synchronize()
        save_checkpoint(self._checkpoint, path)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries and lists."""
    if type(value) is Tensor:
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


class _Epochs(NamedTuple):
    """What is to be written together: the last epoch, and the best where that is not on the disk yet."""

    last: Snapshot
    best: Snapshot | None


class CheckpointWriter:
    """Keeps the best epoch and the last two of a run in files that appear whole, written by a thread.

    Of several epochs that end while the thread writes or waits for the interval to pass, only the last and the best
    are written. The best epoch is written before the last one: whatever checkpoint a killed run goes on from, the best
    epoch before it is on the disk. The thread ends when nothing is left to be written; Python waits for it at its own
    end.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._snapshots: list[Snapshot] = []
        self._change = Condition()  # guards all that follows
        self._waiting: _Epochs | None = None
        self._writing: _Epochs | None = None
        self._thread: Thread | None = None
        self._due = 0.0
        self._is_urgent = False
        self._error: Exception | None = None

    def keep(self, checkpoint: Mapping[str, Any], *, is_best: bool) -> None:
        """Copies the checkpoint of an epoch, which is written when it is due: the first one at once.

        Raises:
            Exception: what an earlier write has raised, such as an OSError of a full disk.
        """
        self._raise_error()
        snapshot = self._unused()
        snapshot.take(checkpoint)  # an interruption here leaves what was waiting as it was
        with self._change:
            best_before = self._waiting.best if self._waiting is not None else None
            self._waiting = _Epochs(snapshot, snapshot if is_best else best_before)
            self._start()

    def flush(self) -> None:
        """Returns once everything is on the disk, and gives back the memory of the copies.

        Raises:
            Exception: what a write has raised.
        """
        with self._change:
            self._is_urgent = True
            self._start()
            self._change.notify()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._is_urgent = False
        self._snapshots.clear()
        self._raise_error()

    def _raise_error(self) -> None:
        with self._change:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _unused(self) -> Snapshot:
        """A snapshot that is neither being written nor waits for it."""
        with self._change:
            used = [snapshot for epochs in (self._waiting, self._writing) for snapshot in epochs or ()]
        free = [snapshot for snapshot in self._snapshots if snapshot not in used]
        if not free:
            self._snapshots.append(Snapshot())
        return free[0] if free else self._snapshots[-1]

    def _start(self) -> None:
        if self._thread is None and self._waiting is not None:
            thread = Thread(target=self._work, name="checkpoints")
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while True:
            with self._change:
                if self._waiting is not None:
                    self._change.wait_for(lambda: self._is_urgent, self._due - time.monotonic())
                self._writing, self._waiting = self._waiting, None
                if self._writing is None:
                    self._thread = None
                    return
            failure = self._try_to_write(self._writing)
            with self._change:
                self._writing, self._due = None, time.monotonic() + INTERVAL
                if failure is not None:
                    self._error, self._waiting = failure, None

    def _try_to_write(self, epochs: _Epochs) -> Exception | None:
        try:
            self._write(epochs)
        except Exception as error:  # noqa: BLE001  the thread that trains raises it
            return error
        return None

    def _write(self, epochs: _Epochs) -> None:
        last, best = self.folder / LAST, self.folder / BEST
        if epochs.best is not None and epochs.best is not epochs.last:
            with whole(best, durable=True) as aside:
                epochs.best.save(aside)
        with whole(last, durable=True) as aside:
            epochs.last.save(aside)
            if epochs.best is epochs.last:
                with whole(best, durable=True) as twin:
                    link_or_copy(aside, twin)
            if last.exists():  # a kill at any moment leaves a last.ckpt
                with whole(self.folder / PREVIOUS) as twin:
                    link_or_copy(last, twin)
