"""What a plugin may bring, and where it is kept: the one open seam of osteo.

Everything that a kept library has is taken from it by name (timm's backbones, optimisers and schedules, Kornia's
operations, Lightning's callbacks and loggers). What no library has is registered here, in a module that is named by
`plugins=[my_package.parts]` or by the entry-point group `osteo.plugins`:

    from osteo import parts

    @parts.backbones.register("two_layers")
    def two_layers(*, in_chans: int, num_classes: int, drop_rate: float, img_size: int) -> nn.Module: ...

    @parts.metrics.register("balanced_accuracy", title="balanced accuracy")
    def balanced_accuracy(weights: Floats, labels: Labels, probabilities: Floats, calls: Mask) -> Floats: ...
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args

import numpy as np

from osteo.errors import UserError, unknown
from osteo.task import THRESHOLD, Direction
from osteo.types import Floats, Labels, Mask

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from osteo.config import DataConfig


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

    @property
    def device(self) -> "torch.device":
        """Where it computes."""

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
"""(number of pooled features, **model.head_args) -> a module that maps (B, F) to logits (B, 1).

For a task of three classes it gets `outputs=3` too, and maps to (B, 3).
"""
MakeLoss = Callable[..., Callable[["Tensor", "Tensor"], "Tensor"]]
"""(**loss.args) -> a function of a network's outputs and of targets that gives one loss per picture (B,).

In a binary task outputs are logits (B,) and targets are in [0, 1] (B,); in one of several classes outputs are (B, K)
and targets the shares of the classes (B, C); T-scores are (B,) and (B,).
"""
ReadSource = Callable[["DataConfig", "Path"], Mapping[str, Any]]
"""(configuration, cache folder) -> `osteo.data.sources.Source` by name; see osteo.data.sources.read_source."""
Measure = Callable[[Floats, Labels, Floats, Mask], Floats]
"""(weights (D, N), labels (N,), probabilities of the positive class (N,), whether it is called positive (N,)) -> (D,).

A weight says how often a picture counts: each row of weights is one draw of the bootstrap, and a row of ones the
pictures as they are. Labels are those of osteo.task. Division by zero is no error: what is not finite is undefined.
"""


@dataclass(frozen=True)
class Metric:
    """What a record, the leaderboard, the report and its tables say of predictions, with its interval."""

    name: str
    """in metrics.json, after test/ or val/, and in every other file"""
    title: str
    """in a table that a person reads"""
    measure: Measure
    direction: Direction = "max"
    """whether lower or higher is better"""
    needs: tuple[int, ...] = (0, 1)
    """labels without which it is undefined"""
    is_recorded: bool = True
    """whether metrics.json has it; the report has every metric"""
    is_ranking: bool = False
    """whether it compares pictures with each other, so that it is taken among those that one network tested"""


LIBRARIES = ("lightning", "torch", "torchmetrics", "timm", "kornia", "osteo")
"""Whose classes a configuration may name by `_target_`, beside those of plugins."""
ENTRY_POINTS = "osteo.plugins"
"""The group in which an installed package names a module of its parts; it is loaded at every start."""

P = TypeVar("P")


class Parts(Generic[P]):
    """Parts of one kind, by name.

    Args:
        key: of the configuration, whose values are the names; or what the parts are.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._parts: dict[str, P] = {}
        self._origins: dict[str, str] = {}

    def _keep(self, name: str, part: P, made_by: object) -> None:
        origin = f"{getattr(made_by, '__module__', '?')}.{getattr(made_by, '__qualname__', type(made_by).__qualname__)}"
        if self._origins.setdefault(name, origin) != origin:  # a module that is imported again brings a twin
            raise UserError(f"{self.key}={name} is registered twice, by {self._origins[name]} and by {origin}")
        self._parts[name] = part

    def __getitem__(self, name: str) -> P:
        if name not in self._parts:
            raise unknown(self.key, name, self._parts)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)


class Register(Parts[P]):
    """Parts that are what their module defines."""

    def register(self, name: str) -> Callable[[P], P]:
        """A decorator that keeps a part under a name.

        Raises:
            UserError: the name is taken by another part.
        """

        def keep(part: P) -> P:
            if not callable(part):
                raise UserError(f"{self.key}={name}: {part!r} cannot be called, so it builds nothing")
            self._keep(name, part, part)
            return part

        return keep


