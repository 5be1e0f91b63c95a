"""From what the user configured to a manifest with splits and an open store."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from osteo.config import DataConfig, PhantomConfig
from osteo.data import manifest as table
from osteo.data import phantom
from osteo.data.sources import Source, read_folder, read_kaggle, read_mendeley
from osteo.data.splits import assign_splits
from osteo.data.store import Store, open_store
from osteo.errors import UserError
from osteo.files import cache_dir

log = logging.getLogger(__name__)


def prepare(config: DataConfig) -> tuple[pd.DataFrame, Store]:
    """Reads the sources, sets aside what cannot be used, decodes the rest once and splits it.

    Raises:
        UserError: nothing there, a class missing, a split empty, or an unusable file while `strict`.
    """
    cache = cache_dir(config.cache)
    sources = read_sources(config, cache)
    manifest = table.assign_groups(table.build_manifest(sources, cache))
    if config.clean:
        manifest = table.clean(manifest)
    store = open_store(manifest, reader(sources), cache, image_size=config.image_size, fit=config.fit)
    for sha256, reason in store.unreadable.items():
        manifest = table.exclude(manifest, manifest["sha256"] == sha256, reason)
    _report_unusable(manifest, strict=config.strict)
    return assign_splits(manifest, config.split), store


def read_sources(config: DataConfig, cache: Path) -> dict[str, Source]:
    """The sources of a data set, by name; phantom archives are drawn first where they are missing."""
    if config.name == "folder":
        return {"folder": read_folder(str(config.root))}
    kaggle, mendeley = config.kaggle, config.mendeley
    if config.name == "phantom":
        root = phantom_archives(config.phantom, cache)
        kaggle, mendeley = str(root / "kaggle"), str(root / "mendeley")
    return {"kaggle": read_kaggle(str(kaggle)), "mendeley": read_mendeley(str(mendeley))}


def phantom_archives(config: PhantomConfig, cache: Path) -> Path:
    """The folder with the phantom archives of this seed and these counts, drawn where it is missing."""
    recipe = json.dumps([config.seed, config.kaggle, config.mendeley], sort_keys=True)
    root = cache / "phantom" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if not root.is_dir():
        log.info("drawing %d phantom radiographs", sum(config.kaggle.values()) + sum(config.mendeley.values()))
        phantom.write_archives(root, seed=config.seed, kaggle=config.kaggle, mendeley=config.mendeley)
    return root


def reader(sources: dict[str, Source]) -> Callable[[str], bytes]:
    """A function that gives a picture's bytes by its image_id."""

    def read(image_id: str) -> bytes:
        source, name = image_id.split("/", 1)
        return sources[source].read(name)

    return read


def _report_unusable(manifest: pd.DataFrame, *, strict: bool) -> None:
    unusable = manifest[(manifest["split"] == "excluded") & ~manifest["reason"].isin(table.DELIBERATE)]
    if strict and len(unusable):
        first = unusable.iloc[0]
        raise UserError(
            f"{len(unusable)} files cannot be used, {first['image_id']} first ({first['reason']});"
            " mend or remove them, or set data.strict=false"
        )
    for image_id, reason in zip(unusable["image_id"], unusable["reason"], strict=True):
        log.warning("set aside %s: %s", image_id, reason)
