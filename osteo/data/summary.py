"""What a manifest adds up to: the flow of pictures, who is in which split, and what leaks between splits."""

from collections.abc import Sequence

import pandas as pd

from osteo.data.manifest import SPLITS
from osteo.task import CLASSES


def leaks(manifest: pd.DataFrame) -> dict[str, list[list[str]]]:
    """What is in more than one split, as lists of image_ids.

    Args:
        manifest: with groups and splits.

    Returns:
        "pictures" with the same bytes, "clusters" of one exposure, and "patients".
    """
    rows = manifest[manifest["split"].isin(SPLITS)]
    patient = (rows["source"] + "/" + rows["patient"]).where(rows["patient"] != "")
    keys = {"pictures": rows["sha256"], "clusters": rows["group"], "patients": patient}
    return {
        name: sorted(sorted(members["image_id"]) for _, members in rows.groupby(key) if members["split"].nunique() > 1)
        for name, key in keys.items()
    }


def copied_to_training(manifest: pd.DataFrame) -> int:
    """Test pictures of whose group one trains: a copy or variant of the picture, or another of the same patient."""
    trained = set(manifest.loc[manifest["split"] == "train", "group"])
    return int(manifest.loc[manifest["split"] == "test", "group"].isin(trained).sum())


def by_split(manifest: pd.DataFrame, clinical: pd.DataFrame | None) -> pd.DataFrame:
    """What a flow diagram of a paper needs: one row per split, columns as text.

    Columns: split, pictures, groups, one per class, one per source, and where they are known women, and age and T-score
    as median (quartiles) with the number of patients of whom they are known.
    """
    rows = []
    for split in (*SPLITS, "excluded"):
        part = manifest[manifest["split"] == split]
        row: dict[str, object] = {"split": split, "pictures": len(part), "groups": part["group"].nunique()}
        row |= {name: int((part["class_name"] == name).sum()) for name in CLASSES}
        row |= {name: int((part["source"] == name).sum()) for name in sorted(manifest["source"].unique())}
        if clinical is not None:
            known = clinical.reindex(part["patient"].drop_duplicates())
            sex = known["sex"].dropna()
            row["women"] = f"{int((sex == 'female').sum())} of {len(sex)}"
            row["age"] = _quartiles(known["age"], 0)
            row["T-score"] = _quartiles(known["t_score"], 2)
        rows.append(row)
    return pd.DataFrame(rows)


def _quartiles(values: "pd.Series[float]", digits: int) -> str:
    known = values.dropna()
    if known.empty:
        return "-"
    low, middle, high = (f"{value:.{digits}f}" for value in known.quantile([0.25, 0.5, 0.75]))
    return f"{middle} ({low} to {high}), n={len(known)}"


def flow(manifest: pd.DataFrame, reasons: Sequence[str]) -> pd.DataFrame:
    """How many pictures were found, set aside for which reason, and kept, by source and class.

    Args:
        manifest: with `split` and `reason`.
        reasons: those that say nothing against a file; all others count as unreadable.
    """
    stage = manifest["reason"].where(manifest["reason"].isin(reasons), "unreadable")
    stage = stage.where(manifest["split"] == "excluded", "kept")
    counts = pd.crosstab([manifest["source"], manifest["class_name"]], stage)
    columns = ["unreadable", *(reason for reason in reasons if reason in counts), "kept"]
    counts = counts.reindex(columns=columns, fill_value=0)
    counts.insert(0, "found", counts.sum(axis=1))
    return counts.reset_index()
