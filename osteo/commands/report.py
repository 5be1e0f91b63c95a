"""osteo report: what the records of a sweep say, as one page, beside the paper's figures and tables."""

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import ReportConfig
from osteo.errors import unknown
from osteo.records.named import FINISHED, directory_of
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("report", ReportConfig, report)


def check_request(config: ReportConfig) -> None:
    """Refuses a directory without runs and an unknown primary endpoint, before anything slow is imported.

    Raises:
        UserError: one line.
    """
    directory_of(config.runs, "report", FINISHED)

    with importing():
        from osteo.evaluation.metrics import all_metrics

    if config.primary not in all_metrics():
        raise unknown("primary", config.primary, all_metrics())


def report(config: ReportConfig, job: Job) -> bool:
    """Writes report.html, report.md, model cards, figures/ and tables/ beside the runs, and logs tables to W&B."""
    check_request(config)

    with importing():
        from dataclasses import replace

        from osteo.records import locks
        from osteo.records.tracked import Place, group_of, is_wanted, wandb_settings
        from osteo.report.page import read_report
        from osteo.report.rows import numbers_table
        from osteo.report.summary import show_report

    composed = read_report(config)
    locks.hold(composed.directory / "figures", seconds=60)  # the sweep's own lock is that of its runs
    paths = composed.write()
    locks.release(composed.directory / "figures")
    settings = replace(wandb_settings(composed.setting), upload_pictures=config.upload_pictures)
    if is_wanted(settings):
        from osteo.training.tracking import WandbLogger

        facts = {"runs": len(composed.board), "experiment": composed.setting.experiment, "draws": config.draws}
        place = Place(composed.directory, group_of(settings, composed.directory), "report", "report", ["report"])
        with WandbLogger(settings, facts, place) as logger:
            logger.figures(paths)
            texts = {name.replace("table", "table "): table.astype(str) for name, table in composed.files.items()}
            tables = {**texts, "comparison": numbers_table(composed.results)}
            logger.tables({f"tables/{name}": table for name, table in tables.items()})
    show_report(composed)
    return True
