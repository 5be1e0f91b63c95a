"""Every picture decoded once: square, grey, eight bits, in one memory-mapped file beside its CLAHE twin."""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import threading
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from osteo.config import CLAHE_CLIP_LIMIT, CLAHE_TILES
from osteo.data.manifest import NOT_READ, read_bytes
from osteo.errors import UserError, counted, diagnose
from osteo.files import alone, read_sealed, write_sealed
from osteo.progress import followed
from osteo.reading.framing import clahe, decoded_size, frame, version_of
from osteo.reading.pictures import NotRead, describe_error
from osteo.reading.reader import read_picture
from osteo.types import Grey, ReadFile

log = logging.getLogger(__name__)

VERSION = 3  # of the pixels: raise it when read_picture, frame or clahe change what they return

CHUNK = 4096  # pictures after which what is done is safe on the disk
PATIENCE = 2.0  # seconds that a training waits for its pictures to be compared: 2 GB take 1.5 s

Checksums: TypeAlias = npt.NDArray[np.uint32]
"""CRC-32 of each picture followed by its twin, (N,); 0 where there is none yet, which is one in 4 billion otherwise."""
Marks: TypeAlias = npt.NDArray[np.uint32]
Mapped: TypeAlias = np.memmap[tuple[int, ...], np.dtype[Any]]


class ChangedFileError(UserError):
    """A file is not the one that was hashed, though its size and time are the same."""


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
    """reason by SHA-256, for files that a full decode refused, or that could not be read this time"""
    without_joint: frozenset[str] = frozenset()
    """SHA-256 of the files whose joint was not found, where `fit` needs it: their central square is kept"""
    verification: "Verification | None" = field(default=None, repr=False, compare=False)
    """compares the pictures with their checksums meanwhile, where they lie in a file"""

    def begin_use(self) -> None:
        """Says that pictures are used before all are compared: `confirm` raises where that was wrong.

        Raises:
            UserError: all are compared, and a damaged one cannot be mended.
        """
        if self.verification is not None:
            self.verification.begin_use()

    def confirm(self) -> int:
        """Waits until all pictures are compared with their checksums; gives the number of damaged ones, now mended.

        Raises:
            UserError: damaged pictures were in use before they were mended, or cannot be mended.
        """
        return 0 if self.verification is None else self.verification.confirm()


def open_store(
    manifest: pd.DataFrame,
    read: ReadFile,
    folder: Path,
    *,
    image_size: int,
    fit: str,
    enhance: str = "none",
    twins: bool = True,
) -> Store:
    """Opens the store of these pictures, and builds it first where it is missing or damaged.

    The name of the store is a hash of the pictures' content and of how they are decoded. It is built aside, by one
    process while others wait, and renamed; what a killed one had done is taken up by the next. A picture whose file
    could not be read is tried again at every opening.

    Args:
        manifest: its rows with a `split` other than "excluded" are kept, each content once.
        read: gives the bytes of a picture by its image_id.
        folder: where stores are kept.
        image_size: S, in pixels.
        fit: how a picture is made square, see `osteo.reading.framing.frame`.
        enhance: what is done to it then.
        twins: keep CLAHE twins too.

    Raises:
        ChangedFileError: a file has changed since it was hashed.
    """
    kept = manifest[manifest["split"] != "excluded"].drop_duplicates("sha256").sort_values("sha256")
    planes = f"{CLAHE_CLIP_LIMIT}:{CLAHE_TILES}" if twins else "plain"
    shas, images = (kept[column].to_numpy(object).tolist() for column in ("sha256", "image_id"))
    recipe = f"{VERSION}:{image_size}:{version_of(fit, enhance)}:{planes}:{','.join(shas)}"
    place = folder / "stores" / hashlib.sha256(recipe.encode()).hexdigest()[:32]
    pixels = (kept["width"] * kept["height"]).fillna(0).to_numpy(np.int64)
    shelf = Shelf(place, shas, images, pixels, read, image_size, fit, enhance, 1 + twins)
    if (index := shelf.load()) is None:
        log.info("decoding %s to %d x %d", counted(len(kept), "picture"), image_size, image_size)
        with alone(place, "decoding these pictures") as is_alone:
            if (index := shelf.load()) is None:
                index = shelf.build(is_alone)
    unread = shelf.mend(np.flatnonzero(index.checksums == 0), index) if not index.checksums.all() else {}
    mapped = _map(place / PICTURES, shelf.shape, np.uint8, "c")
    assert mapped is not None
    rows = {sha: row for row, sha in enumerate(shelf.shas)}
    central = np.flatnonzero(index.is_central)
    if len(central):
        log.warning(
            "the joint was not found in %s, %s first; their central square is used",
            counted(len(central), "picture"), shelf.images[central[0]],
        )  # fmt: skip
    without_joint = frozenset(shelf.shas[row] for row in central)
    return Store(mapped, rows, index.unreadable | unread, without_joint, Verification(shelf, index))


