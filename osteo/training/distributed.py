"""One training on several devices: a process a device, the same result as one process with the same batches."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from threading import Thread
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

from osteo.errors import MachineError, UserError, diagnose
from osteo.training.ranks import launched

PATIENCE = 5.0  # seconds that processes have to end by themselves when one of them has failed


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
    Thread(target=_follow_parent, daemon=True).start()
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


def _follow_parent() -> None:
    """Ends this process with the one that has spawned it, which may be killed, so that no two work on one run."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
