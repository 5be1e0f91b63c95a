"""From what the user configured to a manifest with splits and an open store."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from osteo import parts
from osteo.checks import check, check_data, named_pairs
from osteo.config import DATA_SETS, DataConfig, PhantomConfig
from osteo.data import clinical, download, phantom
from osteo.data import manifest as table
from osteo.data.duplicates import SIDE, find_pairs
from osteo.data.sources import Source, check_sources, read_folder, read_kaggle, read_mendeley
from osteo.data.splits import assign_splits
from osteo.data.store import Store, open_store
from osteo.errors import UserError, unknown
from osteo.files import cache_dir, name_of_file, whole, write_json
from osteo.reading.labels import read_labels
from osteo.task import CLASSES
from osteo.types import ReadFile, Transform

log = logging.getLogger(__name__)

PAIRS_VERSION = 5  # raise it when find_pairs changes what it returns


class Prepared(NamedTuple):
    """A data set that is ready to be trained on."""

    manifest: pd.DataFrame
    """with splits"""
    store: Store
    """of every picture that the manifest uses"""


def configured(data: DataConfig | str | Path, settings: Mapping[str, Any]) -> DataConfig:
    """The configuration of a folder or zip with class folders, or a given one, with some fields replaced.

    Args:
        data: a folder or zip, or a configuration.
        settings: fields of `DataConfig`, such as image_size.

    Raises:
        UserError: there is no such field or data, or they do not go together.
    """
    names = [entry.name for entry in fields(DataConfig)]
    if unwanted := sorted(settings.keys() - set(names)):
        raise unknown("setting", unwanted[0], names)
    config = data if isinstance(data, DataConfig) else DataConfig(name="folder", root=str(data))
    config = replace(config, **settings)
    check(config, "data.")
    check_data(config)
    return config


def prepare(config: DataConfig, sources: dict[str, Source] | None = None, *, split: bool = True) -> Prepared:
    """Reads the sources, sets aside what cannot be used, decodes the rest once and splits it.

    Args:
        config: what to prepare.
        sources: of the same configuration, where they have been read already.
        split: draw or read splits; else every picture that can be used is for the test.

    Raises:
        UserError: nothing there, a class missing, a split empty, or an unusable file while `strict`.
    """
    cache = cache_dir(config.cache)
    sources = sources or read_sources(config, cache)
    manifest = table.build_manifest(sources, cache)
    read = reader(sources)
    pairs = []
    if config.clean or config.split.grouped:
        thumbnails = open_thumbnails(manifest, read, cache)
        pairs = [(pair.first, pair.second) for pair in same_exposures(manifest, thumbnails, cache)]
    manifest = table.assign_groups(manifest, pairs)
    if config.clean:
        manifest = table.clean(manifest, pairs, t_scores(manifest, sources))
    store = open_store(manifest, read, cache, image_size=config.image_size, fit=config.fit)
    manifest = set_unreadable_aside(manifest, store)
    _report_unusable(manifest, strict=config.strict)
    if split:
        return Prepared(assign_splits(manifest, config.split), store)
    return Prepared(manifest.assign(split=manifest["split"].mask(manifest["split"] != "excluded", "test")), store)


def read_sources(config: DataConfig, cache: Path) -> dict[str, Source]:
    """The sources of a data set, by name; archives are drawn or downloaded first where they are missing.

    Raises:
        UserError: an archive cannot be opened or fetched, or a registered source breaks its contract.
    """
    if config.name not in DATA_SETS:
        return check_sources(parts.sources[config.name](config, cache), f"data.name={config.name}")
    if config.name == "folder":
        classes = named_pairs(config.classes, "data.classes", "FOLDER:CLASS with a class", CLASSES)
        labels = read_labels(config) if config.labels else None
        return {"folder": read_folder(str(config.root), classes, labels=labels, patient=config.patient)}
    kaggle, mendeley = config.kaggle, config.mendeley
    used = DATA_SETS[config.name] or ("kaggle", "mendeley")
    if config.name == "phantom":
        root = phantom_archives(config.phantom, cache)
        kaggle, mendeley = str(root / "kaggle"), str(root / "mendeley")
    if config.download and "kaggle" in used:
        kaggle = kaggle or str(download.kaggle())
    if config.download and "mendeley" in used:
        mendeley = mendeley or str(download.mendeley(cache / "downloads"))
    found = {}
    if "kaggle" in used:
        found["kaggle"] = read_kaggle(str(kaggle))
    if "mendeley" in used:
        found["mendeley"] = read_mendeley(str(mendeley))
    return found


def phantom_archives(config: PhantomConfig, cache: Path) -> Path:
    """The folder with the phantom archives of this seed and these counts, drawn where it is missing."""
    recipe = json.dumps([phantom.VERSION, config.seed, config.kaggle, config.mendeley], sort_keys=True)
    root = cache / "phantom" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if not root.is_dir():
        log.info("drawing %d phantom radiographs", sum(config.kaggle.values()) + sum(config.mendeley.values()))
        phantom.write_archives(root, seed=config.seed, kaggle=config.kaggle, mendeley=config.mendeley)
    return root


def reader(sources: dict[str, Source]) -> ReadFile:
    """A function that gives the bytes of a picture by its image_id."""

    def read(image_id: str) -> bytes:
        source, name = image_id.split("/", 1)
        return sources[source].read(name)

    return read


def decodable(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose files can be used, osteopenia and copies among them, with an empty split."""
    return manifest[~table.unusable(manifest)].assign(split="")


