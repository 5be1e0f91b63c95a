"""A checkpoint ready to answer, alone or as a member of an ensemble."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from osteo import parts
from osteo.errors import UserError
from osteo.files import display_path
from osteo.inference.card import ADVICE, Card, check_origin, read_card
from osteo.inference.guard import Guard, from_dict
from osteo.networks.network import Network
from osteo.networks.outputs import details_of, positive_logit
from osteo.networks.precision import ieee_float32
from osteo.reading.covariates import Covariates, Patient
from osteo.reading.framing import Framed, decoded_size, frame
from osteo.records.content import DamagedError
from osteo.records.named import checkpoint_of, existing_checkpoints, name_of
from osteo.records.record import Run
from osteo.task import Task
from osteo.training.checkpoints import build_module, read_checkpoint
from osteo.training.hardware import present_accelerator
from osteo.types import Floats, Grey

BATCH = 32  # pictures that a network is shown at once, where it is asked about many

Features: TypeAlias = npt.NDArray[np.float32]
"""Of patients, as `osteo.reading.covariates.Covariates.features` makes them."""


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode and float32, and the card that it came with."""

    path: Path
    """of the checkpoint"""
    network: Network
    card: Card
    guard: Guard | None

    @property
    def name(self) -> str:
        """The name of its file, with that of its run."""
        return name_of(self.path)

    def prepare(self, grey: Grey) -> Grey:
        """What the network sees of a decoded picture (H, W): uint8 (S, S), as in training."""
        return self.frame(grey).picture

    def frame(self, grey: Grey) -> Framed:
        """The same, and whether the joint was found where its fit needs it."""
        return frame(grey, self.card.image_size, self.card.fit, self.card.enhance)

    @property
    def covariates(self) -> Covariates | None:
        """What the network takes of a patient beside the picture; None where that is nothing."""
        return None if self.network.fusion is None else self.network.fusion.covariates

    def features(self, patients: Sequence[Patient]) -> Features | None:
        """Features of the patients of pictures, (N, F), of what the network takes; None where that is nothing.

        Raises:
            UserError: a value cannot be.
        """
        if self.covariates is None:
            return None
        return np.stack([self.covariates.of_patient(self.covariates.chosen(patient)) for patient in patients])

    def logits(self, pictures: Sequence[Grey], features: Features | None = None) -> Floats:
        """The logits of the positive class, (N,); arguments as of `outputs`."""
        return self.positive(self.outputs(pictures, features))

    def positive(self, outputs: Tensor) -> Floats:
        """The logits of the positive class that outputs of the network give, (N,)."""
        return np.asarray(positive_logit(self.network.task.kind, outputs).double().numpy(), np.float64)

    def outputs(self, pictures: Sequence[Grey], features: Features | None = None) -> Tensor:
        """What the network gives for prepared pictures, (N,) or (N, K) on the CPU; see `osteo.networks.outputs`.

        Args:
            pictures: uint8 (S, S), as `prepare` gives them; `BATCH` are looked at together.
            features: of their patients, (N, F), as `features` gives them; None where nothing is known of any.
        """
        found, device = [], self.network.device
        with torch.inference_mode(), ieee_float32():
            for start in range(0, len(pictures), BATCH):
                chosen = slice(start, start + BATCH)
                of_patients = None if features is None else torch.from_numpy(features[chosen]).to(device)
                found.append(self.network(to_batch(pictures[chosen]).to(device), of_patients))
            return torch.cat(found).cpu()


def size_to_read(models: Sequence[Model]) -> int:
    """The size that a file is decoded at for all of these models, see `osteo.reading.reader.read_picture`."""
    sizes = [decoded_size(model.card.image_size, model.card.fit) for model in models]
    return max(sizes) if all(sizes) else 0


def to_batch(pictures: Sequence[Grey]) -> Tensor:
    """Float32 (N, 1, S, S) in [0, 1] from uint8 (S, S)."""
    return torch.from_numpy(np.stack(pictures)).unsqueeze(1).float().div(255.0)


def load_model(checkpoint: Path, accelerator: str = "cpu") -> Model:
    """The model of a checkpoint; nothing but tensors, numbers and text is read from it.

    Args:
        checkpoint: its file.
        accelerator: that answers, see `osteo.training.hardware.present_accelerator`.

    Raises:
        UserError: there is no such file, it is not a checkpoint of osteo, it holds no preprocessing, it needs a
            plugin that is not loaded, its card does not fit its network, it lies in the directory of another run than
            its own, or the accelerator is not there.
    """
    device = present_accelerator(accelerator)
    stored = read_checkpoint(checkpoint)
    card = read_card(stored, checkpoint.name)
    if checkpoint.parent.name == "checkpoints" and (run := Run(checkpoint.parent.parent)).has_config:
        with suppress(DamagedError):  # the checkpoint does without the record
            check_origin(stored, checkpoint, run)
    with parts.needed(card.plugins, checkpoint.name):  # its backbone or head may be of a plugin
        module = build_module(stored, checkpoint)
    if card.image_size != module.network.image_size:
        raise UserError(
            f"{display_path(checkpoint)} holds a card whose image_size ({card.image_size}) is not that of its network"
            f" ({module.network.image_size}); {ADVICE}"
        )
    if card.task != module.task.name:
        raise UserError(
            f"{display_path(checkpoint)} holds a card whose task ({card.task}) is not that of its network"
            f" ({module.task.name}); {ADVICE}"
        )
    network = module.network.to(memory_format=torch.contiguous_format).float().eval().to(device)
    return Model(checkpoint, network, card, from_dict(card.guard))


def load_models(checkpoints: Sequence[str], accelerator: str = "auto") -> list[Model]:
    """One model or the members of an ensemble; a run directory stands for its best checkpoint.

    Args:
        checkpoints: as a user names them.
        accelerator: that answers, see `load_model`.

    Raises:
        UserError: one of them cannot be used.
    """
    models = [load_model(checkpoint_of(name), accelerator) for name in existing_checkpoints(list(checkpoints))]
    for model in models[1:]:
        if model.card.task != models[0].card.task:
            raise UserError(
                f"{models[0].name} is of task={models[0].card.task}, but {model.name} of task={model.card.task}: only"
                " models of one task answer together"
            )
    return models


def covariates_of(models: Sequence[Model]) -> list[str]:
    """What the models take of a patient beside the picture, together."""
    return list(dict.fromkeys(name for model in models if model.covariates for name in model.covariates.names))


def check_known(models: Sequence[Model], names: Iterable[str]) -> None:
    """Refuses what none of the models takes of a patient.

    Raises:
        UserError: one of these names is no covariate of theirs.
    """
    accepted = dict.fromkeys(name for model in models if model.covariates for name in model.covariates.accepted)
    if strange := sorted(set(names) - accepted.keys()):
        takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes none"
        raise UserError(f"{strange[0][:40]!r} is not a covariate of this model; {takes}")


def mean_details(task: Task, outputs: Sequence[Tensor]) -> dict[str, Floats]:
    """What a task says beyond the positive class, (N,) each, on average over the outputs of models."""
    of_models = [details_of(task, of_model) for of_model in outputs]
    return {name: np.mean([details[name] for details in of_models], axis=0) for name in of_models[0]}
