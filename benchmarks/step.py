"""A training step of `osteo train` over the bare model's: what augmentation, Lightning, metrics, progress and W&B cost.

Both run in processes of their own, in turn, so that a change of the machine's speed meets both.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.noise import note, python

BACKBONES = ("resnet50", "densenet121", "densenet201")
SIZES = {224: 6, 64: 20}  # side: steps an epoch
BATCH, EPOCHS, ROUNDS = 16, 3, 3
SHORT = ("data.split.train=0.9", "data.split.val=0.05")  # little that is not training


def osteo_seconds(backbone: str, size: int, *overrides: str) -> float:
    """Seconds of a step of `osteo train` in steady state: the median of the epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *python("osteo"), "train", f"model.backbone={backbone}", f"data.image_size={size}",
            f"data.batch_size={BATCH}", f"trainer.max_epochs={EPOCHS}", "augment=online",
            "logger.wandb.mode=offline", f"output_dir={folder}/run", *overrides,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        with (Path(folder) / "run" / "history.csv").open() as file:
            speed = [float(row["pictures_per_second"]) for row in csv.DictReader(file)]
    return BATCH / statistics.median(speed[1:])


def bare_seconds(backbone: str, size: int, steps: int) -> float:
    """Seconds of a step of the bare model, the median."""
    command = [*python("benchmarks.bare"), backbone, str(size), str(BATCH), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def measure() -> list[dict]:
    """One row per backbone and size; the ratio is of the medians of the rounds."""
    rows = []
    for size, steps in SIZES.items():
        for backbone in BACKBONES:
            rounds = [
                (
                    osteo_seconds(backbone, size, f"trainer.limit_train_batches={steps}", *SHORT),
                    bare_seconds(backbone, size, steps + 4),
                )
                for _ in range(ROUNDS)
            ]
            ours, bare = (statistics.median(values) for values in zip(*rounds, strict=True))
            rows.append(
                {
                    "backbone": backbone,
                    "side": size,
                    "batch": BATCH,
                    "osteo, s a step": round(ours, 4),
                    "bare, s a step": round(bare, 4),
                    "osteo / bare": round(ours / bare, 3),
                    "goal": 1.05 if size == 224 else 1.15,
                    "noise": note(*zip(*rounds, strict=True)),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows
