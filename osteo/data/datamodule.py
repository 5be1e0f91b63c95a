"""Hands out indices; pictures are gathered where they are needed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from osteo.data.manifest import SPLITS
from osteo.data.store import Store
from osteo.errors import UserError

Augment = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(pictures, CLAHE twins, variants, draws) -> pictures; see osteo.augment.Augmentation."""


class Batch(NamedTuple):
    """What the module sees."""

    pictures: Tensor
    """float32 (B, 1, S, S) in [0, 1]"""
    labels: Tensor
    """float32 (B,), 0 normal, 1 osteoporosis"""
    rows: Tensor
    """int64 (B,), row of each picture in the data module's `table`"""


class Items(Dataset[int]):
    """The numbers 0 to length - 1: an item is a picture in one of its variants."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> int:
        return item


class KneeDataModule(LightningDataModule):
    """Batches of a prepared data set.

    A loader yields int64 items alone. `on_after_batch_transfer` turns them into a `Batch` on their device, where the
    pictures of the store live too when they take at most a quarter of its free memory; else they are gathered on the
    CPU and sent.

    Args:
        manifest: with splits; rows that are excluded are dropped.
        store: holds every picture of the manifest.
        batch_size: pictures a step.
        seed: of the order of training pictures.
        augment: applied while training, and in validation where `augment_val` says so.
        variants: fixed variants a picture that `augment` knows; an epoch shows each of them.
        cpu_transform: applied to each training picture on the CPU before all else, in place of `augment`.

    Raises:
        UserError: a batch is larger than the training split.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        store: Store,
        *,
        batch_size: int,
        seed: int,
        augment: Augment,
        variants: int = 1,
        augment_val: bool = False,
        cpu_transform: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
    ) -> None:
        super().__init__()
        self.table = manifest[manifest["split"].isin(SPLITS)].reset_index(drop=True)
        self.batch_size, self.seed = batch_size, seed
        self.augment, self.variants, self.augment_val = augment, variants, augment_val
        self.cpu_transform = cpu_transform
        self._store = torch.from_numpy(store.pictures)  # uint8 (2, N, S, S)
        self._labels = torch.tensor(self.table["label"].to_numpy(float), dtype=torch.float32)
        self._stored = torch.tensor([store.rows[sha256] for sha256 in self.table["sha256"]])
        self._members = {
            split: torch.tensor(np.flatnonzero(self.table["split"] == split), dtype=torch.int64) for split in SPLITS
        }
        self._members["predict"] = torch.cat([self._members["val"], self._members["test"]])
        training = len(self._members["train"])
        if batch_size > training * variants:
            raise UserError(
                f"data.batch_size={batch_size} is larger than the training split of {training * variants} pictures;"
                f" choose at most {training * variants}"
            )

    def train_dataloader(self) -> DataLoader[int]:
        """Every training picture once, in each of its variants, in an order drawn from the seed."""
        items = Items(len(self._members["train"]) * self.variants)
        # BatchNorm cannot be estimated from one picture, so a last batch of one is left out
        return self._loader(items, shuffle=True, drop_last=len(items) % self.batch_size == 1)

    def val_dataloader(self) -> DataLoader[int]:
        """The validation pictures, in their variants where validation is augmented too."""
        return self._loader(Items(len(self._members["val"]) * (self.variants if self.augment_val else 1)))

    def predict_dataloader(self) -> DataLoader[int]:
        """The validation and then the test pictures, as they are."""
        return self._loader(Items(len(self._members["predict"])))

    def _loader(self, items: Items, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader[int]:
        return DataLoader(
            items,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=torch.tensor,
        )

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Batch:
        """Gathers the pictures of a batch of items, and augments them where the stage asks for it."""
        assert self.trainer is not None
        if self.trainer.predicting:
            return self.gather(batch, "predict", augmented=False)
        if self.trainer.training:
            return self.gather(batch, "train", augmented=True, epoch=self.trainer.current_epoch)
        return self.gather(batch, "val", augmented=self.augment_val)

    def gather(self, items: Tensor, split: str, *, augmented: bool, epoch: int = 0) -> Batch:
        """The batch of these items of train, val or predict, on the items' device; an epoch draws its own changes."""
        device, members = items.device, self._members[split]
        self._settle(device)
        rows = members[(items % len(members)).cpu()]
        labels, stored = self._labels[rows].to(device), self._stored[rows].to(self._store.device)
        if augmented and self.cpu_transform:
            transformed = np.stack([self.cpu_transform(self._store[0, place].numpy()) for place in stored.tolist()])
            return Batch(_unit(torch.from_numpy(transformed).to(device)), labels, rows)
        pictures = _unit(self._store[0, stored].to(device))
        if augmented:
            twins = _unit(self._store[1, stored].to(device)) if self.variants > 1 else pictures
            variants = items // len(members)
            draw = (epoch * self.variants + variants) * len(self.table) + rows.to(device)
            pictures = self.augment(pictures, twins, variants, draw)
        return Batch(pictures, labels, rows)

    def _settle(self, device: torch.device) -> None:
        """Moves the store to a CUDA device once, where it takes at most a quarter of the free memory."""
        if device.type != "cuda" or self._store.device == device or self.cpu_transform:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self._store.nbytes <= free // 4:
            self._store = self._store.to(device)


def _unit(pictures: Tensor) -> Tensor:
    """uint8 (B, S, S) to float32 (B, 1, S, S) in [0, 1]."""
    return pictures.unsqueeze(1).to(torch.float32).div_(255.0)
