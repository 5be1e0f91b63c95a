"""Whether what makes a step fast (bf16, channels_last, a fused optimiser) changes what a network learns.

The same runs with `trainer.fast=true` and `false`, over seeds: the difference must be within the noise of the seeds.
"""

import statistics
import subprocess
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.noise import python

SEEDS = range(6)
METRICS = {"test/auroc": "AUROC", "test/accuracy": "accuracy"}


def measure() -> list[dict]:
    """One row per metric."""
    with tempfile.TemporaryDirectory() as temporary:
        tables = {}
        for fast in ("true", "false"):
            command = [
                *python("osteo"), "train", "-m", "model.backbone=resnet18", "data.image_size=64", "data.batch_size=32",
                "trainer.max_epochs=8", f"trainer.fast={fast}", f"seed={','.join(map(str, SEEDS))}",
                "logger.wandb.mode=disabled", f"output_dir={temporary}/{fast}",
            ]  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            tables[fast] = pd.read_csv(Path(temporary) / fast / "leaderboard.csv").set_index("seed").sort_index()
        rows = []
        for column, name in METRICS.items():
            fast, plain = tables["true"][column], tables["false"][column]
            apart = fast - plain
            error = statistics.stdev(apart) / len(apart) ** 0.5
            rows.append(
                {
                    "metric": name,
                    "seeds": len(SEEDS),
                    "fast, mean": round(fast.mean(), 4),
                    "plain, mean": round(plain.mean(), 4),
                    "spread over seeds": round(statistics.stdev(plain), 4),
                    "difference": round(apart.mean(), 4),
                    "its standard error": round(error, 4),
                    "within two of them": bool(abs(apart.mean()) <= 2 * error),
                    "s a run, fast": round(tables["true"]["seconds"].median(), 1),
                    "s a run, plain": round(tables["false"]["seconds"].median(), 1),
                }
            )
    return rows
