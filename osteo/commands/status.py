"""osteo status: how far the runs of a sweep have come, how long they will take, and what failed."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.app import hydra as application
from osteo.command_settings import StatusConfig
from osteo.errors import UserError, counted
from osteo.records import locks
from osteo.records.named import directory_of
from osteo.records.record import Job
from osteo.records.sweep import planned_jobs, runs_of

if TYPE_CHECKING:
    import pandas as pd

    from osteo.report.tables import Terminal

SECONDS = 2.0
"""between two looks at the records, with watch=true"""


def main() -> None:
    """Entry point."""
    application.run("status", StatusConfig, status)


def status(config: StatusConfig, job: Job) -> bool:
    """Prints one row per run; returns whether none failed or is damaged. With watch=true, until nothing is running.

    Ctrl-C ends the watch, as it would have ended by itself.

    Raises:
        UserError: there is no run, or the watch would be written to a file.
    """
    directory = directory_of(config.runs, "status")
    if config.watch and not sys.stdout.isatty():
        raise UserError("watch=true redraws a terminal, and this output is not a terminal; leave it out")

    from osteo.report.tables import terminal

    console = terminal()
    table = read(directory)
    if config.watch:
        with suppress(KeyboardInterrupt):
            while "running" in set(table["state"]) or locks.is_held(directory):
                console.clear()
                show(console, directory, table)
                console.say(
                    f"{time.strftime('%H:%M:%S')}, every {SECONDS:g} s; Ctrl-C ends this, and no run", style="dim"
                )
                time.sleep(SECONDS)
                table = read(directory)
        console.clear()
    show(console, directory, table)
    return not {"failed", "damaged"} & set(table["state"])


def read(directory: Path) -> "pd.DataFrame":
    """One row per run of a sweep; the error comes last."""
    import pandas as pd

    from osteo.report.summary import row

    table = pd.DataFrame([row(run) for run in runs_of(directory)])
    table.insert(len(table.columns) - 1, "error", table.pop("error"))
    return table


def show(console: "Terminal", directory: Path, table: "pd.DataFrame") -> None:
    """Prints the rows, what went wrong, how many runs there are, and what to do next."""
    import pandas as pd

    from osteo.files import display_path
    from osteo.report.summary import starred

    shown = table.drop(columns="error")
    if "AUROC" in shown and shown["AUROC"].notna().any():
        reached = shown["AUROC"].astype(float)
        marks = ["-" if pd.isna(value) else f"{value:.3f}" for value in reached]
        is_best = reached == reached.max()
        shown["AUROC"] = [f"{text}{' *' if best else '  '}" for text, best in zip(marks, is_best, strict=True)]
        console.table(shown)
        console.say(f"AUROC is that on validation; {starred(int(is_best.sum()))}", style="dim")
    else:
        console.table(shown.drop(columns="AUROC", errors="ignore"))
    for name, error in zip(table["run"], table["error"], strict=True):
        if error:
            console.say(f"run {name}: {error}", bullet="- ")
    states = table["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    planned = planned_jobs(directory)
    waiting = f", {planned - len(table)} not begun" if planned > len(table) else ""
    console.say(f"{counted(max(planned, len(table)), 'run')}: {counts}{waiting}")
    if set(states.index) & {"interrupted", "failed"}:
        verb = runs_of(directory)[0].verb
        console.name(f"go on with   osteo {verb} resume={display_path(directory)}")
    if "damaged" in states:
        console.say("damaged      restore the file from a copy, or train the run again")
