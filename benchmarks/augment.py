"""osteo's augmentation against Kornia's own chain of the same transforms and albumentations in two workers."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import kornia.augmentation as K
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.noise import note
from osteo.config import AugmentConfig
from osteo.training.augment import Online, Operations, make_cpu_twin

BATCH, BATCHES, ROUNDS = 16, 60, 9


class Pictures(Dataset):
    """Grey pictures in memory, augmented one by one, as a script's dataset does."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures
        self.change = make_cpu_twin(AugmentConfig())

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: int) -> torch.Tensor:
        return torch.from_numpy(self.change(self.pictures[item]).copy())


def chain(ranges: AugmentConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Kornia's own."""
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=ranges.flip),
        K.RandomAffine(
            ranges.rotate, translate=(ranges.translate,) * 2, scale=(1 - ranges.scale, 1 + ranges.scale), p=1.0
        ),
        K.RandomBrightness((1 - ranges.brightness, 1 + ranges.brightness), p=1.0),
        K.RandomContrast((1 - ranges.contrast, 1 + ranges.contrast), p=1.0),
        data_keys=["input"],
    )


def entries(ranges: AugmentConfig) -> list[dict[str, dict[str, object]]]:
    """The same chain as `augment.ops`."""
    translate, scale, brightness, contrast = ranges.translate, ranges.scale, ranges.brightness, ranges.contrast
    affine = {"degrees": ranges.rotate, "translate": [translate, translate], "scale": [1 - scale, 1 + scale], "p": 1.0}
    return [
        {"RandomHorizontalFlip": {"p": ranges.flip}},
        {"RandomAffine": affine},
        {"RandomBrightness": {"brightness": [1 - brightness, 1 + brightness], "p": 1.0}},
        {"RandomContrast": {"contrast": [1 - contrast, 1 + contrast], "p": 1.0}},
    ]


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, over as many as make a measurement."""
    work()
    start = time.perf_counter()
    for _ in range(BATCHES):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / BATCHES


def measure() -> list[dict]:
    """One row per device and side: milliseconds per batch of 16."""
    rows = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for side in (224, 64):
            grey = np.random.default_rng(0).integers(0, 256, (BATCH * BATCHES, side, side), dtype=np.uint8)
            pictures = (torch.from_numpy(grey[:BATCH]).unsqueeze(1).float() / 255).to(device)
            online, by_kornia, draw = (
                Online(AugmentConfig()),
                chain(AugmentConfig()),
                torch.arange(BATCH, device=device),
            )
            by_name = Operations(entries(AugmentConfig()), side=side)
            loader = DataLoader(Pictures(grey), batch_size=BATCH, num_workers=2, persistent_workers=True)
            found: dict[str, list[float]] = {"osteo": [], "ops": [], "Kornia": [], "albumentations": []}
            for _ in range(ROUNDS):
                found["osteo"].append(seconds(partial(online, pictures, pictures, draw, draw), device))
                found["ops"].append(seconds(partial(by_name, pictures, pictures, draw, draw), device))
                found["Kornia"].append(seconds(partial(by_kornia, pictures), device))
                start, count = time.perf_counter(), 0
                for batch in loader:
                    batch.unsqueeze(1).float().div_(255).to(device)
                    count += 1
                found["albumentations"].append((time.perf_counter() - start) / count)
            best = {name: statistics.median(values) for name, values in found.items()}
            rows.append(
                {
                    "device": device if device == "cpu" else torch.cuda.get_device_name(),
                    "side": side,
                    "osteo, ms": round(1e3 * best["osteo"], 2),
                    "augment.ops, ms": round(1e3 * best["ops"], 2),
                    "Kornia's chain, ms": round(1e3 * best["Kornia"], 2),
                    "albumentations, two workers, ms": round(1e3 * best["albumentations"], 2),
                    "Kornia / osteo": round(best["Kornia"] / best["osteo"], 2),
                    "augment.ops / Kornia": round(best["ops"] / best["Kornia"], 2),
                    "albumentations / osteo": round(best["albumentations"] / best["osteo"], 2),
                    "noise": note(*found.values()),
                }
            )
    return rows
