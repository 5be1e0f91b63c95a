"""What is checked on the device without `osteo train`: `python -m benchmarks.gpu.inside DEVICE NAME ...`.

Each of `CHECKS` prints lines of JSON as it comes to them: rows, or seconds of bare loops.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.bare import WARM_UP, Bare
from benchmarks.gpu.lab import Row, Scale
from osteo.config import AugmentConfig, DataConfig
from osteo.data.datamodule import KneeDataModule
from osteo.data.prepare import Prepared, prepare
from osteo.training.augment import make_augmentation
from osteo.training.draws import Mixup

LARGEST, FEW = 2e-3, 1e-3
"""How far an intensity in [0, 1] may lie from the CPU's, and what share of them above 1e-4."""
STEPS = {"cuda": 40, "cpu": 4}
OPERATIONS = [
    {"RandomAffine": {"degrees": 10.0, "p": 1.0}},
    {"RandomGaussianBlur": {"kernel_size": [3, 3], "sigma": [0.5, 1.5]}},
]
PIPELINES = {
    "online": (AugmentConfig(), 0.0),
    "online and mixup": (AugmentConfig(), 0.4),
    "paper": (AugmentConfig(name="paper", brightness=0.05, contrast=0.1), 0.0),
    "ops": (AugmentConfig(ops=OPERATIONS), 0.0),
}
"""What is compared with the CPU's: a pipeline, and alpha of mixup."""


def machine(scale: Scale) -> Iterator[Row]:
    """What it is."""
    begun = time.perf_counter()
    sum(range(10_000_000))
    spent = time.perf_counter() - begun
    device = f"{scale.device}, not a GPU"
    if scale.device == "cuda":
        kind = torch.cuda.get_device_properties(0)
        device = f"{kind.name}, {kind.total_memory / 2**30:.0f} GiB, capability {kind.major}.{kind.minor}"
        device += f", bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}, CUDA {torch.version.cuda}"
    yield Row(
        "machine", "NOTE", f"{device}; {os.cpu_count()} cores, which add ten million numbers in {spent:.2f} s;"
        f" Python {platform.python_version()}, torch {torch.__version__}",
    )  # fmt: skip


def pictures(scale: Scale) -> Prepared:
    """Those of all checks."""
    return prepare(DataConfig(phantom=scale.phantoms, image_size=scale.side))


def residence(scale: Scale) -> Iterator[Row]:
    """Whether the pictures lie on the GPU, once a batch was gathered there, and are those of the CPU."""
    prepared = pictures(scale)
    here, there = (KneeDataModule(prepared, batch_size=8) for _ in range(2))
    items = torch.arange(8)
    before = torch.cuda.memory_allocated() if scale.device == "cuda" else 0
    found = there.gather(items.to(scale.device), "train", augmented=False).pictures
    taken = torch.cuda.memory_allocated() - before if scale.device == "cuda" else 0
    is_same = torch.equal(found.cpu(), here.gather(items, "train", augmented=False).pictures)
    stored = prepared.store.pictures[0].nbytes
    is_there = taken >= stored if scale.device == "cuda" else True
    yield Row(
        "pictures on the device", "PASS" if is_same and is_there else "FAIL",
        f"{stored / 2**20:.1f} MiB of pictures; {taken / 2**20:.1f} MiB more taken of the GPU after the first batch;"
        f" the batch is the CPU's: {is_same}",
    )  # fmt: skip


def augmentation(scale: Scale) -> Iterator[Row]:
    """Augmented pictures against those of the CPU."""
    prepared = pictures(scale)
    for name, (config, alpha) in PIPELINES.items():
        augment = [make_augmentation(config, 5, scale.side) for _ in range(2)]
        here, there = (
            KneeDataModule(
                prepared,
                batch_size=16,
                augment=change,
                variants=change.variants,
                mix=Mixup(alpha, 5) if alpha else None,
            )
            for change in augment
        )
        items = torch.arange(16) * (2 * augment[0].variants - 1)
        expected = here.gather(items, "train", augmented=True, epoch=3).pictures
        found = there.gather(items.to(scale.device), "train", augmented=True, epoch=3).pictures.cpu()
        gap = (found - expected).abs()
        most, share = float(gap.max()), float((gap > 1e-4).float().mean())
        yield Row(
            f"augmentation as the CPU's: {name}", "PASS" if most < LARGEST and share < FEW else "FAIL",
            f"largest difference of an intensity {most:.1e} (at most {LARGEST:.0e}), {share:.1e} of them above 1e-4",
        )  # fmt: skip


def loops(scale: Scale) -> Iterator[dict[str, Any]]:
    """Seconds of a bare step, by backbone, batch and way; the slowest to begin, which are compiled, come last."""
    ways = ("eager", "graphed", "compiled") if scale.device == "cuda" else ("eager",)
    for way in ways:
        for backbone in scale.backbones:
            for batch in scale.batches:
                yield {"backbone": backbone, "batch": batch, "way": way, **_bare(scale, backbone, batch, way)}


def _bare(scale: Scale, backbone: str, batch: int, way: str) -> dict[str, Any]:
    torch.compiler.reset()
    bare = Bare(backbone, scale.side, batch, accelerator=scale.device)
    if way == "compiled":
        bare.model.compile()
    advance = bare.graphed() if way == "graphed" else bare.advance
    for _ in range(WARM_UP):
        advance()
    bare.wait()
    begun = time.perf_counter()
    for _ in range(STEPS[scale.device]):
        advance()
    bare.wait()
    return {"seconds": (time.perf_counter() - begun) / STEPS[scale.device]}


CHECKS: dict[str, Callable[[Scale], Iterator[Any]]] = {
    "machine": machine, "residence": residence, "augmentation": augmentation, "loops": loops,
}  # fmt: skip


def main(device: str, names: list[str]) -> None:
    """Prints what the checks say."""
    for name in names:
        for found in CHECKS[name](Scale(device)):
            print(json.dumps(found._asdict() if isinstance(found, Row) else found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
