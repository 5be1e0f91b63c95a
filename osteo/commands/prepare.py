"""osteo prepare: from archives to a store that every later run opens at once."""

import logging

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import PrepareConfig

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("prepare", PrepareConfig, prepare_data)


def prepare_data(config: PrepareConfig, job: Job) -> bool:
    """Builds manifest and store, and shows how many pictures were found, set aside and kept."""
    from osteo.data import prepare
    from osteo.data.audit import flow
    from osteo.data.manifest import DELIBERATE, SPLITS
    from osteo.files import cache_dir
    from osteo.report.tables import as_table, terminal

    console = terminal()
    manifest, _ = prepare.prepare(config.data)
    sources = prepare.read_sources(config.data, cache_dir(config.data.cache))
    console.print(as_table(flow(manifest, DELIBERATE), title="pictures"))
    used = manifest[manifest["split"].isin(SPLITS)]
    counts = used.groupby(["split", "class_name"]).size().unstack(fill_value=0).reindex(list(SPLITS)).reset_index()
    console.print(as_table(counts, title="splits"))
    strays = [name for source in sources.values() for name in source.strays]
    for line in prepare.sheet_mismatches(sources):
        console.print(line)
    if strays:
        console.print(f"{len(strays)} other files were passed over: {', '.join(strays[:10])}")
    return True
