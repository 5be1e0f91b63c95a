"""A folder or a zip as it was downloaded: which files it holds, which must not be opened, and their bytes."""

import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from osteo.errors import UserError
from osteo.reading.pictures import LARGEST_FILE


@dataclass(frozen=True)
class Entry:
    """A file in an archive."""

    name: str
    stamp: str
    """changes when the content does: size and time, or size and checksum"""
    refused: str = ""
    """why the file must not be opened, or empty"""


class Archive(Protocol):
    """A folder or a zip."""

    def entries(self) -> Iterator[Entry]:
        """Every file, sorted by name, whatever order the file system has."""

    def read(self, name: str, most: int = LARGEST_FILE) -> bytes:
        """The content of one file, or its first bytes."""


@dataclass(frozen=True)
class Folder:
    """A folder on disk."""

    root: Path

    def entries(self) -> Iterator[Entry]:
        """Every file below the folder."""
        for path in sorted(self.root.rglob("*")):
            if path.is_dir():
                continue
            name = path.relative_to(self.root).as_posix()
            try:
                status = path.stat()
            except OSError:
                yield Entry(name, "", "broken link")
                continue
            refused = "larger than 512 MiB" if status.st_size > LARGEST_FILE else ""
            yield Entry(name, f"{status.st_size}:{status.st_mtime_ns}", refused)

    def read(self, name: str, most: int = -1) -> bytes:
        """The content of one file, or its first bytes."""
        with (self.root / name).open("rb") as file:
            return file.read(most)


@dataclass(frozen=True)
class Zip:
    """A zip file, read in place: nothing is ever unpacked to a path that the zip names."""

    root: Path

    def entries(self) -> Iterator[Entry]:
        """Every file in the zip; links, encrypted files, bombs and escaping names are refused."""
        with zipfile.ZipFile(self.root) as archive:
            for entry in sorted(archive.infolist(), key=lambda info: info.filename):
                if entry.is_dir():
                    continue
                name, refused = entry.filename.replace("\\", "/"), ""
                if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match(r"[A-Za-z]:", name):
                    refused = "name leaves the archive"
                elif stat.S_ISLNK(entry.external_attr >> 16):
                    refused = "link inside a zip"
                elif entry.flag_bits & 1:
                    refused = "encrypted"
                elif entry.file_size > LARGEST_FILE:
                    refused = "larger than 512 MiB"
                yield Entry(entry.filename, f"{entry.file_size}:{entry.CRC}", refused)

    def read(self, name: str, most: int = LARGEST_FILE) -> bytes:
        """The content of one file, at most as long as the zip's index says, or its first bytes."""
        with zipfile.ZipFile(self.root) as archive, archive.open(name) as file:
            return file.read(most)


def open_archive(root: str, key: str) -> Archive:
    """The folder or zip at `root`; `key` is the option that named it, for the error.

    Raises:
        UserError: nothing is there, or it is neither a folder nor a zip.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"{key}={root}: no such file or folder")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{key}={root} is neither a folder nor a zip file")
    return Zip(path)
