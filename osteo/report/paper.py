"""The paper's tables from our records, beside its own numbers."""

import pandas as pd

from osteo.task import CLASS_NAMES

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


def table_1(manifest: pd.DataFrame, *, variants: int, augment_val: bool) -> pd.DataFrame:
    """Pictures by split and class, before augmentation and what it adds, in the layout of the paper's Table 1.

    Args:
        manifest: with splits.
        variants: fixed variants an epoch shows of each training picture, the picture itself among them.
        augment_val: whether validation is augmented too.
    """
    counts = pd.crosstab(manifest["class_name"], manifest["split"]).reindex(
        index=list(CLASS_NAMES), columns=["train", "val", "test"], fill_value=0
    )
    factor = pd.Series({"train": variants - 1, "val": (variants - 1) * augment_val, "test": 0})
    rows = pd.concat(
        [counts.rename(lambda name: f"Original {name}"), (counts * factor).rename(lambda name: f"Augmented {name}")]
    )
    rows.loc["Total"] = rows.sum()
    rows["Total"] = rows.sum(axis=1)
    rows.columns = ["Train", "Validation", "Test", "Total"]
    return rows.rename_axis("Sets").reset_index()


def table_2(board: pd.DataFrame) -> pd.DataFrame:
    """Metrics down, backbones across; of a backbone that the paper reports, its value and the difference beside ours.

    Where a backbone ran several times, the mean.
    """
    columns: dict[str, list[object]] = {"Metrics": list(HEADINGS.values())}
    for backbone, rows in board.groupby("backbone", sort=False):
        ours = [float(rows[f"test/{name}"].mean()) for name in HEADINGS]
        columns[f"{backbone}"] = [f"{value:.4f}" for value in ours]
        if reported := TABLE_2.get(str(backbone)):
            columns[f"{backbone}, paper"] = [f"{reported[name]:.4f}" for name in HEADINGS]
            differences = [value - reported[name] for value, name in zip(ours, HEADINGS, strict=True)]
            columns[f"{backbone}, difference"] = [f"{value:+.4f}" for value in differences]
    return pd.DataFrame(columns)


def costs(board: pd.DataFrame) -> pd.DataFrame:
    """What each backbone took: seconds per epoch, pictures per second, peak memory; the mean over its runs."""
    names = {
        "seconds_per_epoch": "s an epoch",
        "pictures_per_second": "pictures a second",
        "peak_memory_mib": "peak MiB",
    }
    means = board.groupby("backbone", sort=False)[["parameters", *names]].mean().rename(columns=names)
    means.insert(0, "parameters (M)", (means.pop("parameters") / 1e6).round(1))
    return means.round(1).reset_index()
