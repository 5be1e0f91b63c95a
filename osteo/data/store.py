"""Every picture decoded once: square, grey, eight bits, in one memory-mapped file beside its CLAHE twin."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from osteo.config import CLAHE_CLIP_LIMIT, CLAHE_TILES
from osteo.reading.pictures import describe_error
from osteo.reading.reader import read_picture
from osteo.types import Grey, ReadFile

log = logging.getLogger(__name__)

VERSION = 1  # of the pixels: raise it when decode, square or clahe change what they return

CHUNK = 4096  # pictures after which what is done is safe on the disk


@dataclass(frozen=True)
class Store:
    """Pictures by content.

    `pictures` is uint8, (2, N, S, S): plane 0 the pictures, plane 1 their CLAHE twins, which a store can do without.
    It is mapped copy-on-write, so that pages are shared between processes and nothing is read before it is used.
    """

    pictures: Grey
    rows: dict[str, int]
    """row of a picture by the SHA-256 of its file"""
    unreadable: dict[str, str]
    """reason by SHA-256, for files that a full decode refused"""


def open_store(
    manifest: pd.DataFrame, read: ReadFile, folder: Path, *, image_size: int, fit: str, twins: bool = True
) -> Store:
    """Opens the store of these pictures, and builds it first where it is missing.

    The name of the store is a hash of the pictures' content and of how they are decoded. It is built aside, by one
    process while others wait, and renamed; what a killed one had done is taken up by the next.

    Args:
        manifest: its rows with a `split` other than "excluded" are kept, each content once.
        read: gives the bytes of a picture by its image_id.
        folder: where stores are kept.
        image_size: S, in pixels.
        fit: "pad" or "resize".
        twins: keep CLAHE twins too.
    """
    kept = manifest[manifest["split"] != "excluded"].drop_duplicates("sha256").sort_values("sha256")
    planes = f"{CLAHE_CLIP_LIMIT}:{CLAHE_TILES}" if twins else "plain"
    recipe = f"{VERSION}:{image_size}:{fit}:{planes}:{','.join(kept['sha256'])}"
    place = folder / "stores" / hashlib.sha256(recipe.encode()).hexdigest()[:32]
    if not place.is_dir():
        log.info("decoding %d pictures to %d x %d", len(kept), image_size, image_size)
        with _aside(place) as part:
            if not place.is_dir():
                _build(kept, read, part, image_size=image_size, fit=fit, twins=twins)
                part.rename(place)
    index = json.loads((place / "index.json").read_text(encoding="utf-8"))
    pictures = np.load(place / "pictures.npy", mmap_mode="c")
    return Store(pictures, {sha: row for row, sha in enumerate(index["sha256"])}, index["unreadable"])


@contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """Yields the folder beside `place` in which it is built, to one process at a time."""
    part = place.with_name(f".{place.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        try:
            lock.acquire()
        except Timeout:
            log.info("another process is decoding these pictures; waiting for it")
            lock.acquire(timeout=-1)
    except OSError:  # a file system without locks: build in a folder that no other process has
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.mkdir(exist_ok=True)
    try:
        yield part
        if part.is_dir() and not any(part.iterdir()):
            part.rmdir()  # made while another process finished
        with suppress(OSError):  # whoever still waits finds the store; what is left is no lock
            Path(lock.lock_file).unlink()
    finally:
        lock.release()


def _build(kept: pd.DataFrame, read: ReadFile, place: Path, *, image_size: int, fit: str, twins: bool) -> None:
    """Decodes what is not done yet; `done` marks the rows whose pixels are safe on the disk."""
    shape = (2 if twins else 1, len(kept), image_size, image_size)
    pictures, done = _open_rows(place / "pictures.npy", shape), _open_rows(place / "done.npy", (len(kept),))

    def work(item: tuple[int, str]) -> str:
        row, image_id = item
        try:
            picture = square(read_picture(read(image_id), image_size), image_size, fit)
        except (OSError, ValueError, RuntimeError, SyntaxError, cv2.error) as error:
            return describe_error(error)
        pictures[0, row] = picture
        if twins:
            pictures[1, row] = clahe(picture)
        return ""

    pixels = (kept["width"] * kept["height"]).fillna(0).to_numpy(np.int64)
    largest_first = np.argsort(-pixels, kind="stable")  # so that no core is left alone with a large one
    missing = largest_first[done[largest_first] == 0]
    images, shas = list(kept["image_id"]), list(kept["sha256"])
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            reasons = list(pool.map(work, [(int(row), images[row]) for row in rows]))
            unreadable |= {shas[row]: reason for row, reason in zip(rows, reasons, strict=True) if reason}
            pictures.flush()
            done[[row for row, reason in zip(rows, reasons, strict=True) if not reason]] = 1
            done.flush()
    index = {"sha256": shas, "unreadable": unreadable}
    (place / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (place / "done.npy").unlink()


def _open_rows(path: Path, shape: tuple[int, ...]) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    """A file of uint8 zeros of this shape, or the one that is there, mapped for writing.

    Raises:
        OSError: the disk is full; a write into the map of a file that has no room would kill the process.
    """
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    fresh = path.with_suffix(".new")
    np.lib.format.open_memmap(fresh, mode="w+", dtype=np.uint8, shape=shape).flush()
    with fresh.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, fresh.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # these: a file system that reserves nothing
                    fresh.unlink()
                    raise OSError(error.errno, error.strerror, str(path)) from error
    fresh.rename(path)
    return np.lib.format.open_memmap(path, mode="r+")


def square(grey: Grey, size: int, fit: str) -> Grey:
    """Makes a picture size x size: "resize" stretches it, "pad" keeps its proportions between black borders."""
    height, width = grey.shape
    if fit == "resize":
        new_height = new_width = size
    else:
        longest = max(height, width)
        new_height, new_width = (max(1, round(side * size / longest)) for side in (height, width))
    shrinking = new_height * new_width < height * width
    resized = cv2.resize(grey, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def clahe(grey: Grey) -> Grey:
    """Contrast-limited adaptive histogram equalisation, clip limit 2 and 8 x 8 tiles, as OpenCV computes it."""
    return np.asarray(cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply(grey), np.uint8)
