"""What batches are loaded with: the order of items, each process's share, and the bytes that workers send.

A worker imports this module alone, so nothing here needs Lightning.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from osteo.types import Grey


class Items(Dataset[int]):
    """The numbers 0 to length - 1: an item is a picture in one of its variants."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> int:
        return item


class Shuffled(Sampler[int]):
    """The numbers 0 to length - 1 in an order that follows from the seed and the epoch alone.

    Args:
        length: how many.
        seed: of the order.
        is_frozen: keep the order of the first epoch, for a batch that is to be learnt by heart.
    """

    def __init__(self, length: int, seed: int, *, is_frozen: bool = False) -> None:
        self.length, self.seed, self.epoch, self.is_frozen = length, seed, 0, is_frozen

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = 0 if self.is_frozen else epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        yield from torch.randperm(self.length, generator=generator).tolist()


class Shares(Sampler[list[int]]):
    """Each batch's share of one process: every item of a batch goes to one of them.

    Args:
        batches: of all processes together.
        rank: of this process.
        count: processes.
    """

    def __init__(self, batches: BatchSampler, rank: int, count: int) -> None:
        self.sampler = batches.sampler  # where Lightning sets the epoch
        self._batches, self._rank, self._count = batches, rank, count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            if share := batch[self._rank :: self._count]:
                yield share

    def __len__(self) -> int:
        last = len(self.sampler) % self._batches.batch_size  # type: ignore[arg-type]  # a Sized sampler
        is_left_out = not self._batches.drop_last and 0 < last <= self._rank
        return len(self._batches) - is_left_out


class Gather:
    """Gathers the bytes of pictures in a worker, which is sent the name of their file and maps it for itself.

    Args:
        pictures: uint8 (P, N, S, S), mapped from a file; in memory they are sent themselves.
        planes: of them that are used, from the first.
        rows: int64 (M,), row in `pictures` of each picture of a split.
    """

    def __init__(self, pictures: Grey, planes: int, rows: npt.NDArray[np.int64]) -> None:
        self.pictures, self.planes, self.rows = pictures, planes, rows

    def __call__(self, items: list[int]) -> tuple[Tensor, Tensor]:
        """Items, int64 (B,), and the bytes of their pictures, uint8 (planes, B, S, S)."""
        chosen = self.rows[np.array(items) % len(self.rows)]
        return torch.tensor(items), torch.from_numpy(np.asarray(self.pictures[: self.planes, chosen]))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if isinstance(kept := self.pictures, np.memmap):
            state["pictures"] = (kept.filename, kept.dtype, "r", kept.offset, kept.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(where := state["pictures"], tuple):
            self.pictures = np.memmap(*where)
