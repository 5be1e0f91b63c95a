"""What the layers of a network make of a picture: their feature maps, by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from osteo.command_settings import LIST
from osteo.errors import UserError, unknown
from osteo.evaluation.gradcam import knee
from osteo.networks.composites import Composite
from osteo.networks.network import Network
from osteo.networks.precision import ieee_float32
from osteo.networks.views import cut, join
from osteo.types import Grey, Singles

STAGES = 6  # layers that are shown where none is named, at most
HINT = f"maps={LIST} lists them all"
RULE = "most active first: by the mean of the absolute activation"
COLUMNS = ("image", "layer", "channel", "activity", "mean", "smallest", "largest", "in_knee", "knee_area")
"""of explain.csv"""


class Layer(NamedTuple):
    """What a layer gives for one picture, or for each tile where a network cuts it into several."""

    output: tuple[int, ...]
    """the shape, without the batch"""
    grid: tuple[int, int, int] | None
    """channels, height and width of it as a map; None where it is none"""


class LayerMaps(NamedTuple):
    """The most active channels of a layer for one picture."""

    layer: str
    maps: Singles
    """(N, H, W), the most active first"""
    channels: list[int]
    """their numbers, (N,), from 0"""
    of: int
    """channels of the layer in all"""


def layers_of(network: Network, *, with_head: bool = True) -> dict[str, Layer]:
    """Every layer of the backbone that gives a tensor, by its name in `named_modules()`, in their order there.

    Nothing is computed: the backbone is shown a picture without pixels. Of a layer that is called several times, the
    last call counts.

    Args:
        network: is left as it is.
        with_head: also what comes after the last feature map.
    """
    backbone: Any = deepcopy(network.backbone).to("meta").eval()
    found: dict[str, Tensor] = {}
    side = network.image_size // network.patches
    with _hooked(backbone, dict(backbone.named_modules()), found), torch.inference_mode():
        (backbone if with_head else backbone.forward_features)(
            torch.empty(1, network.channels, side, side, device="meta")
        )
    layers = {}
    for name, _ in backbone.named_modules():
        if name and name in found:
            as_map = to_map(backbone, found[name], 1)
            grid = None if as_map is None else (as_map.shape[1], as_map.shape[2], as_map.shape[3])
            layers[name] = Layer(tuple(found[name].shape[1:]), grid)
    return layers


def describe_layers(layers: Mapping[str, Layer]) -> list[str]:
    """One line per layer: its name, the shape of its output for a picture, and whether that is a map."""
    width = max(map(len, layers), default=0)
    lines = []
    for name, (output, grid) in layers.items():
        note = (
            ""
            if grid == output
            else "  (no map)"
            if grid is None
            else f"  ({grid[0]} channels on {grid[1]} x {grid[2]})"
        )
        lines.append(f"{name:{width}}  {' x '.join(map(str, output))}{note}")
    return lines


def chosen_layers(network: Network, maps: object) -> list[str]:
    """The layers whose maps are asked for.

    Args:
        network: that has them.
        maps: one name or a list of them, also of numbers, as YAML reads a name such as 0; None for one layer of each
            of the network's stages, early to late.

    Raises:
        UserError: a name is unknown, or its layer gives no map.
    """
    if maps is None:
        return stage_layers(network)
    layers = layers_of(network)
    names = list(dict.fromkeys(map(str, maps if isinstance(maps, list | tuple) else [maps])))
    if not names:
        raise UserError(f"maps=[] names no layer; name one, or leave it out for one per stage; {HINT}")
    for name in names:
        if name not in layers:
            raise UserError(f"{unknown('maps: layer', name, layers, most=0)}; {HINT}")
        if layers[name].grid is None:
            shape = " x ".join(map(str, layers[name].output))
            raise UserError(f"maps: layer '{name}' gives {shape} for a picture, which is not a map; {HINT}")
    return names


def stage_layers(network: Network, most: int = STAGES) -> list[str]:
    """One layer of each of the network's stages, early to late; of more than `most` stages, evenly spread ones.

    Raises:
        UserError: no layer gives a map.
    """
    layers = {name: layer.grid for name, layer in layers_of(network, with_head=False).items() if layer.grid}
    if not layers:
        raise UserError(f"{network.name} has no layer that gives a map")
    return _stages(network.backbone, layers, most)


def _stages(backbone: nn.Module, layers: Mapping[str, tuple[int, int, int]], most: int) -> list[str]:
    """Of timm's, those that timm names; of a composite, its parts'; else the outermost last layer on each grid."""
    if isinstance(backbone, Composite) and len(backbone.bases):
        each, names = max(1, most // len(backbone.bases)), []
        for number, base in enumerate(backbone.bases):
            prefix = f"bases.{number}."
            inside = {name.removeprefix(prefix): grid for name, grid in layers.items() if name.startswith(prefix)}
            names += [prefix + name for name in _stages(base, inside, each)]
        return [*names, *(name for name in layers if "." not in name)]
    named = [stage["module"] for stage in getattr(backbone, "feature_info", [])]
    names = [name for name in dict.fromkeys(named) if name in layers]
    if not names:
        outermost: dict[tuple[int, int], str] = {}
        for name, (_, *grid) in layers.items():
            place = (grid[0], grid[1])
            if place not in outermost or name.count(".") <= outermost[place].count("."):
                outermost[place] = name
        names = [outermost[place] for place in sorted(outermost, reverse=True)]
    places = sorted({round(n * (len(names) - 1) / max(1, most - 1)) for n in range(most)}) if most > 1 else [-1]
    return [names[place] for place in places]


def to_map(backbone: nn.Module, output: Tensor, batch: int) -> Tensor | None:
    """An output as maps (B, C, H, W), from (B, C, H, W), (B, H, W, C) or tokens (B, N, C); None where it is none.

    The tokens of a transformer stand on their grid, row by row; class and register tokens, which come first, have no
    place there.

    Args:
        backbone: of which a layer gave it.
        output: for B pictures, which are square.
        batch: B.
    """
    shape = output.shape
    if len(shape) not in (3, 4) or shape[0] != batch:
        return None
    if len(shape) == 3:
        without_place = {0, *(int(getattr(part, "num_prefix_tokens", 0)) for part in backbone.modules())}
        side = isqrt(shape[1])
        before = shape[1] - side**2
        if side == 1 or before not in without_place:
            return None
        on_grid: Tensor = output[:, before:].transpose(1, 2).unflatten(2, (side, side))
        return on_grid
    is_either = shape[1] == shape[2] == shape[3]
    if shape[1] == shape[2] > 1 and (not is_either or getattr(backbone, "output_fmt", "") == "NHWC"):
        return output.permute(0, 3, 1, 2)
    return output if shape[2] == shape[3] > 1 else None


def feature_maps(network: Network, picture: Tensor, layers: Sequence[str]) -> dict[str, Singles]:
    """What layers make of one picture, float32 (C, H, W) by name.

    Args:
        network: is put into evaluation mode.
        picture: float (1, 1, S, S) in [0, 1].
        layers: of `chosen_layers`.
    """
    backbone, found = network.eval().backbone, dict[str, Tensor]()
    chosen = {name: backbone.get_submodule(name) for name in layers}
    with _hooked(backbone, chosen, found), torch.inference_mode(), ieee_float32():
        backbone(network.normalise(cut(picture.to(network.device), network.patches)))
    maps = {}
    for name in layers:
        of_tiles = to_map(backbone, found[name], network.patches**2)
        assert of_tiles is not None
        maps[name] = np.ascontiguousarray(join(of_tiles, network.patches, of_tiles.shape[1])[0].numpy())
    return maps


@contextmanager
def _hooked(backbone: nn.Module, layers: Mapping[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Keeps what layers give while the backbone is called, float32; a copy, since the next layer may work in place."""

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                on_cpu = output.device if output.is_meta else "cpu"
                found[name] = output.detach().to(on_cpu, torch.float32, copy=True)

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def most_active(layer: str, maps: Singles, most: int) -> LayerMaps:
    """The channels of a layer's maps (C, H, W) with the largest means of the absolute activation, at most `most`."""
    order = np.argsort(-np.abs(maps).mean((1, 2)), kind="stable")[:most]
    return LayerMaps(layer, maps[order], [int(channel) for channel in order], len(maps))


def to_table(image: str, picture: Grey, layers: Iterable[LayerMaps]) -> pd.DataFrame:
    """The content of explain.csv for a picture: one row per channel that is shown, in the columns `COLUMNS`.

    `activity` is the mean of the absolute activation, `in_knee` the share of its sum that lies on the knee as
    `osteo.evaluation.gradcam.knee` finds it, missing where the map is 0 all over, and `knee_area` the share of the
    picture that the knee takes, which a map without aim would reach.

    Args:
        image: its name.
        picture: uint8 (S, S), as the network sees it.
        layers: of the picture.
    """
    mask = torch.from_numpy(knee(picture).astype(np.float32))
    rows = []
    for layer, maps, channels, _ in layers:
        on_grid = adaptive_avg_pool2d(mask[None], (maps.shape[1], maps.shape[2]))[0].numpy()
        for channel, values in zip(channels, maps.astype(np.float64), strict=True):
            strength = np.abs(values)
            share = float((strength * on_grid).sum() / strength.sum()) if strength.any() else np.nan
            numbers = (strength.mean(), values.mean(), values.min(), values.max(), share, float(mask.mean()))
            rows.append((image, layer, channel, *numbers))
    return pd.DataFrame(rows, columns=list(COLUMNS))
