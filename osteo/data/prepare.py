"""From what the user configured to a manifest with splits and an open store."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from osteo import parts
from osteo.checks import check, check_data, named_pairs
from osteo.config import DATA_SETS, DataConfig, SplitConfig
from osteo.data import clinical, download, phantom
from osteo.data import manifest as table
from osteo.data.duplicates import SIDE, find_pairs
from osteo.data.sources import (
    Source,
    attach_sheet,
    check_sources,
    check_t_scores,
    clinical_rows,
    read_folder,
    read_kaggle,
    read_mendeley,
    t_scores,
)
from osteo.data.splits import assign_splits, check_test_source, leaks
from osteo.data.store import VERSION, ChangedFileError, Store, open_store
from osteo.errors import UserError, counted, unknown
from osteo.files import cache_dir, name_of_file, read_sealed, whole, write_sealed, writing_to_cache
from osteo.reading.labels import read_labels, warn_of
from osteo.task import CLASSES, T_SCORE, TASKS
from osteo.types import ReadFile, Transform

log = logging.getLogger(__name__)
T = TypeVar("T")

PAIRS_VERSION = 5  # raise it when find_pairs changes what it returns
MOST_SEARCHED_ANYWAY = 5000  # pictures


class Prepared(NamedTuple):
    """A data set that is ready to be trained on."""

    manifest: pd.DataFrame
    """with splits; where T-scores are asked for, with the column `t_score`, which no record of a manifest has"""
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


def prepare(
    config: DataConfig, sources: dict[str, Source] | None = None, *, split: bool = True, complete: bool = True
) -> Prepared:
    """Reads the sources, sets aside what cannot be used, decodes the rest once and splits it.

    Args:
        config: what to prepare.
        sources: of the same configuration, where they have been read already.
        split: draw or read splits; else every picture that can be used is for the test.
        complete: refuse data without one of several classes, or without T-scores where these are asked for.

    Raises:
        UserError: nothing there, a class missing, a split empty, or an unusable file while `strict`.
    """
    cache = cache_dir(config.cache)
    sources = sources or read_sources(config, cache)
    work = partial(_group_and_decode, config, sources, cache)
    manifest, store = with_manifest(work, config, sources, cache, complete=complete)
    if config.task == T_SCORE and (known := t_scores(manifest, sources)):
        manifest = manifest.assign(**{T_SCORE: manifest["image_id"].map(known)})
    manifest = set_unreadable_aside(manifest, store)
    _report_unusable(manifest, strict=config.strict)
    if config.covariates:
        manifest = _set_missing_aside(manifest, clinical_rows(manifest, sources), config)
    if not split:
        everything = manifest["split"].mask(manifest["split"] != "excluded", "test")
        return Prepared(manifest.assign(split=everything), store)
    if config.split.variants_first:
        manifest = table.with_variants(manifest)
    stated = manifest["split"].isin(table.SPLITS).any()
    manifest = assign_splits(manifest, config.split, TASKS[str(config.task)], complete=complete)
    _report_leaks(manifest, config, "correct the split in the labels file" if stated else "")
    return Prepared(manifest, store)


def with_manifest(
    work: Callable[[pd.DataFrame], T], config: DataConfig, sources: dict[str, Source], cache: Path, **options: bool
) -> T:
    """What `work` makes of the manifest; once more of a renewed one where it came upon a file that has changed."""
    with writing_to_cache(cache):
        try:
            return work(_manifest(config, sources, cache, **options))
        except ChangedFileError as error:
            log.warning("%s; all files are hashed again", error)
            return work(_manifest(config, sources, cache, renew=True, **options))


def _manifest(
    config: DataConfig, sources: dict[str, Source], cache: Path, *, renew: bool = False, complete: bool = True
) -> pd.DataFrame:
    """The manifest of the configured task, without splits; see `prepare`."""
    task = TASKS[str(config.task)]
    manifest = table.build_manifest(sources, cache, task=task, renew=renew, complete=complete)
    if config.task == T_SCORE:
        manifest = table.follow_t_scores(manifest, t_scores(manifest, sources), complete=complete)
    if complete and config.split.test_source:
        check_test_source(manifest, config.split.test_source, task)
    return manifest


def _group_and_decode(
    config: DataConfig, sources: dict[str, Source], cache: Path, manifest: pd.DataFrame
) -> tuple[pd.DataFrame, Store]:
    read = reader(sources)
    pairs = []
    if _searches_copies(config, manifest):
        thumbnails = open_thumbnails(manifest, read, cache)
        pairs = [(pair.first, pair.second) for pair in same_exposures(manifest, thumbnails, cache)]
    manifest = table.assign_groups(manifest, pairs)
    if config.clean:
        manifest = table.clean(manifest, pairs, t_scores(manifest, sources), TASKS[str(config.task)])
    return manifest, open_store(
        manifest, read, cache, image_size=config.image_size, fit=config.fit, enhance=config.enhance
    )


def _searches_copies(config: DataConfig, manifest: pd.DataFrame) -> bool:
    """Whether altered copies are searched for: where they decide something, and else where it takes seconds."""
    return config.clean or config.split.grouped or len(manifest) <= MOST_SEARCHED_ANYWAY


def verify(config: DataConfig, sources: dict[str, Source]) -> list[str]:
    """Hashes every file and compares every stored picture anew, and mends what is damaged; one line for each of both.

    Raises:
        UserError: a damaged picture cannot be decoded again.
    """
    cache = cache_dir(config.cache)
    before = _manifest(config, sources, cache)
    after = _manifest(config, sources, cache, renew=True)
    changed = int((before["sha256"].fillna("") != after["sha256"].fillna("")).sum())
    lines = [f"verified {counted(len(after), 'file')}, {changed} changed since they were hashed"]
    manifest, store = _group_and_decode(config, sources, cache, after)
    stores = {f"{config.image_size} x {config.image_size}": store}
    if _searches_copies(config, after):
        stores[f"{SIDE} x {SIDE}, in which copies are searched"] = open_thumbnails(manifest, reader(sources), cache)
    for size, opened in stores.items():
        mended = opened.confirm()
        checked = counted(len(opened.rows) - len(opened.unreadable), "stored picture")
        lines.append(f"verified {checked} of {size}, {mended} damaged and repaired")
    return lines


def read_sources(config: DataConfig, cache: Path) -> dict[str, Source]:
    """The sources of a data set, by name; archives are drawn or downloaded first where they are missing.

    Raises:
        UserError: an archive cannot be opened or fetched, a registered source breaks its contract, or there is no
            clinical sheet that gives the covariates.
    """
    sheet = clinical.read_clinical(config) if config.clinical else None
    sources = _read_archives(config, cache)
    if sheet:
        attach_sheet(sources, sheet)
    check_t_scores(sources)
    if config.covariates and all(source.clinical is None for source in sources.values()):
        raise UserError(
            f"covariates=[{','.join(config.covariates)}] need a clinical sheet, and data={config.name} has none; give"
            " data.clinical=FILE"
        )
    return sources


def _read_archives(config: DataConfig, cache: Path) -> dict[str, Source]:
    wanted = () if config.clinical else config.covariates
    if config.name not in DATA_SETS:
        key = f"data.name={config.name}"
        sources = check_sources(parts.sources[config.name](config, cache), key)
        for name, source in sources.items() if wanted else ():
            if source.clinical is not None:
                source.clinical = clinical.validated(source.clinical, wanted, f"{key}: clinical table of {name}")
        return sources
    if config.name == "folder":
        classes = named_pairs(config.classes, "data.classes", "FOLDER:CLASS with a class", CLASSES)
        labels = read_labels(config) if config.labels else None
        root = str(config.root)
        return {"folder": read_folder(root, classes, labels=labels, patient=config.patient, covariates=wanted)}
    kaggle, mendeley = config.kaggle, config.mendeley
    used = DATA_SETS[config.name] or ("kaggle", "mendeley")
    if config.name == "phantom":
        drawn = phantom.archives(config.phantom, cache)
        kaggle, mendeley = str(drawn / "kaggle"), str(drawn / "mendeley")
        used = tuple(name for name in ("kaggle", "mendeley") if (drawn / name).is_dir())
    if config.download and "kaggle" in used:
        kaggle = kaggle or str(download.kaggle())
    if config.download and "mendeley" in used:
        mendeley = mendeley or str(download.mendeley(cache / "downloads"))
    found = {}
    if "kaggle" in used:
        found["kaggle"] = read_kaggle(str(kaggle), config.kaggle or "kaggle")
    if "mendeley" in used:
        found["mendeley"] = read_mendeley(str(mendeley), config.mendeley or "mendeley", covariates=wanted)
    return found


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
    recipe = f"{PAIRS_VERSION}:{VERSION}:{','.join(shas)}"
    kept = cache / "pairs" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.json"
    if (text := read_sealed(kept)) is None:
        thumbnails.confirm()  # what is found among damaged pictures would be kept
        log.info("comparing %s", counted(len(shas), "picture"))
        plane = thumbnails.pictures[0]  # mapped: not copied where all of it is used
        found = find_pairs(plane if not thumbnails.unreadable else plane[[thumbnails.rows[sha] for sha in shas]])
        text = json.dumps([[shas[p.first], shas[p.second], *p[2:]] for p in found])
        write_sealed(kept, text)
    names = decodable(manifest).sort_values("image_id").drop_duplicates("sha256").set_index("sha256")["image_id"]
    return [SameExposure(*sorted((names[a], names[b])), *rest) for a, b, *rest in json.loads(text)]


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
            f"{counted(len(unusable), 'file')} cannot be used, {first['image_id']} first ({first['reason']});"
            " replace or remove them, or set data.strict=false"
        )
    for image_id, reason in zip(unusable["image_id"], unusable["reason"], strict=True):
        again = "; the next run tries again" if reason.startswith(table.NOT_READ) else ""
        log.warning("set aside %s: %s%s", image_id, reason, again)


def _set_missing_aside(manifest: pd.DataFrame, rows: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Warns of pictures of which a covariate is not known, and excludes them where that is asked for."""
    excludes = config.missing_covariates == "exclude"
    absent = rows["row"].isna().to_numpy(bool)
    incomplete = rows[list(config.covariates)].isna().any(axis=1).to_numpy(bool) & ~absent
    for missing, reason in ((absent, table.NO_ROW), (incomplete, table.INCOMPLETE)):
        names = manifest.loc[missing & (manifest["split"] != "excluded"), "image_id"]
        warn_of(list(names), f"{reason} for {{}}: {'excluded' if excludes else 'imputed'}")
        if excludes:
            manifest = table.exclude(manifest, manifest["image_id"].isin(names), reason)
    return manifest


