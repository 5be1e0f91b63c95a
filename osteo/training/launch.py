"""Starts a training: in this process or one per device, again with a smaller batch where memory runs out."""

import gc
import logging
import logging.config
from collections.abc import Callable
from dataclasses import replace

from omegaconf import OmegaConf

from osteo import parts
from osteo.config import Config
from osteo.errors import OutOfMemoryError, UserError, diagnose
from osteo.files import cache_dir
from osteo.records.record import Job
from osteo.training.ranks import launched, rank, record_of

log = logging.getLogger(__name__)

Train = Callable[[Config, Job], object]
"""Trains one model in this process; a function of a module, since it is sent to other processes."""


def launch(train: Train, config: Config, job: Job) -> None:
    """Trains, and where memory runs out tries again with half the batch, if that was asked for.

    Raises:
        UserError: memory ran out, or a mistake.
    """
    record = record_of(job.directory)
    while True:
        try:
            _start_processes(train, config, job)
            return
        except Exception as error:
            trouble = diagnose(error)
            size, times = config.data.batch_size, 2 * config.trainer.accumulate_grad_batches
            if not isinstance(trouble, OutOfMemoryError):
                raise
            if not config.trainer.halve_batch or size == 1 or launched():
                hint = f"data.batch_size={max(1, size // 2)} trainer.accumulate_grad_batches={times}"
                raise UserError(
                    f"memory ran out with data.batch_size={size} ({trouble}); use {hint}, or trainer.halve_batch=true"
                ) from error
        log.warning(
            "memory ran out with batches of %d; the run begins anew with %d, %d per step", size, size // 2, times
        )
        gc.collect()  # the network that did not fit
        record.clear()
        config, job = with_batch(config, replace(job, goes_on=False), size // 2, times)


def with_batch(config: Config, job: Job, size: int, times: int) -> tuple[Config, Job]:
    """The same run with batches of another size, so many per optimiser step, as its record will say."""
    trainer = replace(config.trainer, accumulate_grad_batches=times)
    changed = {"data": {"batch_size": size}, "trainer": {"accumulate_grad_batches": times}}
    text = OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(job.config_yaml), changed))
    config = replace(config, data=replace(config.data, batch_size=size), trainer=trainer)
    return config, replace(job, config_yaml=text)


def _start_processes(train: Train, config: Config, job: Job) -> None:
    """Trains in this process, or in one per device; this one works on the run until the job has ended."""
    import torch

    from osteo.training import hardware
    from osteo.training.distributed import spawn

    accelerator = hardware.choose_accelerator(config.trainer)
    count = hardware.count_processes(config.trainer, accelerator)
    if count > config.data.batch_size:
        raise UserError(f"data.batch_size={config.data.batch_size} cannot be shared by {count} processes; raise it")
    record_of(job.directory).hold()
    # a process of joblib's that is killed would take the whole sweep with it
    side_by_side = job.launcher == "JoblibLauncher"
    if (count == 1 and not side_by_side) or launched():
        train(config, job)
        return
    present = torch.cuda.device_count() if accelerator == "cuda" else 0
    if side_by_side and count == 1 and present > 1:
        with hardware.free_gpu(cache_dir(None) / "gpus", present) as gpu:
            on_it = replace(config, trainer=replace(config.trainer, devices=[gpu]))
            spawn(1, _train_in_process, train, on_it, job)
    else:
        spawn(count, _train_in_process, train, config, job)


def _train_in_process(train: Train, config: Config, job: Job) -> None:
    """Trains in a process that knows nothing of Hydra; the first of them logs."""
    parts.load(config.plugins)
    if rank() == 0:
        logging.config.dictConfig(job.log_config)
    train(config, job)
