"""How long the end of an epoch waits for its checkpoint, against torch.save and fsync of the same in the same thread.

Before is how osteo wrote until a thread did: Lightning's writer, then fsync, in the thread that trains.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from benchmarks.noise import note
from osteo.files import whole
from osteo.records.snapshots import CheckpointWriter

BACKBONES, ROUNDS, GOAL = ("resnet50", "densenet201"), 7, 0.1


def checkpoint_of(backbone: str) -> dict[str, Any]:
    """A network and the momentum of its SGD, as they are after a step."""
    network = timm.create_model(backbone, num_classes=1, in_chans=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"epoch": 0, "state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def torch_save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes as a plain script would that waits for the disk."""
    torch.save(checkpoint, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def before(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes in the thread that trains."""
    with whole(path, durable=True) as aside:
        TorchCheckpointIO().save_checkpoint(checkpoint, aside)


def seconds(action: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def waits(backbone: str, folder: Path) -> dict[str, list[float]]:
    """Seconds of every way, in turn; the first round, in which memory and pages come in, is not one of them."""
    checkpoint, writer = checkpoint_of(backbone), CheckpointWriter(folder)
    found: dict[str, list[float]] = {"torch.save": [], "before": [], "osteo": [], "end of fit": []}
    for _ in range(ROUNDS + 1):
        found["torch.save"].append(seconds(lambda: torch_save(checkpoint, folder / "theirs.ckpt")))
        found["before"].append(seconds(lambda: before(checkpoint, folder / "before.ckpt")))
        epochs = [seconds(lambda: writer.keep(checkpoint, is_best=True)) for _ in range(6)]
        found["osteo"].append(statistics.median(epochs[3:]))  # until then each takes memory, which flush gives back
        found["end of fit"].append(seconds(writer.flush))
    return {name: values[1:] for name, values in found.items()}


def measure() -> list[dict]:
    """One row per backbone; the size is that of the checkpoint."""
    rows = []
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            found = waits(backbone, Path(folder))
            size = (Path(folder) / "last.ckpt").stat().st_size
        middle = {name: statistics.median(values) for name, values in found.items()}
        rows.append(
            {
                "backbone": backbone,
                "MB": round(size / 1e6),
                "torch.save and fsync, s": round(middle["torch.save"], 3),
                "before, s": round(middle["before"], 3),
                "osteo, s": round(middle["osteo"], 4),
                "end of fit, s": round(middle["end of fit"], 3),
                "before / torch.save": round(middle["before"] / middle["torch.save"], 2),
                "osteo / torch.save": round(middle["osteo"] / middle["torch.save"], 3),
                "goal": GOAL,
                "noise": note(found["torch.save"], found["osteo"]),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows
