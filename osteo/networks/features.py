"""What a frozen backbone makes of every picture, computed once and kept."""

import hashlib
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osteo.data.store import Store
from osteo.errors import UserError, counted, first_line
from osteo.files import alone, check_checksums, whole, writing_to_cache
from osteo.networks.network import MISFITS, Network
from osteo.networks.precision import IEEE, ieee_float32
from osteo.networks.views import Views

log = logging.getLogger(__name__)

BATCH = 32  # pictures at once
TOLERANCE = 1e-3  # of a logit, between the whole network and its classifier on kept features

DAMAGED = (UserError, OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError)
"""What reading a damaged file raises, by where it is damaged."""


def keep_features(network: Network, store: Store, folder: Path, *, flips: bool, device: str = "cpu") -> Tensor:
    """The pooled features of all pictures of a store, from the disk where they have been computed before.

    Args:
        network: whose backbone is frozen.
        store: of N pictures.
        folder: where features are kept, by what they follow from: the pictures, the backbone's weights and the view.
        flips: mirror images too, as training shows them.
        device: that computes them.

    Returns:
        Float32 (N, V, F), V views: those of the network, then the mirror image where it is not among them.

    Raises:
        UserError: the classifier of this backbone takes more than pooled features.
    """
    was_training = network.training
    example = _checked_example(network)
    views = network.views
    if flips and "hflip" not in views.names:
        views = Views([*views.chosen, "hflip"], network.image_size)
    store.confirm()  # what is computed of damaged pictures would be kept
    origin = _fingerprint(network, store, example)
    found = []
    for number, name in enumerate(views.names):
        recipe = f"{origin}:{name}:{views.names[:number].count(name)}"
        place = folder / "features" / f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.pt"
        with writing_to_cache(folder), alone(place, "computing these features"):
            features = _read(place, len(store.pictures[0]))
            if features is None:
                features = _compute(network, views, number, store, device)
                if place.is_dir():
                    shutil.rmtree(place)
                with whole(place) as aside:
                    torch.save(features, aside)
        found.append(features)
    network.train(was_training)
    return torch.stack(found, dim=1)


def _read(place: Path, count: int) -> Tensor | None:
    """Features that were kept of so many pictures, or None where there are none or they are damaged."""
    if not place.exists():
        return None
    try:
        check_checksums(place)
        kept = torch.load(place, weights_only=True)
    except DAMAGED as error:
        log.debug("kept features cannot be read: %s", type(error).__name__)
        kept = None
    if isinstance(kept, Tensor) and kept.ndim == 2 and len(kept) == count and kept.dtype == torch.float32:
        return kept
    log.warning("kept features are damaged on the disk: they are computed again")
    return None


def _compute(network: Network, views: Views, number: int, store: Store, device: str) -> Tensor:
    """The features of one view, float32 (N, F)."""
    log.info("computing the features of %s (%s)", counted(len(store.rows), "picture"), views.names[number])
    pictures = torch.from_numpy(store.pictures[0])
    network, views = network.to(device).eval(), views.to(device)
    found = []
    with torch.inference_mode(), ieee_float32():
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH].unsqueeze(1).to(device).float().div_(255.0)
            found.append(network.pooled(views.show(batch, number).contiguous()).float().cpu())
    network.to("cpu")
    return torch.cat(found).clone()


def _fingerprint(network: Network, store: Store, example: Tensor) -> str:
    """A hash of what features follow from: the pictures, the backbone's weights, and what it makes of an example.

    The last stands for code, of timm's or of a plugin's, that may have changed since.
    """
    digest = hashlib.sha256(f"{IEEE}:{network.channels}:{network.patches}:{torch.__version__}".encode())
    digest.update(np.ascontiguousarray(store.pictures[0]).data)
    new = {id(tensor) for tensor in network.classifier().state_dict(keep_vars=True).values()}
    for key, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in new:
            digest.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    scale = float(example.abs().max()) or 1.0
    digest.update((example / scale * 100).round().to(torch.int32).numpy().tobytes())
    return digest.hexdigest()


def _checked_example(network: Network) -> Tensor:
    """The features of two pictures of noise, (2, F), whose logits are those of the whole network."""
    side = network.image_size
    pictures = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    reason = "gives other logits"
    try:
        with torch.inference_mode():
            pooled = network.eval().pooled(pictures)
            if float((network(pooled) - network._outputs(pictures)).abs().max()) < TOLERANCE:
                return pooled
    except MISFITS as error:
        reason = first_line(error)
    raise UserError(
        f"model.freeze=backbone: the classifier of model.backbone={network.name} takes more than one row of pooled"
        f" features ({reason}); choose another backbone, or model.freeze=norms"
    )
