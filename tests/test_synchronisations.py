"""A step on a CUDA device that is only feigned: no tensor of another device in it, and nothing that waits for it.

torch's FakeTensorMode computes shapes and devices alone, so that this needs no GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from osteo.app import choices
from osteo.app.messages import CONF
from osteo.config import Config
from osteo.data.datamodule import KneeDataModule
from osteo.data.prepare import prepare
from osteo.training import fit
from osteo.training.augment import make_augmentation
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_of_a_recipe_waits_for_the_device(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with composed(
        f"experiment={recipe}",
        "data=phantom",
        *PHANTOMS,
        "data.image_size=96",
        "data.batch_size=4",
        "model.pretrained=false",
        "model.weights_file=null",
    ) as config:
        print(config.model.backbone)
