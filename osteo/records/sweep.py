"""The runs of a sweep, and its leaderboard."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from osteo.records.content import DamagedError
from osteo.records.record import STATUS, Run

log = logging.getLogger(__name__)

COSTS = ("seconds", "seconds_per_epoch", "pictures_per_second", "peak_memory_mib")


def runs_of(sweep: Path) -> list[Run]:
    """The runs of a sweep, or the single run, in the order of their numbers; also one whose status.json is gone."""
    if _is_run(sweep):
        return [Run(sweep)]
    found = [path for path in sweep.glob("*/") if _is_run(path)]
    return [Run(path) for path in sorted(found, key=lambda path: (not path.name.isdigit(), path.name.zfill(9)))]


def _is_run(directory: Path) -> bool:
    names = ("config.yaml", "manifest.csv")
    return (directory / STATUS).exists() or all((directory / name).exists() for name in names)


def trained(sweep: Path, check: Callable[[Run], object]) -> tuple[list[Run], list[str]]:
    """The finished trainings of a sweep that pass a check, and a line on each that does not, which is logged too."""
    usable, lines = [], []
    for run in runs_of(sweep):
        try:
            if run.status()["state"] == "done" and run.is_training:
                check(run)
                usable.append(run)
        except DamagedError as error:
            lines.append(f"run {run.directory.name} is left out: {error}")
            log.warning("%s", lines[-1])
    return usable, lines


def changes(runs: Sequence[Run]) -> list[str]:
    """A line on each run whose files are no longer what they were when it ended, which is logged too."""
    found = {run.directory.name: run.changes() for run in runs}
    lines = [f"run {name}: {clause}; it is read as it is now" for name, clause in found.items() if clause]
    for line in lines:
        log.warning("%s", line)
    return lines


def leaderboard(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per finished training, the best AUROC on validation first, by which a run may be chosen.

    Columns: run, backbone, seed, fold, parameters, epochs, best_epoch, val/auroc, the metrics as test/..., and the
    cost: seconds in all and per epoch, pictures trained on per second, peak memory in MiB.
    """
    rows = []
    for run in runs:
        metrics, facts = run.read_results()
        rows.append(
            {"run": run.directory.name}
            | {key: facts[key] for key in ("backbone", "seed", "fold", "parameters", "epochs", "best_epoch")}
            | {"val/auroc": metrics["val/auroc"]}
            | {
                name: value
                for name, value in metrics.items()
                if name.startswith("test/") and not isinstance(value, list)
            }
            | {key: facts.get(key) for key in COSTS}
        )
    table = pd.DataFrame(rows)
    if rows:
        table = table.sort_values("val/auroc", ascending=False, kind="stable").reset_index(drop=True)
    return table
