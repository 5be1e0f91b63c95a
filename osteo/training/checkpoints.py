"""What a checkpoint holds, read so that nothing in it runs, and the module that it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from osteo.errors import UserError
from osteo.evaluation.systems import flatten
from osteo.files import check_checksums, whole
from osteo.networks.weights import first_not_dense, first_not_finite, first_of_other_kind
from osteo.records.named import name_of
from osteo.records.snapshots import save_checkpoint
from osteo.training.module import Classifier

OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
"""Of a checkpoint, what training alone goes on from; a best value that is still infinite is no fault there."""
OF_AVERAGING = ("current_model_state", "averaging_state")
"""The same, of a training that averages weights."""


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds: tensors and plain values, as they were written.

    Raises:
        UserError: there is no such file, it cannot be read safely, its checksums do not hold, or weights in it are
            sparse or not finite.
    """
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {name_of(checkpoint)}")
    check_checksums(checkpoint)
    try:
        kept = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # what a file of another kind raises depends on what it is
        raise _no_checkpoint(checkpoint, error) from error
    if not isinstance(kept, dict):
        raise _no_checkpoint(checkpoint, TypeError())
    weights = flatten({name: value for name, value in kept.items() if name not in OF_TRAINING})
    if (bad := first_not_dense(weights)) is not None:
        raise _bad_weights(checkpoint, "sparse or quantised", bad)
    if (bad := first_not_finite(weights)) is not None:
        raise _bad_weights(checkpoint, "not finite", bad)
    return kept


def write_for_use(checkpoint: Path, kept: Mapping[str, Any]) -> None:
    """Writes a checkpoint without what training alone goes on from; the file appears whole or stays as it was."""
    used = {name: value for name, value in kept.items() if name not in (*OF_TRAINING, *OF_AVERAGING)}
    with whole(checkpoint, durable=True) as aside:
        save_checkpoint(used, aside)


def build_module(kept: Mapping[str, Any], checkpoint: Path) -> Classifier:
    """The module of a checkpoint that has been read, on the CPU.

    Args:
        kept: what it holds.
        checkpoint: its file, for errors.

    Raises:
        UserError: it is no checkpoint of osteo, or its weights are integers or complex, or too large for the network's
            numbers.
    """
    try:
        given = dict(kept["hyper_parameters"])
        given["network"] = {**given["network"], "pretrained": False, "weights_file": None}
        module = Classifier(**given)
        module.load_state_dict(kept["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _no_checkpoint(checkpoint, error) from error
    loaded = module.state_dict()
    if (bad := first_of_other_kind(loaded, kept["state_dict"])) is not None:
        raise _bad_weights(checkpoint, "no floating-point numbers", bad)
    if (bad := first_not_finite(loaded)) is not None:  # float64 may hold what float32 cannot
        raise _bad_weights(checkpoint, "not finite", bad)
    return module


def _bad_weights(checkpoint: Path, kind: str, name: str) -> UserError:
    return UserError(f"{checkpoint.name} holds weights that are {kind}, {name} first; use another checkpoint")


def _no_checkpoint(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"{name_of(checkpoint)} is no checkpoint of osteo ({type(error).__name__}); take another copy of it, or train"
        " its run again"
    )