class Metrics(Parts[Metric]):
    """Metrics in the order of their columns."""

    def add(self, metric: Metric) -> None:
        """Keeps a metric.

        Raises:
            UserError: its name or its title is taken, or it does not give one number for each row of weights.
        """
        origin = f"metric={metric.name} of {getattr(metric.measure, '__module__', metric.measure)}"
        if metric.direction not in get_args(Direction):
            raise unknown(f"{origin}: direction", metric.direction, get_args(Direction))
        if not metric.name.isidentifier():
            raise UserError(f"{origin} cannot be the name of a column; use letters, digits and underscores")
        for other in self._parts.values():
            if other.title == metric.title and other.name != metric.name:
                raise UserError(f"{origin} has the title of metric={other.name}, '{metric.title}'; give it another one")
        _check(metric, origin)
        self._keep(metric.name, metric, metric.measure)

    def register(
        self,
        name: str,
        *,
        title: str = "",
        direction: Direction = "max",
        needs: tuple[int, ...] = (0, 1),
        is_ranking: bool = False,
    ) -> Callable[[Measure], Measure]:
        """A decorator that keeps a function as a metric, which metrics.json, leaderboard and report then have.

        Args:
            name: of its columns: test/NAME.
            title: of its column in the report; its name where it is empty.
            direction: whether lower ("min") or higher ("max") is better.
            needs: labels without which it is undefined.
            is_ranking: whether it compares pictures with each other, as the AUROC does.

        Raises:
            UserError: as `add` does.
        """

        def keep(measure: Measure) -> Measure:
            self.add(Metric(name, title or name, measure, direction, needs, is_ranking=is_ranking))
            return measure

        return keep


def _check(metric: Metric, origin: str) -> None:
    """Tries a metric on four pictures and two rows of weights."""
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.2, 0.6, 0.4, 0.8])
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            shape = np.shape(metric.measure(np.ones((2, 4)), labels, probabilities, probabilities > THRESHOLD))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{origin} cannot be computed ({reason}); see osteo.parts.Measure") from error
    if shape != (2,):
        raise UserError(f"{origin} gives shape {shape} for 2 rows of weights, not (2,); see osteo.parts.Measure")


backbones: Register[MakeBackbone] = Register("model.backbone")
heads: Register[MakeHead] = Register("model.head")
losses: Register[MakeLoss] = Register("loss.name")
sources: Register[ReadSource] = Register("data.name")
metrics = Metrics("metric")
"""`osteo.evaluation.metrics` adds osteo's own."""

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
        except ModuleNotFoundError as error:
            if error.name != module.partition(".")[0]:  # something that the plugin needs
                raise UserError(f"plugins=[{module}] cannot be imported (it needs {error.name})") from error
            hint = "name a module that is installed, or a file here without its .py"
            raise UserError(f"plugins=[{module}] is not found; {hint}") from error
        except Exception as error:  # whatever stands in a module of the user's
            reason = str(error).splitlines()[0] if str(error) else ""
            raise UserError(f"plugins=[{module}] cannot be imported ({type(error).__name__}: {reason})") from error
        _loaded.append(module)


def trusted_roots() -> list[str]:
    """The packages whose classes a configuration may name by `_target_`."""
    return list(dict.fromkeys([*LIBRARIES, *(module.partition(".")[0] for module in _loaded)]))


@contextmanager
def needed(recorded: Sequence[str], origin: str, hint: str = "") -> Iterator[None]:
    """Where something cannot be built from what was recorded, names the plugins that it may lack; see `check_named`.

    Raises:
        UserError: plugins are missing; else what went wrong.
    """
    try:
        yield
    except UserError:
        check_named(recorded, origin, hint)
        raise


def check_named(recorded: Iterable[str], origin: str, hint: str = "") -> None:
    """Refuses to import what a record or a checkpoint names and the user has not named again.

    Args:
        recorded: plugins that it was made with.
        origin: what it is, for the error.
        hint: a command line that would name them, up to its plugins.

    Raises:
        UserError: one line with what to type.
    """
    if missing := [module for module in recorded if module not in _loaded and module not in sys.modules]:
        named = f"plugins=[{','.join(missing)}]"
        again = f"{hint} '{named}'" if hint else named
        raise UserError(f"{origin} was made with {named}; name them again: {again}")
