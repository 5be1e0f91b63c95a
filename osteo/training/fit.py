"""Builds the parts of a training from its configuration, and collects what a trained network predicts."""

import logging
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from osteo.config import Config, DataConfig, LossConfig
from osteo.data.datamodule import KneeDataModule
from osteo.data.prepare import Prepared
from osteo.data.sources import Source, clinical_rows
from osteo.errors import UserError, counted, first_line
from osteo.evaluation.metrics import check_claim, check_finite
from osteo.evaluation.outcomes import warn_of_absent
from osteo.files import cache_dir, display_path
from osteo.networks.features import keep_features
from osteo.networks.network import check_single_pictures
from osteo.networks.outputs import columns_of
from osteo.networks.precision import ieee_float32
from osteo.reading.covariates import Covariates, sources_without
from osteo.records.record import Job, Run
from osteo.records.tracked import is_wanted, wandb_settings
from osteo.task import BINARY, T_SCORE, Task
from osteo.training import hardware
from osteo.training.augment import Augmentation, Mirrored, make_cpu_twin
from osteo.training.callbacks import Checkpoints, EpochBar, History
from osteo.training.checkpoints import newest, read_checkpoint
from osteo.training.distributed import SyncBatchNorm, environment
from osteo.training.draws import Mixup
from osteo.training.instances import build, check_part, resolve
from osteo.training.loggers.mode import check_environment
from osteo.training.losses import balanced_weights, best_outputs
from osteo.training.module import ADVICE, Classifier, Learner
from osteo.training.optim import has_fused
from osteo.training.ranks import rank, started

log = logging.getLogger(__name__)


def check_parts(config: Config) -> None:
    """Refuses callbacks, loggers and claimed metrics that do not exist, before anything slow starts.

    The same for variables of the environment that W&B would refuse.

    Raises:
        UserError: one line that names the part and what is allowed.
    """
    for key, nodes, kind in (("callbacks", config.callbacks, Callback), ("logger", config.logger, Logger)):
        for name, node in nodes.items():
            if isinstance(node, dict):
                check_part(node, f"{key}.{name}", kind)
    check_claim(config.claim)
    if is_wanted(wandb := wandb_settings(config)) and rank() == 0:
        check_environment(wandb.mode)


def make_module(config: Config) -> Classifier:
    """The network with its optimiser and loss.

    Raises:
        UserError: one of them cannot be built, or the network cannot learn from such batches.
    """
    network = {**asdict(config.model), "image_size": config.data.image_size}
    del network["fusion"]  # follows from data
    if config.task != BINARY.name:  # a binary checkpoint is as it was before there were others
        network["task"] = config.task
    loss = {name: getattr(config.loss, name) for name in ("name", "args", "label_smoothing")}
    limits = config.trainer
    module = Classifier(network, asdict(config.optimizer), loss, monitor=limits.monitor, fast=limits.fast)
    module.graph = limits.graph
    if config.data.batch_size == 1:
        check_single_pictures(module.network)
    return module


def check_batch(data: DataConfig, sources: Mapping[str, Source], variants: int) -> None:
    """Refuses a batch that is larger than all the data, before pictures are decoded.

    One that is larger than the training split alone is refused by the data module, once it is known what that is.

    Args:
        data: their settings.
        sources: what has been found of them.
        variants: of each picture in an epoch.

    Raises:
        UserError: one line with the largest batch that there can be.
    """
    pictures = [picture for source in sources.values() for picture in source.pictures]
    count, classes = len(pictures), {picture.class_name for picture in pictures}
    if len(classes) > 1 and data.batch_size > count * variants:  # else another mistake comes first
        most = int(count * variants * data.split.train)
        raise UserError(
            f"data.batch_size={data.batch_size} is larger than the data of {counted(count, 'picture')};"
            f" choose at most {max(most, 1)}, the share of them that is trained on"
        )


def check_classes(manifest: pd.DataFrame, task: Task = BINARY) -> None:
    """Refuses a split without pictures of all classes to learn from, or to choose the best epoch and thresholds by.

    A test split, which may be of another source, may lack one; that is said.

    Raises:
        UserError: one line that names the split and its class.
    """
    for split, purpose in (("train", "to learn from"), ("val", "to choose thresholds by")):
        labels = {int(label) for label in manifest.loc[manifest["split"] == split, "label"]}
        if len(labels) < len(task.class_names):
            present = " and ".join(task.class_names[label] for label in sorted(labels))
            found = f"only pictures of {present}" if labels else "no picture"
            wanted = "all classes" if task.has_many_classes else "both classes"
            raise UserError(
                f"the split {split} has {found}; {purpose} it needs {wanted}: choose another data.split.seed, or"
                " other shares or folds, or a split file"
            )
    warn_of_absent(manifest[manifest["split"] == "test"], task, "test")


