"""A cache heals itself: whatever happens to one of its files, the next run ends as with a fresh one."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osteo.config import DataConfig, PhantomConfig, SplitConfig
from osteo.data import store
from osteo.data.prepare import Prepared, prepare, read_sources, verify

SMALL = PhantomConfig(
    kaggle={"normal": 4, "osteoporosis": 4}, mendeley={"normal": 1, "osteopenia": 1, "osteoporosis": 1}
)
CONFIG = DataConfig(phantom=SMALL, image_size=32, split=SplitConfig(train=0.5, val=0.25, stratify=["label"]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def edit(path: Path) -> None:
    """Changes one bit in the middle, and keeps size and time, as a failing disk does."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, empty, Path.unlink, edit)


def result(prepared: Prepared) -> tuple[list[list[object]], bytes]:
    """Everything that a run sees: the manifest but for paths, and the pictures in its order."""
    manifest, opened = prepared
    opened.confirm()
    used = manifest.loc[manifest["split"] != "excluded", "sha256"]
    pixels = opened.pictures[:, [opened.rows[sha] for sha in used]].tobytes()
    return manifest.drop(columns="path").astype("string").fillna("").to_numpy().tolist(), pixels


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[list[list[object]], bytes]]:
    """A cache, and what a run sees of it."""
    folder = tmp_path_factory.mktemp("fresh") / "cache"
    return folder, result(prepare(replace(CONFIG, cache=str(folder))))


@pytest.fixture
def cache(fresh: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the cache, with a manifest of its own phantoms."""
    copy = shutil.copytree(fresh[0], tmp_path / "cache")
    shutil.rmtree(copy / "manifests")
    prepare(replace(CONFIG, cache=str(copy)))
    return copy


def kinds_of(folder: Path) -> dict[str, Path]:
    """One file of each kind in a cache; of what is many, the first."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        top, *_ = path.relative_to(folder).parts
        kind = path.name if top in ("stores", "phantom") and path.suffix in (".json", ".npy", ".xlsx") else path.suffix
        size = f" of {path.stat().st_size >> 14}" if path.name == store.PICTURES else ""  # two stores, two sizes
        files.setdefault(f"{top}/{kind}{size}", path)
    return files


def test_every_file_of_a_cache_may_be_damaged(
    fresh: tuple[Path, object], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = kinds_of(cache)
    assert {name.partition(" of ")[0] for name in kinds} == {
        "manifests/.csv", "pairs/.json", "phantom/.JPEG", "phantom/.jpg", "phantom/.png", "phantom/checksums.json",
        "phantom/patient details.xlsx", "stores/index.json", "stores/pictures.npy",
    }  # fmt: skip
    outcomes = []
    for name, path in kinds.items():
        few = name.startswith(("pairs", "phantom")) + name.endswith(("jpg", "JPEG", "xlsx"))  # these take a second
        for damage in (DAMAGES, DAMAGES[2:], DAMAGES[3:])[few]:
            caplog.clear()
            before = path.read_bytes()
            damage(path)
            assert result(prepare(replace(CONFIG, cache=str(cache)))) == fresh[1], (name, damage.__name__)
            said = caplog.records[-1].message if caplog.records else "-"
            outcomes.append(f"{name:32} {damage.__name__:9} {said}")
            if path.name not in ("checksums.json", "patient details.xlsx"):  # the sheet says when it was drawn
                end = time.monotonic() + 30  # thumbnails are mended in the background, since their pairs are known
                while path.read_bytes() != before and time.monotonic() < end:
                    time.sleep(0.01)
                assert path.read_bytes() == before, (name, damage.__name__)
    print("\n".join(outcomes))  # with -s: what a user reads
    end = time.monotonic() + 30
    while list(cache.rglob(".*")) and time.monotonic() < end:
        time.sleep(0.01)  # the last thumbnails
    assert not list(cache.rglob(".*")), "neither locks nor parts are left"


@pytest.mark.parametrize("place", ["pictures.npy", "done.npy", "nothing"])
def test_a_half_built_store_may_be_damaged(
    fresh: tuple[Path, object], cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A builder is killed, and what it left is damaged too."""
    for damage in DAMAGES:
        shutil.rmtree(cache / "stores")
        with monkeypatch.context() as patch:
            patch.setattr(store, "CHUNK", 4)
            squares: Iterator[None] = iter([None] * 9)

            def stop(*given: object, frame: Callable = store.frame, left: Iterator[None] = squares) -> np.ndarray:
                if next(left, 1) is not None:
                    raise KeyboardInterrupt
                return frame(*given)

            patch.setattr(store, "frame", stop)
            with pytest.raises(KeyboardInterrupt):
                prepare(replace(CONFIG, cache=str(cache)))
        (part,) = (cache / "stores").glob(".*.part")
        assert np.count_nonzero(np.load(part / "done.npy")) in (4, 8)
        for path in part.glob(place):
            damage(path)
        assert result(prepare(replace(CONFIG, cache=str(cache)))) == fresh[1]
        assert not list((cache / "stores").glob(".*"))


def test_verify_counts_what_it_has_compared_and_mended(fresh: tuple[Path, object], cache: Path) -> None:
    config = replace(CONFIG, cache=str(cache))
    (pictures,) = (path for path in (cache / "stores").rglob("pictures.npy") if path.stat().st_size < 2**17)
    edit(pictures)
    assert verify(config, read_sources(config, cache)) == [
        "verified 11 files, 0 changed since they were hashed",
        "verified 10 stored pictures of 32 x 32, 1 damaged and repaired",
        "verified 11 stored pictures of 256 x 256, in which copies are searched, 0 damaged and repaired",
    ]
    assert result(prepare(config)) == fresh[1]
