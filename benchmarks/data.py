"""An epoch's data at 224 x 224: osteo's store against torchvision's ImageFolder with PIL and two workers."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.noise import note
from osteo.config import DataConfig
from osteo.data.datamodule import KneeDataModule
from osteo.data.phantom import write_archives
from osteo.data.prepare import Prepared, prepare

SIDE, BATCH, ROUNDS, EPOCHS = 224, 16, 9, 20


def root() -> tuple[str, Path]:
    """Class folders: the original X-rays where $OSTEO_XRAYS names them, else phantoms."""
    if given := os.environ.get("OSTEO_XRAYS"):
        return "original X-rays", Path(given)
    folder = Path(tempfile.mkdtemp()) / "phantom"
    write_archives(folder, seed=0, kaggle={"normal": 100, "osteoporosis": 100}, mendeley={})
    return "phantoms", folder / "kaggle"


def measure() -> list[dict]:
    """Seconds of data for as many pictures, as batches of float on the CPU, without augmentation on either side."""
    kind, folder = root()
    config = DataConfig("folder", root=str(folder), image_size=SIDE, cache=tempfile.mkdtemp())
    config.split.grouped = False
    manifest, store = prepare(config)
    start = time.perf_counter()
    manifest, store = prepare(config)
    opened = time.perf_counter() - start
    module = KneeDataModule(Prepared(manifest, store), batch_size=BATCH, seed=0, augment=lambda pictures, *_: pictures)
    transform = v2.Compose(
        [v2.Grayscale(), v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    theirs = DataLoader(ImageFolder(folder, transform), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    found: dict[str, list[float]] = {"osteo": [], "ImageFolder": []}
    for _ in range(ROUNDS):
        start, count = time.perf_counter(), 0
        for _ in range(EPOCHS):  # one takes milliseconds
            for items in module.train_dataloader():
                count += len(module.gather(items, "train", augmented=False).labels)
        found["osteo"].append((time.perf_counter() - start) / count)
        start, count = time.perf_counter(), 0
        for _pictures, labels in theirs:
            count += len(labels)
        found["ImageFolder"].append((time.perf_counter() - start) / count)
    for values in found.values():
        del values[0]  # pages and workers come in
    ours, other = (statistics.median(values) for values in found.values())
    return [
        {
            "pictures": kind,
            "osteo, ms a picture": round(1e3 * ours, 4),
            "ImageFolder, two workers, ms a picture": round(1e3 * other, 3),
            "ImageFolder / osteo": round(other / ours, 1),
            "a prepared data set opens in, s": round(opened, 3),
            "noise": note(*found.values()),
        }
    ]
