"""What MLflow and TensorBoard get beside parameters and curves; each is imported where it is the logger."""

from typing import TYPE_CHECKING

import pandas as pd
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from osteo.records.tracked import Place
from osteo.task import THRESHOLD, Task, probability_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def introduce(logger: Logger, place: Place) -> None:
    """Names a run, and where it stands, as W&B is told."""
    if isinstance(logger, MLFlowLogger):
        names = {"mlflow.runName": place.name, "group": place.group, "job_type": place.job_type}
        for name, value in (names | {f"tag.{tag}": "true" for tag in place.tags}).items():
            logger.experiment.set_tag(logger.run_id, name, value)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("run", f"{place.name}: {', '.join([place.group, *place.tags])}")


def show_confusion(logger: Logger, predictions: pd.DataFrame, task: Task, step: int) -> None:
    """Adds the confusion matrix of the test predictions, as a figure and, where there are artifacts, as numbers.

    Args:
        logger: of a run.
        predictions: the run's, with the column split.
        task: that they answer.
        step: of the best epoch.
    """
    if not isinstance(logger, MLFlowLogger | TensorBoardLogger):
        return
    table = confusion(predictions[predictions["split"] == "test"], task)
    figure = draw(table)
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, "test/confusion.png")
        logger.experiment.log_text(logger.run_id, table.to_csv(), "test/confusion.csv")
    else:
        logger.experiment.add_figure("test/confusion", figure, step)


def classes_of(test: pd.DataFrame, task: Task) -> tuple[list[int], list[int], list[str]]:
    """The true class of each picture, the one that it is called, and the names of the classes by number."""
    if columns := probability_columns(task):
        called = test[columns].to_numpy().argmax(1).tolist()
        return test["label"].astype(int).tolist(), called, list(task.class_names)
    truth = (test["label"] == task.positive).astype(int).tolist()
    return truth, [int(p > THRESHOLD) for p in test["probability"]], list(task.sides)


def confusion(test: pd.DataFrame, task: Task) -> pd.DataFrame:
    """How many pictures of each class, by row, are called what, by column."""
    truth, called, names = classes_of(test, task)
    kinds = range(len(names))
    table = pd.crosstab(pd.Categorical(truth, kinds), pd.Categorical(called, kinds), dropna=False)
    table.index, table.columns = pd.Index(names, name="true"), pd.Index(names, name="called")
    return table


def draw(table: pd.DataFrame) -> "Figure":
    """A confusion matrix as a figure with its counts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = table.to_numpy()
    axes.imshow(counts, cmap="Blues")
    for row, column in zip(*counts.nonzero(), strict=True):
        shade = "white" if counts[row, column] > counts.max() / 2 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade)
    axes.set(xlabel=table.columns.name, ylabel=table.index.name)
    axes.set_xticks(range(len(table.columns)), table.columns)
    axes.set_yticks(range(len(table)), table.index, rotation=90, va="center")
    return figure
