"""Backbones by name: timm's, torchvision's, and those that a plugin has registered; with or without weights."""

import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.modules.module import _IncompatibleKeys

from osteo import parts
from osteo.errors import UserError, unknown
from osteo.files import check_checksums
from osteo.records.sweep import best_of

log = logging.getLogger(__name__)

TORCHVISION = "torchvision/"
"""What a name begins with that torchvision knows and timm may not, such as torchvision/alexnet."""
SEQUENTIAL = ("alexnet", "convnext", "efficientnet", "googlenet", "inception", "resne", "swin_", "swin_v2",
              "vgg", "wide_resnet")  # fmt: skip
"""Beginnings of torchvision's names whose networks are their parts one after the other, around a global pooling."""
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".ckpt")
"""Of files of weights."""
OWN = "network.backbone."
"""What the names of a backbone's tensors begin with in a checkpoint of osteo."""
COUNTER = "num_batches_tracked"
"""What old files lack, and no layer here uses."""
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Shape(NamedTuple):
    """What a backbone is built for."""

    image_size: int
    """side of a picture, in pixels"""
    channels: int = 1
    num_classes: int = 1
    """1 logit, or 0 for no classifier at all"""
    drop_rate: float = 0.0


def known_backbones(name: str = "") -> list[str]:
    """All names; those with a tag of weights, such as resnet50.a1_in1k, only where `name` has one."""
    if name.startswith(TORCHVISION):
        return torchvision_names()
    known = timm.list_pretrained() if "." in name else timm.list_models()
    return [*parts.backbones, *known]


def usual_size(name: str) -> int | None:
    """The side of the pictures that a backbone of timm's or torchvision's was made for; None for a plugin's.

    Raises:
        UserError: nobody knows the name.
    """
    if name not in known_backbones(name):
        raise unknown("model.backbone", name, known_backbones(name))
    if name in parts.backbones:
        return None
    if name.startswith(TORCHVISION):
        return 299 if "inception" in name else 224
    usual = timm.get_pretrained_cfg(name)
    return int(usual.input_size[-1]) if usual else None


def create_backbone(name: str, shape: Shape, *, pretrained: bool = False, weights_file: str | None = None) -> nn.Module:
    """Builds a backbone.

    Args:
        name: see `known_backbones`.
        shape: what it is built for.
        pretrained: with the weights of its library, fetched from its hub once.
        weights_file: with those of a local file instead.

    Returns:
        A `parts.Backbone`.

    Raises:
        UserError: the weights cannot be had or do not fit, or a plugin's backbone does not keep the contract.
    """
    if name in parts.backbones:
        if pretrained:
            raise UserError(f"model.backbone={name} is a plugin's and has no pretrained weights; give a weights_file")
        made = parts.backbones[name](
            in_chans=shape.channels, num_classes=shape.num_classes, drop_rate=shape.drop_rate, img_size=shape.image_size
        )
        return _with_weights(_checked(made, name), name, weights_file)
    if name.startswith(TORCHVISION):
        network = TorchvisionBackbone(name, shape)
        if pretrained:
            return _fill(network, _torchvision_weights(name), name, "its pretrained weights")
        return _with_weights(network, name, weights_file)
    return _create_timm(name, shape, pretrained=pretrained, weights_file=weights_file)


def _checked(module: object, name: str) -> nn.Module:
    """Refuses what is not a `parts.Backbone`.

    Raises:
        UserError: one line that says what is missing.
    """
    origin = parts.backbones[name].__module__
    if not isinstance(module, nn.Module):
        raise UserError(f"model.backbone={name} of {origin} is no torch module but {type(module).__name__}")
    contract = ("num_features", "pretrained_cfg", "forward_features", "forward_head", "get_classifier")
    if missing := [part for part in contract if not hasattr(module, part)]:
        raise UserError(f"model.backbone={name} of {origin} lacks {', '.join(missing)}; see osteo.parts.Backbone")
    if missing := [key for key in ("mean", "std") if key not in module.pretrained_cfg]:  # type: ignore[operator]
        raise UserError(f"model.backbone={name} of {origin}: its pretrained_cfg lacks {', '.join(missing)}")
    return module


# --- timm ------------------------------------------------------------------------------------------------------------


def _create_timm(name: str, shape: Shape, *, pretrained: bool, weights_file: str | None) -> nn.Module:
    settings: dict[str, Any] = {
        "num_classes": shape.num_classes, "in_chans": shape.channels, "drop_rate": shape.drop_rate,
    }  # fmt: skip
    usual = timm.get_pretrained_cfg(name)
    if usual and usual.fixed_input_size:
        settings["img_size"] = shape.image_size
    if weights_file:
        network: nn.Module = timm.create_model(name, **settings)
        weights: Mapping[str, Tensor] = read_weights(Path(weights_file).expanduser())
        if _differing(network, weights):
            weights = _converted(name, settings, weights)
        return _fill(network, weights, name, weights_file)
    if pretrained:
        log.info("fetching the weights of %s from the model hub, unless they are here already", name)
    try:
        network = timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:
        if pretrained:  # the hub's client raises errors of a dozen libraries
            raise _out_of_reach(name, error) from error
        raise
    return network


