"""osteo prepare: from archives to a store that every later run opens at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import PrepareConfig
from osteo.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from osteo.data.store import Store


def main() -> None:
    """Entry point."""
    application.run("prepare", PrepareConfig, prepare_data)


def prepare_data(config: PrepareConfig, job: Job) -> bool:
    """Builds manifest and store, and shows how many pictures were found, set aside and kept."""
    import pandas as pd

    from osteo.augment import paper_twins
    from osteo.data import prepare
    from osteo.data.audit import flow
    from osteo.data.manifest import DELIBERATE, SPLITS
    from osteo.files import cache_dir
    from osteo.report.tables import as_table, terminal

    console = terminal()
    if config.export_augmented and Path(config.export_augmented).expanduser().exists():
        raise UserError(f"export_augmented={config.export_augmented} is there already; name a new folder")
    sources = prepare.read_sources(config.data, cache_dir(config.data.cache))
    manifest, store = prepare.prepare(config.data, sources)
    console.print(as_table(flow(manifest, DELIBERATE), title="pictures"))
    used = manifest[manifest["split"].isin(SPLITS)]
    counts = pd.crosstab(used["split"], used["class_name"]).reindex(list(SPLITS)).reset_index()
    console.print(as_table(counts, title="splits"))
    if config.export_augmented:
        folder = Path(config.export_augmented).expanduser()
        export(used, store, paper_twins(config.augment), folder)
        console.print(f"augmented    {folder}", soft_wrap=True)
    strays = [name for source in sources.values() for name in source.strays]
    for line in prepare.sheet_mismatches(sources):
        console.print(line)
    if strays:
        console.print(f"{len(strays)} other files were passed over: {', '.join(strays[:10])}")
    return True


def export(
    used: "pd.DataFrame", store: "Store", twins: "Mapping[str, Callable[[np.ndarray], np.ndarray]]", folder: Path
) -> None:
    """Writes every used picture and its six variants as SPLIT/CLASS/SOURCE NAME, VARIANT.png, all or none."""
    import cv2

    from osteo.files import whole

    with whole(folder) as aside:
        for image_id, sha256, split, class_name in used[["image_id", "sha256", "split", "class_name"]].itertuples(
            index=False, name=None
        ):
            place = aside / split / class_name
            place.mkdir(parents=True, exist_ok=True)
            picture = store.pictures[0, store.rows[sha256]]
            stem = image_id.replace("/", " ").rsplit(".", 1)[0]
            cv2.imwrite(str(place / f"{stem}, original.png"), picture)
            for name, change in twins.items():
                cv2.imwrite(str(place / f"{stem}, {name}.png"), change(picture))
