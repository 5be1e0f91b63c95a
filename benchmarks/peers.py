"""A training step, data and augmentation included, against what a user would pick instead: the same files and backbone.

timm's own training script is not part of its package: $OSTEO_TIMM_TRAIN names the train.py of a checkout.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bare import gains_by_half
from benchmarks.data import root
from benchmarks.noise import note, python
from benchmarks.step import BATCH, EPOCHS, osteo_seconds

BACKBONE, ROUNDS = "resnet50", 2
GOALS = {224: 0.60, 128: 0.45}


def script_seconds(script: str, folder: Path, side: int) -> float:
    """Of a step of one of the scripts beside this file."""
    command = [*python(f"benchmarks.{script}"), str(folder), BACKBONE, str(side), str(BATCH), str(EPOCHS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def timm_arguments(data: Path, backbone: str, side: int, batch: int, epochs: int, output: Path) -> list[str]:
    """Of timm's script at its best settings here; `data` has the folders train and validation."""
    best = ["--amp", "--amp-dtype", "bfloat16"] if gains_by_half() else []
    return [
        "--data-dir", str(data), "--model", backbone, "--num-classes", "2", "--in-chans", "1", "--input-img-mode", "L",
        "--img-size", str(side), "-b", str(batch), "--workers", "2", "--device", "cpu", *best, "--channels-last",
        "--opt", "adamw", "--lr", "1e-3", "--epochs", str(epochs), "--warmup-epochs", "0", "--cooldown-epochs", "0",
        "--mean", "0.449", "--std", "0.226", "--log-interval", "1", "--output", str(output), "--no-prefetcher",
    ]  # fmt: skip


def timm_seconds(script: Path, folder: Path, side: int) -> float:
    """Of a step of timm's script: the median of its last epoch's, as it prints them."""
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        data.mkdir()
        for split in ("train", "validation"):
            (data / split).symlink_to(folder.resolve())
        arguments = timm_arguments(data, BACKBONE, side, BATCH, EPOCHS - 1, Path(temporary))
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent)
        said = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(said[-2000:])
    return statistics.median(map(float, re.findall(rf"Train: {EPOCHS - 2} .*?Time: ([\d.]+)s,", said)))


def measure() -> list[dict]:
    """One row per side."""
    kind, folder = root()
    script = os.environ.get("OSTEO_TIMM_TRAIN")
    rows = []
    for side, goal in GOALS.items():
        names = ["osteo", "Lightning", "torchvision", *(["timm"] if script else [])]
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            found["osteo"].append(osteo_seconds(BACKBONE, side, "data=folder", f"data.root={folder}"))
            found["Lightning"].append(script_seconds("plain", folder, side))
            found["torchvision"].append(script_seconds("reference", folder, side))
            if script:
                found["timm"].append(timm_seconds(Path(script), folder, side))
        middle = {name: statistics.median(values) for name, values in found.items()}
        rows.append(
            {
                "pictures": kind,
                "backbone": BACKBONE,
                "side": side,
                "osteo, s a step": round(middle["osteo"], 3),
                "timm's script, s a step": round(middle["timm"], 3) if script else "-",
                "Lightning and torchvision, s a step": round(middle["Lightning"], 3),
                "torchvision's loop, s a step": round(middle["torchvision"], 3),
                "osteo / timm": round(middle["osteo"] / middle["timm"], 3) if script else "-",
                "goal": goal,
                "osteo / Lightning": round(middle["osteo"] / middle["Lightning"], 3),
                "osteo / torchvision": round(middle["osteo"] / middle["torchvision"], 3),
                "noise": note(*found.values()),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows
