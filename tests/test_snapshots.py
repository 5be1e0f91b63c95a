"""Checkpoints are copied at once and written by a thread: whole, in an order that a kill may cut anywhere."""

import errno
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks.faults import differs, torn
from osteo import files
from osteo.errors import MachineError, diagnose
from osteo.records import snapshots
from osteo.records.record import Run
from osteo.records.snapshots import CheckpointWriter, Snapshot
from osteo.training.callbacks import checkpoint_of
from osteo.training.checkpoints import read_checkpoint
from osteo.training.module import Classifier
from tests.test_finite import data
from tests.test_resume import start


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    made = CheckpointWriter(tmp_path)
    yield made
    made.flush()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The names and epochs of files, in the order in which they are written."""
    found = []
    save = Snapshot.save

    def noted(self: Snapshot, path: Path) -> None:
        save(self, path)
        found.append((path.name, torch.load(path)["epoch"]))

    monkeypatch.setattr(Snapshot, "save", noted)
    return found


def epoch_of(path: Path) -> int:
    return int(torch.load(path)["epoch"])


def keep(writer: CheckpointWriter, *epochs: int, best: tuple[int, ...] = ()) -> None:
    for epoch in epochs:
        writer.keep({"epoch": epoch}, is_best=epoch in best)


def test_a_snapshot_stays_as_it_was_taken_and_its_memory_is_used_again(tmp_path: Path) -> None:
    weight = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    weights = OrderedDict(weight=weight, tied=weight, count=torch.tensor(3), none=torch.empty(0))
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    rows = [{"epoch": 0}]
    checkpoint = {"state_dict": weights, "callbacks": {"rows": rows}, "optimizer_states": [{"state": {0: weight + 1}}]}
    snapshot, expected = Snapshot(), weight.clone()
    snapshot.take(checkpoint)
    weight.zero_()
    rows.append({"epoch": 1})
    snapshot.save(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt")
    assert torch.equal(kept["state_dict"]["weight"], expected)
    assert kept["state_dict"]["weight"].stride() == expected.stride()
    assert kept["state_dict"]["weight"].data_ptr() == kept["state_dict"]["tied"].data_ptr()
    assert kept["state_dict"]._metadata == weights._metadata  # type: ignore[attr-defined]
    assert (kept["state_dict"]["count"], kept["callbacks"]) == (3, {"rows": [{"epoch": 0}]})
    assert torch.equal(kept["optimizer_states"][0]["state"][0], expected + 1)
    places = [buffer.data_ptr() for buffer in snapshot._buffers]
    snapshot.take(checkpoint)
    assert [buffer.data_ptr() for buffer in snapshot._buffers] == places
    snapshot.save(tmp_path / "b.ckpt")
    assert torch.equal(torch.load(tmp_path / "b.ckpt")["state_dict"]["weight"], torch.zeros(1, 2, 3, 4))
    snapshot.take({**checkpoint, "state_dict": {"weight": torch.ones(2)}})  # averaging has begun, say
    snapshot.save(tmp_path / "c.ckpt")
    assert torch.load(tmp_path / "c.ckpt")["state_dict"]["weight"].tolist() == [1.0, 1.0]


def test_what_is_written_is_what_lightning_would_write(tmp_path: Path) -> None:
    learner = Classifier({"backbone": "test_resnet", "image_size": 64}, {"schedule": "constant"})
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", devices=1,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(learner, data(8, 8))
    snapshot, usual = Snapshot(), trainer.strategy.checkpoint_io
    snapshot.take(checkpoint_of(trainer) or {})
    assert trainer.strategy.checkpoint_io is usual
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    snapshot.save(tmp_path / "ours.ckpt")
    theirs, ours = (read_checkpoint(tmp_path / name) for name in ("theirs.ckpt", "ours.ckpt"))
    assert str(ours) == str(theirs)
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())


def test_there_is_a_last_checkpoint_at_every_moment(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the disk is waited for finds the epoch before under its own name."""
    last, found = tmp_path / "last.ckpt", []
    monkeypatch.setattr("osteo.files._sync", lambda _: found.append(last.exists() and epoch_of(last)))
    for epoch in range(3):
        keep(writer, epoch, best=(0,))
        writer.flush()
    best_of_the_first, files_then_folder = [False, False], [False, 0, 0, 1, 1, 2]
    assert found == best_of_the_first + files_then_folder
    assert epoch_of(tmp_path / "previous.ckpt") == 1