def learn_covariates(
    config: Config, manifest: pd.DataFrame, sources: Mapping[str, Source], module: Classifier
) -> Tensor | None:
    """Learns of the covariates of training pictures, and has the network take them where they are to be fused.

    Returns:
        Features of the patient of each row of the manifest, float32 (M, F), where the network takes them.

    Raises:
        UserError: one is missing, or the same, in all training pictures, be it fused or not.
    """
    if not config.covariates:
        return None
    rows = clinical_rows(manifest, sources)
    learnt = Covariates.fit(config.covariates, rows[(manifest["split"] == "train").to_numpy(bool)])
    if config.model.fusion != "late":
        return None
    module.fuse(learnt)
    used = (manifest["split"] != "excluded").to_numpy(bool)
    if without := sources_without(config.covariates, rows[used], list(manifest["source"][used])):
        log.warning(
            "no picture of %s has any of the covariates: which alone lets the network tell the sources apart; train on"
            " those that have them, or set data.missing_covariates=exclude", " and ".join(without),
        )  # fmt: skip
    return torch.from_numpy(learnt.features(rows))


def make_datamodule(
    config: Config,
    prepared: Prepared,
    augmentation: Augmentation,
    module: Classifier,
    covariates: Tensor | None = None,
) -> KneeDataModule:
    """The batches of a training: pictures, or the kept features of a frozen backbone.

    Raises:
        UserError: a batch is larger than the training split, or the classifier takes more than pooled features.
    """
    chosen, features = config.augment, None
    if config.model.freeze == "backbone":
        flip = chosen.flip if chosen.name == "online" else 0.0
        device = "cuda" if hardware.choose_accelerator(config.trainer) == "cuda" else "cpu"
        folder, names = cache_dir(config.data.cache), module.network.views.names
        features = keep_features(module.network, prepared.store, folder, flips=flip > 0, device=device)
        augmentation = Mirrored(flip, names.index("hflip") if "hflip" in names else len(names), config.seed)
    return KneeDataModule(
        prepared,
        batch_size=config.data.batch_size,
        seed=config.seed,
        augment=augmentation,
        variants=augmentation.variants,
        augment_val=chosen.val,
        cpu_transform=make_cpu_twin(chosen) if chosen.name == "albumentations" else None,
        features=features,
        mix=Mixup(chosen.mixup, config.seed) if chosen.mixup else None,
        covariates=covariates,
        graph=config.trainer.graph is not False,
    )


def begin_at_share(
    module: Classifier, settings: LossConfig, manifest: pd.DataFrame, covariates: Tensor | None = None
) -> None:
    """Has the network begin with what is best without looking: the shares of the classes, or the mean T-score.

    Args:
        module: whose classes weigh the same afterwards, if so configured.
        settings: of the loss.
        manifest: with splits; its training pictures count.
        covariates: features of the patient of each row, (M, F), of a network that takes them, which begins with them.
    """
    chosen = (manifest["split"] == "train").to_numpy(bool)
    training = manifest[chosen]
    labels = [int(label) for label in training["label"]]
    if settings.class_weights == "balanced":
        module.class_weights = balanced_weights(labels)
    truth = training[T_SCORE].tolist() if T_SCORE in training else labels
    best = best_outputs(module.task, truth, settings.label_smoothing, module.class_weights)
    module.begin_at(best, torch.tensor(truth), None if covariates is None else covariates[torch.from_numpy(chosen)])


def make_callbacks(config: Config, job: Job, record: Run) -> list[Callback]:
    """The curves, what was configured, and the checkpoints, in this order: a checkpoint has all that came before."""
    limits, is_alone = config.trainer, job.launcher == "BasicLauncher"
    at_terminal = sys.stderr.isatty() and is_alone  # the bars of several jobs would draw over each other
    requested = [
        build(node, f"callbacks.{name}", Callback) for name, node in config.callbacks.items() if node is not None
    ]
    if config.trial is not None:
        from osteo.training.pruning import Pruning  # needs an extra

        requested.append(Pruning(job.sweep or job.directory.parent, config.trial, limits.monitor, limits.max_epochs))
    # a bar in a file is noise: there, a line per epoch is logged
    history = History(
        record.write_history, logging.DEBUG if at_terminal else logging.INFO, "" if is_alone else job.title
    )
    if at_terminal and not any(isinstance(callback, ProgressBar) for callback in requested):
        requested.append(EpochBar(job.title))
    return [history, *requested, Checkpoints(record.checkpoints, limits.monitor, config.seed)]


def begin(record: Run, job: Job, manifest: pd.DataFrame, module: Learner) -> Path | None:
    """Begins the record, or goes on with it: then from the checkpoint that is returned, if an epoch had ended.

    Raises:
        UserError: the directory holds another run, the pictures are no longer what they were, or a run that is to have
            more epochs has no checkpoint.
    """
    last = newest(record.checkpoints, module) if job.goes_on else None
    if job.goes_on:
        record.check_same_data(manifest)
        if job.is_extended and last is None:
            raise UserError(
                f"{display_path(job.directory)} has no checkpoint, so it cannot be given more epochs; begin a new run"
            )
        record.go_on(job.config_yaml)
        log.info("going on %s", f"after {last.name}" if last else "from the start: no epoch had ended")
    else:
        record.start(job.config_yaml)
    record.write_manifest(manifest)
    return last


