"""osteo predict: answers to pictures, as predictions.csv and .json, overlays and an HTML sheet."""

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import PredictConfig
from osteo.errors import UserError
from osteo.progress import followed
from osteo.records.named import check_input, existing_checkpoints
from osteo.records.record import Job


def main() -> None:
    """Entry point."""
    application.run("predict", PredictConfig, predict)


def predict(config: PredictConfig, job: Job) -> bool:
    """Answers every picture; returns whether every file could be used."""
    if not config.input:
        raise UserError("name the pictures: osteo predict RUN PICTURE, or a folder or zip of them")
    names = existing_checkpoints(config.ckpt)
    check_input(config.input)
    with importing():
        from osteo.training.hardware import present_accelerator

    present_accelerator(config.accelerator)
    with importing():
        from osteo.inference.model import load_models
        from osteo.inference.predictions import answer_pictures, list_pictures, open_pictures, read_patients
        from osteo.records.outputs import PREDICTIONS, replaced
        from osteo.report.predictions import show, write

    archive, entries = list_pictures(config.input)
    models = load_models(names, config.accelerator)
    patients = read_patients(config.clinical, config.clinical_columns, [entry.name for entry in entries], models)
    pictures = open_pictures(archive, entries, models, patients)
    answered = answer_pictures(models, pictures, rule=config.rule, interval=config.interval, overlay=config.overlay)
    rows = [row for of_picture in followed(answered, len(entries), "answering") for row in of_picture]
    with replaced(job.directory, PREDICTIONS) as folder:
        write(folder, rows, models, config)
    show(job.directory, rows, models)
    return not any(row.reason for row in rows)
