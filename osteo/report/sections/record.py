"""The section "Record" of the report: runs, versions and hashes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from osteo.data.manifest import originals
from osteo.files import sha256_of
from osteo.records.record import Run
from osteo.report.results import Results
from osteo.task import Task


def runs_table(board: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row per run of the leaderboard, those of one model beside each other."""
    own = {"nominal": "test/balanced_accuracy", "ordinal": "test/balanced_accuracy",
           "regression": "test/mean_absolute_error"}.get(task.kind, "test/accuracy")  # fmt: skip
    of_system = [key for key in ("backbone", "protocol", "seed", "fold") if key in board]
    table = board[["run", *of_system, "best_epoch", own, "test/auroc", "seconds", "peak_memory_mib"]].copy()
    table["fold"] = table["fold"].astype("Int64")
    names = {"test/auroc": "test AUROC", "peak_memory_mib": "peak memory (MiB)"}
    return table.sort_values(of_system, kind="stable").rename(
        columns=lambda name: names.get(name, name.replace("_", " ").replace("/", " "))
    )


def versions_table(runs: Sequence[Run]) -> pd.DataFrame:
    """With what the runs were trained: libraries, machine and precision; several values where runs differ."""
    environments = [run.read_environment() for run in runs]
    versions = [
        {
            "osteo": facts["osteo"], "Python": facts["python"], **facts["libraries"], "system": facts["system"],
            "machine": facts["machine"], **{name: facts.get(name, "-") for name in ("accelerator", "precision")},
        }
        for facts in environments
    ]  # fmt: skip
    return pd.DataFrame(
        {"name": name, "version": ", ".join(sorted({str(of_run[name]) for of_run in versions}))} for name in versions[0]
    )


def data_sha256(manifest: pd.DataFrame) -> str:
    """A hash of the used pictures and their labels, whatever their names and order."""
    used = originals(manifest[manifest["split"] != "excluded"])
    lines = sorted(f"{sha} {int(label)}" for sha, label in zip(used["sha256"], used["label"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hashes_table(results: Results, manifest: pd.DataFrame) -> pd.DataFrame:
    """SHA-256 of the data, and of each model's best checkpoint."""
    hashes = [("data", data_sha256(manifest))]
    for result in results.models:
        run = result.system.best_run
        hashes.append((f"{result.system.name}, run {run.name}", file_sha256(run.best_checkpoint)))
    return pd.DataFrame(hashes, columns=["of", "SHA-256"])


def file_sha256(path: Path) -> str:
    """The hash of a file, or a dash where it is gone."""
    return sha256_of(path) if path.is_file() else "-"
