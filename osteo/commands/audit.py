"""osteo audit: what is wrong with a data set, on the terminal, as audit.json and as audit.html."""

import sys

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.app.words import as_typed
from osteo.command_settings import AuditConfig
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("audit", AuditConfig, audit)


def audit(config: AuditConfig, job: Job) -> bool:
    """Audits the data; returns whether the split of `against`, if one is given, does not leak."""
    with importing():
        from osteo.audit.findings import audit_dataset
        from osteo.audit.page import print_audit, render_page
        from osteo.files import display_path, write_json, write_text
        from osteo.records.outputs import AUDIT, replaced
        from osteo.report.tables import terminal

    found = audit_dataset(config.data, seed=config.seed, against=config.against)
    with replaced(job.directory, AUDIT) as folder:
        write_json(folder / "audit.json", found.as_json())
        write_text(folder / "audit.html", render_page(found, as_typed(sys.argv[1:])))
    console = terminal()
    print_audit(found, console)
    console.name(f"audit        {display_path(job.directory)}/audit.html")
    return not (config.against and any(found.leaks.values()))
