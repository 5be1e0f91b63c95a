"""A step on a CUDA device that is only feigned: no tensor of another device in it, and nothing that waits for it.

torch's FakeTensorMode computes shapes and devices alone, so that this needs no GPU. Its autograd does, so the way back
is watched on the CPU, for operations that would wait on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from osteo.app import choices
from osteo.app.messages import CONF
from osteo.config import AugmentConfig, Config
from osteo.data.datamodule import KneeDataModule
from osteo.data.prepare import prepare
from osteo.training import fit
from osteo.training.augment import make_augmentation
from osteo.training.optim import make_optimizer
from tests.graphs import Notes
from tests.test_experiments import PHANTOMS

CUDA = torch.device("cuda", 0)
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "item")
RECIPES = sorted(str(path.relative_to(CONF / "experiment"))[:-5] for path in (CONF / "experiment").rglob("*.yaml"))


class Watch(TorchDispatchMode):
    """Notes what would have the CPU wait for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if name in WAITING and any(t.device.type == "cuda" for t in given):
            self.waits.append(name)
        if name == "index" and any(t.dtype == torch.bool for t in given[1:]):
            self.waits.append("index by a mask")
        if name in ("grid_sampler_2d", "cudnn_grid_sampler"):  # whose shapes torch cannot feign
            return args[0].new_empty((*args[0].shape[:2], *args[1].shape[1:3]))
        if name == "_fused_sgd_":
            return None
        made = func(*args, **kwargs)
        results = [t for t in tree_flatten(made)[0] if isinstance(t, Tensor)]
        devices = {t.device.type for t in (*given, *results) if t.ndim or name in ("_to_copy", "copy_")}
        is_waited_for = not kwargs.get("non_blocking", False) and not (name == "copy_" and args[2:] == (True,))
        if name in ("_to_copy", "copy_") and len(devices) == 2 and is_waited_for:
            self.waits.append(f"{name} from {given[-1].device.type} to {results[0].device.type}")
        return made


def to_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Moves parameters and buffers to the device that is feigned."""
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                moved = mode.from_tensor(parameter.detach()).to(CUDA)
                layer._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = mode.from_tensor(buffer).to(CUDA)


@contextmanager
def composed(*overrides: str) -> Iterator[Config]:
    choices.register(Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield OmegaConf.to_object(compose("train", list(overrides)))  # type: ignore[misc]


def waits_of(config: Config) -> list[str]:
    """What the device is waited for in a training and a validation batch and a step of the optimiser."""
    module = fit.make_module(config)
    prepared = prepare(config.data)
    augmentation = make_augmentation(config.augment, config.seed, config.data.image_size)
    datamodule = fit.make_datamodule(config, prepared, augmentation, module)
    fit.begin_at_share(module, config.loss, prepared.manifest)
    module.train()
    batch = datamodule.gather(torch.arange(config.data.batch_size), "train", augmented=True)
    with Notes():  # refuses what waits
        module._learn(batch.pictures, batch.labels, batch.targets, batch.covariates)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Watch() as watch:
        to_fake(module, mode)
        items = torch.arange(config.data.batch_size, device=CUDA)
        epoch = torch.zeros((), dtype=torch.int64, device=CUDA)
        optimizer = make_optimizer(module.trained, module.optimizer_settings, fused=module.fast)
        datamodule.gather(items, "train", augmented=True)  # moves what is used in every step
        optimizer_step(optimizer, module, datamodule._training_batch(items, epoch))
        watch.waits.clear()
        batch = datamodule._training_batch(items, epoch)
        outputs, losses = optimizer_step(optimizer, module, batch)
        module.train_epoch.update(outputs, batch.labels, losses)
        seen = datamodule.gather(items, "val", augmented=config.augment.val)
        with torch.no_grad():
            module._answer(0.0, seen.pictures, seen.labels, None, seen.covariates)
        assert batch.pictures.device == outputs.device == CUDA
    return watch.waits


def optimizer_step(optimizer: Any, module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast("cuda", torch.bfloat16):
        outputs, losses = module._answer(0.1, batch.pictures, batch.labels, batch.targets, batch.covariates)
        losses.mean()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return outputs, losses


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name.startswith("literature") else ()) for name in RECIPES]
)
def test_no_step_of_a_recipe_waits_for_the_device(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KneeDataModule, "_fits", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "flags", lambda **_: nullcontext())  # a GRU would ask the driver for it
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    given = [f"experiment={recipe}", "data=phantom", *PHANTOMS, "data.image_size=96", "data.batch_size=4"]
    with composed(*given, "model.pretrained=false", "model.weights_file=null") as config:
        assert waits_of(config) == []


@pytest.mark.parametrize("wait", ["labels[0].item()", "labels[labels > 0]", "torch.tensor([1.0, 2.0], device=CUDA)"])
def test_what_waits_is_found(wait: str) -> None:
    with FakeTensorMode(), Watch() as watch:
        labels = torch.ones(4, device=CUDA)
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            eval(wait, globals(), {"labels": labels})
        assert len(watch.waits) == 1


@pytest.mark.parametrize("name", ["none", "online", "paper"])
def test_augmentation_is_one_graph_for_the_compiler(name: str) -> None:
    augmentation = make_augmentation(AugmentConfig(name=name), 0, 32)
    pictures, twins = torch.rand(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    given = (pictures, twins, torch.tensor([0, 1, 4, 6]), torch.arange(4))
    compiled = torch.compile(augmentation, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), augmentation(*given))
