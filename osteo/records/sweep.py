"""The runs of a sweep, and its leaderboard."""

import logging
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from osteo.errors import UserError, counted
from osteo.files import display_path
from osteo.records.configuration import read_yaml
from osteo.records.content import COSTS, DamagedError
from osteo.records.record import STATUS, Run

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SWEEP = "multirun.yaml"
"""What Hydra writes into the directory of a sweep: its configuration, and the overrides as they were typed."""
APART = ("wandb", "mlflow", "slurm", "figures", "tables")
"""Folders of a sweep that hold no run."""
DEEPEST = 8
"""folders between a sweep and a run, so that links in a circle end"""
MOST = 100_000
"""jobs of a sweep that are counted"""


def runs_of(sweep: Path) -> list[Run]:
    """The runs of a sweep, or the single run, in the order of their numbers; also one whose status.json is gone.

    What a sweep calls its jobs may have slashes in it (`hydra.sweep.subdir`), so they are searched in all its folders.
    """
    if is_run(sweep):
        return [Run(sweep)]
    deepest = DEEPEST if (sweep / SWEEP).exists() else 1
    return sorted((Run(path, sweep) for path in _below(sweep, deepest)), key=lambda run: _in_order(run.name))


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run; also where its status.json is gone."""
    names = ("config.yaml", "manifest.csv")
    return (directory / STATUS).exists() or all((directory / name).exists() for name in names)


def best_of(directory: Path) -> Path:
    """The best checkpoint of a run directory.

    Raises:
        UserError: the directory holds a sweep.
    """
    if not is_run(directory) and (runs := runs_of(directory)):
        example = f"{display_path(directory)}/{runs[0].name}"
        raise UserError(f"{display_path(directory)} is a sweep; name one of its runs, such as {example}")
    return Run(directory).best_checkpoint


def _below(folder: Path, deepest: int) -> Iterator[Path]:
    """The run directories below a folder; not those of another sweep, nor what lies within a run."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_dir() or path.name in APART or path.name.startswith("."):
            continue
        if is_run(path):
            yield path
        elif deepest > 1 and not (path / SWEEP).exists():
            yield from _below(path, deepest - 1)


def _in_order(name: str) -> list[tuple[bool, str]]:
    return [(not part.isdigit(), part.zfill(9)) for part in name.split("/")]


def trained(sweep: Path, check: Callable[[Run], object]) -> tuple[list[Run], list[str]]:
    """The finished trainings of a sweep that pass a check, and a line on each that does not, which is logged too."""
    usable, lines = [], []
    for run in runs_of(sweep):
        try:
            if run.status()["state"] == "done" and run.is_training:
                check(run)
                usable.append(run)
        except DamagedError as error:
            lines.append(f"run {run.name} is left out: {error}")
            log.warning("%s", lines[-1])
    return usable, lines


def unfinished(sweep: Path) -> list[str]:
    """A line on each training of a sweep that is not done, and one on its jobs without a record; logged too.

    A trial of a search that was ended early is done. A run whose status cannot be read is for `trained` to name.
    """
    runs = runs_of(sweep)
    lines = [f"run {run.name} is left out: {clause}" for run in runs if (clause := _why_unfinished(run))]
    if (sweep / SWEEP).exists() and (missing := _missing_jobs(sweep, [run.name for run in runs])):
        lines.append(f"without a record in this sweep: {missing}")
    for line in lines:
        log.warning("%s", line)
    return lines


def _why_unfinished(run: Run) -> str:
    """What a training is instead of done, and how its error begins; else empty."""
    try:
        state, error = run.state, run.status()["error"]
    except DamagedError:
        return ""
    if state == "done" or (run.has_config and not _may_be_training(run)):
        return ""
    words = (error or "").strip().splitlines()
    return f"its state is {state}" + (f" ({shorten(words[0], 80, placeholder=' ...')})" if words else "")


def _may_be_training(run: Run) -> bool:
    try:
        return run.is_training
    except DamagedError:
        return True


def _missing_jobs(sweep: Path, names: Sequence[str]) -> str:
    """How many jobs of a sweep have no directory, and which, where they are called by numbers; empty if none is known.

    Args:
        sweep: its directory.
        names: of the directories that there are.
    """
    planned, are_numbers = _planned_jobs(sweep / SWEEP), all(name.isdecimal() for name in names)
    if not are_numbers:
        return counted(planned - len(names), "job") if planned > len(names) else ""
    begun = max([int(name) + 1 for name in names if len(name) < 6], default=0)
    missing = [str(number) for number in range(max(planned, begun)) if str(number) not in names]
    listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return f"{counted(len(missing), 'job')} ({listed})" if missing else ""


def _planned_jobs(path: Path) -> int:
    """How many jobs a sweep has, by its lists of plain values (`seed=0,1,2`); 0 where it was told in another way."""
    try:
        recorded = read_yaml(path)["hydra"]
        if "BasicSweeper" not in recorded["sweeper"]["_target_"]:
            return 0
        values = [str(value) for value in (recorded["sweeper"]["params"] or {}).values()]
        values += [override.partition("=")[2] for override in recorded["overrides"]["task"]]
    except (DamagedError, LookupError, TypeError, AttributeError):
        return 0  # what is wrong with it is said where a sweep goes on
    listed = [value for value in values if set(value) & set(",(")]
    if any(set(value) & set("([{'\"\\") for value in listed):
        return 0
    return min(MOST, prod(len(value.split(",")) for value in listed))


def changes(runs: Sequence[Run]) -> list[str]:
    """A line on each run whose files are no longer what they were when it ended, which is logged too."""
    found = {run.name: run.changes() for run in runs}
    lines = [f"run {name}: {clause}; it is read as it is now" for name, clause in found.items() if clause]
    for line in lines:
        log.warning("%s", line)
    return lines


def leaderboard(runs: Sequence[Run]) -> "pd.DataFrame":
    """One row per finished training, the best AUROC on validation first, by which a run may be chosen.

    Columns: run, backbone, protocol where any has one, seed, fold, parameters, epochs, best_epoch, val/auroc, the
    metrics as test/..., and the cost: seconds in all and per epoch, pictures trained on per second, peak memory in MiB.
    """
    import pandas as pd

    rows = []
    for run in runs:
        metrics, facts = run.read_results()
        rows.append(
            {"run": run.name, "backbone": facts["backbone"], "protocol": facts.get("protocol")}
            | {key: facts[key] for key in ("seed", "fold", "parameters", "epochs", "best_epoch")}
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
        table = table.drop(columns=[] if table["protocol"].notna().any() else "protocol")
    return table