def make_trainer(config: Config, job: Job, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Lightning's Trainer for this run, on as many devices as were requested.

    Raises:
        UserError: Lightning refuses an argument.
    """
    limits, processes = config.trainer, started()
    accelerator = hardware.choose_accelerator(limits)
    settings: dict[str, Any] = {
        # every process has the same buffers: they follow from all of the batch
        "strategy": DDPStrategy(broadcast_buffers=False) if processes > 1 else "auto",
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **resolve(limits.extra, "trainer.extra", dirpath=str(job.directory)),
    }
    plugins = [environment(), *([SyncBatchNorm(accelerator)] if processes > 1 else []), *settings.pop("plugins", [])]
    try:
        return Trainer(
            max_epochs=limits.max_epochs,
            accelerator=accelerator,
            devices=limits.devices,
            num_nodes=limits.num_nodes,
            precision=hardware.choose_precision(limits, accelerator),  # type: ignore[arg-type]
            deterministic=limits.deterministic,
            accumulate_grad_batches=limits.accumulate_grad_batches,
            gradient_clip_val=limits.gradient_clip_val,
            limit_train_batches=limits.limit_train_batches,
            callbacks=callbacks,
            logger=loggers or False,
            plugins=plugins,
            enable_checkpointing=True,
            use_distributed_sampler=False,
            **settings,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"Lightning's Trainer rejects trainer.extra: {first_line(error)}") from error


def predict(trainer: Trainer, module: Classifier, datamodule: KneeDataModule) -> pd.DataFrame:
    """Validation and test predictions in float32 after a training, one row per picture, from all processes.

    Raises:
        UserError: a logit is not finite.
    """
    trainer.strategy.precision_plugin = Precision()
    with ieee_float32():
        batches: Any = trainer.predict(module, datamodule=datamodule)
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, batches)
        batches = [batch for share in shares for batch in share]
    rows, order = torch.cat([batch.rows for batch in batches]).sort()
    outputs = torch.cat([batch.outputs for batch in batches])[order]
    known = ["image_id", "source", "group", "split", "label"]
    table = datamodule.table.loc[rows.numpy()].reset_index(drop=True)
    true = {T_SCORE: table[T_SCORE]} if T_SCORE in table else {}
    table = table[known].assign(**columns_of(module.task, outputs), **true)
    check_finite(table["logit"], table["image_id"], "the best epoch")
    return table.sort_values("split", ascending=False, kind="stable", ignore_index=True)  # val before test


def load_best(trainer: Trainer, module: Classifier, record: Run) -> dict[str, Any]:
    """Puts the weights of the best epoch into the module, once they are on the disk; returns its checkpoint.

    Raises:
        UserError: no epoch was the best, or its checkpoint is damaged.
    """
    trainer.strategy.barrier()  # until the first process has written the checkpoint
    if not record.best_checkpoint.is_file():
        raise UserError(f"{module.monitor} was not finite after any epoch, so there is no best epoch; {ADVICE}")
    kept = read_checkpoint(record.best_checkpoint)
    module.load_state_dict(kept["state_dict"])
    return kept


def history_of(callbacks: list[Callback]) -> list[dict[str, float]]:
    """The curves, one row per epoch."""
    return next(callback.rows for callback in callbacks if isinstance(callback, History))


def facts_of(
    config: Config, module: Learner, callbacks: list[Callback], *, best_epoch: int, processes: int
) -> dict[str, Any]:
    """What environment.json says of a training beside versions: its size, its costs, what it computed on."""
    accelerator, history = hardware.choose_accelerator(config.trainer), history_of(callbacks)
    facts = {
        "backbone": config.model.backbone,
        "protocol": config.protocol,
        "seed": config.seed,
        "fold": config.data.split.fold,
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "epochs": len(history),
        "best_epoch": best_epoch,
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in history), 2),
        "pictures_per_second": statistics.median(row["pictures_per_second"] for row in history),
        "peak_memory_mib": hardware.peak_memory(accelerator),
        "channels": config.model.channels,
        "accelerator": accelerator,
        "processes": processes,
        "precision": hardware.choose_precision(config.trainer, accelerator),
        "memory_format": str(module.memory_format).removeprefix("torch."),
        "fused_optimizer": has_fused(config.optimizer.name)
        and config.trainer.fast
        and config.trainer.gradient_clip_val is None,
    }
    if config.trial is not None:
        from osteo.training.pruning import Pruning

        facts["pruned"] = any(callback.pruned for callback in callbacks if isinstance(callback, Pruning))
    return facts
