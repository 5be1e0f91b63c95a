"""Hands out indices; pictures are gathered where they are needed."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from osteo import graphs
from osteo.config import DataConfig
from osteo.data.loading import Gather, Items, Shares, Shuffled
from osteo.data.manifest import SPLITS, VARIANT
from osteo.data.prepare import Prepared, configured, prepare
from osteo.errors import UserError, counted
from osteo.task import T_SCORE
from osteo.types import Transform

WORKERS = 4  # that stream what a device cannot hold

Augment = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(pictures, CLAHE twins, variants, draws) -> pictures; see osteo.training.augment.Augmentation."""


Mix = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(draws, items of an epoch) -> partners' items, pictures' own shares; see osteo.training.draws.Mixup."""


class Batch(NamedTuple):
    """What the module sees."""

    pictures: Tensor
    """float32 (B, 1, S, S) in [0, 1]; or features in their place, (B, V, F) of all views or (B, F) of one"""
    labels: Tensor
    """float32 (B,), labels, see osteo.task; or T-scores, where these are what is asked"""
    rows: Tensor
    """int64 (B,), row of each picture in the data module's `table`"""
    targets: Tensor | None = None
    """float32 (B,), share of osteoporosis in each picture where any are mixed; `labels` are of the larger part"""
    covariates: Tensor | None = None
    """float32 (B, F), features of the patients of a network that takes them"""


class Index(NamedTuple):
    """What is known of the rows of the table, on one device."""

    labels: Tensor
    """float32 (N,)"""
    stored: Tensor
    """int64 (N,), row in the store"""
    covariates: Tensor | None
    """float32 (N, F)"""
    variants: Tensor | None
    """int64 (N,), the variant that each row is, where they were made before the split"""
    members: dict[str, Tensor]
    """int64, rows by split"""


