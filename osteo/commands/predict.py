"""osteo predict: what checkpoints say of pictures, as predictions.csv and .json, overlays and an HTML sheet."""

import logging
import sys
from typing import TYPE_CHECKING

from osteo.app import hydra as application
from osteo.config import PredictConfig
from osteo.errors import UserError
from osteo.records.record import Job

if TYPE_CHECKING:
    from osteo.inference.predictions import Row

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("predict", PredictConfig, predict)


def predict(config: PredictConfig, job: Job) -> bool:
    """Answers every picture; returns whether every file could be used."""
    from tqdm import tqdm

    from osteo.inference.model import load_models, names_of
    from osteo.inference.predictions import BATCH, answers, pictures_of
    from osteo.report.predictions import show, write

    if not config.input:
        raise UserError("name what to look at: input=FILE, a folder or a zip")
    models = load_models(names_of(config.ckpt))
    archive, entries = pictures_of(config.input)
    rows: list[Row] = []
    heats = config.overlay
    with tqdm(total=len(entries), unit="picture", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(entries), BATCH):
            some = entries[start : start + BATCH]
            answered, heats = answers(models, archive, some, config, heats=heats)
            rows += answered
            bar.update(len(some))
    write(job.directory, rows, models, config)
    show(job.directory, rows, models)
    return not any(row.reason for row in rows)
