"""What a competent user would write with Lightning, timm, torchvision and torchmetrics; a peer in benchmarks/peers.py.

`python -m benchmarks.plain FOLDER BACKBONE SIZE BATCH EPOCHS` prints seconds a step of every epoch but the first.
"""

import json
import sys
import time

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.bare import gains_by_half


class Plain(LightningModule):
    """The usual module."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.model = timm.create_model(backbone, num_classes=1, in_chans=1).to(memory_format=torch.channels_last)
        self.accuracy, self.auroc = BinaryAccuracy(), BinaryAUROC()

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        """Loss and metrics of a batch."""
        pictures, labels = batch
        logits = self.model(pictures.contiguous(memory_format=torch.channels_last)).squeeze(1).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        self.accuracy(logits, labels)
        self.auroc(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.accuracy, on_epoch=True, on_step=False)
        self.log("train/auroc", self.auroc, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as ours."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class Clock(Callback):
    """Seconds of a step, an epoch at a time."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self.start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads it."""
        self.found.append((time.perf_counter() - self.start) / trainer.num_training_batches)


def main(folder: str, backbone: str, size: int, batch: int, epochs: int) -> list[float]:
    """Trains and returns the clock's readings after the first epoch."""
    transform = v2.Compose(
        [
            v2.Grayscale(),
            v2.ToImage(),
            v2.Resize((size, size), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.449], [0.226]),
        ]
    )
    loader = DataLoader(
        ImageFolder(folder, transform), batch, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    clock = Clock()
    trainer = Trainer(
        max_epochs=epochs, precision="bf16-mixed" if gains_by_half() else "32-true", logger=False,
        enable_checkpointing=False, callbacks=[clock], enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(backbone), loader)
    return clock.found[1:]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
