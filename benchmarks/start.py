"""How long a user waits: for help, a configuration, the first step of a prepared run, the next job of a sweep."""

import itertools
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.noise import note, python

ROUNDS = 7
RUN = ["data.image_size=64", "model.backbone=resnet18", "trainer.max_epochs=1", "logger.wandb.mode=offline"]


def seconds(*arguments: str) -> list[float]:
    """Wall time of the command, several times."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([*python("osteo"), *arguments], check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return found


def first_step() -> list[float]:
    """From the command to the end of the first step of a run whose data set is prepared: an epoch of one step."""
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            command = [*python("osteo"), "train", *RUN, "trainer.limit_train_batches=1", f"output_dir={folder}/run"]
            started = time.time()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            history = Path(folder) / "run" / "history.csv"
            while not history.exists() and process.poll() is None:
                time.sleep(0.01)
            found.append(history.stat().st_mtime - started)
            process.wait()
    return found


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


def measure() -> list[dict]:
    """One row per wait."""
    seconds(
        "train", *RUN, "trainer.limit_train_batches=1", "output_dir=" + tempfile.mkdtemp() + "/${now:%f}"
    )  # prepare
    rows = []
    for what, values, goal in (
        ("osteo --help", seconds("--help"), 0.3),
        ("osteo train --cfg job", seconds("train", "--cfg", "job"), 2.0),
        ("first step of a prepared run", first_step(), 12.0),
        ("from one job's last step to the next one's first", between_jobs(), 2.0),
    ):
        rows.append({"what": what, "seconds": round(statistics.median(values), 3), "goal": goal, "noise": note(values)})
    return rows
