"""python -m benchmarks [NAME ...]: runs benchmarks and writes benchmarks/results/NAME.json and .md.

$OSTEO_RESULTS is another folder for them.
"""

import functools
import importlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from benchmarks.noise import other_jobs
from osteo.report.tables import as_markdown

RESULTS = Path(os.environ.get("OSTEO_RESULTS", Path(__file__).parent / "results"))
BENCHMARKS = {
    "step": "a training step of osteo train over the bare model's",
    "host": "a step without its network against a loop of a few lines",
    "augment": "augmentation against Kornia's own chain and albumentations",
    "data": "an epoch's data against ImageFolder",
    "checkpoints": "how long the end of an epoch waits for its checkpoint",
    "peers": "a training step against timm's script, a plain Lightning one and torchvision's loop",
    "sweep": "a whole sweep, from the command to the board, against timm's script in a loop",
    "side_by_side": "two trainings side by side on the CPU against one after the other",
    "first_day": "from a clone to a prediction: minutes and commands, task by task",
    "start": "how long a user waits before the first step",
    "gpu": "what osteo does on a CUDA GPU: numbers, waits, memory, and steps against bare loops",
    "accuracy": "whether what is fast changes what is learnt",
    "compile": "what torch.compile costs and gains",
    "faults": "runs and sweeps killed at random and taken up",
    "growth": "a thousand to a hundred thousand pictures",
    "scaling": "what ten thousand runs on a hundred nodes would take",
    "decode": "preparing pictures against a plain PIL loop",
    "channels": "the backbones on one grey channel against RGB",
    "audit": "an audit of 20 000 phantoms",
    "duplicates": "copies found by what was done to them",
    "coverage": "intervals and tests against a known truth",
    "coverage_classes": "the same of three classes and of T-scores",
    "added_value": "the tests of what a picture adds to age, against a known truth",
    "folds": "the AUROC of all pairs and of those within a fold, where networks differ by an offset",
    "selection": "the best of ten models on test, as measured and corrected",
    "bounded": "what reading takes of files that claim or inflate to too much",
    "dicom": "what becomes of the files that pydicom ships",
    "parity": "one picture, one logit, wherever it is asked about",
    "predict": "how long an answer takes",
    "guard": "what the guard flags, and what it lets pass",
    "export": "an exported model through our wrapper against plain onnxruntime",
    "damage": "every file of a run, a sweep, a study and a cache damaged in turn",
    "recipe": "which recipe wins on the real radiographs, by fit, size, features and ingredient",
    "literature": "the systems of the literature beside ours on the real radiographs, on the same folds",
    "learning": "the best recipe on a quarter, a half, three quarters and all of the training pictures",
    "ladder": "what a network reaches under protocols from the loosest to the strictest, on phantoms and real files",
    "pretrain": "what pretraining without labels brings, over random weights and beside ImageNet's",
    "fuzz": "ten thousand malformed uploads to osteo serve",
}


def main() -> None:
    """Runs what is named, or all."""
    names = sys.argv[1:] or list(BENCHMARKS)
    if wrong := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"benchmark '{wrong[0]}' is unknown; choose one of: {', '.join(BENCHMARKS)}")
    if others := other_jobs():
        sys.exit(f"another job of ours is running ({others[0]}): wait for its end, or nothing measured here is true")
    failed = False
    for name in names:
        print(f"{name}: {BENCHMARKS[name]}", flush=True)
        rows: list[dict] = []
        for row in importlib.import_module(f"benchmarks.{name}").measure():
            rows.append(row)
            write(name, rows)
        print((RESULTS / f"{name}.md").read_text() if rows else "nothing to measure it on here", flush=True)
        failed |= any(row.get("verdict") == "FAIL" for row in rows)
    sys.exit(failed)


def write(name: str, rows: list[dict]) -> None:
    """Keeps the rows, as JSON and as a Markdown table, with machine and versions."""
    machine = {"system": platform.system(), "machine": platform.machine(), "cores": cores(), "processor": processor()}
    if gpus := accelerators():
        machine["accelerator"] = gpus
    versions = {library: installed(library) for library in ("torch", "opencv-python-headless", "pillow", "numpy")}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=2)
    )
    table = as_markdown(pd.DataFrame(rows).astype(str))
    parts = [f"{machine['cores']} cores, {machine['processor']}", gpus]
    note = "; ".join([*filter(None, parts), ", ".join(f"{k} {v}" for k, v in versions.items())])
    (RESULTS / f"{name}.md").write_text(f"{table}\n{note}\n")


def installed(library: str) -> str:
    """Its version; another distribution may bring the same modules."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "-"


@functools.cache
def accelerators() -> str:
    """NVIDIA's GPUs with their driver and memory, asked for without taking any of it; empty where there are none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return "; ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.CalledProcessError):
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
