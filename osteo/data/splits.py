"""Hold-out and k-fold splits that never cut through a group, the same on every machine; and what they leak."""

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
import pandas as pd

from osteo.config import SplitConfig
from osteo.data.manifest import NOT_IN_SPLIT, SPLITS
from osteo.errors import UserError, counted, unknown
from osteo.reading.labels import SPLIT_NAMES
from osteo.reading.tables import read_users_table
from osteo.task import BINARY, CLASSES, Task

log = logging.getLogger(__name__)


def assign_splits(
    manifest: pd.DataFrame, config: SplitConfig, task: Task = BINARY, *, complete: bool = True
) -> pd.DataFrame:
    """The manifest with train, val or test in `split` for every row that is not excluded.

    Args:
        manifest: what is to be split.
        config: how.
        task: every class of which each split must have.
        complete: else those that the data have are enough.

    Raises:
        UserError: a split or a class within it would be empty, or what states the split does not fit the pictures.
    """
    usable = manifest[manifest["split"] != "excluded"]
    stated = usable["split"] != ""
    if stated.any() and (config.file or config.test_source or config.fold is not None or config.ready_made):
        log.warning("the split in the labels file is not used: data.split asks for another")
    folders = split_folders(manifest)[usable.index]
    if folders.nunique() > 1 and not (config.ready_made or config.file or stated.any()):
        names = ", ".join(split for split in SPLITS if (folders == split).any())
        log.warning(
            "%d of %s are in folders of a ready-made split (%s), which is not used: the pictures are split anew;"
            " data.split.ready_made=true uses that split",
            folders.notna().sum(), counted(len(folders), "picture"), names,
        )  # fmt: skip
    if config.file:
        chosen = _from_file(manifest, Path(config.file).expanduser())
    elif config.ready_made:
        chosen = _from_folders(usable, folders, config)
    elif config.test_source:
        if config.test_source not in set(usable["source"]):
            raise unknown("data.split.test_source", config.test_source, sorted(usable["source"].unique()))
        rest = usable[usable["source"] != config.test_source]
        chosen = _train_and_val(rest, config).reindex(usable.index, fill_value="test")
    elif config.fold is not None:
        folds = deal(usable, [1.0] * config.folds, config)
        rest = usable[folds != config.fold]
        chosen = _train_and_val(rest, config).reindex(usable.index, fill_value="test")
    elif stated.any():
        chosen = _as_stated(usable)
    else:
        parts = deal(usable, [config.train, config.val, 1.0 - config.train - config.val], config)
        chosen = parts.map(dict(enumerate(SPLITS)))
    split = manifest["split"].copy()
    split[chosen.index] = chosen
    every = set(range(len(task.class_names)))
    needed = dict.fromkeys(SPLITS, every if complete or not task.has_many_classes else every & set(usable["label"]))
    if config.test_source and task.has_many_classes:  # the source has what it has; see `check_test_source`
        needed["test"] = every & set(usable.loc[chosen == "test", "label"])
    _check_filled(manifest.assign(split=split), task, needed)
    return manifest.assign(split=split)


def split_folders(manifest: pd.DataFrame) -> "pd.Series[str]":
    """The split that the nearest folder above a picture, or above what repeats it, is named for; else missing."""
    folders = manifest["image_id"].str.casefold().str.split("/").map(lambda parts: parts[-2:0:-1])
    split = folders.map(lambda names: next((SPLIT_NAMES[n.strip()] for n in names if n.strip() in SPLIT_NAMES), None))
    content = manifest["source"] + "/" + manifest["class_name"] + "/" + manifest["sha256"]
    repeats = split[split.notna() & content.notna()].groupby(content).first()
    return split.where(split.notna(), content.map(repeats)).astype("string")


