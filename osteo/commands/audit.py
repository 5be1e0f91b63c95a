"""osteo audit: what is wrong with a data set, on the terminal, as audit.json and as audit.html."""

import logging
from typing import TYPE_CHECKING

from osteo.app import hydra as application
from osteo.config import AuditConfig
from osteo.records.record import Job

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("audit", AuditConfig, audit_data)


def audit_data(config: AuditConfig, job: Job) -> bool:
    """Audits the data; returns whether the split that was asked about keeps its sides apart."""
    from osteo.audit import page as report
    from osteo.audit.findings import audit_dataset
    from osteo.files import display_path, write_json, write_text
    from osteo.report.tables import terminal

    audit, read = audit_dataset(config)
    write_json(job.directory / "audit.json", audit.as_json())
    write_text(job.directory / "audit.html", report.page(audit, read))
    console = terminal()
    report.show(audit, console)
    console.print(f"audit        {display_path(job.directory)}/audit.html", soft_wrap=True)
    return not (config.against and any(audit.leaks.values()))
