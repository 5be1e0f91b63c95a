"""osteo status: how far the runs of a sweep have come, how long they will take, and what failed."""

from pathlib import Path

from osteo.app import hydra as application
from osteo.command_settings import StatusConfig
from osteo.errors import UserError, counted
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("status", StatusConfig, status)


def status(config: StatusConfig, job: Job) -> bool:
    """Prints one row per run; returns whether none failed or is damaged."""
    import pandas as pd

    from osteo.files import display_path
    from osteo.records.sweep import runs_of
    from osteo.report.summary import row
    from osteo.report.tables import as_table, terminal

    if not config.runs:
        raise UserError("name a sweep or a run directory: osteo status DIRECTORY")
    directory = Path(config.runs).expanduser()
    runs = runs_of(directory)
    if not runs:
        raise UserError(f"runs={config.runs} holds no run; give a sweep or a run directory")
    table = pd.DataFrame([row(run) for run in runs])
    table.insert(len(table.columns) - 1, "error", table.pop("error"))
    console = terminal()
    console.print(as_table(table))
    counts = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    console.print(f"{counted(len(runs), 'run')}: {counts}")
    if set(table["state"]) & {"interrupted", "failed"}:
        console.print(f"go on with   osteo {runs[0].verb} resume={display_path(directory)}", soft_wrap=True)
    if "damaged" in set(table["state"]):
        console.print("damaged      restore the file from a copy, or train the run again", soft_wrap=True)
    return not {"failed", "damaged"} & set(table["state"])
