"""How well the label is predicted without seeing bone: by size, file format, border, source or age."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from osteo.config import DataConfig
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.evaluation.metrics import metric_intervals
from osteo.evaluation.probes import MAX_PICTURES, PROBES, probe_features
from osteo.evaluation.systems import TREES
from osteo.progress import followed
from osteo.reading.framing import decoded_size, frame
from osteo.reading.pictures import Unusable
from osteo.reading.reader import read_colour, read_picture
from osteo.types import Floats, Grey, ReadFile

FOLDS = 5  # as many as networks have: a forest learns from as large a share of the pictures

SHORTCUTS = {
    "width_height": "width and height",
    "format_bytes": "file format and bytes per pixel",
    **PROBES,
    "source": "the source",
    "age_sex": "the patient's age and sex",
}


@dataclass(frozen=True)
class Shortcut:
    """How well a model predicts that sees nothing of the bone."""

    name: str
    title: str
    pictures: int
    majority: float
    """accuracy of always predicting the larger class"""
    accuracy: Interval
    auroc: Interval
    target: str = "label"
    """what is predicted: label or source"""

    @property
    def works(self) -> bool:
        """Whether the shortcut predicts better than chance, beyond its intervals."""
        return self.accuracy.low > self.majority or self.auroc.low > 0.5

    def as_json(self) -> dict[str, Any]:
        """Its part of audit.json."""
        return {
            "accuracy": self.accuracy.as_json(),
            "auroc": self.auroc.as_json(),
            "majority": self.majority,
            "pictures": self.pictures,
            "target": self.target,
            "meaning": self.sentence(),
        }

    def sentence(self) -> str:
        """What this means for a reported accuracy, in words."""
        start = (
            f"From {self.title} alone, the {self.target} can be predicted with an accuracy of"
            f" {format_interval(self.accuracy)} and an AUROC of {format_interval(self.auroc)}; always predicting the"
            f" larger class gives an accuracy of {self.majority:.3f}."
        )
        if not np.isfinite(self.auroc.low):
            return f"{start} There are too few pictures to tell this from chance."
        if not self.works:
            return (
                f"{start} Neither is significantly better than chance: the intervals are not above {self.majority:.3f}"
                " and 0.500."
            )
        if self.target == "source":
            return f"{start} A network can recognise the source, and sources differ in their share of cases."
        limit = f"{self.accuracy.high:.2f}"
        return f"{start} A reported accuracy of up to {limit} may come from this alone and says nothing about bone."


class Facts(NamedTuple):
    """What is known of a file beyond its header."""

    size: int
    """bytes"""
    colour: float
    """mean difference between the channels, in grey levels"""


def read_facts(manifest: pd.DataFrame, read: ReadFile) -> dict[str, Facts]:
    """Size and colour of every file that can be decoded, by image_id."""

    def measure(row: tuple[str, str]) -> tuple[str, Facts]:
        image_id, mode = row
        content = read(image_id)
        colour = 0.0
        if mode not in ("L", "1", "LA", "I;16"):
            with suppress(Unusable):
                colour = read_colour(content)
        return image_id, Facts(len(content), colour)

    with ThreadPoolExecutor() as pool:
        rows = manifest[["image_id", "mode"]].itertuples(index=False, name=None)
        return dict(followed(pool.map(measure, rows), len(manifest), "examining"))


def shortcuts(
    manifest: pd.DataFrame,
    thumbnails: Mapping[str, Grey],
    facts: Mapping[str, Facts],
    clinical: pd.DataFrame | None,
    *,
    seed: int = 0,
) -> list[Shortcut]:
    """How well random forests predict that see one trivial thing each of a file, cross-validated by group.

    What is found in fewer than two groups of a class cannot be tested, and is left out.

    Args:
        manifest: rows with a label, with groups.
        thumbnails: uint8 (S, S) by SHA-256.
        facts: by image_id.
        clinical: indexed by patient; None where there is no clinical sheet.
        seed: of the folds and forests.
    """
    table = _sampled(manifest, seed)
    features = _features(table, thumbnails, facts)
    label = table["label"].astype(int)
    found: list[Shortcut] = []
    for name, values in features.items():
        if name != "source" or table["source"].nunique() > 1:
            found += _cross_validate(name, SHORTCUTS[name], values, label, table["group"], seed)
    if clinical is not None:
        known = table["patient"].map(clinical["age"]).notna() & table["patient"].map(clinical["sex"]).notna()
        rows = table[known]
        if rows["label"].value_counts().reindex([0, 1]).fillna(0).min() >= FOLDS:
            age = rows["patient"].map(clinical["age"]).astype(float)
            male = (rows["patient"].map(clinical["sex"]) == "male").astype(float)
            age_sex = np.column_stack([age, male])
            found += _cross_validate("age_sex", SHORTCUTS["age_sex"], age_sex, label[known], rows["group"], seed)
    if table["source"].nunique() == 2:
        picture = np.hstack([features["thumbnail_8x8"], features["border"]])
        which = (table["source"] == sorted(table["source"])[-1]).astype(int)
        names = ("source_from_picture", "the picture")
        found += _cross_validate(*names, picture, which, table["group"], seed, "source")
    return found


def fitted_shortcuts(manifest: pd.DataFrame, read: ReadFile, data: DataConfig, *, seed: int = 0) -> list[Shortcut]:
    """The same of what a network sees of each picture, once it is fitted to a square.

    Args:
        manifest: rows with a label, with groups.
        read: gives the bytes of a picture by its image_id.
        data: that says how it is fitted.
        seed: of the folds and forests.
    """

    def measure(image_id: str) -> dict[str, Floats] | None:
        try:
            grey = read_picture(read(image_id), decoded_size(data.image_size, data.fit))
            return probe_features(frame(grey, data.image_size, data.fit, data.enhance).picture)
        except (Unusable, OSError):  # out of reach since it was decoded first
            return None

    table = _sampled(manifest, seed)
    with ThreadPoolExecutor() as pool:
        seen = list(followed(pool.map(measure, table["image_id"]), len(table), "measuring"))
    kept = [features for features in seen if features is not None]
    table = table[[features is not None for features in seen]]
    found: list[Shortcut] = []
    for name, title in PROBES.items() if kept else ():
        values = np.stack([features[name] for features in kept])
        found += _cross_validate(name, title, values, table["label"].astype(int), table["group"], seed)
    return found


def _sampled(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows in alphabetical order; of many, some."""
    table = manifest.sample(MAX_PICTURES, random_state=seed) if len(manifest) > MAX_PICTURES else manifest
    return table.sort_values("image_id").reset_index(drop=True)