def open_thumbnails(manifest: pd.DataFrame, read: ReadFile, cache: Path) -> Store:
    """Small pictures of everything that can be decoded, without regard to their proportions."""
    return open_store(decodable(manifest), read, cache, image_size=SIDE, fit="resize", twins=False)


class SameExposure(NamedTuple):
    """Two files of one exposure, the first in alphabetical order first."""

    first: str
    """image_id"""
    second: str
    similarity: float
    mirrored: bool
    change: str
    """how one lies to the other; see `osteo.data.duplicates.Pair`"""


def same_exposures(manifest: pd.DataFrame, thumbnails: Store, cache: Path) -> list[SameExposure]:
    """Pairs of one exposure in different files, found once and then read back.

    Args:
        manifest: names the pictures.
        thumbnails: as `open_thumbnails` gives them.
        cache: folder in which the pairs are kept.
    """
    shas = [sha for sha in thumbnails.rows if sha not in thumbnails.unreadable]
    recipe = f"{PAIRS_VERSION}:{','.join(shas)}"
    kept = cache / "pairs" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.json"
    if not kept.exists():
        log.info("comparing %d pictures", len(shas))
        plane = thumbnails.pictures[0]  # mapped: not copied where all of it is used
        found = find_pairs(plane if not thumbnails.unreadable else plane[[thumbnails.rows[sha] for sha in shas]])
        write_json(kept, [[shas[p.first], shas[p.second], *p[2:]] for p in found])
    names = decodable(manifest).sort_values("image_id").drop_duplicates("sha256").set_index("sha256")["image_id"]
    pairs = json.loads(kept.read_text(encoding="utf-8"))
    return [SameExposure(*sorted((names[a], names[b])), *rest) for a, b, *rest in pairs]


def t_scores(manifest: pd.DataFrame, sources: dict[str, Source]) -> dict[str, float]:
    """The T-score of a picture's patient by image_id, where a clinical sheet has it."""
    found: dict[str, float] = {}
    for name, source in sources.items():
        if source.clinical is not None:
            rows = manifest[manifest["source"] == name]
            scores = rows["patient"].map(source.clinical["t_score"])
            found |= {i: float(t) for i, t in zip(rows["image_id"], scores, strict=True) if pd.notna(t)}
    return found


def clinical_table(sources: dict[str, Source]) -> pd.DataFrame | None:
    """The clinical sheets of all sources, indexed by patient; None where there is none."""
    sheets = [source.clinical for source in sources.values() if source.clinical is not None]
    return pd.concat(sheets) if sheets else None


def sheet_mismatches(sources: dict[str, Source]) -> list[str]:
    """One line for each kind of mismatch between a source and its clinical sheet; see `clinical.mismatches`."""
    lines = []
    for name, source in sources.items():
        if source.clinical is None:
            continue
        kinds = ("pictures without a row in the clinical sheet", "rows without a picture", "rows against the cut-offs")
        found = clinical.mismatches(source.clinical, {picture.patient for picture in source.pictures})
        lines += [f"{name}: {len(p)} {kind}: {', '.join(p[:10])}" for kind, p in zip(kinds, found, strict=True) if p]
    return lines


def set_unreadable_aside(manifest: pd.DataFrame, store: Store) -> pd.DataFrame:
    """The manifest without the files that a full decode refused."""
    for sha256, reason in store.unreadable.items():
        manifest = table.exclude(manifest, manifest["sha256"] == sha256, reason)
    return manifest


def _report_unusable(manifest: pd.DataFrame, *, strict: bool) -> None:
    unusable = manifest[table.unusable(manifest)]
    if strict and len(unusable):
        first = unusable.iloc[0]
        raise UserError(
            f"{len(unusable)} files cannot be used, {first['image_id']} first ({first['reason']});"
            " mend or remove them, or set data.strict=false"
        )
    for image_id, reason in zip(unusable["image_id"], unusable["reason"], strict=True):
        log.warning("set aside %s: %s", image_id, reason)


def export(used: pd.DataFrame, store: Store, twins: Mapping[str, Transform], folder: Path) -> None:
    """Writes every used picture and its six variants as SPLIT/CLASS/SOURCE NAME, VARIANT.png, all or none.

    Where two pictures would have one name, a hash tells them apart.
    """
    import cv2

    stem_of = {image_id: image_id.replace("/", " ").rpartition(".")[0] for image_id in used["image_id"]}
    times = Counter(stem.casefold() for stem in stem_of.values())
    with whole(folder) as aside:
        for image_id, sha256, split, class_name in used[["image_id", "sha256", "split", "class_name"]].itertuples(
            index=False, name=None
        ):
            place = aside / split / class_name
            place.mkdir(parents=True, exist_ok=True)
            picture = store.pictures[0, store.rows[sha256]]
            stem = stem_of[image_id]
            if times[stem.casefold()] > 1:
                stem = f"{stem} {hashlib.sha256(image_id.encode()).hexdigest()[:8]}"
            for name, change in {"original": lambda picture: picture, **twins}.items():
                content = cv2.imencode(".png", change(picture))[1].tobytes()
                (place / name_of_file(stem, f", {name}.png")).write_bytes(content)
