"""The loggers of a run, from its configuration to its final values."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger

from osteo.config import Config, WandbConfig
from osteo.files import public
from osteo.records.record import Job
from osteo.records.tracked import is_wanted, place_of
from osteo.task import Task
from osteo.training.instances import build
from osteo.training.loggers import others
from osteo.training.tracking import WandbLogger


@contextmanager
def opened_loggers(config: Config, job: Job, run_id: str | None) -> Iterator[list[Logger]]:
    """The configured loggers, which get the configuration without paths; W&B's run ends with the block.

    Args:
        config: of the run.
        job: where it stands.
        run_id: its id in its record; None where another process keeps the record, which has the loggers, too.
    """
    place, server = job.sweep or job.directory, os.environ.get("MLFLOW_TRACKING_URI")
    context = {
        "save_dir": str(job.directory),
        "tracking_uri": server or f"sqlite:///{place}/mlflow.db",  # not in the configuration: it may be secret
        "artifact_location": None if server else str(place.resolve() / "mlflow"),  # else where osteo was started
    }
    with ExitStack() as stack:
        loggers: list[Logger] = []
        for name, node in config.logger.items() if run_id is not None else ():
            if isinstance(node, WandbConfig):
                if not is_wanted(node):
                    continue
                loggers.append(stack.enter_context(WandbLogger(node, asdict(config), place_of(config, job), run_id)))
            elif node is not None:
                loggers.append(build(node, f"logger.{name}", Logger, **context))  # type: ignore[type-abstract]
        for logger in loggers:
            logger.log_hyperparams(public(asdict(config)))
            others.introduce(logger, place_of(config, job))
        yield loggers


def log_result(
    loggers: list[Logger],
    values: dict[str, Any],
    best: dict[str, float],
    predictions: pd.DataFrame,
    task: Task,
    checkpoint: Path,
) -> None:
    """Gives every logger the final values, those of the best epoch as best/..., and what the test predictions say.

    W&B gets the best checkpoint, too, where it was asked to take it.
    """
    values = values | {f"best/{name}": value for name, value in best.items()}
    numbers = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not name.startswith("val/")  # that would be one more point of a curve
    }
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.result(values, predictions)
            logger.checkpoint(checkpoint)
        else:
            logger.log_metrics(numbers, step=int(best["step"]))
            others.show_confusion(logger, predictions, task, int(best["step"]))
            logger.save()
            logger.finalize("success")
