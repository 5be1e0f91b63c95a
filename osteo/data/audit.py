"""What is wrong with a data set: copies, contradictions, odd pictures, shortcuts, leaks."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from osteo.data.manifest import SPLITS, unusable
from osteo.statistics import Interval, auroc, proportion

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FOLDS, TREES = 10, 100
MOST = 3000  # pictures that a shortcut is measured on; more change the second digit of an interval
TINY = 100  # pixels
USUAL_MODES = ("L", "RGB")

SHORTCUTS = {
    "width_height": "width and height",
    "format_bytes": "file format and bytes per pixel",
    "border": "the outermost pixels",
    "thumbnail_8x8": "a blurred picture of 8 x 8 pixels",
    "mean_spread": "mean and spread of the grey values",
    "source": "the source",
    "age_sex": "the patient's age and sex",
}


@dataclass(frozen=True)
class Shortcut:
    """What a model reaches that sees nothing of the bone."""

    name: str
    title: str
    pictures: int
    majority: float
    """accuracy of always naming the larger class"""
    accuracy: Interval
    auroc: Interval
    target: str = "label"

    @property
    def works(self) -> bool:
        """Whether the shortcut predicts better than chance, beyond its intervals."""
        return self.accuracy.low > self.majority or self.auroc.low > 0.5

    def as_json(self) -> dict[str, Any]:
        """Its part of audit.json."""
        return {
            "accuracy": self.accuracy._asdict(),
            "auroc": self.auroc._asdict(),
            "majority": self.majority,
            "pictures": self.pictures,
            "target": self.target,
            "meaning": self.sentence(),
        }

    def sentence(self) -> str:
        """What this means for a reported accuracy."""
        reach = f"{self.accuracy.value:.3f} ({self.accuracy.low:.3f} to {self.accuracy.high:.3f})"
        start = f"From {self.title} alone, the {self.target} is told with an accuracy of {reach}"
        start += f", AUROC {self.auroc.value:.3f}; always naming the larger class gives {self.majority:.3f}."
        if not self.works:
            return f"{start} This is no better than chance."
        if self.target == "source":
            return f"{start} A network can tell where a picture comes from, and sources differ in their share of cases."
        limit = f"{self.accuracy.high:.2f}"
        return f"{start} A reported accuracy up to {limit} may rest on this and need not say anything about bone."


@dataclass(frozen=True)
class Exposure:
    """Two files that show one exposure without being the same byte for byte."""

    first: str
    """image_id"""
    second: str
    similarity: float
    mirrored: bool
    same_pixels: bool
    contradictory: bool
    """their labels differ"""


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    manifest: pd.DataFrame
    exact: list[list[str]]
    """image_ids of files with the same bytes"""
    contradictory: list[list[str]]
    """those of them whose labels differ"""
    exposures: list[Exposure]
    odd: dict[str, list[str]]
    """flags by image_id"""
    shortcuts: list[Shortcut]
    leaks: dict[str, list[list[str]]]
    flow: pd.DataFrame
    by_split: pd.DataFrame
    notes: list[str]
    """what does not fit between pictures and clinical sheet"""

    @property
    def unreadable(self) -> dict[str, str]:
        """Reason by image_id of every file that cannot be used."""
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
            "shortcuts": {cut.name: cut.as_json() for cut in self.shortcuts},
            "leaks": self.leaks,
            "flow": self.flow.to_dict("records"),
            "by_split": self.by_split.to_dict("records"),
            "notes": self.notes,
        }


class Facts(NamedTuple):
    """What a file shows beyond its header."""

    size: int
    """bytes"""
    colour: float
    """mean difference between the channels, in grey levels"""


def read_facts(manifest: pd.DataFrame, read: Callable[[str], bytes]) -> dict[str, Facts]:
    """Size and colour of every file, by image_id; of the files that can be read."""

    def look(row: tuple[str, str, str]) -> tuple[str, Facts]:
        image_id, kind, mode = row
        content = read(image_id)
        reduced = cv2.IMREAD_REDUCED_COLOR_8 if kind == "JPEG" else cv2.IMREAD_COLOR
        colour = 0.0
        if (
            mode not in ("L", "1", "LA", "I;16")
            and (picture := cv2.imdecode(np.frombuffer(content, np.uint8), reduced)) is not None
        ):
            small = picture[::4, ::4].astype(np.int16) if kind != "JPEG" else picture.astype(np.int16)
            colour = float((small.max(axis=2) - small.min(axis=2)).mean())
        return image_id, Facts(len(content), colour)

    with ThreadPoolExecutor() as pool:
        rows = manifest[["image_id", "format", "mode"]].itertuples(index=False, name=None)
        return dict(pool.map(look, rows))


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
    usual = np.median(np.stack(list(small.values())), axis=0) if len(small) >= 20 else None
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
        if float(thumbnails[sha].std()) < 4.0:
            flags.append("blank")
        elif usual is not None:
            alike = float(np.corrcoef(small[sha].ravel(), usual.ravel())[0, 1])
            if alike < -0.3:
                flags.append("inverted")
            elif alike < 0.1:
                flags.append("unlike the others")
        if flags:
            found[image_id] = flags
    return found


def shortcuts(
    manifest: pd.DataFrame,
    thumbnails: Mapping[str, Grey],
    facts: Mapping[str, Facts],
    clinical: pd.DataFrame | None,
    *,
    seed: int = 0,
) -> list[Shortcut]:
    """What random forests reach that see one trivial thing each, cross-validated by group; the source last.

    Args:
        manifest: rows with a label, with groups.
        thumbnails: uint8 (S, S) by SHA-256.
        facts: by image_id.
        clinical: indexed by patient, where there is such a table.
        seed: of the folds and forests.
    """
    table = manifest.sample(MOST, random_state=seed) if len(manifest) > MOST else manifest
    table = table.sort_values("image_id").reset_index(drop=True)
    features = _features(table, thumbnails, facts)
    label = table["label"].astype(int)
    found = []
    for name, values in features.items():
        if name != "source" or table["source"].nunique() > 1:
            found.append(_measure(name, SHORTCUTS[name], values, label, table["group"], seed))
    if clinical is not None:
        known = table["patient"].map(clinical["age"]).notna() & table["patient"].map(clinical["sex"]).notna()
        rows = table[known]
        if rows["label"].value_counts().reindex([0, 1]).fillna(0).min() >= FOLDS:
            age = rows["patient"].map(clinical["age"]).astype(float)
            male = (rows["patient"].map(clinical["sex"]) == "male").astype(float)
            both = np.column_stack([age, male])
            found.append(_measure("age_sex", SHORTCUTS["age_sex"], both, label[known], rows["group"], seed))
    if table["source"].nunique() == 2:
        picture = np.hstack([features["thumbnail_8x8"], features["border"]])
        which = (table["source"] == sorted(table["source"])[-1]).astype(int)
        found.append(_measure("source_from_picture", "the picture", picture, which, table["group"], seed, "source"))
    return found


def _features(table: pd.DataFrame, thumbnails: Mapping[str, Grey], facts: Mapping[str, Facts]) -> dict[str, Floats]:
    pictures = [thumbnails[sha] for sha in table["sha256"]]
    size = table[["width", "height"]].to_numpy(float)
    weight = np.array([facts[image_id].size for image_id in table["image_id"]]) / size.prod(axis=1)
    kind = pd.factorize(table["format"].astype("string") + table["mode"].astype("string"), sort=True)[0]
    middle = np.stack([cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA) for p in pictures]).astype(float)
    rim = np.ones((32, 32), bool)
    rim[1:-1, 1:-1] = False
    tiny = np.stack([cv2.resize(p, (8, 8), interpolation=cv2.INTER_AREA) for p in pictures]).astype(float)
    grey = np.array([[p.mean(), p.std()] for p in pictures])
    return {
        "width_height": size,
        "format_bytes": np.column_stack([kind, weight]),
        "border": middle[:, rim],
        "thumbnail_8x8": tiny.reshape(len(tiny), -1),
        "mean_spread": grey,
        "source": pd.factorize(table["source"], sort=True)[0][:, None].astype(float),
    }


def _measure(
    name: str,
    title: str,
    features: Floats,
    truth: "pd.Series[int]",
    groups: "pd.Series[str]",
    seed: int,
    target: str = "label",
) -> Shortcut:
    folds = min(FOLDS, int(truth.value_counts().min()), groups.nunique())
    forest = RandomForestClassifier(TREES, random_state=seed)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_predict(forest, features, truth, groups=groups, cv=splitter, method="predict_proba")[:, 1]
    right = int(((scores > 0.5) == (truth.to_numpy() == 1)).sum())
    majority = float(truth.value_counts(normalize=True).max())
    reached = proportion(right, len(truth)), auroc(truth, scores, list(groups), seed=seed)
    return Shortcut(name, title, len(truth), majority, *reached, target)


def leaks(manifest: pd.DataFrame) -> dict[str, list[list[str]]]:
    """What stands on more than one side of a split, as lists of image_ids.

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


def by_split(manifest: pd.DataFrame, clinical: pd.DataFrame | None) -> pd.DataFrame:
    """What a flow diagram of a paper needs: a row a split, columns as text.

    Columns: split, pictures, groups, normal, osteoporosis, one a source, and where known women, age and T-score as
    median (quartiles) with the number of patients they are known of.
    """
    rows = []
    for split in (*SPLITS, "excluded"):
        part = manifest[manifest["split"] == split]
        row: dict[str, object] = {"split": split, "pictures": len(part), "groups": part["group"].nunique()}
        row |= {name: int((part["class_name"] == name).sum()) for name in ("normal", "osteopenia", "osteoporosis")}
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
