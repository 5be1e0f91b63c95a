"""What the terminal shows at the end of a run or a sweep."""

import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from osteo.files import display_path, write_table
from osteo.records.content import DamagedError
from osteo.records.record import Run
from osteo.records.sweep import changes, leaderboard, runs_of, trained
from osteo.report.tables import terminal
from osteo.task import BINARY, T_SCORE_CUTS, TASKS, THRESHOLD, Task

if TYPE_CHECKING:
    from osteo.report.page import Report

BEYOND = ("balanced_accuracy", "quadratic_weighted_kappa", "auroc_macro", "mean_absolute_error", "bias", "pearson_r")
"""Metrics on the board of tasks that say more than of two classes."""
FIRST = ("sensitivity", "specificity", "accuracy")
"""Metrics that follow the AUROC on the board."""


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
        models = models_table(board, usable)
        console.table(models)
        tied = int(models["model"].str.endswith(" *").sum())
        console.say(
            "one row per model"
            + (", the mean over its runs (lowest to highest)" if "runs" in models else "")
            + (f"; {starred(tied, ' by AUROC on validation')}" if len(models) > 1 else "")
            + "; metrics are of the test pictures"
            + "".join(dict.fromkeys(_footnote(TASKS[run.read_settings().task]) for run in usable))
            + measured_anew(usable),
            style="dim",
        )
    failed = {name: status for name, status in statuses.items() if status["state"] != "done"}
    if failed:
        console.say("not done:", style="bold")
        for name, status in failed.items():
            reason = f": {status['error']}" if status["error"] not in (None, "", status["state"]) else ""
            console.say(f"run {name} {status['state']}{reason}", bullet="- ")
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
    console.name(*lines)
    return bool(statuses) and not failed and not damaged


def show_report(report: "Report") -> None:
    """Prints the paper's tables, the main metrics with their intervals, what follows from them, and where it lies."""
    from osteo.evaluation.metrics import all_metrics
    from osteo.report.rows import MAIN

    console, tables = terminal(), report.files
    console.table(tables["table1"], title="Table 1: pictures")
    task, of_ours = report.results.experiment.task, tables["table2"]
    has_paper = len(of_ours.columns) > len(report.results.models) + 1
    of_paper = ", the paper's, and the difference" if has_paper else "" if task == BINARY else f", {task.contrast}"
    console.table(of_ours, title=f"Table 2: ours{of_paper}")
    console.table(tables["costs"], title="cost")
    main = tables["comparison"][["system", *(all_metrics()[name].title for name in MAIN)]]
    chosen = report.results.best.system.name
    main = main.assign(system=[f"{name} *" if name == chosen else name for name in main["system"]])
    of_all = ["all folds"] * report.results.has_folds + ["mean over repeats"] * report.results.has_repeats
    console.table(main, title=", ".join([task.contrast, *of_all, "with 95 % intervals"]))
    by = f"by {all_metrics()[report.results.primary].title} on validation"
    console.say(
        f"* {'the best model' if report.results.tied == 1 else 'the first of the best models'} {by}", style="dim"
    )
    if "ladder" in tables:
        console.table(tables["ladder"], title="by protocol, the loosest first, with 95 % intervals")
    if report.section:
        console.table(report.section.by_metric, title=f"{report.section.title}, with 95 % intervals")
    console.say(*report.verdict, *report.pictures.sentences, *report.results.experiment.notes, bullet="- ")
    console.name(f"report       {display_path(report.directory)}/report.html")


