"""One table, one row per picture: what is known of every file before any of it is decoded."""

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from osteo.config import PAPER_VARIANTS
from osteo.data.sources import Picture, Source
from osteo.errors import UserError, counted
from osteo.files import read_sealed, read_table, write_sealed
from osteo.progress import followed
from osteo.reading.labels import SPLIT_NAMES, warn_of
from osteo.reading.pictures import NotRead, describe_error
from osteo.reading.reader import read_header
from osteo.task import BINARY, T_SCORE, TASKS, Task, who_class
from osteo.types import ReadFile

log = logging.getLogger(__name__)

COLUMNS = {
    "image_id": "string",  # source/relative path, unique
    "path": "string",  # where it lies, as the user wrote it, or the image_id where osteo itself has put it
    "source": "string",
    "label": "Int64",  # that of the class in the task; none where it has no part in it
    "class_name": "string",
    "patient": "string",
    "sha256": "string",
    "width": "Int64",  # pixels, before any orientation tag
    "height": "Int64",
    "format": "string",  # PNG, JPEG, ...
    "mode": "string",  # L, RGB, I;16, ... as Pillow names them
    "group": "string",  # pictures that must stay together
    "split": "string",  # train, val, test, excluded
    "reason": "string",  # why excluded
}
VARIANT = "variant"
"""A further column where variants are made before the split: which of PAPER_VARIANTS a row is, from 0."""
SPLITS = ("train", "val", "test")
OSTEOPENIA = "osteopenia: not in the binary task"
NO_T_SCORE = "no T-score"
REPEATED = "repeated in a ready-made split folder"
CONTRADICTORY = "copies with contradictory labels"
COPY = "copy of another picture"
NOT_IN_SPLIT = "not in the split"
NO_ROW, INCOMPLETE = "no clinical row", "no value of a covariate"
DELIBERATE = (OSTEOPENIA, NO_T_SCORE, REPEATED, CONTRADICTORY, COPY, NOT_IN_SPLIT, NO_ROW, INCOMPLETE)
"""Reasons that are not the fault of the file itself."""
VERSION = 3  # raise it when read_header changes what it returns or refuses
NOT_READ = "not read"
"""How a reason begins that lies in the disk or a permission, not in the bytes: it holds for this run alone."""
AS_TEXT: dict[str, Any] = {"dtype": "string", "keep_default_na": False, "na_values": [""]}
"""How pandas reads a manifest's CSV."""


def build_manifest(
    sources: Mapping[str, Source],
    cache: Path,
    *,
    task: Task | None = BINARY,
    renew: bool = False,
    complete: bool = True,
) -> pd.DataFrame:
    """Hashes every picture and reads its header; a second call on the same files reads the table that the first kept.

    A file that could not be read then is tried again.

    Args:
        sources: by name, as read.
        cache: folder in which the table is kept, whatever the task.
        task: that says which label a class has; None where no picture needs any.
        renew: read all files again.
        complete: refuse sources that together lack a class that has a part in the task.

    Returns:
        One row per picture, `split` "excluded" for one that cannot be used, else as its source states it or empty.

    Raises:
        UserError: a source has no pictures, or lacks a class.
    """
    if task is not None:
        _check_classes(sources, task, complete=complete)
    stamps = [source.stamp for source in sources.values()]
    pictures = [picture for source in sources.values() for picture in source.pictures]
    # what a picture stands for belongs to it: the same files can be read under other names of classes or by a plugin
    facts = [[p.image_id, p.path, p.class_name, p.patient, p.split] for p in pictures]
    recipe = json.dumps([VERSION, stamps, facts])
    place = cache / "manifests" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.csv"
    text = read_sealed(place) if all(stamps) and not renew else None
    kept = typed(pd.DataFrame() if text is None else pd.read_csv(io.StringIO(text), **AS_TEXT))
    kept = kept[~kept["reason"].str.startswith(NOT_READ)]
    known = set(kept["image_id"])
    missing = [picture for picture in pictures if picture.image_id not in known]
    if not missing:
        return _drop_repeats(_with_labels(kept, task))
    log.info("reading %s", counted(len(missing), "picture"))
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda picture: _row(picture, sources[picture.source]), missing)
        rows = list(followed(read, len(missing), "reading"))
    table = pd.concat([kept, typed(pd.DataFrame(rows))]).set_index("image_id", drop=False)
    manifest = table.loc[[picture.image_id for picture in pictures]].reset_index(drop=True)
    if all(stamps):
        write_sealed(place, manifest.to_csv(index=False, lineterminator="\n"))
    return _drop_repeats(_with_labels(manifest, task))


def _with_labels(manifest: pd.DataFrame, task: Task | None) -> pd.DataFrame:
    """The manifest with the labels of a task; what has none is set aside, unless there is no task."""
    if task is None:
        return manifest
    labelled = manifest.assign(label=manifest["class_name"].map(task.labels).astype("Int64"))
    return exclude(labelled, labelled["label"].isna(), OSTEOPENIA)


