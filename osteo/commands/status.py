"""osteo status: how far the runs of a sweep are, how long they will take, and what failed."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import StatusConfig
from osteo.errors import UserError

if TYPE_CHECKING:
    from osteo.runs import Run


def main() -> None:
    """Entry point."""
    application.run("status", StatusConfig, status)


def status(config: StatusConfig, job: Job) -> bool:
    """Prints a row a run; returns whether none failed."""
    import pandas as pd

    from osteo.report.tables import as_table, terminal
    from osteo.runs import runs_of, shown

    if not config.runs:
        raise UserError("name a sweep or a run directory: osteo status DIRECTORY")
    directory = Path(config.runs).expanduser()
    runs = runs_of(directory)
    if not runs:
        raise UserError(f"runs={config.runs} holds no run; give a sweep or a run directory")
    table = pd.DataFrame([row(run) for run in runs])
    console = terminal()
    console.print(as_table(table))
    counts = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    console.print(f"{len(runs)} runs: {counts}")
    if set(table["state"]) & {"interrupted", "failed"}:
        console.print(f"go on with   osteo train resume={shown(directory)}", soft_wrap=True)
    return "failed" not in set(table["state"])


def row(run: "Run") -> dict[str, Any]:
    """State, epochs done of all, time left, and the error of one run."""
    import pandas as pd

    state, error = run.state, run.status()["error"]
    found: dict[str, Any] = {"run": run.directory.name, "state": state}
    settings = run.read_config() if (run.directory / "config.yaml").exists() else {}
    if "trainer" in settings:  # else it had not begun, or is an evaluation
        wanted = settings["trainer"]["max_epochs"]
        history = run.directory / "history.csv"
        seconds = pd.read_csv(history)["seconds"] if history.exists() else pd.Series(dtype=float)
        found["backbone"] = settings["model"]["backbone"]
        fold = settings["data"]["split"]["fold"]
        found["fold"], found["seed"] = "-" if fold is None else str(fold), settings["seed"]
        found["epochs"] = f"{len(seconds)} of {wanted}"
        left = float(seconds.median()) * (wanted - len(seconds)) if len(seconds) and state == "running" else None
        found["left"] = str(timedelta(seconds=round(left))) if left is not None else "-"
    found["error"] = error or ""
    return found
