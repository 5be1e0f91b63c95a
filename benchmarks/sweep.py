"""A whole sweep, from the command to the board: three backbones on two folds, five epochs each, nothing pretrained.

Against it, the same work by timm's own training script, started once per run in a loop: the same pictures in training
and validation, batches, epochs and optimiser; its two workers decode files as they do for its users. Both find the
files as they were downloaded, so that osteo's time has their preparation in it. It goes on to predict and to compare,
and timm's does not. timm's script is not part of its package: $OSTEO_TIMM_TRAIN names the train.py of a checkout.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.noise import note, python
from benchmarks.peers import timm_arguments
from osteo.data.phantom import write_archives
from osteo.records.record import Run
from osteo.records.sweep import runs_of

GOAL, ROUNDS = 0.5, 3


@dataclass(frozen=True)
class Work:
    """What both do."""

    backbones: tuple[str, ...] = ("resnet18", "resnet50", "densenet121")
    folds: tuple[int, ...] = (0, 1)
    epochs: int = 5
    side: int = 96
    batch: int = 16
    pictures: int = 300


def enlarge(root: Path) -> None:
    """Doubles the sides of phantoms, which are then about 650 x 950: the median of the Mendeley files is 514 x 1024."""
    for path in (path for path in root.rglob("*") if path.suffix in (".png", ".jpg")):
        picture = Image.open(path)
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(path)


def osteo_seconds(work: Work, root: Path, place: Path) -> float:
    """Of the sweep, whose pictures nobody has prepared before."""
    command = [
        *python("osteo"), "train", "-m", "data=folder", f"data.root={root}", f"data.image_size={work.side}",
        f"data.batch_size={work.batch}", f"trainer.max_epochs={work.epochs}", "augment=online",
        f"model.backbone={','.join(work.backbones)}", f"data.split.fold={','.join(map(str, work.folds))}",
        "optimizer.name=adamw", "optimizer.lr=1e-3", "model.pretrained=false", "logger.wandb.mode=disabled",
        f"output_dir={place / 'sweep'}",
    ]  # fmt: skip
    environment = {**os.environ, "OSTEO_CACHE": str(place / "cache")}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    with (place / "sweep" / "leaderboard.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(work.backbones) * len(work.folds)
    return found


def folders_of(run: Run, root: Path, place: Path) -> Path:
    """Folders as timm's script takes them, of the pictures that a run trains on and validates by."""
    for row in run.read_manifest().itertuples():
        if row.split in ("train", "val"):
            folder = place / {"train": "train", "val": "validation"}[row.split] / str(row.class_name)
            folder.mkdir(parents=True, exist_ok=True)
            picture = root / row.path
            (folder / picture.name).symlink_to(picture.resolve())
    return place


def timm_seconds(work: Work, script: Path, folders: list[Path], place: Path) -> float:
    """Of all runs, one after another."""
    start = time.perf_counter()
    for backbone in work.backbones:
        for folder in folders:
            output = place / f"{backbone}-{folder.name}"
            arguments = timm_arguments(folder, backbone, work.side, work.batch, work.epochs, output)
            done = subprocess.run(
                [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, cwd=place
            )
            if done.returncode:
                raise RuntimeError((done.stdout + done.stderr)[-2000:])
            with next(output.rglob("summary.csv")).open(encoding="utf-8") as file:
                assert len(list(csv.DictReader(file))) == work.epochs
    return time.perf_counter() - start


def compare(work: Work, script: Path, rounds: int) -> dict[str, object]:
    """Seconds of both, in turn."""
    found: dict[str, list[float]] = {"osteo": [], "timm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            each = {"normal": work.pictures // 2, "osteoporosis": work.pictures // 2}
            write_archives(place / "phantom", seed=0, kaggle=each, mendeley={})
            root = place / "phantom" / "kaggle"
            enlarge(root)
            found["osteo"].append(osteo_seconds(work, root, place))
            runs = runs_of(place / "sweep")[: len(work.folds)]  # of the first backbone
            folders = [folders_of(run, root, place / run.name) for run in runs]
            found["timm"].append(timm_seconds(work, script, folders, place))
    ours, theirs = (statistics.median(values) for values in found.values())
    return {
        "backbones": " ".join(work.backbones),
        "folds": len(work.folds),
        "epochs": work.epochs,
        "side": work.side,
        "pictures": work.pictures,
        "osteo, s": round(ours, 1),
        "timm's script in a loop, s": round(theirs, 1),
        "osteo / timm": round(ours / theirs, 3),
        "goal": GOAL,
        "noise": note(*found.values()),
    }


def measure() -> list[dict]:
    """One row."""
    if (script := os.environ.get("OSTEO_TIMM_TRAIN")) is None:
        sys.exit("OSTEO_TIMM_TRAIN names no train.py of a checkout of timm, which this benchmark compares with")
    return [compare(Work(), Path(script), ROUNDS)]
