"""Backbones by name: timm's, torchvision's, and those that a plugin has registered; with or without weights."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
from huggingface_hub import constants, get_session
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from osteo import parts
from osteo.errors import UserError
from osteo.libraries import TORCHVISION
from osteo.networks.composites import Composite, PlainCnn, make_composite
from osteo.networks.names import PLAIN, bases_of, check_backbone_name
from osteo.networks.stages import use_stages
from osteo.networks.torchvision import Shape, TorchvisionBackbone, usual_side
from osteo.networks.weights import differing, fill, read_weights

log = logging.getLogger(__name__)

SECONDS = 3.0
"""In which the model hub must answer, or it counts as out of reach."""


def usual_size(name: str) -> int | None:
    """The side of the pictures that a backbone of timm's or torchvision's was made for; None for a plugin's.

    Raises:
        UserError: nobody knows the name.
    """
    check_backbone_name(name)
    if bases := bases_of(name):
        return usual_size(bases[0])
    if name in parts.backbones or name == PLAIN:
        return None
    if name.startswith(TORCHVISION):
        return usual_side(name)
    usual = timm.get_pretrained_cfg(name)
    return int(usual.input_size[-1]) if usual else None


def create_backbone(name: str, shape: Shape, *, pretrained: bool = False, weights_file: str | None = None) -> nn.Module:
    """Builds a backbone.

    Args:
        name: see `names.known_backbones`.
        shape: what it is built for.
        pretrained: with the weights of its library, fetched from its hub once.
        weights_file: with those of a local file instead.

    Returns:
        A `parts.Backbone`.

    Raises:
        UserError: the weights cannot be had or do not fit, or a plugin's backbone does not keep the contract.
    """
    if shape.of_stages:
        plain = shape._replace(num_classes=0, of_stages=False)
        body = create_backbone(name, plain, pretrained=pretrained, weights_file=weights_file)
        return use_stages(
            body, name, shape.image_size, channels=shape.channels, classes=shape.num_classes, drop_rate=shape.drop_rate
        )
    if bases := bases_of(name):
        of_bases = [create_backbone(base, shape._replace(num_classes=0), pretrained=pretrained) for base in bases]
        return _with_weights(make_composite(name, of_bases, shape), name, weights_file)
    if name == PLAIN:
        if pretrained:
            raise UserError(f"model.backbone={PLAIN} has no pretrained weights; set model.pretrained=false")
        return _with_weights(PlainCnn(shape), name, weights_file)
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
            return fill(network, _torchvision_weights(name), name, "its pretrained weights")
        return _with_weights(network, name, weights_file)
    return _create_timm(name, shape, pretrained=pretrained, weights_file=weights_file)


def _checked(module: object, name: str) -> nn.Module:
    """Refuses what is not a `parts.Backbone`.

    Raises:
        UserError: one line that says what is missing.
    """
    origin = parts.backbones[name].__module__
    if not isinstance(module, nn.Module):
        raise UserError(f"model.backbone={name} of {origin} is not a torch module but {type(module).__name__}")
    contract = ("num_features", "pretrained_cfg", "forward_features", "forward_head", "get_classifier")
    if missing := [part for part in contract if not hasattr(module, part)]:
        raise UserError(f"model.backbone={name} of {origin} lacks {', '.join(missing)}; see osteo.parts.Backbone")
    if missing := [key for key in ("mean", "std") if key not in module.pretrained_cfg]:  # type: ignore[operator]
        raise UserError(f"model.backbone={name} of {origin}: its pretrained_cfg lacks {', '.join(missing)}")
    return module


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
        if differing(network, weights):
            weights = _converted(name, settings, weights)
        return fill(network, weights, name, weights_file)
    if pretrained:
        log.info("loading the weights of %s, from the model hub unless they are in the cache", name)
    offline = constants.HF_HUB_OFFLINE or (pretrained and not _hub_is_reachable())
    try:
        with patch.object(constants, "HF_HUB_OFFLINE", offline):  # the files in its cache are all that is asked for
            network = timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:
        if pretrained:  # the hub's client raises errors of a dozen libraries
            raise _out_of_reach(name, error) from error
        raise
    return network


def _hub_is_reachable() -> bool:
    """Whether the model hub answers at once: its client would try for a minute, where it has no copy of a file."""
    with suppress(Exception):  # its client raises errors of several libraries
        return bool(get_session().head(constants.ENDPOINT, timeout=SECONDS).status_code < 500)
    return False


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


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    from torchvision import models

    log.info("loading the weights of %s, from torchvision's server unless they are in the cache", name)
    try:
        weights: Any = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
        state = weights.get_state_dict(check_hash=True)
    except Exception as error:  # what urllib raises
        raise _out_of_reach(name, error) from error
    return {f"network.{key}": value for key, value in state.items() if "aux" not in key.lower()}


def _with_weights(network: nn.Module, name: str, weights_file: str | None) -> nn.Module:
    if not weights_file:
        return network
    weights: Mapping[str, Tensor] = read_weights(Path(weights_file).expanduser())
    if isinstance(network, TorchvisionBackbone) and not any(key.startswith("network.") for key in weights):
        weights = {f"network.{key}": value for key, value in weights.items() if "aux" not in key.lower()}
    if isinstance(network, Composite) and not any(key.startswith("bases.") for key in weights):
        fitting = [base for base in network.bases if not differing(base, weights)]
        for base in fitting:  # of a file for one of its parts
            fill(base, weights, name, weights_file)
        if fitting:
            return network
    return fill(network, weights, name, weights_file)


def _out_of_reach(backbone: str, error: Exception) -> UserError:
    if "No pretrained weights exist" in str(error):
        return UserError(
            f"timm has no pretrained weights for {backbone}; set model.pretrained=false, or model.weights_file=FILE"
        )
    return UserError(
        f"the pretrained weights of {backbone} could not be fetched from the model hub ({type(error).__name__});"
        " go online once (they are kept for later), give a local file, model.weights_file=FILE.safetensors, or do"
        " without, model.pretrained=false"
    )
