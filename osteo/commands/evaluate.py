"""osteo evaluate: what checkpoints reach on a data set, as a run record."""

import logging
import time

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import EvaluateConfig
from osteo.errors import counted
from osteo.records.named import existing_checkpoints
from osteo.records.record import Job
from osteo.task import T_SCORE

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("evaluate", EvaluateConfig, evaluate)


def evaluate(config: EvaluateConfig, job: Job) -> bool:
    """Asks about every picture of a split and leaves a run record; prints metrics with their intervals."""
    begun = time.perf_counter()
    names = existing_checkpoints(config.ckpt)
    with importing():
        from osteo.training.hardware import present_accelerator

    present_accelerator(config.accelerator)
    with importing():
        from osteo.evaluation.outcomes import against_rest, evaluate_task
        from osteo.files import display_path, write_table
        from osteo.inference.answer import combine
        from osteo.inference.evaluate import ask, intervals, intervals_of_task, name_of
        from osteo.inference.model import load_models
        from osteo.records.record import Run
        from osteo.report.summary import titles
        from osteo.report.tables import terminal

    models = load_models(names, config.accelerator)
    manifest, logits, details = ask(models, config)
    task = models[0].network.task
    name = name_of(config)
    rows = manifest["split"] == name
    predictions = manifest.loc[rows, ["image_id", "source", "group", "split", "label"]].reset_index(drop=True)
    logit, probability, calibrated = combine(models, logits)
    true = {T_SCORE: manifest.loc[rows, T_SCORE].to_numpy()} if T_SCORE in manifest else {}
    predictions = predictions.assign(logit=logit, probability=probability, **details, **true)
    results = {f"{name}/{key}": v for key, v in evaluate_task(task, predictions).items()}
    record = Run(job.directory)
    record.start(job.config_yaml)
    record.write_manifest(manifest)
    record.write_predictions(predictions)
    record.write_metrics(results)
    facts = {
        "backbone": "+".join(model.card.backbone for model in models),
        "seed": models[0].card.seed,
        "fold": models[0].card.fold,
        "trained_on": models[0].card.trained_on,
        "data_hash": [model.card.data_hash for model in models],
        "pictures": len(predictions),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    record.write_environment(**facts)
    table = intervals(against_rest(predictions, task), calibrated, models)
    write_table(job.directory / "intervals.csv", table)
    console = terminal()
    if task.kind != "binary":
        beyond = intervals_of_task(predictions, task)
        write_table(job.directory / "intervals_of_task.csv", beyond)
        console.table(beyond, title=f"task={task.name}")
    record.set_status("done")
    table = table.sort_values("metric", key=lambda names: names != "auroc", kind="stable")
    console.table(table.assign(metric=table["metric"].map(titles())), title=task.contrast)
    pictures = counted(len(predictions), "picture")
    console.say(f"{pictures} of split={config.split}; 95 % intervals by a cluster bootstrap (patients, copies)")
    if predictions["label"].nunique() == 1:
        console.say("all of them are of one class, so metrics that compare classes are undefined (-)")
    console.name(f"record       {display_path(job.directory)}/")
    return True