def follow_t_scores(manifest: pd.DataFrame, known: Mapping[str, float], *, complete: bool) -> pd.DataFrame:
    """The manifest with the class of each T-score, whatever a folder says; a picture without one is set aside.

    Args:
        manifest: with the labels of three classes.
        known: T-scores by image_id.
        complete: there must be some; else, where there are none at all, the classes of the folders stay.

    Raises:
        UserError: there are none.
    """
    if not known and not complete:
        return manifest
    if not known:
        raise UserError(
            "task=t_score cannot be used: no picture has a T-score; it needs a clinical sheet that has them, as the"
            " Mendeley archive does, data.clinical=FILE data.clinical_columns=[COLUMN:t_score], or a column of"
            " data.labels: data.columns=[COLUMN:t_score]"
        )
    manifest = exclude(manifest, ~manifest["image_id"].isin(list(known)), NO_T_SCORE)
    measured = manifest["image_id"].map({image_id: who_class(t_score) for image_id, t_score in known.items()})
    classes = measured.fillna(manifest["class_name"]).astype("string")
    other = manifest.loc[(classes != manifest["class_name"]) & (manifest["split"] != "excluded"), "image_id"]
    warn_of(list(other), "the T-score of {} disagrees with the class of the folder: the T-score counts")
    return _with_labels(manifest.assign(class_name=classes), TASKS[T_SCORE])


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the manifest's columns, in order and typed."""
    columns = COLUMNS | ({VARIANT: "Int64"} if VARIANT in table else {})
    return table.reindex(columns=list(columns)).astype(columns).fillna({"split": "", "reason": "", "patient": ""})


