"""What a record says of predictions, whatever the task."""

from typing import Any

import pandas as pd

from osteo.evaluation.metrics import evaluate
from osteo.task import Task


def against_rest(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """A manifest or predictions with the label 1 for the positive class and 0 for the rest, as two classes have it."""
    return table.assign(label=(table["label"] == task.positive).astype(table["label"].dtype))


def evaluate_task(task: Task, predictions: pd.DataFrame) -> dict[str, Any]:
    """What metrics.json holds of one split's predictions; see `osteo.evaluation.metrics.evaluate`."""
    return evaluate(predictions["logit"], against_rest(predictions, task)["label"])