def _from_folders(usable: pd.DataFrame, folders: "pd.Series[str]", config: SplitConfig) -> "pd.Series[str]":
    """The ready-made split; pictures for validation are drawn from those for training where no folder has them."""
    if folders.isna().any():
        outside = usable.loc[folders.isna(), "image_id"]
        raise UserError(
            f"data.split.ready_made=true: {counted(len(outside), 'picture')}, {outside.iloc[0]} first, in no folder"
            f" named {', '.join(SPLIT_NAMES)}"
        )
    if not (folders == "test").any():
        raise UserError("data.split.ready_made=true: no picture lies in a folder named test or testing")
    if (folders == "val").any():
        return folders
    rest = usable[folders == "train"]
    return _train_and_val(rest, config).reindex(usable.index, fill_value="test")


def _train_and_val(rest: pd.DataFrame, config: SplitConfig) -> "pd.Series[str]":
    return deal(rest, [config.train, config.val], config).map(dict(enumerate(SPLITS)))


def deal(pictures: pd.DataFrame, shares: Sequence[float], config: SplitConfig) -> "pd.Series[int]":
    """Deals pictures into parts of these relative sizes, each with the same mix of strata, groups kept whole.

    Every stratum's wanted count in a part is its share, rounded down for all parts but the last (the paper's rule)
    when the shares differ, and to the nearest whole where all are equal. Groups are dealt largest first, within a
    size in an order drawn from the seed, each to the part where it closes most of the gap. Single pictures come last
    and so fill every gap exactly.

    Returns:
        The part of every picture, from 0 to len(shares) - 1, by the index of `pictures`.
    """
    strata = pictures[list(config.stratify)].astype("string").agg("/".join, axis=1)
    codes, names = pd.factorize(strata, sort=True)
    totals = np.bincount(codes, minlength=len(names)).astype(float)
    wanted = _targets(totals, np.asarray(shares, float))  # (strata, parts)
    unit = pictures["group"] if config.grouped else pictures["image_id"]
    members: dict[str, list[int]] = {}
    for position, key in enumerate(unit):
        members.setdefault(key, []).append(position)
    drawn = {key: hashlib.sha256(f"{config.seed}:{key}".encode()).hexdigest() for key in members}
    part = np.empty(len(pictures), np.int64)
    missing = wanted.copy()
    for key in sorted(members, key=lambda k: (-len(members[k]), drawn[k])):
        counts = np.bincount(codes[members[key]], minlength=len(names)).astype(float)
        # squared distance to the wanted counts after the group joined a part, less the distance before
        cost = (counts[:, None] * (counts[:, None] - 2.0 * missing)).sum(axis=0)
        best = int(np.argmin(np.round(cost, 9)))
        part[members[key]] = best
        missing[:, best] -= counts
    return pd.Series(part, index=pictures.index)


def _targets(totals: "np.ndarray[tuple[int], np.dtype[np.float64]]", shares: np.ndarray) -> np.ndarray:
    """Whole numbers of pictures by stratum and part that add up to the totals.

    Equal shares (folds) differ by at most one picture within a stratum, and what is left over of one stratum goes on
    where that of the last one ended, so that fold sizes differ by at most one too. Otherwise every part but the last
    is rounded down, as in the paper.
    """
    shares = shares / shares.sum()
    exact = np.outer(totals, shares)
    wanted = np.floor(exact + 1e-9)
    left = (totals - wanted.sum(axis=1)).astype(int)
    if np.allclose(shares, shares[0]):
        start = 0
        for stratum, count in enumerate(left):
            wanted[stratum, [(start + i) % len(shares) for i in range(count)]] += 1
            start += int(count)
    else:
        wanted[:, -1] += left
    return wanted


def read_split_file(path: Path, option: str) -> dict[str, str]:
    """The split of every image_id in a CSV file.

    Args:
        path: of the file, with the columns image_id and split; see `read_users_table`.
        option: that named it, for errors.

    Raises:
        UserError: no such file, a column is missing, a split has an unknown name, or a picture is in two of them.
    """
    table = read_users_table(path, option)
    if missing := {"image_id", "split"} - set(table.columns):
        raise UserError(f"{option} lacks the column {sorted(missing)[0]}; it needs image_id and split")
    rows = table.dropna(subset=["image_id", "split"])[["image_id", "split"]].drop_duplicates()
    if strange := sorted(set(rows["split"]) - {*SPLITS, "excluded"}):
        raise unknown(f"{option}: split", strange[0], (*SPLITS, "excluded"))
    if (twice := rows["image_id"].duplicated(keep=False)).any():
        first = rows.loc[twice, "image_id"].iloc[0]
        where = " and ".join(rows.loc[rows["image_id"] == first, "split"])
        raise UserError(
            f"{option} lists {counted(int(rows.loc[twice, 'image_id'].nunique()), 'picture')} in several splits,"
            f" {first} first ({where}); keep one row of each"
        )
    return {str(image_id): str(split) for image_id, split in zip(rows["image_id"], rows["split"], strict=True)}


