"""What a checkpoint holds, read so that nothing in it runs, and the module that it is of."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from osteo.errors import UserError, counted
from osteo.evaluation.outcomes import flatten
from osteo.files import check_checksums, display_path, whole
from osteo.networks.weights import first_not_dense, first_not_finite, first_of_other_kind
from osteo.records.record import BEST, LAST, PREVIOUS
from osteo.records.snapshots import save_checkpoint
from osteo.training.module import Classifier

log = logging.getLogger(__name__)

OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
"""Of a checkpoint, what training alone goes on from; a best value that is still infinite is no fault there."""
OF_AVERAGING = ("current_model_state", "averaging_state")
"""The same, of a training that averages weights."""
OF_LIGHTNING = ("epoch", "global_step", "pytorch-lightning_version", "state_dict")
"""Of a checkpoint, what Lightning goes on from beside `OF_TRAINING`."""


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds: tensors and plain values, as they were written.

    Raises:
        UserError: there is no such file, it cannot be read safely, its checksums do not hold, or weights in it are
            sparse or not finite.
    """
    if not checkpoint.is_file():
        raise UserError(f"{display_path(checkpoint)}: no such checkpoint")
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
        UserError: it is not a checkpoint of osteo, or its weights are integers or complex, or too large for the numbers
            of the network.
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
    return UserError(f"{display_path(checkpoint)} holds weights that are {kind}, {name} first; use another checkpoint")


def _no_checkpoint(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"{display_path(checkpoint)} is not a checkpoint of osteo ({type(error).__name__}); take another copy of it, or"
        " train its run again"
    )


def newest(folder: Path, module: LightningModule) -> Path | None:
    """The checkpoint to go on from: the last one, or where it is damaged the one before it, or the best.

    Args:
        folder: of the checkpoints.
        module: that is to go on; a checkpoint of another network counts as damaged.

    Returns:
        None where no epoch has ended.

    Raises:
        UserError: there are checkpoints, but all of them are damaged.
    """
    present = [folder / name for name in (LAST, PREVIOUS, BEST) if (folder / name).is_file()]
    damaged = []
    for path in present:
        try:
            _check_resumable(read_checkpoint(path), display_path(path), module.state_dict())
        except UserError as error:
            damaged.append(str(error))
            continue
        if damaged:
            log.warning("%s: resuming from %s", "; ".join(damaged), path.name)
        return path
    if present:
        raise UserError(f"no checkpoint can be resumed from: {'; '.join(damaged)}; begin a new run")
    return None


def _check_resumable(kept: Mapping[str, Any], name: str, wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuses a checkpoint that a training cannot go on from.

    Raises:
        UserError: it lacks what the next epoch starts from, or is of another network.
    """
    missing = [key for key in (*OF_LIGHTNING, *OF_TRAINING) if key not in kept]
    if missing == list(OF_TRAINING):
        raise UserError(f"{name} is of a run that is done, and holds no state of its optimiser")
    if missing:
        raise UserError(f"{name} is damaged (it has no {missing[0]})")
    found = kept["state_dict"]
    shapes = {key: getattr(value, "shape", None) for key, value in found.items()} if isinstance(found, dict) else {}
    differing = [key for key, value in wanted.items() if shapes.get(key) != value.shape]
    if differing := differing + sorted(set(shapes) - set(wanted)):
        raise UserError(
            f"{name} is of another network (differing in {counted(len(differing), 'tensor')}, {differing[0]} first)"
        )
    if (odd := first_of_other_kind(wanted, found)) is not None:
        raise UserError(f"{name} is damaged ({odd} holds no floating-point numbers)")
    try:
        epochs = [row["epoch"] for row in kept["callbacks"]["History"]["rows"]]
        has_all = epochs == list(range(kept["epoch"] + 1)) and "best" in kept["callbacks"]["Checkpoints"]
        has_all = has_all and "fit_loop" in kept["loops"] and all("param_groups" in s for s in kept["optimizer_states"])
    except (KeyError, TypeError):
        has_all = False
    if not has_all or not kept["optimizer_states"]:
        raise UserError(f"{name} is damaged (its history, loops or optimiser are not those of epoch {kept['epoch']})")