PICTURES, INDEX, DONE = "pictures.npy", "index.json", "done.npy"
"""The files of a store; the last one, while it is built, holds what the index will, of what is safe on the disk."""


class Index(NamedTuple):
    """What is known of the pictures of a store."""

    checksums: Checksums
    unreadable: dict[str, str]
    """reason by SHA-256, for files that a full decode refused"""
    is_central: Marks
    """whether the joint of a picture was not found, (N,), and its central square is kept"""


@dataclass(frozen=True)
class Shelf:
    """A store on the disk, and what it takes to decode its pictures."""

    place: Path
    shas: list[str]
    images: list[str]
    """an image_id by row"""
    pixels: npt.NDArray[np.int64]
    """of the files, by row"""
    read: ReadFile
    image_size: int
    fit: str
    enhance: str
    planes: int
    """2 with CLAHE twins, else 1"""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the pictures."""
        return self.planes, len(self.shas), self.image_size, self.image_size

    def load(self) -> Index | None:
        """The index of the store, or None where the store is missing, damaged or of an older form."""
        text = read_sealed(self.place / INDEX)
        if text is None or _map(self.place / PICTURES, self.shape, np.uint8, "c") is None:
            return None
        kept = json.loads(text)
        checksums = np.array(kept["checksums"], np.uint32)
        is_central = np.zeros_like(checksums)
        is_central[kept.get("central", [])] = 1
        return Index(checksums, kept["unreadable"], is_central)

    def save(self, place: Path, index: Index) -> None:
        """Writes the index."""
        kept = {"checksums": index.checksums.tolist(), "unreadable": index.unreadable}
        if index.is_central.any():
            kept["central"] = np.flatnonzero(index.is_central).tolist()
        write_sealed(place / INDEX, json.dumps(kept))

    def build(self, is_alone: bool) -> Index:
        """Decodes what is not done yet in a folder beside the place, and renames it."""
        if self.place.exists():
            log.warning("the store of these pictures is damaged or of an older version: they are decoded again")
            shutil.rmtree(self.place) if self.place.is_dir() else self.place.unlink()
        own = "" if is_alone else f".{os.getpid()}"  # without locks, in a folder that no other process has
        part = self.place.with_name(f".{self.place.name}{own}.part")
        part.mkdir(exist_ok=True)
        pictures, done = _reserve(part / PICTURES, self.shape), _reserve(part / DONE, (2, self.shape[1]), np.uint32)
        checksums, is_central = done
        for row in np.flatnonzero(checksums):
            if zlib.crc32(pictures[:, row].tobytes()) != checksums[row]:
                checksums[row] = 0  # what the last builder wrote did not reach the disk
        try:
            unreadable = self.decode(np.flatnonzero(checksums == 0), pictures, checksums, is_central)
        except ChangedFileError:
            shutil.rmtree(part)  # nobody will ask for it again
            raise
        remembered = {sha: reason for sha, reason in unreadable.items() if not reason.startswith(NOT_READ)}
        index = Index(np.array(checksums), remembered, np.array(is_central))
        self.save(part, index)
        (part / DONE).unlink()
        part.rename(self.place)
        return index

    def mend(self, rows: Iterable[int], index: Index, *, keep_going: bool = False) -> dict[str, str]:
        """Decodes rows again, into the store and its index; gives the reason of those that cannot be, by SHA-256."""
        again = [int(row) for row in rows if self.shas[row] not in index.unreadable]
        if not again:
            return {}
        with alone(self.place, "decoding these pictures"):
            pictures = _map(self.place / PICTURES, self.shape, np.uint8, "r+")
            if pictures is None:
                return {self.shas[row]: "the store is gone" for row in again}
            before = index.checksums.copy()
            reasons = self.decode(again, pictures, index.checksums, index.is_central, keep_going=keep_going)
            found = {sha: reason for sha, reason in reasons.items() if not reason.startswith(NOT_READ)}
            if (before != index.checksums).any() or found:
                index.unreadable.update(found)
                self.save(self.place, index)
        return {sha: reason for sha, reason in reasons.items() if sha not in found}

    def decode(
        self,
        rows: Iterable[int],
        pictures: Mapped,
        checksums: Checksums,
        is_central: Marks,
        *,
        keep_going: bool = False,
    ) -> dict[str, str]:
        """Decodes rows into `pictures` and then notes facts of them; gives the reasons of those that it cannot.

        Args:
            rows: to decode.
            pictures: (P, N, S, S), mapped for writing.
            checksums: of all rows.
            is_central: of all rows, as the index keeps it.
            keep_going: take a file that has changed for one that could not be read.

        Raises:
            ChangedFileError: the content of a file is not what the manifest says.
        """

        def work(row: int) -> str:
            try:
                content = read_bytes(self.read, self.images[row])
                if hashlib.sha256(content).hexdigest() != self.shas[row]:
                    if keep_going:
                        return f"{NOT_READ} (changed since it was hashed)"
                    why = "has changed since it was hashed, though its size and time are the same"
                    raise ChangedFileError(f"{self.images[row]} {why}")
                grey = read_picture(content, decoded_size(self.image_size, self.fit))
                picture, is_found = frame(grey, self.image_size, self.fit, self.enhance)
            except NotRead as error:
                return f"{NOT_READ} ({error})"
            except (OSError, ValueError, RuntimeError, SyntaxError, cv2.error) as error:
                return describe_error(error)
            planes = np.stack([picture, clahe(picture)][: self.planes])
            pictures[:, row], is_central[row], sums[row] = planes, not is_found, zlib.crc32(planes.data)
            return ""

        ordered = sorted((int(row) for row in rows), key=lambda row: (-self.pixels[row], row))
        reasons, sums = dict[str, str](), dict[int, int]()  # the largest comes first: no core is left alone with it
        chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]
        with ThreadPoolExecutor() as pool:
            found = followed((reason for chunk in chunks for reason in pool.map(work, chunk)), len(ordered), "decoding")
            for chunk in chunks:
                reasons |= {self.shas[row]: reason for row in chunk if (reason := next(found))}
                pictures.flush()
                for row in chunk:
                    checksums[row] = sums.get(row, 0)
                if isinstance(checksums, np.memmap):
                    checksums.flush()
        return reasons


class Verification:
    """Compares the pictures of a store with their checksums in a thread of its own, and mends what is damaged."""

    def __init__(self, shelf: Shelf, index: Index) -> None:
        """Begins at once."""
        self._shelf, self._index = shelf, index
        self._file = (shelf.place / PICTURES).open("rb", buffering=0)  # not the map: its pages would count as ours
        self._is_in_use = self._was_in_use = False
        self._error: OSError | None = None
        self._mended: list[str] = []  # image_ids
        self._lost: dict[str, str] = {}  # reason by SHA-256, of damaged pictures that cannot be decoded again
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    def begin_use(self) -> None:
        """As `Store.begin_use`."""
        self._thread.join(PATIENCE)
        self._is_in_use = True
        if not self._thread.is_alive():
            self.confirm()

    def confirm(self) -> int:
        """As `Store.confirm`."""
        self._thread.join()
        if self._error is not None:
            raise diagnose(self._error)
        if self._lost:
            sha, reason = next(iter(self._lost.items()))
            name = self._shelf.images[self._shelf.shas.index(sha)]
            raise UserError(
                f"{counted(len(self._lost), 'stored picture')}, {name} first, cannot be decoded again"
                f" after damage on the disk ({reason}); bring the files back, or run osteo prepare verify=true"
            )
        if self._was_in_use:
            raise UserError(
                f"{counted(len(self._mended), 'stored picture')} had been damaged on the disk, {self._mended[0]} first,"
                " and used before this was noticed; they are repaired now: start again"
            )
        return len(self._mended)

    def _run(self) -> None:
        try:
            with self._file:
                damaged = self._damaged()
            if damaged:
                self._lost = self._shelf.mend(damaged, self._index, keep_going=True)
                self._mended = [self._shelf.images[row] for row in damaged if self._shelf.shas[row] not in self._lost]
                self._was_in_use = self._is_in_use
                for count, what in ((self._mended, "decoded again"), (self._lost, "could not be decoded again")):
                    if count:
                        log.warning("%s had been damaged on the disk; %s", counted(len(count), "stored picture"), what)
        except OSError as error:
            self._error = error

    def _damaged(self) -> list[int]:
        planes, count, size, _ = self._shelf.shape
        start, buffer = len(_header(self._shelf.shape, np.uint8)), bytearray(size * size)
        found = np.zeros(count, np.uint32)
        for plane in range(planes):
            self._file.seek(start + plane * count * size * size)
            for row in range(count):
                self._file.readinto(buffer)
                found[row] = zlib.crc32(buffer, int(found[row]))
        return [int(row) for row in np.flatnonzero((found != self._index.checksums) & (self._index.checksums != 0))]


def _header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """The first bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _map(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, mode: Any) -> Mapped | None:
    """The array in an .npy file, or None where the file does not hold one of this shape and type."""
    header = _header(shape, dtype)
    size = len(header) + int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or os.fstat(file.fileno()).st_size != size:
                return None
        return np.memmap(path, dtype, mode, len(header), shape)
    except OSError:
        return None


def _reserve(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Mapped:
    """A file of zeros of this shape, or the one that is there, mapped for writing.

    Raises:
        OSError: the disk is full; a write into the map of a file that has no room would kill the process.
    """
    if (existing := _map(path, shape, dtype, "r+")) is not None:
        return existing
    fresh = path.with_suffix(".new")
    np.lib.format.open_memmap(fresh, mode="w+", dtype=dtype, shape=shape).flush()
    with fresh.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, fresh.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # these: a file system that reserves nothing
                    fresh.unlink()
                    raise OSError(error.errno, error.strerror, str(path)) from error
    fresh.replace(path)
    mapped = _map(path, shape, dtype, "r+")
    assert mapped is not None
    return mapped
