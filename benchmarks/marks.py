"""A callback that marks the end of the first step, for the benchmark of the start."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class FirstStep(Callback):
    """Makes a file once a step has ended."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, *_: Any) -> None:
        """Called by Lightning."""
        self.path.touch()
