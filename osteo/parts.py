"""What a plugin may bring, and where it is kept: the one open seam of osteo.

Everything that a kept library has is taken from it by name (timm's backbones, optimisers and schedules, Kornia's
operations, Lightning's callbacks and loggers). What no library has is registered here, in a module that is named by
`plugins=[my_package.parts]` or by the entry-point group `osteo.plugins`:

    from osteo import parts

    @parts.backbones.register("two_layers")
    def two_layers(*, in_chans: int, num_classes: int, drop_rate: float, img_size: int) -> nn.Module: ...
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from osteo.errors import UserError, unknown
from osteo.types import Floats

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from osteo.config import DataConfig


@runtime_checkable
class Backbone(Protocol):
    """What a network needs of its backbone, which is a torch module: timm's own interface.

    `pretrained_cfg` says what its input was like: `mean` and `std` of three channels and `input_size` (C, H, W).
    """

    num_features: int
    """channels of the last feature map"""
    pretrained_cfg: Mapping[str, Any]

    def forward_features(self, pictures: "Tensor") -> "Tensor":
        """Maps normalised (B, C, S, S) to features: a map (B, F, H, W) or (B, H, W, F), or tokens (B, N, F)."""

    def forward_head(self, features: "Tensor", pre_logits: bool = False) -> "Tensor":
        """Maps features to logits (B, 1), or with `pre_logits` to the pooled features before the classifier."""

    def get_classifier(self) -> "nn.Module":
        """The last layer or layers, which pretrained weights need not have."""


class Explainable(Protocol):
    """What Grad-CAM needs of a network."""

    name: str

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""

    def eval(self) -> Any:
        """Puts it into evaluation mode."""

    def features(self, pictures: "Tensor") -> "Tensor":
        """Maps float (B, 1, S, S) in [0, 1] to what `classify` takes."""

    def classify(self, features: "Tensor") -> "Tensor":
        """Maps features to logits (B,)."""


class MakeBackbone(Protocol):
    """Builds a backbone with random weights."""

    def __call__(self, *, in_chans: int, num_classes: int, drop_rate: float, img_size: int) -> "nn.Module":
        """A `Backbone` that takes (B, in_chans, img_size, img_size)."""


MakeHead = Callable[..., "nn.Module"]
"""(number of pooled features, **model.head_args) -> a module that maps (B, F) to logits (B, 1)."""
MakeLoss = Callable[..., Callable[["Tensor", "Tensor"], "Tensor"]]
"""(**loss.args) -> a function of logits (B,) and targets in [0, 1] (B,) that gives one loss per picture (B,)."""
ReadSource = Callable[["DataConfig", "Path"], Mapping[str, Any]]
"""(configuration, cache folder) -> `osteo.data.sources.Source` by name; see osteo.data.sources.read_source."""
Metric = Callable[[Floats, Floats, Floats, Floats], Floats]
"""(weights (D, N), labels (N,), probabilities (N,), calls (N,)) -> values (D,); see osteo.evaluation.metrics."""

LIBRARIES = ("lightning", "torch", "torchmetrics", "timm", "kornia", "osteo")
"""Whose classes a configuration may name by `_target_`, beside those of plugins."""
ENTRY_POINTS = "osteo.plugins"
"""The group in which an installed package names a module of its parts; it is loaded at every start."""

P = TypeVar("P")


class Register(Generic[P]):
    """Parts of one kind, by name.

    Args:
        key: of the configuration, whose values are the names.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._parts: dict[str, P] = {}

    def register(self, name: str) -> Callable[[P], P]:
        """A decorator that keeps a part under a name.

        Raises:
            UserError: the name is taken by another part.
        """

        def keep(part: P) -> P:
            if not callable(part):
                raise UserError(f"{self.key}={name}: {part!r} cannot be called, so it builds nothing")
            kept = self._parts.setdefault(name, part)
            if kept is not part and _origin(kept) != _origin(part):  # a module that is imported again brings a twin
                raise UserError(f"{self.key}={name} is registered twice, by {_origin(kept)} and by {_origin(part)}")
            self._parts[name] = part
            return part

        return keep

    def __getitem__(self, name: str) -> P:
        if name not in self._parts:
            raise unknown(self.key, name, self._parts)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)


def _origin(part: object) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', type(part).__qualname__)}"


backbones: Register[MakeBackbone] = Register("model.backbone")
heads: Register[MakeHead] = Register("model.head")
losses: Register[MakeLoss] = Register("loss.name")
sources: Register[ReadSource] = Register("data.name")

configurations: list["Path"] = []
"""Folders of YAML files that plugins bring, laid out as conf/; a plugin appends its own."""

_loaded: list[str] = []


def load(modules: Iterable[str]) -> None:
    """Imports plugins: those that are named, from the working directory too, and those of installed packages.

    Raises:
        UserError: one of them cannot be imported, or breaks a contract.
    """
    installed = [entry.value.partition(":")[0] for entry in entry_points(group=ENTRY_POINTS)]
    for module in [*installed, *modules]:
        if module in _loaded:
            continue
        if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  as `python -m` does it
            sys.path.append(os.getcwd())  # noqa: PTH109
        try:
            importlib.import_module(module)
        except UserError as error:
            raise UserError(f"plugins=[{module}]: {error}") from error
        except Exception as error:  # whatever stands in a module of the user's
            reason = str(error).splitlines()[0] if str(error) else ""
            raise UserError(f"plugins=[{module}] cannot be imported ({type(error).__name__}: {reason})") from error
        _loaded.append(module)


def trusted_roots() -> list[str]:
    """The packages whose classes a configuration may name by `_target_`."""
    return list(dict.fromkeys([*LIBRARIES, *(module.partition(".")[0] for module in _loaded)]))


def check_named(recorded: Iterable[str], origin: str, hint: str = "") -> None:
    """Refuses to import what a record or a checkpoint names and the user has not named again.

    Args:
        recorded: plugins that it was made with.
        origin: what it is, for the error.
        hint: a command line that would name them, up to its plugins.

    Raises:
        UserError: one line with what to type.
    """
    if missing := [module for module in recorded if module not in _loaded]:
        named = f"plugins=[{','.join(missing)}]"
        again = f"{hint} '{named}'" if hint else named
        raise UserError(f"{origin} was made with {named}; name them again: {again}")
