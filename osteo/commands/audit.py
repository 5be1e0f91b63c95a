"""osteo audit: what is wrong with a data set, on the terminal, as audit.json and as audit.html."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import AuditConfig
from osteo.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from osteo.data.audit import Audit

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("audit", AuditConfig, audit_data)


def audit_data(config: AuditConfig, job: Job) -> bool:
    """Audits the data; returns whether the split that was asked about keeps its sides apart."""
    from osteo.files import write_json, write_text
    from osteo.report import audit as report
    from osteo.report.tables import terminal
    from osteo.runs import shown

    audit, read = look(config)
    write_json(job.directory / "audit.json", audit.as_json())
    write_text(job.directory / "audit.html", report.page(audit, read))
    console = terminal()
    report.show(audit, console)
    console.print(f"audit        {shown(job.directory)}/audit.html", soft_wrap=True)
    return not (config.against and any(audit.leaks.values()))


def look(config: AuditConfig) -> "tuple[Audit, Callable[[str], bytes]]":
    """Reads the data and finds what is wrong with it; also returns how a file is read by its image_id."""
    import numpy as np

    from osteo.data import audit, prepare
    from osteo.data import manifest as table
    from osteo.data.splits import assign_splits
    from osteo.data.store import decode
    from osteo.files import cache_dir

    cache = cache_dir(config.data.cache)
    sources = prepare.read_sources(config.data, cache)
    read = prepare.reader(sources)
    manifest = table.build_manifest(sources, cache)
    given = read_split(config.against, manifest) if config.against else None
    small = prepare.open_thumbnails(manifest, read, cache)
    pairs = prepare.same_exposures(manifest, small, cache)
    manifest = prepare.set_unreadable_aside(manifest, small)
    thumbnails = {sha: small.pictures[0, row] for sha, row in small.rows.items() if sha not in small.unreadable}
    manifest = table.assign_groups(manifest, [(first, second) for first, second, *_ in pairs])
    labels = manifest.set_index("image_id")["class_name"]
    exposures = [
        audit.Exposure(
            *pair,
            same_pixels=pair[2] > 0.99 and np.array_equal(decode(read(pair[0])), decode(read(pair[1]))),
            contradictory=labels[pair[0]] != labels[pair[1]],
        )
        for pair in pairs
    ]
    usable = prepare.decodable(manifest)
    log.info("looking at %d files", len(usable))
    facts = audit.read_facts(usable, read)
    clinical = prepare.clinical_table(sources)
    labelled = usable[usable["label"].notna()]
    log.info("measuring what can be told without seeing bone")
    shortcuts = audit.shortcuts(labelled, thumbnails, facts, clinical, seed=config.seed)
    used = manifest
    if config.data.clean:
        used = table.clean(manifest, [pair[:2] for pair in pairs], prepare.t_scores(manifest, sources))
    used = assign_splits(used, config.data.split) if given is None else with_split(used, given)
    exact, contradictory = table.copies(manifest)
    found = audit.Audit(
        manifest=used,
        exact=exact,
        contradictory=contradictory,
        exposures=exposures,
        odd=audit.odd_pictures(usable, thumbnails, facts),
        shortcuts=shortcuts,
        leaks=audit.leaks(used),
        flow=audit.flow(used, table.DELIBERATE),
        by_split=audit.by_split(used, clinical),
        notes=prepare.sheet_mismatches(sources),
    )
    return found, read


def read_split(against: str, manifest: "pd.DataFrame") -> dict[str, str]:
    """The split of a file or of a run record, by image_id.

    Raises:
        UserError: there is no such file or run, or it names none of the pictures.
    """
    from osteo.data.splits import read_split_file

    path = Path(against).expanduser()
    given = read_split_file(path / "manifest.csv" if path.is_dir() else path, f"against={against}")
    if not manifest["image_id"].isin(list(given)).any():
        raise UserError(
            f"against={against} names none of the {len(manifest)} pictures, such as {manifest['image_id'][0]};"
            " give the data that it was made from"
        )
    return given


def with_split(manifest: "pd.DataFrame", given: dict[str, str]) -> "pd.DataFrame":
    """The manifest with a given split; pictures that it does not name are left out, with that reason."""
    from osteo.data.manifest import NOT_IN_SPLIT

    split = manifest["image_id"].map(given).where(manifest["split"] != "excluded", "excluded")
    reason = manifest["reason"].where(split.notna(), NOT_IN_SPLIT)
    return manifest.assign(split=split.fillna("excluded").astype("string"), reason=reason)
