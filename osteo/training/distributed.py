"""Starts a training: in this process, or in one per device, with the same result for the same batches.

Where memory runs out it begins anew with a smaller batch, if that was asked for.
"""

import logging
import logging.config
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from osteo import graphs, parts
from osteo.config import Config
from osteo.errors import MachineError, OutOfMemoryError, UserError, diagnose, let_go
from osteo.files import cache_dir
from osteo.records.record import Job
from osteo.training import hardware
from osteo.training.ranks import follow, launched, rank, record_of

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that processes have to end by themselves when one of them has failed


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
            let_go(error)
        log.warning(
            "memory ran out with batches of %d; the run starts again with %d, %d per step", size, size // 2, times
        )
        hardware.free_memory()  # of the network that did not fit
        record.clear()
        config, job = with_batch(config, replace(job, goes_on=False), size // 2, times)


def with_batch(config: Config, job: Job, size: int, times: int) -> tuple[Config, Job]:
    """The same run with batches of another size, so many per optimiser step, as its record will say."""
    trainer = replace(config.trainer, accumulate_grad_batches=times)
    config = replace(config, data=replace(config.data, batch_size=size), trainer=trainer)
    return config, job.changed(data={"batch_size": size}, trainer={"accumulate_grad_batches": times})


def _start_processes(train: Train, config: Config, job: Job) -> None:
    """Trains in this process, or in one per device; this one works on the run until the job has ended."""
    accelerator = hardware.choose_accelerator(config.trainer)
    count = hardware.count_processes(config.trainer, accelerator)
    graphs.is_wanted(  # or it is an error, before anything slow begins
        config.trainer.graph,
        accelerator,
        count,
        config.trainer.accumulate_grad_batches,
        hardware.choose_precision(config.trainer, accelerator),
    )
    if count > config.data.batch_size:
        raise UserError(f"data.batch_size={config.data.batch_size} cannot be shared by {count} processes; raise it")
    record_of(job.directory).hold()
    # a process of joblib's that is killed would take the whole sweep with it
    side_by_side = job.launcher == "ProcessesLauncher"
    if (count == 1 and not side_by_side) or launched():
        train(config, job)
        return
    present = torch.cuda.device_count() if accelerator == "cuda" else 0
    if config.trainer.devices == 1 and present:
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
    if job.jobs_per_gpu > 1:
        devices = config.trainer.devices
        hardware.take_share(devices[rank()] if isinstance(devices, list) else rank(), job.jobs_per_gpu)
    train(config, job)


def spawn(count: int, function: Callable[..., object], *arguments: object) -> None:
    """Calls function(*arguments) in `count` new processes that know each other, and waits for them.

    Raises:
        Exception: what the first process to fail has raised; the others are ended then.
    """
    if multiprocessing.get_start_method() == "loky":  # of joblib's processes; the new ones would not know it
        multiprocessing.set_start_method("spawn", force=True)
    failures = get_context("spawn").SimpleQueue()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(LightningEnvironment().main_port)}
    started: ProcessContext = start_processes(
        _work, (count, place, failures, function, arguments), nprocs=count, join=False
    )
    try:
        while not started.join(grace_period=PATIENCE):
            pass
    except ProcessExitedException as error:
        reason = f"by {error.signal_name}" if error.signal_name else f"with exit code {error.exit_code}"
        which = f"the process of device {error.error_index}" if count > 1 else "its process"
        raise MachineError(f"{which} was ended {reason}; after SIGKILL, look whether memory ran out") from error
    except ProcessRaisedException as error:
        raise failures.get() from error
    finally:  # also where this process was interrupted
        for process in started.processes:
            process.terminate()
        for process in started.processes:
            process.join(PATIENCE)
            process.kill()


def _work(
    rank: int,
    count: int,
    place: dict[str, str],
    failures: Any,
    function: Callable[..., object],
    arguments: Sequence[Any],
) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "NODE_RANK": 0}
    os.environ.update(place, **{name: str(value) for name, value in ranks.items()})
    follow()
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        function(*arguments)
    except Exception as error:
        known = diagnose(error)
        failures.put(
            known if isinstance(known, UserError | OSError) else RuntimeError(f"{type(error).__name__}: {error}")
        )
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def environment() -> ClusterEnvironment:
    """How Lightning finds the processes of this training; osteo takes care of requeues itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if launched() == "srun" else LightningEnvironment()


class SyncBatchNorm(LayerSync):
    """Batch normalisation by the statistics of all processes.

    Lightning's own conversion loses the activation in timm's BatchNormAct2d; timm's keeps it, but like torch's layer
    it needs a GPU. On the CPU the layers compute their statistics here.

    Args:
        accelerator: cuda or cpu.
    """

    def __init__(self, accelerator: str) -> None:
        self._accelerator = accelerator

    def apply(self, model: nn.Module) -> nn.Module:
        """Called by Lightning before a fit."""
        from timm.layers.norm_act import convert_sync_batchnorm

        if self._accelerator == "cuda":
            converted: nn.Module = convert_sync_batchnorm(model)
            return converted
        for layer in _batch_norms(model):
            layer.forward = MethodType(_normalise, layer)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Called by Lightning after a fit; in evaluation the layers are what they were."""
        for layer in _batch_norms(model):
            vars(layer).pop("forward", None)
        return model


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


class _Sum(torch.autograd.Function):
    """The sum over all processes, and of the gradient too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        """Any shape, the same in every process."""
        total = part.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """What every process adds to."""
        return _Sum.forward(ctx, gradient)


def _normalise(layer: Any, features: Tensor) -> Tensor:
    """What `layer` does, with mean and variance over the batch of all processes."""
    if not layer.training:
        return type(layer).forward(layer, features)  # type: ignore[no-any-return]
    dims = [0, *range(2, features.ndim)]
    shape = [1, -1, *[1] * (features.ndim - 2)]
    with torch.autocast(features.device.type, enabled=False):
        wide = features.float()
        count = _Sum.apply(torch.tensor(float(features.numel() // features.shape[1])))
        mean = _Sum.apply(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        result = centred * (variance + layer.eps).rsqrt().view(shape)
        if layer.affine:
            result = result * layer.weight.view(shape) + layer.bias.view(shape)
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
    result = result.to(features.dtype)
    return layer.act(layer.drop(result)) if hasattr(layer, "act") else result  # type: ignore[no-any-return]
