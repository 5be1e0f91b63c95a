"""What `osteo predict` does, for Python: `load(RUN).predict(paths)` gives the content of predictions.csv."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from osteo import parts
from osteo.checks import check
from osteo.config import PredictConfig
from osteo.errors import UserError
from osteo.inference.model import Model, load_models
from osteo.inference.predictions import Opened, answer_pictures, list_pictures, open_pictures, to_table
from osteo.types import Grey

Picture: TypeAlias = str | Path | Grey
"""A file, a folder or a zip; or a radiograph as uint8 (H, W), bone bright."""


@dataclass(frozen=True)
class Predictor:
    """One model, or several that answer together."""

    models: list[Model]

    def predict(
        self, pictures: Picture | Sequence[Picture], *, rule: str = "Youden", interval: bool = True
    ) -> pd.DataFrame:
        """Answers pictures as `osteo predict` does, and gives what it writes to predictions.csv.

        Args:
            pictures: a file, a folder, a zip or an array, or a list of them.
            rule: how the threshold was chosen on validation: 0.5, Youden or sensitivity.
            interval: a range over models and harmless changes of the picture, for eight times the time.

        Returns:
            One row per picture, and two more for one that shows two knees. `file` is the name of a file within what
            was given, or the position of an array in the list; `error` says why a file cannot be used.

        Raises:
            UserError: a path holds no picture, an array is no radiograph, or the rule is unknown.
        """
        check(PredictConfig(rule=rule, interval=interval))
        given = [pictures] if isinstance(pictures, str | Path | np.ndarray) else list(pictures)
        if not given:
            raise UserError("there is no picture to predict: the list is empty")
        answered = answer_pictures(self.models, self._open(given), rule=rule, interval=interval)
        return to_table((row for rows in answered for row in rows), rule)

    def _open(self, given: Sequence[Picture]) -> Iterator[Opened]:
        for position, picture in enumerate(given):
            if isinstance(picture, str | Path):
                yield from open_pictures(*list_pictures(str(picture)), self.models)
            else:
                yield Opened(str(position), _checked(picture, position))


def load(run_or_checkpoint: str | Path, *more: str | Path) -> Predictor:
    """A trained model, ready to predict; several checkpoints answer together, as an ensemble.

    A model with a backbone or head of your own needs its module imported first.

    Args:
        run_or_checkpoint: a checkpoint, or a run directory, which stands for its best checkpoint.
        more: further members of the ensemble.

    Raises:
        UserError: a checkpoint cannot be used.
    """
    parts.load([])  # the plugins of installed packages
    return Predictor(load_models([str(path) for path in (run_or_checkpoint, *more)]))


def _checked(array: Any, position: int) -> Grey:
    """An array that can be answered.

    Raises:
        UserError: it is not uint8 (H, W).
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 2 or not array.size:
        kind = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"picture {position} is {kind}; give a path, or a radiograph as uint8 (height, width)")
    return np.ascontiguousarray(array)
