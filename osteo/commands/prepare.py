"""osteo prepare: from archives to a store that every later run opens at once."""

from pathlib import Path

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import PrepareConfig
from osteo.errors import UserError, counted
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("prepare", PrepareConfig, prepare)


def prepare(config: PrepareConfig, job: Job) -> bool:
    """Builds manifest and store, and prints how many pictures were found, set aside and kept."""
    if config.export_augmented and Path(config.export_augmented).expanduser().exists():
        raise UserError(f"export_augmented={config.export_augmented} exists already; name a new folder")

    with importing():
        import pandas as pd

        from osteo.data import prepare as preparing
        from osteo.data.manifest import DELIBERATE, SPLITS
        from osteo.data.sources import sheet_mismatches
        from osteo.data.splits import flow
        from osteo.files import cache_dir, display_path
        from osteo.report.tables import terminal

    console = terminal()
    sources = preparing.read_sources(config.data, cache_dir(config.data.cache))
    verified = preparing.verify(config.data, sources) if config.verify else []
    manifest, store = preparing.prepare(config.data, sources)
    console.table(flow(manifest, DELIBERATE), title="pictures", keys=2)
    used = manifest[manifest["split"].isin(SPLITS)]
    counts = pd.crosstab(used["split"], used["class_name"]).reindex(list(SPLITS)).reset_index()
    console.table(counts, title="splits")
    if config.export_augmented:
        from osteo.training.augment import paper_twins

        folder = Path(config.export_augmented).expanduser()
        preparing.export(used, store, paper_twins(config.augment), folder)
        console.name(f"augmented    {display_path(folder)}/")
    strays = [name for source in sources.values() for name in source.strays]
    console.say(*verified, *sheet_mismatches(sources))
    if strays:
        more = ", ..." if len(strays) > 10 else ""
        console.say(f"skipped {counted(len(strays), 'other file')}: {', '.join(strays[:10])}{more}")
    return True
