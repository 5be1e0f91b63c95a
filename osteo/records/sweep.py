"""The runs of a sweep, and its leaderboard."""

from pathlib import Path

import pandas as pd

from osteo.records.record import Run

COSTS = ("seconds", "seconds_per_epoch", "pictures_per_second", "peak_memory_mib")


def runs_of(sweep: Path) -> list[Run]:
    """The runs of a sweep, or the single run, in the order of their numbers."""
    if (sweep / "status.json").exists():
        return [Run(sweep)]
    found = [path.parent for path in sweep.glob("*/status.json")]
    return [Run(path) for path in sorted(found, key=lambda path: (not path.name.isdigit(), path.name.zfill(9)))]


def leaderboard(sweep: Path) -> pd.DataFrame:
    """One row per finished run, the best AUROC on validation first, by which a run may be chosen.

    Columns: run, backbone, seed, fold, parameters, epochs, best_epoch, val/auroc, the metrics as test/..., and the
    cost: seconds in all and per epoch, pictures trained on per second, peak memory in MiB.
    """
    rows = []
    for run in runs_of(sweep):
        if run.status()["state"] != "done" or not (run.directory / "history.csv").exists():
            continue  # the second: an evaluation
        metrics, facts = run.read_json("metrics.json"), run.read_json("environment.json")
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
