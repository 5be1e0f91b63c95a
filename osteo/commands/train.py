"""osteo train: one run, or a sweep of them with -m."""

import logging
import logging.config
import statistics
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from osteo.app import hydra as application
from osteo.config import Config
from osteo.errors import UserError
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; everything slow is imported once the configuration is known to be right."""
    application.run("train", Config, train_job, finish=show)


def train_job(config: Config, job: Job) -> bool:
    """Trains in as many processes as there are devices."""
    from osteo.training.launch import launch

    launch(train, config, job)
    return True


def train(config: Config, job: Job) -> bool:
    """Trains one model and leaves its run record; several processes call it where several devices train."""
    begun = time.perf_counter()
    import torch
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.strategies import DDPStrategy

    from osteo.data.datamodule import KneeDataModule
    from osteo.data.prepare import prepare
    from osteo.evaluation import metrics
    from osteo.inference.card import card_of, write_card
    from osteo.training import hardware
    from osteo.training.augment import make_augmentation, make_cpu_twin
    from osteo.training.callbacks import Checkpoints, EpochBar, History, newest
    from osteo.training.distributed import SyncBatchNorm, environment
    from osteo.training.fit import predict
    from osteo.training.module import Classifier
    from osteo.training.ranks import rank, record_of, started
    from osteo.training.tracking import Tracker, describe, place_of

    processes, is_first = started(), rank() == 0
    if not is_first:
        logging.disable(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line a retry
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*(custom batch sampler|`srun` command).*")
    # torch 2.11 does not know the new name; a channels_last gradient of a 1 x 1 kernel has two ways to be contiguous
    warnings.filterwarnings("ignore", message="(?s).*(`broadcast_buffers` is deprecated|Grad strides do not match).*")
    accelerator = hardware.choose_accelerator(config.trainer)
    precision = hardware.choose_precision(config.trainer, accelerator)
    log.info("%s", describe(config))

    seed_everything(config.seed, workers=True, verbose=False)
    model, data, limits = config.model, config.data, config.trainer
    network = {**asdict(model), "image_size": data.image_size}
    module = Classifier(network, asdict(config.optimizer), fast=limits.fast)
    manifest, store = prepare(data)
    augmentation = make_augmentation(config.augment, config.seed)
    datamodule = KneeDataModule(
        manifest,
        store,
        batch_size=data.batch_size,
        seed=config.seed,
        augment=augmentation,
        variants=augmentation.variants,
        augment_val=config.augment.val,
        cpu_transform=make_cpu_twin(config.augment) if config.augment.name == "albumentations" else None,
    )
    hardware.reset_peak_memory(accelerator)
    if processes > (manifest["split"] == "val").sum():
        raise UserError(f"{processes} processes are more than there are pictures to validate with; use fewer")
    stops = []
    if config.trial is not None:
        from osteo.training.search import Pruning

        stops = [Pruning(job.sweep or job.directory.parent, config.trial, limits.monitor, limits.max_epochs)]
    record = record_of(job.directory)
    last = newest(record.checkpoints) if job.goes_on else None
    if job.goes_on:
        record.set_status("running")
        record.check_same_data(manifest)
        log.info("going on %s", f"after {last.name}" if last else "from the start: no epoch had ended")
    else:
        record.start(job.config_yaml)
    record.write_manifest(manifest)
    wandb = config.logger.wandb if is_first else replace(config.logger.wandb, mode="disabled")
    identity = record.status()["id"] if is_first else None
    with Tracker(wandb, asdict(config), place_of(config, job), identity) as tracker:
        at_terminal = sys.stderr.isatty()  # a bar in a file is noise: there, a line an epoch is logged
        history = History(record.write_history, tracker.epoch, logging.DEBUG if at_terminal else logging.INFO)
        trainer = Trainer(
            max_epochs=limits.max_epochs,
            accelerator=accelerator,
            devices=limits.devices,
            num_nodes=limits.num_nodes,
            # every process has the same buffers: they follow from all of the batch
            strategy=DDPStrategy(broadcast_buffers=False) if processes > 1 else "auto",
            plugins=[environment(), *([SyncBatchNorm(accelerator)] if processes > 1 else [])],
            use_distributed_sampler=False,
            precision=precision,  # type: ignore[arg-type]
            accumulate_grad_batches=limits.accumulate_grad_batches,
            gradient_clip_val=limits.gradient_clip_val,
            limit_train_batches=limits.limit_train_batches,
            callbacks=[
                history,
                *stops,
                Checkpoints(record.checkpoints, limits.monitor, config.seed),
                *([EpochBar()] if at_terminal else []),
            ],
            enable_checkpointing=False,
            enable_progress_bar=at_terminal,
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        fitted = time.perf_counter()
        trainer.strategy.barrier()  # until the first process has written the checkpoint
        kept = torch.load(record.best_checkpoint, weights_only=True, map_location="cpu")
        module.load_state_dict(kept["state_dict"])
        predictions = predict(trainer, module, datamodule)
        if is_first:
            write_card(record.best_checkpoint, card_of(config, manifest, store, predictions))
        record.write_predictions(predictions)
        results: dict[str, Any] = {}
        for split in ("val", "test"):
            rows = predictions[predictions["split"] == split]
            results |= {f"{split}/{name}": v for name, v in metrics.evaluate(rows["logit"], rows["label"]).items()}
        facts = {
            "backbone": model.backbone,
            "seed": config.seed,
            "fold": data.split.fold,
            "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
            "epochs": len(history.rows),
            "best_epoch": int(kept["epoch"]),
            "seconds": round(time.perf_counter() - begun, 1),
            "seconds_fit": round(fitted - begun, 1),
            "seconds_per_epoch": round(statistics.median(row["seconds"] for row in history.rows), 2),
            "pictures_per_second": statistics.median(row["pictures_per_second"] for row in history.rows),
            "peak_memory_mib": hardware.peak_memory(accelerator),
            "channels": model.channels,
            "accelerator": accelerator,
            "processes": processes,
            "precision": precision,
            "memory_format": str(module.memory_format).removeprefix("torch."),
            "fused_optimizer": limits.fast,
            **({"pruned": stops[0].pruned} if stops else {}),
        }
        record.write_metrics(results)
        record.write_environment(**facts)
        at_best = {f"best/{name}": value for name, value in history.rows[int(kept["epoch"])].items()}
        tracker.result({**results, **at_best}, predictions, facts)
    record.set_status("done")
    return True


def show(directory: Path) -> bool:
    """Prints what the runs reached, where everything lies and what to type next; returns whether none failed."""
    from osteo.report.summary import show_runs

    return show_runs(directory)
