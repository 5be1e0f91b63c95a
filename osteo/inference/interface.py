"""What `osteo predict` and `osteo explain` do, for Python.

`load(RUN).predict(paths)` gives the content of predictions.csv, and `load(RUN).explain(path)` feature maps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from osteo import parts
from osteo.checks import check
from osteo.command_settings import PredictConfig
from osteo.errors import UserError, counted
from osteo.inference.explain import chosen_layers, feature_maps
from osteo.inference.model import Model, check_known, load_models, to_batch
from osteo.inference.predictions import Opened, answer_pictures, list_pictures, open_pictures, to_table
from osteo.reading.covariates import Patient
from osteo.types import Grey, Singles

Picture: TypeAlias = str | Path | Grey
"""A file, a folder or a zip; or a radiograph as uint8 (H, W), bone bright."""


@dataclass(frozen=True)
class Predictor:
    """One model, or several that answer together."""

    models: list[Model]

    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        rule: str = "Youden",
        interval: bool = True,
        patients: Sequence[Patient] | None = None,
    ) -> pd.DataFrame:
        """Answers pictures as `osteo predict` does, and gives what it writes to predictions.csv.

        Args:
            pictures: a file, a folder, a zip or an array, or a list of them.
            rule: how the threshold was chosen on validation: 0.5, Youden or sensitivity.
            interval: a range over models and harmless changes of the picture, for eight times the time.
            patients: what is known of the patient of each item of the list, as in [{"age": 71, "sex": "female"}], for a
                model that takes covariates.

        Returns:
            One row per picture, and two more for one that shows two knees. `file` is the name of a file within what
            was given, or the position of an array in the list; `error` says why a file cannot be used.

        Raises:
            UserError: a path holds no picture, an array is no radiograph, the rule is unknown, or a covariate is not
                what the model takes.
        """
        check(PredictConfig(rule=rule, interval=interval))
        given = [pictures] if isinstance(pictures, str | Path | np.ndarray) else list(pictures)
        if not given:
            raise UserError("there is no picture to predict: the list is empty")
        known = [{}] * len(given) if patients is None else self._check_patients(patients, len(given))
        answered = answer_pictures(self.models, self._open(given, known), rule=rule, interval=interval)
        return to_table((row for rows in answered for row in rows), rule)

    def explain(self, picture: Picture, maps: str | Sequence[str] | None = None) -> dict[str, Singles]:
        """The feature maps of layers of the first model for one picture, float32 (C, H, W) by the layer's name.

        Args:
            picture: a file, or an array as `predict` takes it.
            maps: names of layers, as `osteo explain RUN maps=list` prints them; None for one of each stage.

        Raises:
            UserError: there is not one picture, it cannot be used, or a layer is unknown or gives no map.
        """
        model = self.models[0]
        layers = chosen_layers(model.network, maps)
        opened = list(self._open([picture], [{}]))
        if len(opened) != 1:
            raise UserError(f"there are {counted(len(opened), 'picture')}; give one to explain")
        if opened[0].grey is None:
            raise UserError(f"{opened[0].name}: {opened[0].reason}")
        return feature_maps(model.network, to_batch([model.prepare(opened[0].grey)]), layers)

    def _check_patients(self, patients: Sequence[Patient], count: int) -> Sequence[Patient]:
        if len(patients) != count:
            raise UserError(
                f"there are {counted(count, 'picture')} and {counted(len(patients), 'patient')}; give one for each"
            )
        check_known(self.models, (name for patient in patients for name in patient))
        return patients

    def _open(self, given: Sequence[Picture], patients: Sequence[Patient]) -> Iterator[Opened]:
        for position, (picture, patient) in enumerate(zip(given, patients, strict=True)):
            if isinstance(picture, str | Path):
                archive, entries = list_pictures(str(picture))
                yield from open_pictures(archive, entries, self.models, {entry.name: patient for entry in entries})
            else:
                yield Opened(str(position), _checked(picture, position), patient=patient)


def load(run_or_checkpoint: str | Path, *more: str | Path, accelerator: str = "auto") -> Predictor:
    """A trained model, ready to predict; several checkpoints answer together, as an ensemble.

    A model with a backbone or head of your own needs its module imported first.

    Args:
        run_or_checkpoint: a checkpoint, or a run directory, which stands for its best checkpoint.
        more: further members of the ensemble.
        accelerator: what computes the answers: auto, cpu, gpu, cuda or mps.

    Raises:
        UserError: a checkpoint cannot be used, or the accelerator is not there.
    """
    check(PredictConfig(accelerator=accelerator))
    parts.load([])  # the plugins of installed packages
    return Predictor(load_models([str(path) for path in (run_or_checkpoint, *more)], accelerator))


def _checked(array: Any, position: int) -> Grey:
    """An array that can be answered.

    Raises:
        UserError: it is not uint8 (H, W).
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 2 or not array.size:
        kind = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"picture {position} is {kind}; give a path, or a radiograph as uint8 (height, width)")
    return np.ascontiguousarray(array)
