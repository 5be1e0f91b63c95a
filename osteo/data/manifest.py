"""One table, a row a picture: what is known of every file before any of it is decoded."""

import hashlib
import io
import logging
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from osteo.data.sources import CLASSES, SPLIT_FOLDERS, Picture, Source
from osteo.errors import UserError
from osteo.files import write_table

log = logging.getLogger(__name__)

COLUMNS = {
    "image_id": "string",  # source/relative path, unique
    "path": "string",  # where it lies, as the user wrote it
    "source": "string",
    "label": "Int64",  # 0 normal, 1 osteoporosis, none for osteopenia
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
SPLITS = ("train", "val", "test")
OSTEOPENIA = "osteopenia: not in the binary task"
REPEATED = "repeated in a ready-made split folder"
CONTRADICTORY = "copies with contradictory labels"
COPY = "copy of another picture"
DELIBERATE = (OSTEOPENIA, REPEATED, CONTRADICTORY, COPY)
"""Reasons that say nothing against the file itself."""
LARGEST_PICTURE = 100_000_000  # pixels; the largest knee in the two archives has 5 million


def build_manifest(sources: Mapping[str, Source], cache: Path) -> pd.DataFrame:
    """Hashes every picture and reads its header; a second call on the same files reads the table back.

    Args:
        sources: by name, as read.
        cache: folder in which the table is kept.

    Returns:
        One row a picture, `split` empty for a picture that can be used and "excluded" otherwise.

    Raises:
        UserError: a source has no pictures, or lacks a class.
    """
    for name, source in sources.items():
        _check_classes(name, source)
    stamp = "\n".join(source.stamp for source in sources.values())
    kept = cache / "manifests" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.csv"
    if kept.exists():
        return read_manifest(kept)
    log.info("reading %d pictures", sum(len(source.pictures) for source in sources.values()))
    with ThreadPoolExecutor() as pool:
        rows = [row for source in sources.values() for row in pool.map(lambda p, s=source: _row(p, s), source.pictures)]
    manifest = _drop_repeats(typed(pd.DataFrame(rows)))
    write_table(kept, manifest)
    return manifest


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the manifest's columns, in order and typed."""
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS).fillna({"split": "", "reason": "", "patient": ""})


def read_manifest(path: Path) -> pd.DataFrame:
    """Reads a manifest written as CSV."""
    return typed(pd.read_csv(path, dtype="string", keep_default_na=False, na_values=[""]))


def exclude(manifest: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> pd.DataFrame:
    """The manifest with these rows set aside, for a reason; rows that have one already keep it."""
    changed = manifest.copy()
    fresh = rows & (changed["split"] != "excluded")
    changed.loc[fresh, ["split", "reason"]] = ["excluded", reason]
    return changed


def _check_classes(name: str, source: Source) -> None:
    present = {picture.class_name for picture in source.pictures}
    if not present:
        raise UserError(
            f"source {name} holds no pictures in class folders; expected folders named normal and osteoporosis"
            f" with files ending in .png, .jpg or .jpeg ({len(source.strays)} other files were found)"
        )
    for needed in ("normal", "osteoporosis"):
        if needed not in present:
            raise UserError(
                f"source {name} has no pictures of class {needed}; found only: {', '.join(sorted(present))}"
            )


def _row(picture: Picture, source: Source) -> dict[str, object]:
    """Everything that can be said of a picture without decoding it."""
    row: dict[str, object] = {key: value for key, value in asdict(picture).items() if key in COLUMNS}
    row["label"] = CLASSES[picture.class_name]
    reason = picture.refused
    if not reason:
        try:
            content = source.read(picture.name)
            row["sha256"] = hashlib.sha256(content).hexdigest()
            row["width"], row["height"], row["format"], row["mode"] = header(content)
        except (OSError, ValueError, RuntimeError, SyntaxError) as error:
            reason = explain(error)
    if not reason and row["label"] is None:
        reason = OSTEOPENIA
    row["split"], row["reason"] = ("excluded", reason) if reason else ("", "")
    return row


def header(content: bytes) -> tuple[int, int, str, str]:
    """Width and height in pixels, format and mode, from a picture's first bytes.

    Raises:
        ValueError: the picture has more than 100 million pixels.
        OSError: this is not a picture.
    """
    if not content:
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours, below, is stricter
        try:
            with Image.open(io.BytesIO(content)) as image:
                (width, height), kind, mode = image.size, image.format or "", image.mode
        except Image.DecompressionBombError:
            raise ValueError("more than 100 million pixels") from None
    if width * height > LARGEST_PICTURE:
        raise ValueError(f"more than 100 million pixels ({width} x {height})")
    return width, height, kind, mode


def explain(error: BaseException) -> str:
    """A reason in a few words, without a path."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, PermissionError):
        return "no permission to read"
    return str(error).split(":")[0].splitlines()[0][:120] or type(error).__name__


def _drop_repeats(manifest: pd.DataFrame) -> pd.DataFrame:
    """Sets aside what a ready-made split folder repeats of the same source and class: each picture counts once."""
    folders = manifest["image_id"].str.casefold().str.split("/")
    presplit = folders.map(lambda parts: bool(set(parts[1:-1]) & SPLIT_FOLDERS)).astype(bool)
    content = manifest["source"] + "/" + manifest["class_name"] + "/" + manifest["sha256"].fillna("")
    repeated = presplit & content.isin(content[~presplit]) & manifest["sha256"].notna()
    return exclude(manifest, repeated, REPEATED)


def assign_groups(manifest: pd.DataFrame, pairs: Iterable[tuple[str, str]] = ()) -> pd.DataFrame:
    """Fills `group`: pictures of one patient, with the same bytes, or joined by a pair of image_ids, and so on.

    A group is named by the smallest SHA-256 in it, so that it does not depend on where the files lie.
    """
    position = {image_id: row for row, image_id in enumerate(manifest["image_id"])}
    edges = [(position[a], position[b]) for a, b in pairs]
    patient = (manifest["source"] + "/" + manifest["patient"]).where(manifest["patient"] != "")
    for key in (manifest["sha256"], patient):
        first: dict[str, int] = {}
        edges += [(first.setdefault(value, row), row) for row, value in enumerate(key) if pd.notna(value)]
    joined = coo_array((np.ones(len(edges)), tuple(np.array(edges or [(0, 0)]).T)), shape=(len(manifest),) * 2)
    _, component = connected_components(joined, directed=False)
    name = manifest["sha256"].fillna("none:" + manifest["image_id"])
    group = name.groupby(component).transform("min").str[:16]
    return manifest.assign(group=group.astype("string"))


def duplicates(manifest: pd.DataFrame) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of byte-identical pictures that have a label, and those among them whose labels contradict each other."""
    usable = manifest[(manifest["split"] != "excluded") & manifest["label"].notna()]
    same, contradictory = [], []
    for _, rows in usable.groupby("sha256"):
        if len(rows) > 1:
            same.append(sorted(rows["image_id"]))
            if rows["label"].nunique() > 1:
                contradictory.append(same[-1])
    return sorted(same), sorted(contradictory)


def clean(manifest: pd.DataFrame) -> pd.DataFrame:
    """Sets aside every copy of a picture whose copies carry contradictory labels, and all but one of any other."""
    same, contradictory = duplicates(manifest)
    wrong = {image_id for group in contradictory for image_id in group}
    copies = {image_id for group in same for image_id in group[1:]}
    manifest = exclude(manifest, manifest["image_id"].isin(wrong), CONTRADICTORY)
    return exclude(manifest, manifest["image_id"].isin(copies), COPY)
