"""A disk that is full at each write of a run: one line that says so, whole files, and a run that goes on."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults import differs, torn
from osteo import files
from osteo.records.record import Run

PAGE = 4096


def mount(folder: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    try:
        mount(folder, "size=64k")
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of 16 MiB; `remount` changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not may_mount(folder):
        pytest.skip("file systems cannot be mounted here")
    mount(folder, "size=16m")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, size: int) -> None:
    mount(disk, "remount", f"size={size}")


def used(disk: Path) -> int:
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


@pytest.mark.slow
@pytest.mark.mount
def test_a_full_disk_at_each_write(
    osteo: Callable, tiny: list[str], tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny, "logger.wandb.mode=disabled"]
    writes: list[tuple[str, int]] = []
    mkdtemp = files.tempfile.mkdtemp

    def watched(*arguments: object, **named: object) -> str:
        if disk in Path(str(named.get("dir"))).parents:
            writes.append((str(named["prefix"]).strip("."), used(disk)))
        return str(mkdtemp(*arguments, **named))

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "mkdtemp", watched)
        assert osteo("train", *words, f"output_dir={disk / 'run'}").code == 0
    whole = shutil.copytree(disk / "run", tmp_path / "whole")
    names = [name for name, _ in writes]
    assert names == [
        "config.yaml", "status.json", "manifest.csv", "history.csv", "last.ckpt", "best.ckpt", "best.ckpt",
        "predictions.csv", "metrics.json", "environment.json", "status.json",
    ]  # fmt: skip
    outcomes = []
    for name, before in writes:
        shutil.rmtree(disk / "run")
        remount(disk, max(PAGE, before))
        done = osteo("train", *words, f"output_dir={disk / 'run'}")
        outcomes.append(f"{name}: {done.err.strip()}")
        assert done.code == 2, (name, before, done)
        assert done.err.count("\n") == 1, done.err
        assert "the disk is full" in done.err or "No space left" in done.err
        assert "Traceback" not in done.out
        if (disk / "run").exists():
            assert torn(disk / "run") == []
        remount(disk, 16 << 20)
        if (disk / "run/status.json").exists():
            assert Run(disk / "run").state == "interrupted"
            assert osteo("train", f"resume={disk / 'run'}").code == 0
            assert differs(Run(whole), Run(disk / "run")) == []
        else:
            shutil.rmtree(disk / "run", ignore_errors=True)
            (disk / "run").mkdir()
    (tmp_path / "outcomes.txt").write_text("\n".join(outcomes).replace(str(disk), "DISK"))


@pytest.mark.slow
@pytest.mark.mount
def test_a_sweep_whose_disk_fills_up_and_goes_on(osteo: Callable, tiny: list[str], disk: Path, tmp_path: Path) -> None:
    words = [*tiny, "logger.wandb.mode=disabled", "seed=0,1,2"]
    assert osteo("train", "-m", *words, f"output_dir={tmp_path / 'whole'}").code == 0
    remount(disk, used_by(tmp_path / "whole/0") * 3 // 2)
    swept = osteo("train", "-m", *words, f"output_dir={disk / 's'}")
    assert swept.code in (1, 2)
    assert "Traceback" not in swept.out + swept.err
    assert Run(disk / "s/0").state == "done"
    assert torn(disk / "s") == []
    remount(disk, 64 << 20)
    resumed = osteo("train", f"resume={disk / 's'}")
    assert resumed.code == 0, resumed
    for number in "012":
        assert differs(Run(tmp_path / "whole" / number), Run(disk / "s" / number)) == []


def used_by(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.mount
def test_pictures_that_do_not_fit_on_the_disk(osteo: Callable, tiny: list[str], disk: Path, tmp_path: Path) -> None:
    for size in (PAGE * 4, PAGE * 16, PAGE * 40):
        remount(disk, size)
        done = osteo("train", *tiny, f"data.cache={disk}", "output_dir=run")
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert "the disk is full" in done.err
        assert not (tmp_path / "run").exists()
    remount(disk, 16 << 20)
    assert osteo("train", *tiny, f"data.cache={disk}", "output_dir=run", "logger.wandb.mode=disabled").code == 0


@pytest.mark.mount
def test_a_directory_that_cannot_be_written(osteo: Callable, tiny: list[str], disk: Path) -> None:
    mount(disk, "remount", "ro")
    done = osteo("train", *tiny, f"output_dir={disk / 'run'}")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "output_dir" in done.err
    assert "cannot be written" in done.err
    assert "ead-only" in done.err
