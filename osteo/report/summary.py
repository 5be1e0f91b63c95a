"""What the terminal shows at the end of a run or a sweep."""

import shlex
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from osteo.files import display_path, write_table
from osteo.records.sweep import leaderboard, runs_of
from osteo.report.tables import terminal

if TYPE_CHECKING:
    from osteo.records.record import Run

HEADINGS = {
    "backbone": "backbone",
    "seed": "seed",
    "fold": "fold",
    "parameters": "parameters",
    "epochs": "epochs",
    "test/accuracy": "accuracy",
    "test/precision_macro": "precision",
    "test/recall_macro": "recall",
    "test/f1_macro": "F1",
    "test/auroc": "AUROC",
    "test/sensitivity": "sensitivity",
    "test/specificity": "specificity",
    "seconds": "seconds",
}


def show_runs(directory: Path) -> bool:
    """Prints a table of finished runs and one of failed ones; writes leaderboard.csv for a sweep.

    Returns:
        Whether every run is done.
    """
    console = terminal()
    runs = runs_of(directory)
    board = leaderboard(directory)
    is_sweep = not (directory / "status.json").exists()
    if is_sweep:
        write_table(directory / "leaderboard.csv", board)
    if len(board):
        console.print(results_table(board))
        console.print("[dim]precision, recall and F1 are macro averages; test split; threshold 0.5[/dim]")
    failed = {run.directory.name: run.status() for run in runs if run.status()["state"] != "done"}
    if failed:
        table = Table("run", "state", "error", title="not done", title_justify="left")
        for name, status in failed.items():
            table.add_row(name, status["state"], status["error"] or "")
        console.print(table)
    place = display_path(directory)
    if is_sweep:
        lines = [f"records      {place}/<run>/", f"leaderboard  {place}/leaderboard.csv"]
        lines += [f"report       osteo report {shlex.quote(place)}"] if len(board) else []
    else:
        lines = [f"record       {place}/"]
    if (directory / "wandb").is_dir():
        lines += [f"compare      wandb leet {place}/wandb"]
    if any(directory.glob("wandb/offline-run-*")):
        lines += [f"upload       wandb sync {place}/wandb/offline-run-*"]
    if failed:
        lines.append(f"go on        osteo train resume={shlex.quote(place)}")
    console.print("\n".join(lines), soft_wrap=True)
    return bool(runs) and not failed


def results_table(board: pd.DataFrame) -> Table:
    """The leaderboard as a terminal table; columns that say the same in every row are left out."""
    wanted = {key: title for key, title in HEADINGS.items() if key in board}
    for key in ("seed", "fold"):
        if key in wanted and board[key].nunique(dropna=False) == 1:
            del wanted[key]
    table = Table()
    for title in wanted.values():
        table.add_column(title, justify="left" if title == "backbone" else "right", no_wrap=True)
    for _, row in board.iterrows():
        table.add_row(*(_cell(key, row[key]) for key in wanted))
    return table


def _cell(key: str, value: object) -> str:
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if key.startswith("test/"):
        return f"{value:.3f}"
    if key == "parameters":
        return f"{float(str(value)) / 1e6:.1f} M"
    if key == "seconds":
        return f"{value:.0f}"
    return str(int(value)) if isinstance(value, float) else str(value)


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
