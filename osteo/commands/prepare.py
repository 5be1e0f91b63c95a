"""osteo prepare: from archives to a store that every later run opens at once."""

from pathlib import Path
from typing import TYPE_CHECKING

from osteo.app import hydra as application
from osteo.config import PrepareConfig
from osteo.errors import UserError
from osteo.records.record import Job

if TYPE_CHECKING:
    pass


def main() -> None:
    """Entry point."""
    application.run("prepare", PrepareConfig, prepare_data)


def prepare_data(config: PrepareConfig, job: Job) -> bool:
    """Builds manifest and store, and shows how many pictures were found, set aside and kept."""
    import pandas as pd

    from osteo.data import prepare
    from osteo.data.manifest import DELIBERATE, SPLITS
    from osteo.data.summary import flow
    from osteo.files import cache_dir
    from osteo.report.tables import as_table, terminal
    from osteo.training.augment import paper_twins

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
        prepare.export(used, store, paper_twins(config.augment), folder)
        console.print(f"augmented    {folder}", soft_wrap=True)
    strays = [name for source in sources.values() for name in source.strays]
    for line in prepare.sheet_mismatches(sources):
        console.print(line)
    if strays:
        console.print(f"{len(strays)} other files were passed over: {', '.join(strays[:10])}")
    return True
