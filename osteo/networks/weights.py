"""Weights from files: read safely, fitted into all of a backbone but its classifier, and looked at."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from osteo.checks import check_weights_file
from osteo.errors import UserError, counted
from osteo.files import check_checksums
from osteo.records.sweep import best_of

OWN = "network.backbone."
"""What the names of a backbone's tensors begin with in a checkpoint of osteo."""
COUNTER = "num_batches_tracked"
"""What old files lack, and no layer here uses."""


def fill(network: nn.Module, weights: Mapping[str, Tensor], name: str, origin: str) -> nn.Module:
    """Loads weights into all but the classifier.

    Raises:
        UserError: a tensor is missing, has another shape or kind of number, is not finite, or is of a larger network.
    """
    wanted = _wanted(network)
    reason = ""
    if missing := differing(network, weights):
        first = ", ".join(missing[:3])
        reason = f"{len(missing)} of {counted(len(wanted), 'tensor')} are missing or have another shape, {first} first"
    elif surplus := _surplus(network, weights):
        reason = (
            f"it holds {counted(len(surplus), 'tensor')} of layers that this backbone does not have, {surplus[0]} first"
        )
    elif (odd := first_of_other_kind(wanted, weights)) is not None:
        reason = f"{odd} is not a tensor of floating-point numbers"
    if reason:
        raise _misfit(origin, name, reason)
    found = {key: _adapted(weights[key], tensor).to(tensor.dtype) for key, tensor in wanted.items()}
    if (bad := first_not_finite(found)) is not None:
        raise UserError(f"model.weights_file={Path(origin).name} holds weights that are not finite, {bad} first")
    network.load_state_dict(found, strict=False)
    return network


def classifiers(network: nn.Module) -> list[nn.Module]:
    """The last layers of a backbone: of distilled transformers several, of VOLO one for each token too."""
    last: Any = network.get_classifier()  # type: ignore[operator]  # of a checked backbone
    layers = [*last] if isinstance(last, tuple | list) else [last, getattr(network, "aux_head", None)]
    return [layer for layer in layers if isinstance(layer, nn.Module)]


def _wanted(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a file of weights must hold: all but the classifier's and what a batch norm counts."""
    new = {id(t) for last in classifiers(network) for t in last.state_dict(keep_vars=True).values()}
    tensors = network.state_dict(keep_vars=True).items()
    return {key: t for key, t in tensors if id(t) not in new and not key.endswith(COUNTER)}


def differing(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
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
    last = [key for key, layer in layers.items() if any(layer is one for one in classifiers(network))]
    heads = {key.partition(".")[0] for key in last}

    def is_of_unknown_layer(key: str) -> bool:
        parents = key.split(".")[:-1]
        unknown_layers = [n for n in range(1, len(parents) + 1) if ".".join(parents[:n]) not in layers]
        return bool(unknown_layers) and unknown_layers[0] > 1 and parents[0] not in heads

    return [key for key in weights if is_of_unknown_layer(key)]


def first_not_finite(tensors: Mapping[str, object]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite.

    Where all are, their device is waited for once.
    """
    found = {name: t.detach() for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    if _are_finite(list(found.values())):
        return None
    return next(name for name, t in found.items() if not bool(t.isfinite().all()))


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        on_it = [tensor for tensor in tensors if tensor.device == device]
        together = [tensor.float() if tensor.itemsize == 1 else tensor for tensor in on_it]  # float8 does not multiply
        spoilt = torch._foreach_norm(torch._foreach_mul(together, 0.0))  # 0, or NaN where a number is not finite
        if not bool(torch.stack([norm.float() for norm in spoilt]).isfinite().all()):
            return False
    return True


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
        path: a file that ends as `osteo.checks.WEIGHTS` says, or a run directory, which stands for its best
            checkpoint. Of a checkpoint of osteo only the backbone is taken.

    Raises:
        UserError: there is no such file, it cannot be read safely, or its checksums are wrong (.safetensors has none).
    """
    if path.is_dir():
        path = best_of(path)
    check_weights_file(path)
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