def with_variants(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with one row per variant of every picture that is used, as if each were a picture of its own.

    The original keeps its image_id; that of another variant is followed by # and the variant's name. All else, such as
    `sha256` and `group`, is that of the picture.
    """
    variants = [
        manifest.assign(image_id=manifest["image_id"] + (f"#{name}" if number else ""), variant=number)
        for number, name in enumerate(PAPER_VARIANTS)
    ]
    return pd.concat([variants[0], *(rows[rows["split"] != "excluded"] for rows in variants[1:])], ignore_index=True)


def originals(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the rows of other variants, where it has any."""
    return manifest[manifest[VARIANT] == 0] if VARIANT in manifest else manifest


def read_manifest(path: Path) -> pd.DataFrame:
    """Reads a manifest written as CSV."""
    return typed(read_table(path, **AS_TEXT))


def read_bytes(read: ReadFile, name: str) -> bytes:
    """The content of a file.

    Raises:
        NotRead: the disk or a missing permission does not let it be read, whatever its content.
    """
    try:
        return read(name)
    except OSError as error:
        if error.errno is None:  # what a library says of the content
            raise
        why = "no permission" if isinstance(error, PermissionError) else (error.strerror or "").lower()
        raise NotRead(why) from error


def unusable(manifest: pd.DataFrame) -> "pd.Series[bool]":
    """The rows that are set aside for a reason that lies in the file itself."""
    return (manifest["split"] == "excluded") & ~manifest["reason"].isin(DELIBERATE)


def exclude(manifest: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> pd.DataFrame:
    """The manifest with these rows set aside, for a reason; rows that have one already keep it."""
    changed = manifest.copy()
    fresh = rows & (changed["split"] != "excluded")
    changed.loc[fresh, ["split", "reason"]] = ["excluded", reason]
    return changed


def _check_classes(sources: Mapping[str, Source], task: Task, *, complete: bool) -> None:
    """Refuses a source that cannot tell two classes apart, and sources that together lack one of the task.

    Several classes need not all be in one source; where pictures are merely asked about, none has to be anywhere.
    """
    found: dict[str, set[str]] = {}
    for name, source in sources.items():
        found[name] = present = {picture.class_name for picture in source.pictures}
        if not present:
            raise UserError(
                f"source {name} holds no pictures in class folders; expected folders named"
                f" {' and '.join(_classes_of(task))}, or data.classes or data.labels to name the classes"
                f" ({counted(len(source.strays), 'other file')} found)"
            )
        if not task.has_many_classes:
            _check_present(f"source {name} has", present, task)
    present = set().union(*found.values())
    if complete and (absent := [name for name in _classes_of(task) if name not in present]):
        raise _without(f"task={task.name} cannot be used: the data have", absent[0], present)


def _check_present(what_has: str, present: set[str], task: Task) -> None:
    for label in range(len(task.class_names)):
        if not any(task.labels[name] == label for name in present):
            raise _without(
                what_has, " or ".join(name for name, its_label in task.labels.items() if its_label == label), present
            )


def _without(what_has: str, missing: str, present: set[str]) -> UserError:
    return UserError(f"{what_has} no pictures of class {missing}; found only: {', '.join(sorted(present))}")


def _classes_of(task: Task) -> list[str]:
    return [name for name, label in task.labels.items() if label is not None]


def _row(picture: Picture, source: Source) -> dict[str, object]:
    """Everything that is known of a picture without decoding it."""
    row: dict[str, object] = {key: value for key, value in asdict(picture).items() if key in COLUMNS}
    reason = picture.refused
    if not reason:
        try:
            content = read_bytes(source.read, picture.name)
            row["sha256"] = hashlib.sha256(content).hexdigest()
            row["width"], row["height"], row["format"], row["mode"] = read_header(content)
        except NotRead as error:
            reason = f"{NOT_READ} ({error})"
        except (OSError, ValueError, RuntimeError, SyntaxError) as error:
            reason = describe_error(error)
    row["split"], row["reason"] = ("excluded", reason) if reason else (picture.split, "")
    return row


def _drop_repeats(manifest: pd.DataFrame) -> pd.DataFrame:
    """Sets aside what a ready-made split folder repeats of the same source and class: each picture counts once."""
    folders = manifest["image_id"].str.casefold().str.split("/")
    presplit = folders.map(lambda parts: bool(set(parts[1:-1]) & SPLIT_NAMES.keys())).astype(bool)
    content = manifest["source"] + "/" + manifest["class_name"] + "/" + manifest["sha256"].fillna("")
    repeated = presplit & content.isin(content[~presplit]) & manifest["sha256"].notna()
    return exclude(manifest, repeated, REPEATED)


def assign_groups(manifest: pd.DataFrame, pairs: Iterable[tuple[str, str]] = ()) -> pd.DataFrame:
    """Fills `group`: pictures of one patient, with the same bytes, or joined by a pair of image_ids, and so on.

    A group is named by the smallest SHA-256 in it, so that it does not depend on where the files lie.
    """
    patient = (manifest["source"] + "/" + manifest["patient"]).where(manifest["patient"] != "")
    component = _connect(manifest, pairs, manifest["sha256"], patient)
    name = manifest["sha256"].fillna("none:" + manifest["image_id"])
    group = name.groupby(component).transform("min").str[:16]
    return manifest.assign(group=group.astype("string"))


def _connect(
    manifest: pd.DataFrame, pairs: Iterable[tuple[str, str]], *keys: "pd.Series[str]"
) -> npt.NDArray[np.int32]:
    """Numbers the sets of rows that are joined by pairs of image_ids or by an equal value of any key."""
    position = {image_id: row for row, image_id in enumerate(manifest["image_id"])}
    edges = [(position[a], position[b]) for a, b in pairs]
    for key in keys:
        first: dict[str, int] = {}
        edges += [(first.setdefault(value, row), row) for row, value in enumerate(key) if pd.notna(value)]
    return connect(len(manifest), edges)


def connect(count: int, edges: Iterable[tuple[int, int]]) -> npt.NDArray[np.int32]:
    """Numbers the sets of `count` things that edges join, (count,)."""
    ends = np.array(list(edges), int).reshape(-1, 2).T
    joined = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(count, count))
    return np.asarray(connected_components(joined, directed=False)[1], np.int32)


def copies(manifest: pd.DataFrame, pairs: Iterable[tuple[str, str]] = ()) -> tuple[list[list[str]], list[list[str]]]:
    """Sets of pictures that have a label and are copies of each other, and those sets whose labels contradict.

    Args:
        manifest: rows that are excluded do not count.
        pairs: image_ids of pictures that show the same exposure, beside those with the same bytes.
    """
    cluster = pd.Series(_connect(manifest, pairs, manifest["sha256"]), index=manifest.index)
    usable = (manifest["split"] != "excluded") & manifest["label"].notna()
    same, contradictory = [], []
    for _, rows in manifest[usable].groupby(cluster[usable]):
        if len(rows) > 1:
            same.append(sorted(rows["image_id"]))
            if rows["label"].nunique() > 1:
                contradictory.append(same[-1])
    return sorted(same), sorted(contradictory)


def clean(
    manifest: pd.DataFrame,
    pairs: Iterable[tuple[str, str]] = (),
    t_scores: Mapping[str, float] | None = None,
    task: Task = BINARY,
) -> pd.DataFrame:
    """Keeps one of every set of copies, and none where their labels, or T-scores, contradict and nothing decides.

    Args:
        manifest: rows that are excluded stay so.
        pairs: image_ids of pictures that show the same exposure, beside those with the same bytes.
        t_scores: by image_id, where measured; those of a set decide, by the WHO's cut-offs, where they agree.
        task: that says which label a class has.
    """
    same, contradictory = copies(manifest, pairs)
    rows = manifest.set_index("image_id")
    pixels = rows["width"] * rows["height"]
    known = t_scores or {}
    wrong: set[str] = set()
    for members in same if task.kind == "regression" else contradictory:
        measured = {known[image_id] for image_id in members if image_id in known}
        right = {task.labels[who_class(t_score)] for t_score in measured}
        is_known = len(measured if task.kind == "regression" else right) == 1
        wrong |= {image_id for image_id in members if not (is_known and rows["label"][image_id] in right)}
    manifest = exclude(manifest, manifest["image_id"].isin(wrong), CONTRADICTORY)
    spare: set[str] = set()
    for members in same:  # the largest is kept, the first by name where several are
        left = [image_id for image_id in members if image_id not in wrong]
        spare |= set(sorted(left, key=lambda image_id: (-pixels[image_id], image_id))[1:])
    return exclude(manifest, manifest["image_id"].isin(spare), COPY)
