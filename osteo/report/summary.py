"""What the terminal shows at the end of a run or a sweep."""

import shlex
from datetime import timedelta
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from osteo.files import display_path, write_table
from osteo.records.content import DamagedError
from osteo.records.record import Run
from osteo.records.sweep import changes, leaderboard, runs_of, trained
from osteo.report.tables import as_table, terminal
from osteo.task import BINARY, T_SCORE_CUTS, TASKS, THRESHOLD, Task

if TYPE_CHECKING:
    from osteo.report.page import Report

BEYOND = ("balanced_accuracy", "quadratic_weighted_kappa", "auroc_macro", "mean_absolute_error", "bias", "pearson_r")
"""Metrics on the board of tasks that say more than of two classes."""
FACTS = ("backbone", "protocol", "seed", "fold", "parameters", "epochs")


def show_runs(directory: Path) -> bool:
    """Prints a table of finished runs and one of failed ones; writes leaderboard.csv for a sweep.

    Returns:
        Whether every run is done.
    """
    console = terminal()
    statuses = {run.name: status_of(run) for run in runs_of(directory)}
    usable, damaged = trained(directory, Run.read_results)
    changes(usable)
    board = leaderboard(usable)
    is_sweep = not (directory / "status.json").exists()
    has_board = len(board) > 0 or not all(run.is_pretraining for run in runs_of(directory))
    if is_sweep and has_board:
        write_table(directory / "leaderboard.csv", board)
    if len(board):
        console.print(results_table(board))
        console.print(
            "one row per run, the best AUROC on validation first; the other metrics are of its test pictures"
            + "".join(dict.fromkeys(_footnote(TASKS[run.read_settings().task]) for run in usable)),
            style="dim",
        )
    failed = {name: status for name, status in statuses.items() if status["state"] != "done"}
    if failed:
        table = Table("run", "state", "error", title="not done", title_justify="left")
        for name, status in failed.items():
            table.add_row(escape(name), status["state"], escape(status["error"] or ""))
        console.print(table)
    place = display_path(directory)
    if is_sweep:
        lines = [f"records      {place}/<run>/", *([f"leaderboard  {place}/leaderboard.csv"] * has_board)]
        lines += [f"report       osteo report {shlex.quote(place)}"] if len(board) else []
    else:
        lines = [f"record       {place}/"]
    for run in runs_of(directory):
        if statuses[run.name]["state"] == "done" and run.is_pretraining:
            lines.append(f"fine-tune    osteo train model.weights_file={shlex.quote(display_path(run.directory))}")
    if (directory / "wandb").is_dir():
        lines += [f"compare      wandb leet {place}/wandb"]
    if any(directory.glob("wandb/offline-run-*")):
        lines += [f"upload       wandb sync {place}/wandb/offline-run-*"]
    if failed:
        lines.append(f"go on        osteo {runs_of(directory)[0].verb} resume={shlex.quote(place)}")
    console.print("\n".join(lines), soft_wrap=True)
    return bool(statuses) and not failed and not damaged


def show_report(report: "Report") -> None:
    """Prints the paper's tables, the main metrics with their intervals, what follows from them, and where it lies."""
    from osteo.evaluation.metrics import all_metrics
    from osteo.report.rows import MAIN

    console, tables = terminal(), report.files
    console.print(as_table(tables["table1"], title="Table 1: pictures"))
    task = report.results.experiment.task
    of_paper = ", the paper's, and the difference" if task == BINARY else f", {task.contrast}"
    console.print(as_table(tables["table2"], title=f"Table 2: ours{of_paper}"))
    console.print(as_table(tables["costs"], title="cost"))
    main = tables["comparison"][["system", *(all_metrics()[name].title for name in MAIN)]]
    console.print(as_table(main, title=f"{task.contrast}: all folds, mean over repeats, with 95 % intervals"))
    if "ladder" in tables:
        console.print(as_table(tables["ladder"], title="by protocol, the loosest first, with 95 % intervals"))
    if report.section:
        console.print(as_table(report.section.by_metric, title=f"{report.section.title}, with 95 % intervals"))
    for line in [*report.verdict, *report.pictures.sentences, *report.results.experiment.notes]:
        console.print(f"- {line}", soft_wrap=True)
    console.print(f"report       {display_path(report.directory)}/report.html", soft_wrap=True)


