"""Which pictures a network may learn from without labels: none that validates or tests, and no copy of one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from osteo.command_settings import PretrainConfig
from osteo.config import DataConfig, SplitConfig
from osteo.data import manifest as table
from osteo.data.prepare import (
    Prepared,
    configured,
    open_thumbnails,
    prepare,
    read_sources,
    reader,
    same_exposures,
    set_unreadable_aside,
)
from osteo.data.sources import read_unlabelled
from osteo.data.splits import read_split, read_split_file
from osteo.data.store import Store, open_store
from osteo.errors import UserError, counted
from osteo.files import cache_dir, display_path, writing_to_cache
from osteo.networks.lineage import COPY, Descriptors, Seen, describe, first_copies, likeness_to, read_seen
from osteo.records.record import Run
from osteo.types import Grey, ReadFile

HELD_OUT = "validates or tests"
COPY_OF_HELD_OUT = "a copy of a validation or test picture, or of the same patient"
REASONS = (HELD_OUT, COPY_OF_HELD_OUT, table.COPY)
OTHERS = "against:"
"""What the image_id of a picture of another run begins with here."""
STATING = ("labels", "classes", "columns", "patient", "clean")
"""Keys of the data that say something of labels or copies."""


class Selection(NamedTuple):
    """What a network is to learn from."""

    prepared: Prepared
    """with the split train for what is seen; the rest is excluded, each picture for its reason"""
    seen: Seen
    line: str
    """how many pictures there are, and how many are left out for which reason"""


class Pictures(NamedTuple):
    """Rows of a manifest, and what gives the bytes of one by its image_id."""

    rows: pd.DataFrame
    read: ReadFile


def select(config: PretrainConfig) -> Selection:
    """Reads all pictures and sets aside what must not be seen.

    Raises:
        UserError: there are no pictures, what must not be seen cannot be compared with them, or the weights that the
            network begins with have seen some of it.
    """
    cache = cache_dir(config.data.cache)
    pictures, split = _pictures(config.data, cache)
    others = Pictures(pictures.rows.iloc[:0], pictures.read)
    if config.against and Path(config.against).expanduser().is_dir():
        others = _of_run(config.against)
    elif config.against:
        split = split | _of_file(config.against, pictures.rows)
    is_held = pictures.rows["image_id"].map(split).isin(["val", "test"]) & (pictures.rows["split"] != "excluded")
    everything = _together(pictures, others)
    with writing_to_cache(cache):
        small = open_thumbnails(everything.rows, everything.read, cache)
        held = [*pictures.rows.loc[is_held, "image_id"], *others.rows["image_id"]]
        if lost := everything.rows[
            everything.rows["image_id"].isin(held) & everything.rows["sha256"].isin(list(small.unreadable))
        ]["image_id"].tolist():
            raise UserError(
                f"against={config.against}: {counted(len(lost), 'picture')} that must not be seen cannot be read,"
                f" {lost[0].removeprefix(OTHERS)} first, so that copies of it could not be found; bring the files back"
            )
        rows, described = _left_out(set_unreadable_aside(pictures.rows, small), everything, held, small, cache)
        rows = rows.assign(split=rows["split"].mask(rows["split"] != "excluded", "train"))
        if not (rows["split"] == "train").any():
            raise UserError("no picture is left to learn from; give more, or other ones: data.root=FOLDER")
        data = config.data
        store = open_store(
            rows, pictures.read, cache, image_size=data.image_size, fit=data.fit, enhance=data.enhance, twins=False
        )
    of_held = everything.rows[everything.rows["image_id"].isin(held)]["sha256"].tolist()
    seen = _seen(config, rows, of_held, small, described)
    return Selection(Prepared(rows, store), seen, _line(rows, len(held), config))


def is_labelled(data: DataConfig) -> bool:
    """Whether a split of labelled pictures is asked for; else a folder is one of pictures alone."""
    usual, split = DataConfig(), SplitConfig()
    stated = any(getattr(data, key) != getattr(usual, key) for key in STATING)
    return data.name != "folder" or stated or data.split != split


def _pictures(data: DataConfig, cache: Path) -> tuple[Pictures, dict[str, str]]:
    """All pictures, without labels, those that cannot be used excluded; and the split of those that have one."""
    if not is_labelled(data):
        sources, split = {"folder": read_unlabelled(str(data.root))}, dict[str, str]()
        with writing_to_cache(cache):
            rows = table.build_manifest(sources, cache, task=None)
    else:
        sources = read_sources(data, cache)
        rows = prepare(data, sources).manifest
        split = dict(zip(rows["image_id"], rows["split"], strict=True))
    is_unusable = table.unusable(rows)
    rows = table.typed(rows).assign(
        label=pd.array([pd.NA] * len(rows), "Int64"),
        split=rows["split"].where(is_unusable, ""),
        reason=rows["reason"].where(is_unusable, ""),
    )
    return Pictures(rows, reader(sources)), split


def _of_file(against: str, rows: pd.DataFrame) -> dict[str, str]:
    """What validates or tests by a file, all of which is among these pictures.

    Raises:
        UserError: one is not, so that copies of it could not be found.
    """
    split = read_split(against, rows)
    held = {image_id: name for image_id, name in split.items() if name in ("val", "test")}
    if missing := sorted(held.keys() - set(rows["image_id"])):
        raise UserError(
            f"against={Path(against).name} names {counted(len(missing), 'picture')} to validate or test that the data"
            f" does not have, {missing[0]} first, so that copies of it could not be found; give the run directory"
        )
    return held


def _of_run(against: str) -> Pictures:
    """The validation and test pictures of a run, from where it read them.

    Raises:
        UserError: they are no longer there.
    """
    run = Run(Path(against).expanduser())
    read_split_file(run.directory / "manifest.csv", f"against={display_path(run.directory)}")
    rows = run.read_manifest()
    rows = rows[rows["split"].isin(["val", "test"])]
    try:
        data = configured(run.read_settings().data, {})
        read = reader(read_sources(data, cache_dir(data.cache)))
    except UserError as error:
        raise UserError(
            f"against={display_path(run.directory)}: its pictures cannot be read, so that copies of them could not be"
            f" found ({error})"
        ) from error
    return Pictures(rows.assign(image_id=OTHERS + rows["image_id"]), lambda name: read(name.removeprefix(OTHERS)))


def _together(pictures: Pictures, others: Pictures) -> Pictures:
    def read(name: str) -> bytes:
        return (others if name.startswith(OTHERS) else pictures).read(name)

    return Pictures(table.typed(pd.concat([pictures.rows, others.rows], ignore_index=True)), read)


def _left_out(
    rows: pd.DataFrame, everything: Pictures, held: list[str], small: Store, cache: Path
) -> tuple[pd.DataFrame, dict[str, Descriptors]]:
    """The rows, of which what must not be seen is excluded, and every picture but one of the same bytes.

    Also the descriptors of what is left and of what only these show to be a copy, (2, NUMBERS) by SHA-256.
    """
    rows = table.exclude(rows, rows["image_id"].isin(held), HELD_OUT)
    if held:
        pairs = [(pair.first, pair.second) for pair in same_exposures(everything.rows, small, cache)]
        grouped = table.assign_groups(everything.rows, pairs).set_index("image_id")["group"]
        rows = rows.assign(group=rows["image_id"].map(grouped).astype("string"))
        rows = table.exclude(rows, rows["group"].isin(set(grouped[held])), COPY_OF_HELD_OUT)
    shas = rows.loc[rows["split"] != "excluded", "sha256"].unique()
    described = describe([_thumbnail(small, sha) for sha in shas])
    if held:  # what a training would take for a copy; see `check_unseen`
        of_held = everything.rows.loc[everything.rows["image_id"].isin(held), "sha256"].unique()
        likeness = likeness_to(described, [_thumbnail(small, sha) for sha in of_held]).max(axis=0, initial=0.0)
        rows = table.exclude(rows, rows["sha256"].isin(shas[likeness >= COPY]), COPY_OF_HELD_OUT)
    kept = rows[rows["split"] != "excluded"]
    rows = table.exclude(rows, rows["image_id"].isin(kept.loc[kept["sha256"].duplicated(), "image_id"]), table.COPY)
    return rows, dict(zip(shas, described, strict=True))


def _thumbnail(small: Store, sha256: str) -> Grey:
    return np.asarray(small.pictures[0, small.rows[sha256]])


def _seen(
    config: PretrainConfig, rows: pd.DataFrame, held: list[str], small: Store, described: dict[str, Descriptors]
) -> Seen:
    """What the network will have seen, with what the weights had seen that it begins with.

    Raises:
        UserError: these have seen what must not be seen.
    """
    shas = rows.loc[rows["split"] == "train", "sha256"].tolist()
    earlier = read_seen(config.model.weights_file)
    if earlier and (copies := first_copies(earlier, held, {sha: _thumbnail(small, sha) for sha in held})):
        raise UserError(
            f"model.weights_file={Path(str(config.model.weights_file)).name} was pretrained on {len(copies)} of the"
            f" {counted(len(set(held)), 'picture')} that must not be seen, or on copies of them; begin with other"
            " weights"
        )
    descriptors = torch.from_numpy(np.stack([described[sha] for sha in shas]))
    return Seen(config.method, tuple(shas), descriptors).joined(earlier)


def _line(rows: pd.DataFrame, held: int, config: PretrainConfig) -> str:
    excluded = rows.loc[rows["split"] == "excluded", "reason"]
    counts = {reason: int((excluded == reason).sum()) for reason in REASONS}
    counts["unreadable"] = len(excluded) - sum(counts.values())
    left = ", ".join(f"{count} ({reason})" for reason, count in counts.items() if count)
    compared = f"; compared with {counted(held, 'picture')} of validation and test" if held else ""
    if not held:
        compared = "; no validation or test pictures are known: against=RUN_OR_SPLIT_FILE leaves those of a run out"
    return f"learning from {counted(len(rows) - len(excluded), 'picture')}; left out: {left or 'none'}{compared}"
