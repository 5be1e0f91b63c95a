"""The dashboard of a sweep on W&B: a report through its own interface, over the runs that the server has."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from osteo.config import WandbConfig
from osteo.errors import UserError, first_line
from osteo.evaluation.outcomes import models_of
from osteo.files import display_path, write_json
from osteo.records.content import read_json
from osteo.records.record import Run
from osteo.records.tracked import Place, group_of
from osteo.training.loggers.mode import choose_mode
from osteo.training.tracking import WandbLogger

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import interface as reports

DASHBOARD = "dashboard.json"
"""What a sweep's wandb folder keeps of its report: the id by which it is made anew."""
CURVES = ("val/auroc", "val/loss", "train/loss")
METRICS = ("test/auroc", "test/accuracy", "test/sensitivity", "test/specificity")
CONFIG = ("model.backbone", "seed", "data.split.fold", "optimizer.name", "optimizer.lr", "data.image_size")
"""What the parallel coordinates show where it differs between runs; the backbone always."""


def publish(runs: Sequence[Run], board: pd.DataFrame, settings: WandbConfig, directory: Path) -> str:
    """Makes the aggregate of a sweep as a run of its own, and the report; both replace what was made before.

    Args:
        runs: finished trainings, which W&B has got.
        board: their leaderboard.
        settings: under which they were logged.
        directory: of the sweep.

    Returns:
        The address of the report.

    Raises:
        UserError: W&B is offline, or cannot be reached.
    """
    place = display_path(directory)
    if choose_mode(settings.mode) != "online":
        raise UserError(f"W&B is offline, so {place} gets no dashboard; `wandb login`, or set WANDB_MODE=online")
    group = group_of(settings, directory)
    identity = f"aggregate-{runs[0].status()['id']}"
    where = Place(directory, group, "aggregate", "aggregate", ["aggregate"])
    with WandbLogger(replace(settings, mode="online"), {"runs": len(runs)}, where, identity) as logger:
        run = logger.experiment
        if run.offline or run.disabled:
            raise UserError("W&B cannot be reached, so there is no dashboard; try again later")
        entity, project = str(run.entity), str(run.project)
        table = aggregate(board, board["run"].map(models_of(runs)))
        logger.summarise(flat(table))
        logger.tables({"tables/aggregate": table})
    known = read_json(path, {}) if (path := directory / "wandb" / DASHBOARD).is_file() else {}
    try:
        report = compose(runs, entity, project, group)
        report.id = str(known.get("id", ""))
        report.save()
        address = str(report.url)
    except Exception as error:  # whatever W&B raises, it is the server's refusal
        raise UserError(f"W&B has not taken the report ({type(error).__name__}: {first_line(error)})") from error
    write_json(path, {"id": report.id})
    return address


def aggregate(board: pd.DataFrame, models: "pd.Series[str]") -> pd.DataFrame:
    """One row per model and metric: its mean, lowest and highest value over folds and seeds, and how many there are.

    Args:
        board: a row per run.
        models: the model of each.
    """
    metrics = [name for name in board if str(name).startswith("test/") and pd.api.types.is_numeric_dtype(board[name])]
    rows = [
        {"model": name, "metric": metric, "mean": values.mean(), "lowest": values.min(), "highest": values.max(),
         "runs": int(values.count())}
        for name, group in board.groupby(models, sort=False)
        for metric in metrics
        if len(values := group[metric].dropna().astype(float))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def flat(table: pd.DataFrame) -> dict[str, float | str]:
    """The numbers of an aggregate by name, as in resnet50/test/auroc/mean."""
    return {
        f"{row['model']}/{row['metric']}/{name}": float(row[name])
        for row in table.to_dict("records")
        for name in ("mean", "lowest", "highest")
    }


def compose(runs: Sequence[Run], entity: str, project: str, group: str) -> "reports.Report":
    """The report, which is not saved yet."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as reports

    def of_type(kind: str, name: str, *columns: str) -> reports.Runset:
        filters = [expr.Metric("Group") == group, expr.Metric("JobType") == kind]
        return reports.Runset(entity, project, name=name, filters=filters, pinned_columns=list(columns))

    shown = [*map(column, varying(runs)), *(f"summary:{name}" for name in METRICS)]
    trainings = of_type("train", "runs", "run:displayName", *shown)
    whole = reports.Layout(w=24, h=9)
    coordinates = [reports.ParallelCoordinatesPlotColumn(reports.Config(name)) for name in varying(runs)]
    coordinates += [reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(name)) for name in METRICS]
    curves: list[Any] = [
        reports.LinePlot(
            title=name,
            x="epoch",
            y=[name],
            groupby=reports.Config("model.backbone"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=reports.Layout(x=8 * place, w=8, h=8),
        )
        for place, name in enumerate(CURVES)
    ]
    confusion = reports.CustomChart(
        query={"summaryTable": {"tableKey": "test/confusion_table"}}, chart_name="wandb/confusion_matrix/v1",
        chart_fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}, layout=whole,
    )  # fmt: skip
    means = reports.WeavePanelSummaryTable(table_name="tables/aggregate", layout=whole)
    sections: list[tuple[str, list[Any], reports.Runset]] = [
        ("Mean and range per model", [means], of_type("aggregate", "aggregate")),
        ("Curves by backbone", curves, trainings),
        ("Parameters and test metrics", [reports.ParallelCoordinatesPlot(coordinates, layout=whole)], trainings),
        ("Confusion matrices of the test pictures", [confusion], trainings),
    ]
    blocks: list[Any] = []
    for title, panels, runset in sections:
        blocks += [reports.H2(title), reports.PanelGrid(runsets=[runset], panels=panels)]
    return reports.Report(project, entity, title=f"osteo {group}", blocks=blocks, width="fluid")


def column(name: str) -> str:
    """A setting as the table of runs calls it: config:model.value.backbone of model.backbone."""
    group, dot, rest = name.partition(".")
    return f"config:{group}.value{dot}{rest}"


def varying(runs: Sequence[Run]) -> list[str]:
    """The backbone, and which other settings differ between runs."""
    values: dict[str, set[str]] = {name: set() for name in CONFIG}
    for run in runs:
        settings: Any = run.read_config()
        for name, seen in values.items():
            value = settings
            for part in name.split("."):
                value = value[part]
            seen.add(str(value))
    return [name for name, seen in values.items() if len(seen) > 1 or name == CONFIG[0]]