def _features(table: pd.DataFrame, thumbnails: Mapping[str, Grey], facts: Mapping[str, Facts]) -> dict[str, Floats]:
    seen = [probe_features(thumbnails[sha]) for sha in table["sha256"]]
    size = table[["width", "height"]].to_numpy(float)
    bytes_per_pixel = np.array([facts[image_id].size for image_id in table["image_id"]]) / size.prod(axis=1)
    kind = pd.factorize(table["format"].astype("string") + table["mode"].astype("string"), sort=True)[0]
    return {
        "width_height": size,
        "format_bytes": np.column_stack([kind, bytes_per_pixel]),
        **{name: np.stack([of[name] for of in seen]) for name in PROBES if name != "outline"},
        "source": pd.factorize(table["source"], sort=True)[0][:, None].astype(float),
    }


def _cross_validate(
    name: str,
    title: str,
    features: Floats,
    truth: "pd.Series[int]",
    groups: "pd.Series[str]",
    seed: int,
    target: str = "label",
) -> list[Shortcut]:
    """The shortcut, or none where two folds cannot both hold both classes."""
    folds = min(FOLDS, int(groups.groupby(truth).nunique().min()))
    if truth.nunique() < 2 or folds < 2:
        return []
    forest = RandomForestClassifier(TREES, random_state=seed)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(features, truth, groups))
    scores = cross_val_predict(forest, features, truth, cv=parts, method="predict_proba")[:, 1]
    fold = np.zeros(len(truth), int)
    for number, (_, tested) in enumerate(parts):
        fold[tested] = number
    majority = float(truth.value_counts(normalize=True).max())
    found = metric_intervals(
        np.asarray(truth, int), scores[None], list(groups), names=("accuracy", "auroc"), networks=fold[None], seed=seed
    )
    return [Shortcut(name, title, len(truth), majority, found["accuracy"], found["auroc"], target)]