def test_of_epochs_within_the_interval_the_best_and_the_last_are_written(
    tmp_path: Path, writer: CheckpointWriter, writes: list[tuple[str, int]]
) -> None:
    keep(writer, 0, best=(0,))
    while not writes:  # the first is written at once
        pass
    keep(writer, 1, 2, 3, 4, 5, best=(1, 3))
    assert writes == [("last.ckpt", 0)]
    writer.flush()
    assert writes == [("last.ckpt", 0), ("best.ckpt", 3), ("last.ckpt", 5)]
    assert [epoch_of(tmp_path / name) for name in ("best.ckpt", "last.ckpt", "previous.ckpt")] == [3, 5, 0]
    keep(writer, 6)
    writer.flush()
    assert writes[3:] == [("last.ckpt", 6)]
    keep(writer, 7, best=(7,))
    writer.flush()
    assert writes[4:] == [("last.ckpt", 7)]
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")


def test_the_interval_passes_without_another_epoch(
    tmp_path: Path, writer: CheckpointWriter, writes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "INTERVAL", 0.05)
    keep(writer, 0)
    while not writes:
        pass
    keep(writer, 1)
    while len(writes) < 2:
        pass
    assert writes == [("last.ckpt", 0), ("last.ckpt", 1)]


def test_what_is_written_is_not_overwritten_by_the_epochs_meanwhile(
    tmp_path: Path, writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk: four epochs end while it writes the first."""
    begun, goes_on, save = Event(), Event(), Snapshot.save

    def slowly(self: Snapshot, path: Path) -> None:
        begun.set()
        assert goes_on.wait(60)
        save(self, path)

    monkeypatch.setattr(Snapshot, "save", slowly)
    weights = torch.zeros(3)
    for epoch in range(5):
        writer.keep({"epoch": epoch, "weights": weights.fill_(epoch)}, is_best=epoch == 1)
        assert begun.wait(60)
    assert len(writer._snapshots) == 4  # in work, best, last, and the one that was last before
    goes_on.set()
    writer.flush()
    for name, epoch in (("previous.ckpt", 0), ("best.ckpt", 1), ("last.ckpt", 4)):
        kept = torch.load(tmp_path / name)
        assert (kept["epoch"], kept["weights"].tolist()) == (epoch, [float(epoch)] * 3)
    assert writer._snapshots == []


def test_a_write_that_fails_is_raised_at_the_end_of_the_next_epoch_or_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Snapshot, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "INTERVAL", 0.0)
        patch.setattr(Snapshot, "save", full)
        for action in (lambda: keep(writer, 1), writer.flush):
            keep(writer, 0)
            if (thread := writer._thread) is not None:
                thread.join()
            with pytest.raises(OSError, match="No space left") as raised:
                action()
            assert isinstance(diagnose(raised.value), MachineError)
            assert str(diagnose(raised.value)) == f"{tmp_path / 'last.ckpt'} cannot be written: the disk is full"
    writer.flush()
    assert list(tmp_path.iterdir()) == []
    keep(writer, 2)
    writer.flush()
    assert epoch_of(tmp_path / "last.ckpt") == 2


def kill(action: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The action of the thread that writes, which ends with a SIGKILL when it is done so many times."""
    times = 0

    def act(*arguments: Any) -> Any:
        nonlocal times
        result = action(*arguments)
        times += current_thread().name == "checkpoints"
        if times == after:
            if action is save:
                os.truncate(arguments[1], arguments[1].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return act


save = Snapshot.save
MOMENTS = {
    "a file is half written": (Snapshot, "save", save, 3),
    "a file is written": (files, "_sync", files._sync, 5),
    "a folder is written": (files, "_sync", files._sync, 6),
    "the best epoch has its name": (snapshots, "link_or_copy", snapshots.link_or_copy, 3),
    "the epoch before has its name": (snapshots, "link_or_copy", snapshots.link_or_copy, 4),
}


@pytest.fixture(scope="module")
def words(archives: Path) -> list[str]:
    """A run in which chance has a part, and in which early epochs are the best ones."""
    return [
        "data=folder", f"data.root={archives / 'kaggle'}", "data.image_size=64", "data.batch_size=8",
        "model.backbone=test_resnet", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=6",
        "model.drop_rate=0.3", "logger.wandb.mode=disabled", "callbacks=[ema]", "callbacks.ema.decay=0.9",
        "keep=all",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reference(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("reference")
    assert start(folder, *words, "output_dir=run").wait() == 0
    return Run(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_the_thread_writes_loses_nothing(
    osteo: Callable[..., Any], words: list[str], reference: Run, tmp_path: Path, moment: str
) -> None:
    place, name, action, after = MOMENTS[moment]
    process = os.fork()
    if process == 0:
        snapshots.INTERVAL = 0.0
        setattr(place, name, kill(action, after))
        osteo("train", *words, "output_dir=run")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    record = Run(tmp_path / "run")
    assert torn(record.directory) == []
    assert record.state == "interrupted"
    resumed = osteo("train", "resume=run")
    assert resumed.code == 0, resumed.err
    assert "going on after last.ckpt" in resumed.out
    assert differs(reference, record) == []
    assert {path.name for path in record.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}


AT_THE_END = {
    "nothing is removed": (0, ["best.ckpt", "last.ckpt", "previous.ckpt"]),
    "the epoch before the last is removed": (1, ["best.ckpt", "last.ckpt"]),
    "all is removed": (2, ["best.ckpt"]),
}


@pytest.mark.parametrize("moment", AT_THE_END)
def test_a_kill_while_a_run_that_is_done_is_pruned_loses_nothing(
    osteo: Callable[..., Any], words: list[str], reference: Run, tmp_path: Path, moment: str
) -> None:
    count, left = AT_THE_END[moment]
    process = os.fork()
    if process == 0:
        finish, removed = Path.unlink, []

        def unlink(self: Path, missing_ok: bool = False) -> None:
            if self.suffix == ".ckpt":
                removed.append(self.name)
                if len(removed) > count:
                    os.kill(os.getpid(), signal.SIGKILL)
            finish(self, missing_ok)
            if self.suffix == ".ckpt" and len(removed) == count == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.unlink = unlink  # type: ignore[method-assign]
        osteo("train", *words, "keep=best", "output_dir=run")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    record = Run(tmp_path / "run")
    assert sorted(path.name for path in record.checkpoints.glob("*.ckpt")) == left
    assert (record.state, torn(record.directory)) == ("done", [])
    kept, whole = read_checkpoint(record.best_checkpoint), read_checkpoint(reference.best_checkpoint)
    assert all(torch.equal(value, kept["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert (record.directory / "metrics.json").read_bytes() == (reference.directory / "metrics.json").read_bytes()
    resumed = osteo("train", "resume=run")
    assert (resumed.code, "run is done" in resumed.out) == (0, True)


def test_a_failed_write_of_a_run_is_one_line_and_the_run_goes_on(
    osteo: Callable[..., Any], words: list[str], reference: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Snapshot, path: Path) -> None:
        if self._checkpoint["epoch"] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "INTERVAL", 0.0)
        patch.setattr(Snapshot, "save", full)
        done = osteo("train", *words, "output_dir=run")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "the disk is full; go on with it: osteo train resume=run" in done.err
    assert Run(tmp_path / "run").state == "interrupted"
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["epoch"] <= 1
    assert osteo("train", "resume=run").code == 0
    assert differs(reference, Run(tmp_path / "run")) == []
