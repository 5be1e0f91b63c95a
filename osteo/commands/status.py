"""osteo status: how far the runs of a sweep have come, how long they will take, and what failed."""

from osteo.app import hydra as application
from osteo.command_settings import StatusConfig
from osteo.errors import counted
from osteo.records.named import directory_of
from osteo.records.record import Job
from osteo.records.sweep import runs_of


def main() -> None:
    """Entry point."""
    application.run("status", StatusConfig, status)


def status(config: StatusConfig, job: Job) -> bool:
    """Prints one row per run; returns whether none failed or is damaged."""
    directory = directory_of(config.runs, "status")
    runs = runs_of(directory)

    import pandas as pd

    from osteo.files import display_path
    from osteo.report.summary import row
    from osteo.report.tables import as_table, terminal

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