class KneeDataModule(LightningDataModule):
    """Batches of a data set of knee radiographs.

    A loader yields int64 items alone. `on_after_batch_transfer` turns them into a `Batch` on their device, where the
    pictures of the store live too when they take at most a quarter of its free memory. Where they take more, workers
    gather the bytes of the next batches meanwhile. On the CPU they stay in the file, which is mapped.

    Args:
        data: a folder or zip with class folders, a configuration, or what `osteo.data.prepare.prepare` has returned.
        batch_size: pictures per step, of all processes together.
        seed: of the order of training pictures.
        augment: applied while training, and in validation where `augment_val` says so; None changes nothing.
        variants: fixed variants per picture that `augment` knows; an epoch shows each of them, or, where variants were
            made before the split, every row in its own.
        augment_val: augment validation too.
        cpu_transform: applied to each training picture on the CPU before all else, in place of `augment`.
        features: float32 (N, V, F), what stands for the pictures of the store in place of their pixels.
        mix: which training pictures are mixed after augmentation, and how much; None mixes none.
        covariates: float32 (M, F), features of the patient of each row of the manifest, for a network that takes them.
        graph: false keeps the making of training batches from being captured as a CUDA graph.
        settings: fields of `DataConfig` that replace those of a folder or a configuration, such as image_size=128.

    Raises:
        UserError: there is no such data, or a batch is larger than the training split.
    """

    def __init__(
        self,
        data: DataConfig | Prepared | str | Path,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        augment: Augment | None = None,
        variants: int = 1,
        augment_val: bool = False,
        cpu_transform: Transform | None = None,
        mix: Mix | None = None,
        features: Tensor | None = None,
        covariates: Tensor | None = None,
        graph: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = None if isinstance(data, Prepared) else configured(data, settings)
        self.batch_size = batch_size or (self.config or DataConfig()).batch_size
        self.seed, self.variants, self.augment_val = seed, variants, augment_val
        self.augment = augment or (lambda pictures, *_: pictures)
        self.cpu_transform, self.mix, self._features, self._covariates = cpu_transform, mix, features, covariates
        self._graph = graphs.Graphed(self._training_batch) if graph and not self._waits() else None
        self._prepared: Prepared | None = None
        if isinstance(data, Prepared):
            self._use(data)

    def prepare_data(self) -> None:
        """Called by Lightning in one process: decodes every picture once."""
        if self.config is not None:
            prepare(self.config)

    def setup(self, stage: str) -> None:
        """Called by Lightning in every process: opens what has been prepared."""
        if self._prepared is None:
            assert self.config is not None
            self._use(prepare(self.config))
        assert self._prepared is not None
        self._prepared.store.begin_use()

    def teardown(self, stage: str) -> None:
        """Called by Lightning at the end of a stage, before anyone believes its results.

        Raises:
            UserError: stored pictures were damaged on the disk, and used.
        """
        if self._prepared is not None:
            self._prepared.store.confirm()

    def _use(self, prepared: Prepared) -> None:
        manifest, store = self._prepared = prepared
        is_used = manifest["split"].isin(SPLITS)
        self.table = manifest[is_used].reset_index(drop=True)
        self._store = torch.from_numpy(store.pictures[: 2 if self.variants > 1 else 1])  # uint8 (P, N, S, S)
        variants = torch.tensor(self.table[VARIANT].to_numpy(int)) if VARIANT in self.table else None
        if variants is not None:
            if self.variants <= int(variants.max()):
                raise UserError("data.split.variants_first=true needs augment=paper, which makes the variants")
            self.variants = 1
        members = {
            split: torch.tensor(np.flatnonzero(self.table["split"] == split), dtype=torch.int64) for split in SPLITS
        }
        self._cpu = Index(
            torch.tensor(
                self.table[T_SCORE if T_SCORE in self.table else "label"].to_numpy(float), dtype=torch.float32
            ),
            torch.tensor([store.rows[sha256] for sha256 in self.table["sha256"]]),
            None if self._covariates is None else self._covariates[torch.tensor(is_used.to_numpy(bool))],
            variants,
            members | {"predict": torch.cat([members["val"], members["test"]])},
        )
        self._device = self._cpu  # the same where the batches are
        training = len(members["train"]) * self.variants
        if self.batch_size > training:
            size = counted(training, "picture")
            raise UserError(
                f"data.batch_size={self.batch_size} is larger than the training split of {size};"
                f" choose at most {training}"
            )

    def train_dataloader(self) -> DataLoader[int]:
        """Every training picture once, in each of its variants, in an order drawn from the seed."""
        count = len(self._cpu.members["train"]) * self.variants
        # BatchNorm cannot be estimated from one picture, so a last batch of one is left out, and one too small to share
        too_small = count % self.batch_size < max(2, self._processes())
        return self._loader("train", count, shuffle=True, drop_last=too_small)

    def val_dataloader(self) -> DataLoader[int]:
        """The validation pictures, in their variants where validation is augmented too."""
        return self._loader("val", len(self._cpu.members["val"]) * (self.variants if self.augment_val else 1))

    def test_dataloader(self) -> DataLoader[int]:
        """The test pictures, as they are."""
        return self._loader("test", len(self._cpu.members["test"]))

    def predict_dataloader(self) -> DataLoader[int]:
        """The validation and then the test pictures, as they are."""
        return self._loader("predict", len(self._cpu.members["predict"]))

    def _loader(self, split: str, count: int, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader[int]:
        streams, items = self._streams(), Items(count)
        is_frozen = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        order = Shuffled(count, self.seed, is_frozen=is_frozen) if shuffle else SequentialSampler(items)
        batches = BatchSampler(order, self.batch_size, drop_last)
        return DataLoader(
            items,
            batch_sampler=Shares(batches, self.trainer.global_rank if self.trainer else 0, self._processes()),
            generator=torch.Generator().manual_seed(self.seed),  # else it draws from everyone's random numbers
            collate_fn=self._gatherer(split) if streams else torch.tensor,
            num_workers=min(WORKERS, os.cpu_count() or 1) if streams else 0,
            persistent_workers=streams,
            pin_memory=streams,
        )

    def _processes(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _streams(self) -> bool:
        """Whether the pictures neither fit the device nor lie there already, so that workers must send them."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return device.type == "cuda" and not self.cpu_transform and self._features is None and not self._fits(device)

    def _gatherer(self, split: str) -> Gather:
        """What workers gather the pictures of a split with, and their twins where they are used."""
        assert self._prepared is not None
        rows = self._cpu.stored[self._cpu.members[split]]
        return Gather(self._prepared.store.pictures, len(self._store), rows.numpy())

    def on_after_batch_transfer(self, batch: Tensor | Sequence[Tensor], dataloader_idx: int) -> Batch:
        """Gathers the pictures of a batch of items, and augments them where the stage asks for it."""
        assert self.trainer is not None
        items, pixels = (batch, None) if isinstance(batch, Tensor) else batch
        if self.trainer.predicting or self.trainer.testing:
            return self.gather(items, "predict" if self.trainer.predicting else "test", pixels, augmented=False)
        if self.trainer.training and self._graph and pixels is None and items.device.type in graphs.CAPTURING:
            epoch = torch.full((), self.trainer.current_epoch, device=items.device)
            return Batch(*self._graph(items, epoch))
        if self.trainer.training:
            return self.gather(items, "train", pixels, augmented=True, epoch=self.trainer.current_epoch)
        return self.gather(items, "val", pixels, augmented=self.augment_val)

    def _waits(self) -> bool:
        """Whether a training batch is made of what the CPU has to hand over."""
        return self.cpu_transform is not None or getattr(self.augment, "draws_on_cpu", True)

    def _training_batch(self, items: Tensor, epoch: Tensor) -> Batch:
        return self.gather(items, "train", augmented=True, epoch=epoch)

    def gather(
        self, items: Tensor, split: str, pixels: Tensor | None = None, *, augmented: bool, epoch: int | Tensor = 0
    ) -> Batch:
        """The batch of these items of train, val, test or predict, on the items' device; each epoch draws anew.

        Args:
            items: int64 (B,).
            split: train, val, test or predict.
            pixels: their bytes, uint8 (P, B, S, S), where a worker has gathered them.
            augmented: change them.
            epoch: of the draws; a tensor () where it is not the same in all calls of a graph.
        """
        self._settle(items.device)
        batch, draw = self._gather(items, split, pixels, augmented=augmented, epoch=epoch)
        if not (augmented and split == "train" and self.mix):
            return batch
        partners, share = self.mix(draw, len(self._device.members[split]) * self.variants)
        others, _ = self._gather(partners, split, None, augmented=True, epoch=epoch)
        of_picture = share.view(-1, *[1] * (batch.pictures.ndim - 1))
        mixed = torch.lerp(others.pictures, batch.pictures, of_picture)
        if batch.covariates is not None and others.covariates is not None:
            batch = batch._replace(covariates=torch.lerp(others.covariates, batch.covariates, share[:, None]))
        return batch._replace(pictures=mixed, targets=torch.lerp(others.labels, batch.labels, share))

    def _gather(
        self, items: Tensor, split: str, pixels: Tensor | None, *, augmented: bool, epoch: int | Tensor
    ) -> tuple[Batch, Tensor]:
        """The batch of these items, and the number of each one's draw, int64 (B,)."""
        members = self._device.members[split]
        variants, rows = items // len(members), members[items % len(members)]
        draw = (epoch * self.variants + variants) * len(self.table) + rows
        if self._device.variants is not None:
            variants, augmented = self._device.variants[rows], True
        pictures = self._pictures(rows, variants, draw, pixels, augmented=augmented)
        known = self._device.covariates
        of_patients = None if known is None else known[rows]
        return Batch(pictures, self._device.labels[rows], rows, covariates=of_patients), draw

    def _pictures(
        self, rows: Tensor, variants: Tensor, draw: Tensor, pixels: Tensor | None, *, augmented: bool
    ) -> Tensor:
        """float32 (B, 1, S, S) in [0, 1] of these rows on their device, as stored or augmented by these draws."""
        stored = self._device.stored[rows]
        if self._features is not None:
            features = self._features[stored]
            return self.augment(features, features, variants, draw) if augmented else features
        if augmented and self.cpu_transform:
            transformed = np.stack([self.cpu_transform(self._store[0, place].numpy()) for place in stored.tolist()])
            return unit(torch.from_numpy(transformed).to(rows.device))
        if pixels is None:
            pixels = self._store[:, stored.to(self._store.device)].to(rows.device)
        pictures = unit(pixels[0])
        if not augmented:
            return pictures
        return self.augment(pictures, unit(pixels[1]) if len(pixels) > 1 else pictures, variants, draw)

    def _fits(self, device: torch.device) -> bool:
        """Whether the store takes at most a quarter of a CUDA device's free memory, or lies there.

        What torch has reserved for this process and not allocated is free, too; of a GPU that several jobs share, a
        process has its share.
        """
        if self._store.device == device:
            return True
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        share = total * torch.cuda.get_per_process_memory_fraction(device) - allocated
        return self._store.nbytes <= min(free + torch.cuda.memory_reserved(device) - allocated, share) // 4

    def _settle(self, device: torch.device) -> None:
        """Moves what a batch is gathered from to its device, once; of the store only what fits."""
        if self._device.labels.device == device:
            return
        labels, stored, covariates, variants, members = self._cpu
        self._device = Index(
            labels.to(device),
            stored.to(device),
            None if covariates is None else covariates.to(device),
            None if variants is None else variants.to(device),
            {split: rows.to(device) for split, rows in members.items()},
        )
        if self._features is not None:
            self._features = self._features.to(device)
        elif device.type == "cuda" and not self.cpu_transform and self._fits(device):
            self._store = self._store.to(device)


def unit(pictures: Tensor) -> Tensor:
    """uint8 (B, S, S) to float32 (B, 1, S, S) in [0, 1]."""
    return pictures.unsqueeze(1).to(torch.float32).div_(255.0)
