"""The paper's tables from our records, beside its own numbers."""

from collections.abc import Sequence
from decimal import Decimal

import pandas as pd

from osteo.data.manifest import VARIANT, originals
from osteo.report.results import Result
from osteo.task import BINARY, Task

HEADINGS = {"accuracy": "Accuracy", "precision_macro": "Precision", "recall_macro": "Recall", "f1_macro": "F1-score"}
"""What the paper calls the metrics that it reports."""
TABLE_2 = {
    "densenet201": {"accuracy": 0.8511, "precision_macro": 0.8574, "recall_macro": 0.8496, "f1_macro": 0.8500},
    "resnet50": {"accuracy": 0.8085, "precision_macro": 0.8139, "recall_macro": 0.8071, "f1_macro": 0.8071},
    "densenet121": {"accuracy": 0.7660, "precision_macro": 0.7663, "recall_macro": 0.7663, "f1_macro": 0.7660},
}
"""Alrabai, Osteoporosis Detection via Deep Learning, 2025."""
TEST_PICTURES = 47
"""that the paper's Table 2 is about"""


def table_1(manifest: pd.DataFrame, task: Task = BINARY, *, variants: int, augment_val: bool) -> pd.DataFrame:
    """Pictures by split and class, before augmentation and what it adds, in the layout of the paper's Table 1.

    Args:
        manifest: with splits.
        task: whose classes are counted.
        variants: fixed variants an epoch shows of each training picture, the picture itself among them.
        augment_val: whether validation is augmented too.
    """
    used = manifest[manifest["label"].notna()]
    class_name = used["label"].map(dict(enumerate(task.class_names)))
    every, counts = (
        pd.crosstab(class_name[rows.index], rows["split"]).reindex(
            index=list(task.class_names), columns=["train", "val", "test"], fill_value=0
        )
        for rows in (used, originals(used))
    )
    factor = pd.Series({"train": variants - 1, "val": (variants - 1) * augment_val, "test": 0})
    made = every - counts if VARIANT in used else counts * factor
    rows = pd.concat([counts.rename(lambda name: f"Original {name}"), made.rename(lambda name: f"Augmented {name}")])
    rows.loc["Total"] = rows.sum()
    rows["Total"] = rows.sum(axis=1)
    rows.columns = ["Train", "Validation", "Test", "Total"]
    return rows.rename_axis("Sets").reset_index()


def table_2(models: Sequence[Result], task: Task = BINARY) -> pd.DataFrame:
    """Metrics down, models across; of a task and a backbone that the paper reports, its value and our difference, too.

    Ours are the values of the page: all folds of a repeat together, and the mean over repeats.
    """
    columns: dict[str, list[object]] = {"Metrics": list(HEADINGS.values())}
    for result in models:
        name, ours = result.system.name, [result.intervals[metric].value for metric in HEADINGS]
        columns[name] = [f"{value:.4f}" for value in ours]
        if task == BINARY and (reported := TABLE_2.get(result.system.backbone)):
            columns[f"{name}, paper"] = [f"{reported[metric]:.4f}" for metric in HEADINGS]
            differences = [value - reported[metric] for value, metric in zip(ours, HEADINGS, strict=True)]
            columns[f"{name}, difference"] = [f"{value:+.4f}" for value in differences]
    return pd.DataFrame(columns)


def costs(board: pd.DataFrame, models: Sequence[Result]) -> pd.DataFrame:
    """What each model took: minutes per run, seconds per epoch, pictures per second, memory; the mean over its runs.

    Values have as many decimal places as each unit deserves.
    """
    names = {
        "parameters": "parameters (M)",
        "seconds": "minutes per run",
        "seconds_per_epoch": "s per epoch",
        "pictures_per_second": "pictures per second",
        "peak_memory_mib": "peak MiB",
    }
    units = {"parameters (M)": 1e6, "minutes per run": 60.0}
    digits = {"parameters (M)": 1, "minutes per run": 2, "s per epoch": 2}
    of_run = {run.name: result.system.name for result in models for run in result.system.runs}
    systems = board["run"].map(of_run).rename("system")
    means = board.groupby(systems, sort=False)[[*names]].mean().rename(columns=names)
    for name in map(str, means):
        values = [Decimal(f"{value:.{digits.get(name, 0)}f}") for value in means[name] / units.get(name, 1.0)]
        means[name] = pd.Series(values, index=means.index, dtype=object)
    return means.reset_index()
