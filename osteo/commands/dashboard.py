"""osteo dashboard: a report of a sweep on the server of Weights & Biases."""

from osteo.app import hydra as application
from osteo.app.extras import importing, needs
from osteo.command_settings import DashboardConfig
from osteo.errors import UserError, counted
from osteo.files import display_path
from osteo.records.named import FINISHED, directory_of, holds_none
from osteo.records.record import Job, Run
from osteo.records.sweep import leaderboard, trained
from osteo.records.tracked import is_wanted, unsent, wandb_settings


def main() -> None:
    """Entry point."""
    application.run("dashboard", DashboardConfig, dashboard)


def dashboard(config: DashboardConfig, job: Job) -> bool:
    """Makes the report, or makes it anew, and prints where it is.

    Raises:
        UserError: W&B has not got the runs, and what to do.
    """
    directory = directory_of(config.runs, "dashboard", FINISHED)
    runs, _ = trained(directory, Run.check)
    if not runs:
        raise holds_none(config.runs)
    settings, place = wandb_settings(runs[0].read_settings()), display_path(directory)
    if not is_wanted(settings):
        raise UserError(f"{place} was trained without W&B; train with logger=wandb what is to have a dashboard")
    if offline := unsent(directory):
        raise UserError(
            f"W&B has not got {counted(len(offline), 'run')} of {place}; upload first, by `wandb login` and `wandb sync"
            f" {place}/wandb/offline-run-*`, or see them in the terminal: wandb leet {place}/wandb"
        )
    needs("osteo dashboard", "dashboard", "wandb_workspaces")

    with importing():
        from osteo.training.loggers.dashboard import publish

    print(publish(runs, leaderboard(runs), settings, directory))
    return True