def models_table(board: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """The leaderboard for a terminal: one row per model, the best on validation first, each value the mean of its runs.

    Where a task says more than of two classes, the metrics are the main ones, so that they stand side by side.

    Args:
        board: of these runs.
        runs: finished.
    """
    from osteo.evaluation.outcomes import models_of  # with SciPy, which `osteo status` need not wait for
    from osteo.report.rows import MAIN

    models = board.assign(model=board["run"].map(models_of(runs)))
    reached = models.groupby("model", sort=False)["val/auroc"].mean().sort_values(ascending=False, kind="stable")
    order = reached.index
    is_beyond, by_name = any(f"test/{name}" in board for name in BEYOND), titles()
    columns = {"test/auroc": "AUROC", **{f"test/{name}": by_name[name] for name in FIRST}}
    for key in map(str, board):
        kind, _, name = key.partition("/")
        if kind == "test" and (not is_beyond or name in (*BEYOND, *MAIN)):
            columns[key] = by_name.get(name, name)  # else of a plugin that is not here
    columns |= {
        "val/auroc": "validation AUROC",
        **{key: key for key in ("protocol", "epochs", "parameters", "seconds")},
    }
    columns = {key: title for key, title in columns.items() if key in board}
    rows = []
    for place, name in enumerate(order):
        of_model = models[models["model"] == name]
        is_best = len(order) > 1 and (not place or reached[name] == reached.max())
        row = {"model": f"{name} *" if is_best else name}
        row |= {title: _summarised(key, of_model[key]) for key, title in columns.items()}
        rows.append(row | {"runs": len(of_model)})
    return pd.DataFrame(rows).drop(columns=[] if len(board) > len(order) else "runs")


def starred(number: int, by: str = "") -> str:
    """What a star says in a table where so many rows have one, with what they are compared by."""
    return f"* the best{by}" + (f" ({number} are equal)" if number > 1 else "")


def titles() -> dict[str, str]:
    """Every metric as a table calls it, by its name."""
    from osteo.evaluation.agreement import AGREEMENT
    from osteo.evaluation.metrics import all_metrics
    from osteo.evaluation.multiclass import class_metrics

    found = {metric.name: metric.title for metric in AGREEMENT}
    found |= {name: metric.title for name, metric in class_metrics().items()}
    return found | {name: metric.title for name, metric in all_metrics().items()}


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


def measured_anew(runs: Sequence[Run]) -> str:
    """Why the AUROC on validation may not be the one that an epoch showed; empty where it is the same."""
    used = {str(run.read_environment().get("precision", "32-true")) for run in runs}
    lower = sorted(name.removesuffix("-mixed") for name in used - {"32-true", "64-true"})
    is_varied = any(run.read_settings().augment.val for run in runs)
    ways = [f"in {' and '.join(lower)}"] * bool(lower) + ["on augmented pictures"] * is_varied
    if not ways:
        return ""
    return (
        "; AUROC on validation is computed anew in float32; what an epoch showed was computed"
        f" {' and '.join(ways)}, and may differ"
    )


def _summarised(key: str, values: "pd.Series[Any]") -> str:
    """The mean over runs of a metric, with the lowest and the highest; of a fact, its values or their sum."""
    known = values.dropna()
    if known.empty:
        return "-"
    if key.startswith(("test/", "val/")):
        span = f" ({known.min():.2f} to {known.max():.2f})" if len(known) > 1 else ""
        return f"{known.mean():.3f}{span}"
    if key == "seconds":
        return str(round(known.sum()))
    shown = [f"{value / 1e6:.1f} M" if key == "parameters" else str(value) for value in sorted(set(known))]
    return " to ".join(dict.fromkeys((shown[0], shown[-1])))


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


def _progress(run: Run, state: str) -> dict[str, Any]:
    """What is trained, epochs done of all, and time left; of a training that has begun.

    The AUROC is that on validation, of the best epoch of a run that is done, else of its last.
    """
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
    score = None
    if run.is_training and len(history):
        reached = run.read_metrics() if state == "done" else {"val/auroc": history["val/auroc"].iloc[-1]}
        score = reached["val/auroc"]
    return {
        "AUROC": score,
        "backbone": settings.model.backbone,
        "fold": "-" if fold is None else str(fold),
        "seed": str(settings.seed),
        "epochs": f"{done} of {epochs}",
        "left": left,
    }