def _report_leaks(manifest: pd.DataFrame, config: DataConfig, stated: str) -> None:
    """Warns of what stands in more than one split, with counts, the first of it and how it is mended.

    Args:
        manifest: with splits.
        config: that asked for them.
        stated: how a split that the source states is mended; empty where it states none.
    """
    if not _searches_copies(config, manifest):
        log.warning(
            "altered copies are not looked for among %s, since data.split.grouped=false; osteo audit does",
            counted(len(manifest), "picture"),
        )
    found = leaks(manifest)
    if not found["clusters"]:
        return
    splits, patients = (manifest.set_index("image_id")[name] for name in ("split", "patient"))
    first = found["clusters"][0]
    other = next(image_id for image_id in first if splits[image_id] != splits[first[0]])
    of_patients = [set(patients[members]) for members in found["clusters"]]
    has_copies = bool(found["pictures"]) or any(len(names) > 1 or "" in names for names in of_patients)
    remedies = [remedy] if (remedy := _remedy(config.split, stated)) else []
    if has_copies:
        only = "of copies, but not of patients, " if found["patients"] else ""
        remedies.append(f"{only}data.clean=true counts every picture once")
    log.warning(
        "the split leaks: %s of copies or of one patient (%d of the same bytes, %d of one patient) in more than one,"
        " %s (%s) and %s (%s) first; %s",
        counted(len(found["clusters"]), "group"), len(found["pictures"]), len(found["patients"]),
        first[0], splits[first[0]], other, splits[other], ", or ".join(remedies),
    )  # fmt: skip


def _remedy(split: SplitConfig, stated: str) -> str:
    """What keeps copies and patients in one split; empty where the sources themselves are the split."""
    if split.variants_first:
        return "data.split.variants_first=false makes variants of training pictures alone"
    dealt = "" if split.grouped else "data.split.grouped=true keeps them in one split"
    if split.file:
        return "mend the file"
    if split.ready_made:
        grouped = "" if split.grouped else " data.split.grouped=true"
        return f"correct the folders, or data.split.ready_made=false{grouped} puts them into one split"
    return dealt if split.test_source or split.fold is not None else stated or dealt


def export(used: pd.DataFrame, store: Store, twins: Mapping[str, Transform], folder: Path) -> None:
    """Writes every used picture and its six variants as SPLIT/CLASS/SOURCE NAME, VARIANT.png, all or none.

    Where two pictures would have one name, a hash tells them apart.
    """
    import cv2

    store.confirm()
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
