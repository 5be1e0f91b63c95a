"""What a run computes on, chosen by what the machine has."""

import gc
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from osteo.checks import check_devices
from osteo.config import TrainerConfig
from osteo.errors import UserError, counted
from osteo.training import ranks

CONTEXT = 2**29
"""Bytes of a GPU that a process takes beside what torch allocates: CUDA's context, kernels and libraries."""


def present_accelerator(requested: str, key: str = "accelerator") -> str:
    """The accelerator to use: cuda, mps or cpu.

    Args:
        requested: one of `osteo.config.ACCELERATORS`.
        key: of the configuration that asks for it, for the error.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        chosen = next(name for name in ("cuda", "mps", "cpu") if present[name])
    elif requested == "gpu":
        chosen = next((name for name in ("cuda", "mps") if present[name]), "cuda")
    else:
        chosen = requested
    if not present[chosen]:
        raise UserError(f"{key}={requested}, but this machine shows no {chosen.upper()} device; use {key}=cpu or auto")
    return chosen


def choose_accelerator(limits: TrainerConfig) -> str:
    """The accelerator of a training: cuda, mps or cpu.

    Raises:
        UserError: it is not there, or has fewer devices than asked for.
    """
    chosen = present_accelerator(limits.accelerator, "trainer.accelerator")
    _check_devices(limits.devices, torch.cuda.device_count() if chosen == "cuda" else None)
    return chosen


def _check_devices(devices: Any, present: int | None) -> None:
    check_devices(devices)
    wanted = len(devices) if isinstance(devices, list) else devices
    if present is not None and devices != "auto" and wanted > present:
        raise UserError(f"trainer.devices={devices} asks for {wanted} devices, but {present} are there")


def count_processes(limits: TrainerConfig, accelerator: str) -> int:
    """The processes that train together, one a device on every node.

    Raises:
        UserError: the accelerator has one device only, the CPU fewer cores, or other processes were started.
    """
    devices = limits.devices
    if isinstance(devices, list):
        if accelerator == "cpu":
            raise UserError(f"trainer.devices={devices} lists GPUs; on the CPU give the number of processes")
        devices = len(devices)
    elif devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "cuda" else 1
    count = int(devices) * limits.num_nodes
    if accelerator == "mps" and count > 1:
        raise UserError(f"trainer.devices={limits.devices}: there is one MPS device; use trainer.devices=1")
    if ranks.launched() and ranks.started() != count:
        raise UserError(
            f"{ranks.started()} processes were started together, but trainer.devices={limits.devices} and"
            f" trainer.num_nodes={limits.num_nodes} ask for {count}; make them the same"
        )
    if limits.num_nodes > 1 and not ranks.launched():
        raise UserError(
            f"trainer.num_nodes={limits.num_nodes} needs a process for every device on every node:"
            " start it by srun or torchrun"
        )
    if accelerator == "cpu" and int(devices) > (cores := os.cpu_count() or int(devices)):
        raise UserError(
            f"trainer.devices={limits.devices} asks for {devices} processes on the CPU, which has"
            f" {counted(cores, 'core')}; use {cores} at most, or leave it out"
        )
    return count


@contextmanager
def free_gpu(folder: Path, present: int) -> Iterator[int]:
    """Yields one of `present` GPUs to a process of several that share them: the first of those with the fewest.

    Args:
        folder: of this machine, where the processes note by locked files which GPU they have.
        present: how many there are, from 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for gpu in range(present):
            lock = FileLock(folder / f"gpu{gpu}.{turn}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                yield gpu
            finally:
                lock.release()
            return


def free_memory() -> None:
    """Gives back what nothing uses any more, and what torch has kept of it for later."""
    gc.collect()
    with suppress(RuntimeError):  # a device that is lost has nothing to give, and has been named
        torch.accelerator.empty_cache()


def take_share(gpu: int, jobs: int) -> None:
    """Has this process take at most its share of a GPU's memory, which it has as one of so many jobs."""
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, 1 / jobs - CONTEXT / total), gpu)


def reset_peak_memory(accelerator: str) -> None:
    """Starts to measure peak memory anew, where the system can (CUDA, Linux)."""
    if accelerator == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(accelerator: str) -> int:
    """Peak memory since the reset, in MiB: what torch took of the GPU, else what the process had resident."""
    if accelerator == "cuda":
        return int(torch.cuda.max_memory_allocated() // 2**20)
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) // 1024
        )
    if sys.platform == "win32":
        return 0
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 2**20  # in bytes on macOS


def choose_precision(limits: TrainerConfig, accelerator: str) -> str:
    """The arithmetic to use: what was asked for, or bf16 where the hardware multiplies it faster than float32."""
    if limits.precision != "auto":
        return limits.precision
    if not limits.fast:
        return "32-true"
    if accelerator == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    elif accelerator == "cpu":
        # torch has no public question for this; both names are there since torch 2.4
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"