def _converted(name: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by the names that they have in timm's network: files of a network's authors have other ones.

    timm converts them while it builds a network, without a way to ask for the result, so that it is taken from where
    timm hands it to the network.
    """
    handed: dict[str, Tensor] = {}

    def take(_: nn.Module, state_dict: Mapping[str, Tensor], *__: Any, **___: Any) -> Any:
        handed.update(state_dict)
        return _IncompatibleKeys([], [])

    with patch.object(nn.Module, "load_state_dict", take), suppress(Exception):  # of a file that timm cannot convert
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(weights)}, **settings)
    return handed or weights


# --- torchvision -----------------------------------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    """The backbones of torchvision that can be used, with their prefix."""
    from torchvision import models

    return [TORCHVISION + name for name in models.list_models(module=models) if name.startswith(SEQUENTIAL)]


class TorchvisionBackbone(nn.Module):
    """A classification network of torchvision with timm's interface.

    Args:
        name: with its prefix, such as torchvision/alexnet.
        shape: what it is built for.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        from torchvision import models

        bare, side = name.removeprefix(TORCHVISION), usual_size(name)
        options = {"aux_logits": False, "init_weights": True} if bare in ("googlenet", "inception_v3") else {}
        self.network: nn.Module = models.get_model(bare, weights=None, num_classes=max(1, shape.num_classes), **options)
        self.drop_rate = shape.drop_rate
        self.pretrained_cfg: dict[str, Any] = {**IMAGENET, "input_size": (3, side, side)}
        order = [key for key, child in self.network.named_children() if child is not None]
        place = order.index("avgpool")
        self._body, self._tail = order[:place], order[place + 1 :]
        pooled = getattr(self.network.avgpool, "output_size", 1)
        linears = [layer for layer in self._layers_of_tail() if isinstance(layer, nn.Linear)]
        self.num_features = linears[0].in_features // math.prod(pooled if isinstance(pooled, tuple) else (pooled,) * 2)
        last = next(name for name, layer in self.network.named_modules() if layer is linears[-1])
        self.pretrained_cfg["classifier"] = f"network.{last}"  # where timm's layer-wise decay ends
        if not shape.num_classes:
            _replace(self.network, linears[-1], nn.Identity())
        first = next(layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d))
        if shape.channels != first.in_channels:
            _replace(self.network, first, _same_but(first, shape.channels))

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to logits (B, 1), or to pooled features where it was built without classes."""
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to the last feature map, (B, F, H, W)."""
        for key in self._body:
            pictures = self.network.get_submodule(key)(pictures)
        return pictures

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps a feature map to logits (B, 1), or to the features before the classifier."""
        features = self.network.get_submodule("avgpool")(features)
        *before, last = self._layers_of_tail()
        for layer in before:
            features = layer(features.flatten(1) if isinstance(layer, nn.Linear) else features)
        features = dropout(features.flatten(1), self.drop_rate, self.training)
        return features if pre_logits else last(features)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self._layers_of_tail()[-1]

    def _layers_of_tail(self) -> list[nn.Module]:
        tail = [self.network.get_submodule(key) for key in self._tail]
        return [layer for part in tail for layer in part.modules() if not list(layer.children())]


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, layer in network.named_modules() if layer is old)
    network.set_submodule(name, new)


def _same_but(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A new convolution like this one, for another number of input channels."""
    return nn.Conv2d(
        channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )  # fmt: skip


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    from torchvision import models

    log.info("fetching the weights of %s from torchvision's server, unless they are here already", name)
    try:
        weights: Any = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
        state = weights.get_state_dict(check_hash=True)
    except Exception as error:  # what urllib raises
        raise _out_of_reach(name, error) from error
    return {f"network.{key}": value for key, value in state.items() if "aux" not in key.lower()}


# --- weights ---------------------------------------------------------------------------------------------------------


def _with_weights(network: nn.Module, name: str, weights_file: str | None) -> nn.Module:
    if not weights_file:
        return network
    weights: Mapping[str, Tensor] = read_weights(Path(weights_file).expanduser())
    if isinstance(network, TorchvisionBackbone) and not any(key.startswith("network.") for key in weights):
        weights = {f"network.{key}": value for key, value in weights.items() if "aux" not in key.lower()}
    return _fill(network, weights, name, weights_file)


def _fill(network: nn.Module, weights: Mapping[str, Tensor], name: str, origin: str) -> nn.Module:
    """Loads weights into all but the classifier.

    Raises:
        UserError: a tensor is missing, has another shape or kind of number, is not finite, or is of a larger network.
    """
    wanted = _wanted(network)
    reason = ""
    if missing := _differing(network, weights):
        first = ", ".join(missing[:3])
        reason = f"{len(missing)} of its {len(wanted)} tensors are missing or have another shape, {first} first"
    elif surplus := _surplus(network, weights):
        reason = f"it holds {len(surplus)} tensors of layers that this backbone has not, {surplus[0]} first"
    elif (odd := first_of_other_kind(wanted, weights)) is not None:
        reason = f"{odd} is no tensor of floating-point numbers"
    if reason:
        raise _misfit(origin, name, reason)
    found = {key: _adapted(weights[key], tensor).to(tensor.dtype) for key, tensor in wanted.items()}
    if (bad := first_not_finite(found)) is not None:
        raise UserError(f"model.weights_file={Path(origin).name} holds weights that are not finite, {bad} first")
    network.load_state_dict(found, strict=False)
    return network