def results_table(board: pd.DataFrame) -> Table:
    """The leaderboard as a terminal table: facts, metrics, time; a seed or fold that all runs share is left out.

    Where a task says more than of two classes, the metrics are the main ones, so that they stand side by side.
    """
    from osteo.evaluation.agreement import AGREEMENT  # with SciPy, which `osteo status` need not wait for
    from osteo.evaluation.metrics import all_metrics
    from osteo.evaluation.multiclass import class_metrics
    from osteo.report.rows import MAIN

    titles = {metric.name: metric.title for metric in AGREEMENT}
    titles |= {name: metric.title for name, metric in class_metrics().items()}
    titles = {name: fill(title, 12) for name, title in titles.items()}
    titles |= {name: metric.title for name, metric in all_metrics().items()}
    is_beyond = any(f"test/{name}" in board for name in BEYOND)
    columns = {key: key for key in FACTS if key in board}
    columns |= {"val/auroc": "val AUROC"} if "val/auroc" in board else {}
    for key in board:
        kind, _, name = str(key).partition("/")
        if kind == "test" and (not is_beyond or name in (*BEYOND, *MAIN)):
            columns[str(key)] = titles.get(name, name)  # else of a plugin that is not here
    columns["seconds"] = "seconds"
    for key in ("seed", "fold"):
        if key in columns and board[key].nunique(dropna=False) == 1:
            del columns[key]
    table = Table()
    for title in columns.values():
        table.add_column(title, justify="left" if title in ("backbone", "protocol") else "right", no_wrap=True)
    for _, row in board.iterrows():
        table.add_row(*(_cell(key, row[key]) for key in columns))
    return table


def _footnote(task: Task) -> str:
    """How the test pictures of a task are called, and of what its metrics are."""
    if task.kind == "regression":
        return (
            f"; errors and bias are in T-scores, and what tells two classes apart is of their cut at {T_SCORE_CUTS[-1]}"
        )
    if task.has_many_classes:
        return (
            f", each called the most probable of {len(task.class_names)} classes; AUROC, sensitivity and specificity"
            f" are of {task.contrast}"
        )
    return f" at a threshold of {THRESHOLD}; precision, recall and F1 are macro averages"


def _cell(key: str, value: object) -> str:
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if key.startswith(("test/", "val/")):
        return f"{value:.3f}"
    if key == "parameters":
        return f"{float(str(value)) / 1e6:.1f} M"
    if key == "seconds":
        return f"{value:.0f}"
    return str(int(value)) if isinstance(value, float) else str(value)


def status_of(run: Run) -> dict[str, Any]:
    """What status.json says; the state is "damaged" where it cannot be read."""
    try:
        return run.status()
    except DamagedError as error:
        return {"state": "damaged", "error": str(error)}


def row(run: Run) -> dict[str, Any]:
    """State, epochs done of all, time left, and the error of one run; damaged where a file of it cannot be read."""
    values: dict[str, Any] = {"run": run.name}
    try:
        state, error = run.state, run.status()["error"]
        values["state"] = state
        if state == "done":
            error = run.changes()
            run.read_results()
        return values | _progress(run, state) | {"error": error or ""}
    except DamagedError as damage:
        return values | {"state": "damaged", "error": str(damage)}


def _progress(run: Run, state: str) -> dict[str, str]:
    """What is trained, epochs done of all, and time left; of a training that has begun."""
    if state != "done" and not (run.directory / "config.yaml").exists():
        return {}
    if not (run.is_training or run.is_pretraining):
        return {}
    settings = run.read_settings()
    fold = settings.data.split.fold
    has_begun = state == "done" or (run.directory / "history.csv").exists()
    history = run.read_history() if has_begun else pd.DataFrame()
    epochs, done = settings.trainer.max_epochs, len(history)
    is_timed = state == "running" and "seconds" in history
    left = str(timedelta(seconds=round(float(history["seconds"].median()) * (epochs - done)))) if is_timed else "-"
    return {
        "backbone": settings.model.backbone,
        "fold": "-" if fold is None else str(fold),
        "seed": str(settings.seed),
        "epochs": f"{done} of {epochs}",
        "left": left,
    }
