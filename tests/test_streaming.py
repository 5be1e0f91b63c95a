"""Workers that stream what a device cannot hold are sent a path and indices, and give the same batches."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from osteo import KneeDataModule
from osteo.data.loading import Gather


class Unpicklable:
    """A trainer as far as a data module asks for one; it must not be sent to anyone."""

    global_rank, world_size, overfit_batches = 0, 1, 0

    def __reduce__(self) -> str:
        raise AssertionError("a trainer was sent to a worker")


def augment(pictures: torch.Tensor, twins: torch.Tensor, variants: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    return pictures + 2 * twins + variants.view(-1, 1, 1, 1) + draw.view(-1, 1, 1, 1)


def module(knees: Path) -> KneeDataModule:
    made = KneeDataModule(knees, image_size=64, batch_size=8, seed=4, augment=augment, variants=2)
    made.setup("fit")
    return made


@pytest.fixture
def resident(knees: Path, cache: Path) -> KneeDataModule:
    return module(knees)


@pytest.fixture
def streaming(knees: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> KneeDataModule:
    made = module(knees)
    monkeypatch.setattr(made, "_streams", lambda: True)
    made.trainer = Unpicklable()  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_give_the_batches_of_the_resident_way(
    resident: KneeDataModule, streaming: KneeDataModule, method: str
) -> None:
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    for split, augmented in (("train", True), ("test", False)):
        loader = getattr(streaming, f"{split}_dataloader")()
        assert loader.num_workers > 0
        loader.multiprocessing_context = method
        pairs = list(zip(getattr(resident, f"{split}_dataloader")(), loader, strict=True))
        assert len(pairs) == len(loader) > 0
        for items, (same, pixels) in pairs:
            assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (2, len(items), 64, 64))
            one = resident.gather(items, split, augmented=augmented, epoch=3)
            other = streaming.gather(same, split, pixels, augmented=augmented, epoch=3)
            assert torch.equal(items, same)
            assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        del loader


def test_a_worker_is_sent_a_path_and_indices(streaming: KneeDataModule, tmp_path: Path) -> None:
    loader = streaming.train_dataloader()
    gather = loader.collate_fn
    assert isinstance(gather, Gather)
    sent = pickle.dumps((loader.dataset, gather))
    assert len(sent) < 1024 + 8 * len(gather.rows)
    assert b"pictures.npy" in sent
    (tmp_path / "sent").write_bytes(sent)
    code = (
        "import pickle, sys; dataset, gather = pickle.load(open('sent', 'rb'));"
        "items, pixels = gather([3, len(gather.rows)]);"
        "print(*pixels.flatten(1).long().sum(1).tolist(), *sorted({'lightning', 'pandas', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = gather.pictures[:2, gather.rows[[3, 0]]].reshape(2, -1).astype(np.int64).sum(1)
    assert done.stdout.split() == [str(number) for number in expected]


def test_pictures_in_memory_are_sent_themselves() -> None:
    pictures = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    items, pixels = pickle.loads(pickle.dumps(Gather(pictures, 1, np.array([2, 0]))))([0, 1, 2])
    assert items.tolist() == [0, 1, 2]
    assert torch.equal(pixels, torch.from_numpy(pictures[:1, [2, 0, 2]]))