def _classifiers(network: nn.Module) -> list[nn.Module]:
    last: Any = network.get_classifier()  # type: ignore[operator]  # of a checked backbone
    return list(last) if isinstance(last, tuple | list) else [last]  # of distilled transformers several


def _wanted(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a file of weights must hold: all but the classifier's and what a batch norm counts."""
    new = {id(t) for last in _classifiers(network) for t in last.state_dict(keep_vars=True).values()}
    tensors = network.state_dict(keep_vars=True).items()
    return {key: t for key, t in tensors if id(t) not in new and not key.endswith(COUNTER)}


def _differing(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """The tensors that weights lack or have in another shape."""
    wanted = _wanted(network)
    return [key for key, t in wanted.items() if key not in weights or _adapted(weights[key], t).shape != t.shape]


def _adapted(given: Tensor, tensor: Tensor) -> Tensor:
    """A kernel of three channels for grey pictures, which are three equal ones, or the other way round."""
    if given.ndim == tensor.ndim == 4:
        if (given.shape[1], tensor.shape[1]) == (3, 1):
            return given.sum(1, keepdim=True)
        if (given.shape[1], tensor.shape[1]) == (1, 3):
            return given.expand(-1, 3, -1, -1) / 3.0
    return given


def _surplus(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Tensors of layers beside the network's own, as a deeper one has; heads are no concern of a backbone's."""
    layers = dict(network.named_modules())
    last = [key for key, layer in layers.items() if any(layer is one for one in _classifiers(network))]
    heads = {key.partition(".")[0] for key in last}

    def is_of_unknown_layer(key: str) -> bool:
        parents = key.split(".")[:-1]
        unknown_layers = [n for n in range(1, len(parents) + 1) if ".".join(parents[:n]) not in layers]
        return bool(unknown_layers) and unknown_layers[0] > 1 and parents[0] not in heads

    return [key for key in weights if is_of_unknown_layer(key)]


def first_not_finite(tensors: Mapping[str, object]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite."""
    found = ((name, t) for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point())
    return next((name for name, t in found if not bool(t.isfinite().all())), None)


def first_of_other_kind(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds integers or complex numbers where floating-point ones are wanted."""
    return next((n for n, t in wanted.items() if found[n].is_floating_point() != t.is_floating_point()), None)


def first_not_dense(tensors: Mapping[str, object]) -> str | None:
    """The name of the first tensor that is sparse, quantised or without content; None where all are plain numbers."""
    found = ((n, t) for n, t in tensors.items() if isinstance(t, Tensor))
    return next((n for n, t in found if t.layout != torch.strided or t.is_quantized or t.is_meta), None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; nothing but tensors is read from it.

    Args:
        path: a file of `ENDINGS`, or a run directory, which stands for its best checkpoint. Of a checkpoint of osteo
            only the backbone is taken.

    Raises:
        UserError: there is no such file, it cannot be read safely, or its checksums are wrong (.safetensors has none).
    """
    if path.is_dir():
        path = best_of(path)
    if not path.is_file():
        raise UserError(f"model.weights_file={path}: no such file")
    if not path.name.endswith(ENDINGS):
        raise UserError(f"model.weights_file={path.name} must end in one of {', '.join(ENDINGS)}")
    check_checksums(path)
    try:
        with torch.serialization.safe_globals([Namespace]):  # timm's own training keeps its arguments
            kept: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # what a broken or hostile file raises depends on where it is broken
        raise UserError(
            f"model.weights_file={path.name} cannot be read safely as a file of weights"
            f" ({type(error).__name__}); save a state_dict with torch.save or safetensors"
        ) from error
    weights = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
    if (bad := first_not_dense(weights)) is not None:
        raise UserError(f"model.weights_file={path.name} holds {bad}, which is sparse or quantised; save dense tensors")
    return {name.removeprefix(OWN): t for name, t in weights.items() if name.startswith(OWN)} or weights


def _misfit(weights_file: str, backbone: str, reason: str) -> UserError:
    return UserError(f"model.weights_file={Path(weights_file).name} does not fit model.backbone={backbone}: {reason}")


def _out_of_reach(backbone: str, error: Exception) -> UserError:
    if "No pretrained weights exist" in str(error):
        return UserError(
            f"timm has no pretrained weights for {backbone}; set model.pretrained=false, or model.weights_file=FILE"
        )
    return UserError(
        f"the pretrained weights of {backbone} could not be fetched from the model hub ({type(error).__name__});"
        " either go online once, they are kept for later, or give a local file: model.weights_file=FILE.safetensors"
    )
