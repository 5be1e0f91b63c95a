"""The runs of a sweep, and its leaderboard."""

import logging
import re
import time
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
BY_NAME = "by_name"
"""The folder of a sweep in which its runs, that are called by numbers, have names: relative symbolic links."""
APART = ("wandb", "mlflow", "slurm", "figures", "tables", BY_NAME)
"""Folders of a sweep that hold no run."""
DEEPEST = 8
"""folders between a sweep and a run, so that links in a circle end"""
RANGE = re.compile(r"range\((-?\d+(?:,-?\d+){0,2})\)")
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


def run_of(directory: Path) -> Run:
    """The run of a directory.

    Raises:
        UserError: the directory holds a sweep; it names the run with the highest AUROC on validation.
    """
    if not is_run(directory) and (runs := runs_of(directory)):
        place = display_path(directory)
        scores = {run.name: score for run in runs if (score := _score(run)) is not None}
        best = f", or its best on validation: {place}/{max(scores, key=scores.__getitem__)}" if scores else ""
        raise UserError(f"{place} is a sweep; give one of its runs, such as {place}/{runs[0].name}{best}")
    return Run(directory)


def taken(directory: Path, verb: str = "") -> UserError:
    """What is said where a run or a sweep is to begin in a directory that holds one.

    Args:
        directory: that holds it.
        verb: the command that would go on with it; empty where none does.
    """
    runs, place = runs_of(directory), display_path(directory)
    kind = "a run" if is_run(directory) else "runs"
    is_done = bool(runs) and all(map(_is_done, runs)) and len(runs) >= planned_jobs(directory)
    if verb and is_done:
        verb, kind = "", "a finished run" if is_run(directory) else "a finished sweep"
    hint = f", or go on with it: osteo {verb} resume={place}" if verb else ""
    return UserError(f"{place} holds {kind} already; choose another output_dir{hint}")


def _is_done(run: Run) -> bool:
    try:
        return run.state == "done"
    except DamagedError:
        return False


def best_of(directory: Path) -> Path:
    """The best checkpoint of a run directory; see `run_of`."""
    return run_of(directory).best_checkpoint


def _score(run: Run) -> float | None:
    """The AUROC on validation of a training that is done; None where there is none."""
    try:
        if run.status()["state"] != "done" or not run.best_checkpoint.is_file():
            return None
        score = run.read_metrics().get("val/auroc")
    except DamagedError:
        return None
    return None if score is None else float(score)


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
    planned, are_numbers = planned_jobs(sweep), all(name.isdecimal() for name in names)
    if not are_numbers:
        return counted(planned - len(names), "run") if planned > len(names) else ""
    begun = max([int(name) + 1 for name in names if len(name) < 6], default=0)
    missing = [str(number) for number in range(max(planned, begun)) if str(number) not in names]
    listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return f"{counted(len(missing), 'run')} ({listed})" if missing else ""


def planned_jobs(sweep: Path) -> int:
    """How many jobs a sweep has, by its plain lists and ranges of values (`seed=0,1,2` or `seed=range(3)`), or trials.

    Returns:
        0 where there is no sweep, or it has been given in another way.
    """
    if not (sweep / SWEEP).exists():
        return 0
    try:
        recorded = read_yaml(sweep / SWEEP)["hydra"]
        target = recorded["sweeper"]["_target_"]
        if "SearchSweeper" in target:
            return int(recorded["sweeper"]["n_trials"])
        if "BasicSweeper" not in target:
            return 0
        values = {key: str(value) for key, value in (recorded["sweeper"]["params"] or {}).items()}
        values |= dict(override.split("=", 1) for override in recorded["overrides"]["task"] if "=" in override)
    except (DamagedError, LookupError, TypeError, AttributeError, ValueError):
        return 0  # what is wrong with it is said where a sweep goes on
    counts = [_count_values(value) for value in values.values()]
    return min(MOST, prod(counts))


def _count_values(value: str) -> int:
    """How many jobs the value of an override asks for, 1 where it is one value; 0 where that is not known."""
    if found := RANGE.fullmatch(value.replace(" ", "")):
        return len(range(*(int(number) for number in found[1].split(","))))
    depth, quote, count = 0, "", 1
    for sign in value:
        if sign in "'\"" and quote in ("", sign):
            quote = "" if quote else sign
        elif not quote:
            depth += (sign in "[{") - (sign in "]}")
            if not depth and sign in "(\\":
                return 0
            count += sign == "," and not depth
    return count


def seconds_left(sweep: Path) -> float | None:
    """How long the jobs that have not ended will take if they go on as those since the sweep began, or was taken up.

    Returns:
        None where it is not known: nothing has ended since, or the number of jobs is not known.
    """
    planned = planned_jobs(sweep)
    if not planned:
        return None
    began, ended, recent = (sweep / SWEEP).stat().st_mtime, 0, 0
    for run in runs_of(sweep):
        try:
            state, since = run.state, (run.directory / STATUS).stat().st_mtime
        except (DamagedError, OSError):
            continue
        is_recent = state != "running" and since >= began
        recent += is_recent
        ended += is_recent or state == "done"
    return (time.time() - began) / recent * max(0, planned - ended) if recent else None


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
