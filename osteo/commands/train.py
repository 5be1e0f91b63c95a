"""osteo train: one run, or a sweep of them with -m."""

import logging
import time
from pathlib import Path

from osteo import libraries
from osteo.app import hydra as application
from osteo.app.configuration import describe
from osteo.app.extras import importing
from osteo.config import Config
from osteo.networks.names import check_backbone_name, check_head_name
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; everything slow is imported once the configuration is known to be right."""
    application.run("train", Config, train_in_processes, check=check_names, finish=show_results)


def train_in_processes(config: Config, job: Job) -> bool:
    """Trains in as many processes as there are devices."""
    with importing():
        from osteo.training import hardware

        hardware.choose_accelerator(config.trainer)  # torch alone says what is there; the rest takes as long again
        from osteo.training import fit  # noqa: F401 - for `train`
        from osteo.training.distributed import launch

    launch(train, config, job)
    return True


def check_names(config: Config) -> None:
    """Refuses names that no library and no plugin has, before any library is loaded.

    Raises:
        UserError: one line with the nearest names.
    """
    check_backbone_name(config.model.backbone)
    check_head_name(config.model.head)
    libraries.check_names(config)


def train(config: Config, job: Job) -> None:
    """Trains one model and leaves its run record; several processes call it where several devices train."""
    begun = time.perf_counter()
    from lightning.pytorch import seed_everything

    from osteo.data.prepare import prepare, read_sources, reader
    from osteo.data.splits import leaks
    from osteo.evaluation.outcomes import evaluate_splits
    from osteo.files import cache_dir
    from osteo.networks.lineage import check_unseen
    from osteo.training import fit, hardware
    from osteo.training.augment import make_augmentation
    from osteo.training.loggers.opened import log_result, opened_loggers
    from osteo.training.ranks import quieten, rank, record_of, started

    processes = started()  # Lightning forgets it at the end
    quieten()
    accelerator = hardware.choose_accelerator(config.trainer)
    fit.check_parts(config)
    seed_everything(config.seed, workers=True, verbose=False)
    module = fit.make_module(config)
    augmentation = make_augmentation(config.augment, config.seed, config.data.image_size)
    cache = cache_dir(config.data.cache)
    sources = read_sources(config.data, cache)
    fit.check_batch(config.data, sources, augmentation.variants)
    prepared = prepare(config.data, sources)
    module.seen = check_unseen(config.model.weights_file, prepared.manifest, reader(sources), cache)
    fit.check_classes(prepared.manifest, module.task)
    covariates = fit.learn_covariates(config, prepared.manifest, sources, module)
    datamodule = fit.make_datamodule(config, prepared, augmentation, module, covariates)
    fit.begin_at_share(module, config.loss, prepared.manifest, covariates)
    hardware.reset_peak_memory(accelerator)
    record = record_of(job.directory)
    callbacks = fit.make_callbacks(config, job, record)
    last = fit.begin(record, job, prepared.manifest, module)
    if job.sweep is None:  # else its sweep has said it
        log.info("%s", describe(config, job))
    run_id = record.status()["id"] if rank() == 0 else None
    with opened_loggers(config, job, run_id) as loggers:
        trainer = fit.make_trainer(config, job, callbacks, loggers)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        seconds_fit = time.perf_counter() - begun
        best = fit.load_best(trainer, module, record)
        predictions = fit.predict(trainer, module, datamodule)
        if rank() == 0:
            from osteo.inference.card import card_of, write_card  # not needed for the first step

            write_card(record.best_checkpoint, best, card_of(config, prepared.manifest, prepared.store, predictions))
        record.write_predictions(predictions)
        results = evaluate_splits(predictions, module.task)
        record.write_metrics(results)
        best_epoch = int(best["epoch"])
        costs = {"seconds": round(time.perf_counter() - begun, 1), "seconds_fit": round(seconds_fit, 1)}
        facts = costs | fit.facts_of(config, module, callbacks, best_epoch=best_epoch, processes=processes)
        facts |= {"leaks": {kind: len(sets) for kind, sets in leaks(prepared.manifest).items()}}
        record.write_environment(**facts)
        curves, best_file = fit.history_of(callbacks)[best_epoch], record.best_checkpoint
        log_result(loggers, results | facts, curves, predictions, module.task, best_file)
    record.finish(config.keep)


def show_results(directory: Path) -> bool:
    """Prints what the runs reached, where everything lies and what to type next; returns whether none failed."""
    from osteo.report.summary import show_runs

    return show_runs(directory)
