"""osteo pretrain: learns from pictures without labels, of which none is to validate or test."""

import logging
import time

from osteo.app import hydra as application
from osteo.app.configuration import describe
from osteo.app.extras import importing, needs
from osteo.command_settings import PretrainConfig
from osteo.commands.train import check_names, show_results
from osteo.pretraining.settings import check_settings
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; everything slow is imported once the configuration is known to be right."""
    application.run("pretrain", PretrainConfig, pretrain, check=check_request, finish=show_results)


def check_request(config: PretrainConfig) -> None:
    """Refuses what cannot be pretrained, before any library is loaded.

    Raises:
        UserError: one line.
    """
    check_settings(config)
    check_names(config)
    if config.method != "masked":
        needs(f"method={config.method}", "pretrain", "lightly")


def pretrain(config: PretrainConfig, job: Job) -> bool:
    """Pretrains one network and leaves its run record."""
    begun = time.perf_counter()
    with importing():
        from lightning.pytorch import seed_everything

        from osteo.data.datamodule import KneeDataModule
        from osteo.pretraining.module import make_module, views_of
        from osteo.pretraining.selection import select
        from osteo.training import fit, hardware
        from osteo.training.checkpoints import read_checkpoint, write_for_use
    from osteo.records.record import Run
    from osteo.training.loggers.opened import opened_loggers
    from osteo.training.ranks import quieten

    quieten()
    accelerator = hardware.choose_accelerator(config.trainer)
    fit.check_parts(config)
    record = Run(job.directory)
    record.hold()
    seed_everything(config.seed, workers=True, verbose=False)
    module = make_module(config)
    views = views_of(config)
    prepared, module.seen, line = select(config)
    log.info("%s", line)
    datamodule = KneeDataModule(
        prepared._replace(manifest=prepared.manifest.assign(label=0)),
        batch_size=config.data.batch_size, seed=config.seed, augment=views,
    )  # fmt: skip
    hardware.reset_peak_memory(accelerator)
    callbacks = fit.make_callbacks(config, job, record)
    last = fit.begin(record, job, prepared.manifest, module)
    if job.sweep is None:  # else its sweep has said it
        log.info("%s", describe(config, job))
    with opened_loggers(config, job, record.status()["id"]) as loggers:
        trainer = fit.make_trainer(config, job, callbacks, loggers)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        history = fit.history_of(callbacks)
        record.write_metrics({"train/loss": history[-1]["train/loss"]})
        facts = fit.facts_of(config, module, callbacks, best_epoch=len(history) - 1, processes=1)
        facts |= {"method": config.method, "pictures": int((prepared.manifest["split"] == "train").sum())}
        write_for_use(record.best_checkpoint, read_checkpoint(record.best_checkpoint))
        record.write_environment(**facts, seconds=round(time.perf_counter() - begun, 1))
    record.finish(config.keep)
    return True