def _as_stated(usable: pd.DataFrame) -> "pd.Series[str]":
    """The split that the sources state."""
    if strange := sorted(set(usable["split"]) - set(SPLITS)):
        raise unknown("split", strange[0], SPLITS)
    return usable["split"]


def _from_file(manifest: pd.DataFrame, path: Path) -> "pd.Series[str]":
    option = f"data.split.file={path.name}"
    given = read_split_file(path, option)
    if absent := sorted(given.keys() - set(manifest["image_id"])):
        log.warning(
            "%s names %s that the data does not have, %s first", option, counted(len(absent), "picture"), absent[0]
        )
    usable = manifest[manifest["split"] != "excluded"]
    chosen = usable["image_id"].map(given)
    if chosen.isna().any():
        example = usable.loc[chosen.isna(), "image_id"].iloc[0]
        raise UserError(f"{option} has no row for {counted(int(chosen.isna().sum()), 'picture')}, {example} first")
    return chosen


def check_test_source(manifest: pd.DataFrame, source: str, task: Task) -> None:
    """Refuses a source that leaves no class to learn from without it, or has not both sides of the positive class.

    Raises:
        UserError: one line that names the source and the class.
    """
    option, usable = f"data.split.test_source={source}", manifest[manifest["split"] != "excluded"]
    if (of_source := manifest[manifest["source"] == source]).empty:
        return  # `assign_splits` says which there are
    inside = usable["source"] == source
    if not inside.any():
        reason = of_source["reason"].mode().iloc[0]
        raise UserError(f"{option} has no picture that task={task.name} can use: {reason}")
    for label, name in enumerate(task.class_names):
        if not (usable.loc[~inside, "label"] == label).any():
            raise UserError(f"{option} leaves no {name} pictures to learn from")
    is_positive = usable.loc[inside, "label"] == task.positive
    if is_positive.all() or not is_positive.any():
        missing = " or ".join(task.class_names[:-1]) if is_positive.all() else task.class_names[-1]
        raise UserError(f"{option} has no {missing} pictures to test on")


def _check_filled(manifest: pd.DataFrame, task: Task, needed: Mapping[str, Set[int]]) -> None:
    for split in SPLITS:
        labels = manifest.loc[manifest["split"] == split, "label"]
        for label, name in enumerate(task.class_names):
            if label in needed[split] and not (labels == label).any():
                raise UserError(
                    f"the {split} split has no {name} pictures ({counted(len(labels), 'picture')} in all);"
                    " use more pictures, other shares (data.split.train, data.split.val) or fewer folds"
                )


def read_split(against: str, manifest: pd.DataFrame) -> dict[str, str]:
    """The split of a file or of a run record, by image_id.

    Raises:
        UserError: there is no such file or run, or it names none of the pictures.
    """
    path = Path(against).expanduser()
    given = read_split_file(path / "manifest.csv" if path.is_dir() else path, f"against={against}")
    if not manifest["image_id"].isin(list(given)).any():
        raise UserError(
            f"against={against} names none of {counted(len(manifest), 'picture')}, such as {manifest['image_id'][0]};"
            " give the data that it was made from"
        )
    return given


def with_split(manifest: pd.DataFrame, given: dict[str, str]) -> pd.DataFrame:
    """The manifest with a given split; pictures that it does not name are left out, with that reason."""
    split = manifest["image_id"].map(given).where(manifest["split"] != "excluded", "excluded")
    reason = manifest["reason"].where(split.notna(), NOT_IN_SPLIT)
    return manifest.assign(split=split.fillna("excluded").astype("string"), reason=reason)


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
