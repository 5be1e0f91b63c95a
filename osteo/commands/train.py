"""osteo train: one run, or a sweep of them with -m."""

import gc
import logging
import logging.config
import statistics
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import Config
from osteo.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import Trainer

    from osteo.data.datamodule import KneeDataModule
    from osteo.data.store import Store
    from osteo.inference.card import Card
    from osteo.module import Classifier
    from osteo.runs import Run

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; everything slow is imported once the configuration is known to be right."""
    application.run("train", Config, launch, finish=show)


def launch(config: Config, job: Job) -> bool:
    """Trains, and where memory runs out tries again with half the batch, if that was asked for."""
    from osteo.ranks import launched
    from osteo.runs import record_of
    from osteo.trouble import OutOfMemoryError, told

    record = record_of(job.directory)
    while True:
        try:
            return train_in_processes(config, job)
        except Exception as error:
            trouble = told(error)
            size, times = config.data.batch_size, 2 * config.trainer.accumulate_grad_batches
            if not isinstance(trouble, OutOfMemoryError):
                raise
            if not config.trainer.halve_batch or size == 1 or launched():
                hint = f"data.batch_size={max(1, size // 2)} trainer.accumulate_grad_batches={times}"
                raise UserError(
                    f"memory ran out with data.batch_size={size} ({trouble}); use {hint}, or trainer.halve_batch=true"
                ) from error
        log.warning("memory ran out with batches of %d; the run begins anew with %d, %d a step", size, size // 2, times)
        gc.collect()  # the network that did not fit
        record.clear()
        config, job = with_batch(config, replace(job, goes_on=False), size // 2, times)


def with_batch(config: Config, job: Job, size: int, times: int) -> tuple[Config, Job]:
    """The same run with batches of another size, so many an optimiser step, as its record will say."""
    trainer = replace(config.trainer, accumulate_grad_batches=times)
    changed = {"data": {"batch_size": size}, "trainer": {"accumulate_grad_batches": times}}
    text = OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(job.config_yaml), changed))
    config = replace(config, data=replace(config.data, batch_size=size), trainer=trainer)
    return config, replace(job, config_yaml=text)


def train_in_processes(config: Config, job: Job) -> bool:
    """Trains in this process, or in one a device; this one works on the run until the job has ended."""
    import torch

    from osteo import hardware, ranks
    from osteo.files import cache_dir
    from osteo.runs import record_of

    accelerator = hardware.choose_accelerator(config.trainer)
    count = hardware.count_processes(config.trainer, accelerator)
    if count > config.data.batch_size:
        raise UserError(f"data.batch_size={config.data.batch_size} cannot be shared by {count} processes; raise it")
    record_of(job.directory).hold()
    # a process of joblib's that is killed would take the whole sweep with it
    side_by_side = application.launcher() == "JoblibLauncher"
    if (count == 1 and not side_by_side) or ranks.launched():
        return train(config, job)
    from osteo.distributed import spawn

    logged = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    present = torch.cuda.device_count() if accelerator == "cuda" else 0
    if side_by_side and count == 1 and present > 1:
        with hardware.free_gpu(cache_dir(None) / "gpus", present) as gpu:
            spawn(1, train_with_log, replace(config, trainer=replace(config.trainer, devices=[gpu])), job, logged)
    else:
        spawn(count, train_with_log, config, job, logged)
    return True


def train_with_log(config: Config, job: Job, logged: dict[str, Any]) -> None:
    """Trains in a process that knows nothing of Hydra; the first of them logs."""
    from osteo.ranks import rank

    if rank() == 0:
        logging.config.dictConfig(logged)
    train(config, job)


def train(config: Config, job: Job) -> bool:
    """Trains one model and leaves its run record; several processes call it where several devices train."""
    begun = time.perf_counter()
    import torch
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.strategies import DDPStrategy

    from osteo import hardware, metrics
    from osteo.augment import make_augmentation, make_cpu_twin
    from osteo.checkpoints import Checkpoints, newest
    from osteo.data.datamodule import KneeDataModule
    from osteo.data.prepare import prepare
    from osteo.distributed import SyncBatchNorm, environment
    from osteo.history import EpochBar, History
    from osteo.inference.card import write_card
    from osteo.module import Classifier
    from osteo.ranks import rank, started
    from osteo.runs import record_of
    from osteo.tracking import Tracker

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
        from osteo.search import Pruning

        stops = [Pruning(job.sweep or job.directory.parent, config.trial, limits.monitor, limits.max_epochs)]
    record = record_of(job.directory)
    last = newest(record.checkpoints) if job.goes_on else None
    if job.goes_on:
        record.set_status("running")
        check_same_data(record, manifest)
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


def check_same_data(record: "Run", manifest: "pd.DataFrame") -> None:
    """Refuses to go on with other pictures or another split than the run began with.

    Raises:
        UserError: they differ.
    """
    if not (record.directory / "manifest.csv").exists():
        return
    columns = ["image_id", "sha256", "split"]
    before, now = (table[columns].astype(str).set_index("image_id") for table in (record.read_manifest(), manifest))
    joined = before.join(now, how="outer", lsuffix=" before", rsuffix=" now")
    changed = joined[
        (joined["sha256 before"] != joined["sha256 now"]) | (joined["split before"] != joined["split now"])
    ]
    if len(changed):
        raise UserError(
            f"{len(changed)} pictures or their splits are no longer what they were when the run began,"
            f" {changed.index[0]} first; begin a new run"
        )


def predict(trainer: "Trainer", module: "Classifier", datamodule: "KneeDataModule") -> "pd.DataFrame":
    """Validation and test predictions, one row a picture, from all processes."""
    import torch

    batches: Any = trainer.predict(module, datamodule=datamodule)
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, batches)
        batches = [batch for share in shares for batch in share]
    rows, order = torch.cat([batch.rows for batch in batches]).sort()
    logits = torch.cat([batch.logits for batch in batches])[order]
    table = datamodule.table.loc[rows.numpy(), ["image_id", "source", "group", "split", "label"]].reset_index(drop=True)
    table = table.assign(logit=logits.numpy(), probability=logits.double().sigmoid().numpy())
    return table.sort_values("split", ascending=False, kind="stable", ignore_index=True)  # val before test


def card_of(config: Config, manifest: "pd.DataFrame", store: "Store", predictions: "pd.DataFrame") -> "Card":
    """What the checkpoint will carry; calibration follows from validation alone."""
    from importlib.metadata import version

    import numpy as np

    from osteo.evaluation.systems import validate
    from osteo.inference import guard
    from osteo.inference.card import Card, data_hash

    validated = validate(predictions)
    used = manifest[manifest["split"] != "excluded"]
    rows = used["sha256"].map(store.rows)
    seen = [np.asarray(rows[used["split"] == name], np.int_) for name in ("train", "val", "test")]
    return Card(
        image_size=config.data.image_size,
        fit=config.data.fit,
        class_names=["normal", "osteoporosis"],
        temperature=validated.temperature,
        thresholds=validated.thresholds,
        data_hash=data_hash(list(used["sha256"]), list(used["split"])),
        trained_on=config.data.name,
        backbone=config.model.backbone,
        seed=config.seed,
        fold=config.data.split.fold,
        osteo=version("osteo"),
        guard=guard.plain(guard.fit(store.pictures[0], *seen)),
    )


def place_of(config: Config, job: Job) -> Any:
    """Where the run stands in W&B: the sweep's group, named by backbone and seed."""
    from osteo.tracking import Place, group_of

    folder = job.sweep or job.directory
    fold = config.data.split.fold
    return Place(
        folder=folder,
        group=group_of(config.logger.wandb, folder),
        name="-".join([config.model.backbone, *([f"fold{fold}"] if fold is not None else []), f"seed{config.seed}"]),
        job_type="train",
        tags=[config.experiment or "train", config.model.backbone, config.data.name, *config.logger.wandb.tags],
    )


def describe(config: Config) -> str:
    """The effective configuration, a line a group, without absolute paths."""
    from osteo.tracking import public

    lines = []
    for group, values in public(asdict(config)).items():
        flat = values if isinstance(values, dict) else {"": values}
        lines.append(f"  {group:9} " + " ".join(f"{key}={value}" if key else f"{value}" for key, value in flat.items()))
    return "configuration\n" + "\n".join(lines)


def show(directory: Path) -> bool:
    """Prints what the runs reached, where everything lies and what to type next; returns whether none failed."""
    from osteo.report.summary import show_runs

    return show_runs(directory)
