"""Runs and sweeps killed at random moments and taken up until they are done: is what they leave what it should be?

Every killed run is compared with one that was never killed: weights, metrics, predictions and curves, bit by bit.
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from benchmarks.noise import python
from osteo.data.phantom import write_archives
from osteo.records.record import Run
from osteo.records.sweep import runs_of

RUN_KILLS, SWEEP_KILLS = 30, 10
SWEEP = "model.backbone=test_resnet,test_convnext"


def settings(root: Path) -> list[str]:
    """A run of a few seconds in which chance has a part: dropout, augmentation, order."""
    return [
        "data=folder", f"data.root={root}", "data.image_size=64", "data.batch_size=8", "model.backbone=test_resnet",
        "model.drop_rate=0.3", "trainer.max_epochs=12", "trainer.accelerator=cpu", "logger.wandb.mode=offline",
        "keep=all",
    ]  # fmt: skip


def run_or_kill(arguments: list[str], folder: Path, after: float | None) -> bool:
    """Runs osteo train; kills it with SIGKILL after so many seconds, and says whether it was."""
    command = [*python("osteo"), "train", *arguments]
    # a service that W&B started for its caller would not notice that the process is gone
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(folder / 'said.txt').read_text()[-3000:]}")
    return False


def differs(one: Run, other: Run) -> list[str]:
    """What is not the same in two records that should be."""
    files = ("metrics.json", "predictions.csv", "manifest.csv")
    found = [name for name in files if (one.directory / name).read_bytes() != (other.directory / name).read_bytes()]
    curves = [run.read_table("history.csv").drop(columns=["seconds", "pictures_per_second"]) for run in (one, other)]
    if not curves[0].equals(curves[1]):
        found.append("history.csv")
    kept = [{path.name for path in run.checkpoints.glob("*.ckpt")} - {"previous.ckpt"} for run in (one, other)]
    for name in sorted(kept[0] | kept[1]):
        if name not in kept[0] & kept[1]:
            found.append(name)
            continue
        first, second = (
            torch.load(run.checkpoints / name, weights_only=True)["state_dict"] for run in (one, other)
        )  # fmt: skip
        if not all(torch.equal(first[key], second[key]) for key in first):
            found.append(name)
    return found


def torn(directory: Path) -> list[str]:
    """Files that a kill left half-written: JSON, tables and checkpoints that cannot be read."""
    found = []
    for path in directory.rglob("*"):
        try:
            if any(part.startswith(".") for part in path.relative_to(directory).parts):  # not under its name yet
                continue
            if path.suffix == ".json" and "wandb" not in path.parts:
                pd.read_json(path, typ="series")
            elif path.suffix == ".csv":
                pd.read_csv(path)
            elif path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001  whatever it is, the file is torn
            found.append(path.name)
    return found


def kill_until_done(start: list[str], again: list[str], folder: Path, output: Path, rng: random.Random, kills: int,
                    span: float) -> tuple[int, int]:  # fmt: skip
    """Starts, kills and takes up until it is done; returns kills and torn files seen after them."""
    done, broken = 0, 0
    while done < kills:
        has_begun = bool(runs_of(output)) or (output / "multirun.yaml").exists()
        if not run_or_kill(again if has_begun else start, folder, rng.uniform(0.5, span)):
            break
        done += 1
        broken += len(torn(output)) if output.exists() else 0
    has_begun = bool(runs_of(output)) or (output / "multirun.yaml").exists()
    run_or_kill(again if has_begun else start, folder, None)
    return done, broken


def harness(run_kills: int, sweep_kills: int, folder: Path, seed: int = 0) -> list[dict]:
    """A row for runs and one for sweeps."""
    write_archives(folder / "archives", seed=3, kaggle={"normal": 20, "osteoporosis": 20}, mendeley={})
    words, rng, rows = settings(folder / "archives" / "kaggle"), random.Random(seed), []
    for what, wanted, each in (("runs", run_kills, 3), ("sweeps", sweep_kills, 5)):
        arguments = words if what == "runs" else ["-m", *(w for w in words if "backbone" not in w), SWEEP]
        reference = folder / f"{what}-reference"
        started = time.perf_counter()
        run_or_kill([*arguments, f"output_dir={reference}"], folder, None)
        span = time.perf_counter() - started
        total = broken = identical = attempts = lost = 0
        wrong: list[str] = []
        while total < wanted:
            output = folder / f"{what}-{attempts}"
            attempts += 1
            done, torn_files = kill_until_done(
                [*arguments, f"output_dir={output}"], [f"resume={output}"], folder, output, rng,
                min(each, wanted - total), span,
            )  # fmt: skip
            total, broken = total + done, broken + torn_files
            lost += sum(run.state != "done" for run in runs_of(output))
            pairs = list(zip(runs_of(reference), runs_of(output), strict=True))
            found = [name for one, other in pairs for name in differs(one, other)]
            wrong += found
            identical += not found
        rows.append(
            {
                "what": what,
                "kills": total,
                what: attempts,
                "lost": lost,
                "torn files": broken,
                "bit-identical": f"{identical} of {attempts}",
                "differ": ", ".join(sorted(set(wrong))) or "-",
                "seconds of one": round(span, 1),
            }
        )
    return rows


def measure() -> list[dict]:
    """Thirty kills over runs, ten over sweeps."""
    with tempfile.TemporaryDirectory() as folder:
        return harness(RUN_KILLS, SWEEP_KILLS, Path(folder))
