"""How long a user waits, in units of `import torch` on the same machine: for help, a mistake, the first step."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.noise import note, python

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
RUN = ["data.image_size=64", "model.backbone=resnet18", "trainer.max_epochs=1", "logger.wandb.mode=offline"]
MISTAKES = {
    "an unknown command": ["trian"],
    "an unknown key": ["train", "optimizer.lrr=1"],
    "a value out of range": ["train", "trainer.max_epochs=0"],
    "an unknown backbone": ["train", "model.backbone=densenet12"],
    "an unknown optimiser": ["train", "optimizer.name=adamwx"],
    "an unknown operation": ["train", "augment.ops=[{RandomAfine: {}}]"],
    "an unknown argument of the Trainer": ["train", "trainer.extra={profile: simple}"],
    "a data folder that is not there": ["train", "data=folder", "data.root=nowhere"],
    "a weights_file that is not there": ["train", "model.weights_file=gone.pth"],
    "an output_dir that cannot be written": ["train", "output_dir=/dev/null/run"],
    "resume of nothing": ["train", "resume=nowhere"],
    "report without an argument": ["report"],
    "report of nothing": ["report", "nowhere"],
    "status of nothing": ["status", "nowhere"],
    "rerun of nothing": ["rerun", "nowhere"],
    "evaluate without a checkpoint": ["evaluate", "nowhere"],
    "predict without a picture": ["predict", "nowhere"],
    "serve without a checkpoint": ["serve", "nowhere"],
    "export without a checkpoint": ["export", "nowhere"],
}
COMPLETED = {
    "completion of a key": "osteo train model.dro",
    "completion of a backbone": "osteo train model.backbone=de",
}


def seconds(command: list[str], code: int = 0, **environment: str) -> float:
    """Wall time of a command that ends with this code."""
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode != code:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    return taken


def first_step() -> float:
    """From the command to the end of the first step of a run whose data set is prepared: an epoch of one step."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        callback = f"callbacks.first={{_target_: benchmarks.marks.FirstStep, path: {mark}}}"
        command = [*python("osteo"), "train", *RUN, "trainer.limit_train_batches=1", f"output_dir={folder}/run"]
        started = time.time()
        process = subprocess.Popen(
            [*command, "plugins=[benchmarks.marks]", callback], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if process.wait():
            raise RuntimeError(f"{command} failed")
        return mark.stat().st_mtime - started


def between_jobs() -> list[float]:
    """From the end of one job's training to the start of the next one's, within a multirun of six."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*python("osteo"), "train", "-m", *RUN, "seed=0,1,2,3,4,5", f"output_dir={folder}/sweep"]
        subprocess.run(command, check=True, capture_output=True)
        spans = []
        for job in range(6):
            record = Path(folder) / "sweep" / str(job)
            facts = json.loads((record / "environment.json").read_text())
            spans.append(((record / "history.csv").stat().st_mtime, facts["seconds_per_epoch"]))
    return [end - epoch - before for (before, _), (end, epoch) in itertools.pairwise(spans)]


def waits() -> dict[str, tuple[Callable[[], float], float]]:
    """How each wait is measured, and the most that it should be in units of `import torch`."""
    osteo = python("osteo")
    found: dict[str, tuple[Callable[[], float], float]] = {
        "osteo --help": (lambda: seconds([*osteo, "--help"]), 0.1),
        "osteo train --cfg job": (lambda: seconds([*osteo, "train", "--cfg", "job"]), 0.5),
        "first step of a prepared run": (first_step, 2.0),
    }
    for what, words in MISTAKES.items():
        found[what] = (lambda words=words: seconds([*osteo, *words], code=2), 0.5)  # type: ignore[misc]
    for what, line in COMPLETED.items():
        point = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        found[what] = (lambda point=point: seconds([*osteo, "-sc", "query=bash"], **point), 0.5)  # type: ignore[misc]
    return found


def measure() -> list[dict]:
    """One row per wait; every round measures all of them, and `import torch` first."""
    # prepares the data, and keeps the names that each library knows
    subprocess.run(
        [*python("osteo"), "train", *RUN, "trainer.limit_train_batches=1", f"output_dir={tempfile.mkdtemp()}/run"],
        check=True, capture_output=True,
    )  # fmt: skip
    for words in MISTAKES.values():
        seconds([*python("osteo"), *words], code=2)
    measured: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        measured.setdefault("import torch", []).append(seconds([sys.executable, "-c", "import torch"]))
        for what, (wait, _) in waits().items():
            measured.setdefault(what, []).append(wait())
    measured["from one job's last step to the next one's first"] = between_jobs()
    goals = {what: goal for what, (_, goal) in waits().items()} | {"import torch": 1.0}
    unit, rows = statistics.median(measured["import torch"]), []
    for what, values in measured.items():
        ratio = round(statistics.median(values) / unit, 2)
        row = {"what": what, "seconds": round(statistics.median(values), 3), "ratio": ratio}
        rows.append(row | {"goal": goals.get(what, 0.7), "noise": note(values)})
    return rows
