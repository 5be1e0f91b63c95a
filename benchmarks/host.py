"""What a training step costs beside its network: one that does nothing, on small pictures, against a few plain lines.

On one core, so that what is measured is the work of Python and of launching operations, as it is where a GPU computes.
"""

import itertools
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.noise import note
from osteo.config import AugmentConfig, DataConfig
from osteo.data.datamodule import KneeDataModule
from osteo.training.augment import make_augmentation
from osteo.training.callbacks import EpochBar, History
from osteo.training.module import Classifier

SIDE, BATCH, EPOCHS, ROUNDS = 32, 4, 3, 5
GOAL = 1.0
"""milliseconds"""


class Nothing(nn.Module):
    """A network that answers without looking."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task, self.answer = task, nn.Parameter(torch.zeros(1))

    def forward(self, pictures: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits (B,)."""
        return self.answer.expand(len(pictures))


class Clock(Callback):
    """The time of every step's end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes it."""
        self.ends.append(time.perf_counter())


def milliseconds(ends: list[float]) -> float:
    """Between two ends, the median."""
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(ends))


def osteo_step(augment: str, cache: str) -> float:
    """Milliseconds of a step of ours, with the curves and the bar that `osteo train` has."""
    augmentation = make_augmentation(AugmentConfig(name=augment), 0, SIDE)
    data = KneeDataModule(
        DataConfig(image_size=SIDE, cache=cache),
        batch_size=BATCH,
        augment=augmentation,
        variants=augmentation.variants,
    )
    module = Classifier("test_resnet", {"name": "sgd"}, image_size=SIDE)
    module.network = Nothing(module.network.task)  # type: ignore[assignment]
    clock = Clock()
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, limit_train_batches=70, log_every_n_steps=1,
        callbacks=[History(lambda rows: None), EpochBar(), clock],
    )  # fmt: skip
    trainer.fit(module, data)
    return milliseconds(clock.ends)


def bare_step() -> float:
    """Milliseconds of pictures gathered, a loss, its gradients and a step of the optimiser."""
    network = Nothing(None)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    pictures = torch.randint(0, 256, (300, SIDE, SIDE), dtype=torch.uint8)
    labels, ends = torch.zeros(300), []
    for _ in range(EPOCHS):
        for rows in torch.randperm(300).split(BATCH):
            batch = pictures[rows].unsqueeze(1).float().div_(255.0)
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(network(batch), labels[rows]).backward()
            optimizer.step()
            ends.append(time.perf_counter())
    return milliseconds(ends)


def measure() -> list[dict]:
    """One row per augmentation."""
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for augment in ("none", "online", "paper"):
            rounds = [(osteo_step(augment, str(Path(cache))), bare_step()) for _ in range(ROUNDS)]
            ours, bare = zip(*rounds, strict=True)
            rows.append(
                {
                    "augment": augment,
                    "osteo, ms a step": round(statistics.median(ours), 3),
                    "bare, ms a step": round(statistics.median(bare), 3),
                    "osteo / bare": round(statistics.median(ours) / statistics.median(bare), 2),
                    "goal, ms": GOAL,
                    "noise": note(ours, bare),
                }
            )
    return rows
