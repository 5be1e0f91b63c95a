"""What is wrong with a data set: copies, contradictions, odd pictures, shortcuts, leaks."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from osteo.audit.label_noise import LabelNoise, after_cleaning, estimate
from osteo.audit.shortcuts import Facts, Shortcut, fitted_shortcuts, read_facts, shortcuts
from osteo.config import DataConfig
from osteo.data import manifest as table
from osteo.data import prepare
from osteo.data.manifest import unusable
from osteo.data.sources import clinical_table, sheet_mismatches, t_scores
from osteo.data.splits import assign_splits, by_split, flow, leaks, read_split, with_split
from osteo.errors import counted
from osteo.evaluation.outcomes import against_rest
from osteo.files import cache_dir
from osteo.reading.pictures import is_blank
from osteo.reading.reader import read_picture
from osteo.task import BINARY, TASKS, Task
from osteo.types import Grey, ReadFile

log = logging.getLogger(__name__)

USUAL_MODES = ("L", "RGB", "MONOCHROME1", "MONOCHROME2")
TINY = 100  # pixels


@dataclass(frozen=True)
class Exposure:
    """Two files that show one exposure without being the same byte for byte."""

    first: str
    """image_id"""
    second: str
    similarity: float
    mirrored: bool
    """from left to right or upside down"""
    change: str
    """how one lies to the other, in words: "mirrored", "rotated by 90 degrees", "inverted", ... or nothing"""
    same_pixels: bool
    contradictory: bool
    """their labels differ"""


@dataclass(frozen=True)
class Audit:
    """Everything that was found."""

    manifest: pd.DataFrame
    exact: list[list[str]]
    """image_ids of files with the same bytes"""
    contradictory: list[list[str]]
    """those groups whose labels differ"""
    exposures: list[Exposure]
    odd: dict[str, list[str]]
    """flags by image_id"""
    label_noise: list[LabelNoise]
    """judged by identical files, by all copies, and what is left of the latter after cleaning"""
    shortcuts: list[Shortcut]
    """of the files"""
    fitted_shortcuts: list[Shortcut]
    """of what a network sees of them"""
    fit: str
    """how it comes to see that: as `data.fit`"""
    leaks: dict[str, list[list[str]]]
    """sets of image_ids on more than one side of the split: pictures, clusters, patients"""
    flow: pd.DataFrame
    """pictures found, set aside and kept, one row per source and class"""
    by_split: pd.DataFrame
    notes: list[str]
    """where pictures and clinical sheet do not match"""
    read: ReadFile = field(repr=False, compare=False)
    """gives the bytes of a file by its image_id"""

    @property
    def unreadable(self) -> dict[str, str]:
        """Why a file cannot be used, by image_id."""
        rows = self.manifest[unusable(self.manifest)]
        return dict(zip(rows["image_id"], rows["reason"], strict=True))

    def as_json(self) -> dict[str, Any]:
        """The content of audit.json."""
        return {
            "pictures": len(self.manifest),
            "exact_duplicate_groups": self.exact,
            "contradictory_groups": self.contradictory,
            "near_duplicate_pairs": [asdict(pair) for pair in self.exposures],
            "unreadable": self.unreadable,
            "odd_pictures": self.odd,
            "label_noise": {noise.title: noise.as_json() for noise in self.label_noise},
            "shortcuts": {cut.name: cut.as_json() for cut in self.shortcuts},
            "fitted_shortcuts": {cut.name: cut.as_json() for cut in self.fitted_shortcuts},
            "fit": self.fit,
            "leaks": self.leaks,
            "flow": self.flow.to_dict("records"),
            "by_split": self.by_split.to_dict("records"),
            "notes": self.notes,
        }


def odd_pictures(
    manifest: pd.DataFrame, thumbnails: Mapping[str, Grey], facts: Mapping[str, Facts]
) -> dict[str, list[str]]:
    """What is odd about a picture, by image_id: tiny, blank, inverted, unlike the others, coloured, unusual mode.

    Args:
        manifest: its decodable rows.
        thumbnails: uint8 (S, S) by SHA-256.
        facts: by image_id.
    """
    small = {sha: cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA) for sha, picture in thumbnails.items()}
    typical = np.median(np.stack(list(small.values())), axis=0) if len(small) >= 20 else None
    found: dict[str, list[str]] = {}
    columns = ["image_id", "sha256", "width", "height", "mode"]
    for image_id, sha, width, height, mode in manifest[columns].itertuples(index=False, name=None):
        flags = []
        if min(width, height) < TINY:
            flags.append("tiny")
        if mode not in USUAL_MODES:
            flags.append(f"mode {mode}")
        if facts[image_id].colour > 8.0:
            flags.append("coloured")
        if is_blank(thumbnails[sha]):
            flags.append("blank")
        elif typical is not None:
            correlation = float(np.corrcoef(small[sha].ravel(), typical.ravel())[0, 1])
            if correlation < -0.3:
                flags.append("inverted")
            elif correlation < 0.1:
                flags.append("unlike the others")
        if flags:
            found[image_id] = flags
    return found


def audit_dataset(
    data: DataConfig | str | Path, *, seed: int = 0, against: str | None = None, **settings: Any
) -> Audit:
    """Reads a data set and finds what is wrong with it, as `osteo audit` does.

    Args:
        data: a folder or zip with class folders, or a configuration.
        seed: of folds and forests.
        against: a split file or a run directory to search for leaks, instead of the split of the configuration.
        settings: fields of `DataConfig` that replace those of `data`, such as clean=True.

    Raises:
        UserError: the data cannot be read, or `against` is no split of it.
    """
    config = prepare.configured(data, settings)
    cache = cache_dir(config.cache)
    sources = prepare.read_sources(config, cache)
    read = prepare.reader(sources)
    task = TASKS[str(config.task)]
    recorded = read_split(against, table.build_manifest(sources, cache, task=task)) if against else None
    manifest, small = prepare.with_manifest(
        lambda m: (m, prepare.open_thumbnails(m, read, cache)), config, sources, cache
    )
    small.confirm()
    pairs = prepare.same_exposures(manifest, small, cache)
    manifest = prepare.set_unreadable_aside(manifest, small)
    thumbnails = {sha: small.pictures[0, row] for sha, row in small.rows.items() if sha not in small.unreadable}
    joined = [(pair.first, pair.second) for pair in pairs]
    manifest = table.assign_groups(manifest, joined)
    usable = prepare.decodable(manifest)
    log.info("examining %s", counted(len(usable), "file"))
    facts = read_facts(usable, read)
    clinical = clinical_table(sources)
    used, labelled = manifest, usable[usable["label"].notna()]
    if config.clean:
        used = table.clean(manifest, joined, t_scores(manifest, sources), task)
        labelled = labelled[labelled["image_id"].isin(used.loc[used["split"] != "excluded", "image_id"])]
    labelled = against_rest(labelled, task)
    log.info("measuring shortcuts")
    measured = shortcuts(labelled, thumbnails, facts, clinical, seed=seed)
    fitted = fitted_shortcuts(labelled, read, config, seed=seed)
    used = assign_splits(used, config.split, task) if recorded is None else with_split(used, recorded)
    exact, contradictory = table.copies(manifest)
    return Audit(
        manifest=used,
        exact=exact,
        contradictory=contradictory,
        exposures=_exposures(pairs, manifest, read),
        odd=odd_pictures(usable, thumbnails, facts),
        label_noise=label_noise(manifest, joined, task),
        shortcuts=measured,
        fitted_shortcuts=fitted,
        fit=config.fit,
        leaks=leaks(used),
        flow=flow(used, table.DELIBERATE),
        by_split=by_split(used, clinical),
        notes=sheet_mismatches(sources),
        read=read,
    )


def label_noise(manifest: pd.DataFrame, pairs: Iterable[tuple[str, str]], task: Task = BINARY) -> list[LabelNoise]:
    """What identical files say of the labels, what all copies say, and what cleaning leaves of that.

    Labels are those of the positive class against the rest.

    Args:
        manifest: rows that are excluded or have no label do not count.
        pairs: image_ids of pictures that show the same exposure, beside those with the same bytes.
        task: of the labels.
    """
    manifest = against_rest(manifest, task)
    used = manifest[(manifest["split"] != "excluded") & manifest["label"].notna()].set_index("image_id")
    labels = used["label"].astype(int)
    identical, copied = table.copies(manifest)[0], table.copies(manifest, pairs)[0]
    share = _larger(labels)
    by_files, by_copies = (
        estimate(title, [labels[members].tolist() for members in sets], share)
        for title, sets in (("identical files", identical), ("all copies", copied))
    )
    kept = {members[0]: len(members) for members in copied if labels[members].nunique() == 1}
    kept |= dict.fromkeys(set(labels.index).difference(*copied), 1)
    return [by_files, by_copies, after_cleaning(by_copies, list(kept.values()), _larger(labels[list(kept)]))]


def _larger(labels: "pd.Series[int]") -> float:
    """The share of the larger class; NaN where there is no label."""
    return float(labels.value_counts(normalize=True).max())


def _exposures(pairs: Iterable[prepare.SameExposure], manifest: pd.DataFrame, read: ReadFile) -> list[Exposure]:
    labels = manifest.set_index("image_id")["class_name"]
    return [
        Exposure(
            *pair,
            same_pixels=pair.similarity > 0.95
            and np.array_equal(read_picture(read(pair.first)), read_picture(read(pair.second))),
            contradictory=labels[pair.first] != labels[pair.second],
        )
        for pair in pairs
    ]
