"""A folder or a zip as it was downloaded: which files it holds, which must not be opened, and their bytes."""

import lzma
import os
import re
import stat
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from osteo.errors import UserError, printable
from osteo.reading.pictures import LARGEST_FILE, Unusable

TOO_LARGE = "larger than 512 MiB"
REPEATED_NAME = "several files of this name"
NO_FILE = "not a regular file (a pipe, a socket or a device)"
LARGE_ENTRY, MOST_EXPANDED = 64 * 2**20, 20
"""A file in a zip that is larger than the first, in bytes, may not be compressed to less than one in the second."""
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""What zipfile raises of a damaged zip, or of one that it cannot read."""


READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""How a file is opened: a pipe must not keep us waiting for somebody to write."""


@dataclass(frozen=True)
class Entry:
    """A file in an archive."""

    name: str
    """path within the archive, with slashes, as it can be printed; no two entries share one"""
    stamp: str
    """changes when the content does: size and time, or size and checksum"""
    refused: str = ""
    """why the file must not be opened, or empty"""
    is_folder: bool = False
    """a folder that cannot be entered, named FOLDER/*: it stands for all that it holds"""


class Archive(Protocol):
    """A folder or a zip."""

    def entries(self) -> Iterator[Entry]:
        """Every file, sorted by name, whatever order the file system has."""

    def read(self, name: str, most: int = LARGEST_FILE) -> bytes:
        """The content of one entry, or its first bytes.

        Raises:
            Unusable: the content is damaged, or the entry is no file of at most 512 MiB.
            OSError: the disk or a missing permission does not let it be read.
        """


@dataclass(frozen=True)
class Folder:
    """A folder on disk; links in it are followed, and each real folder is read once."""

    root: Path
    _unprintable: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """names on disk by those of their entries, where they differ"""

    def entries(self) -> Iterator[Entry]:
        """Every file below the folder; what is no regular file is refused."""
        found = defaultdict(list)
        for relative, refused in self._walk():
            entry = Entry(f"{printable(relative)}/*", "", refused, is_folder=True) if refused else self.entry(relative)
            found[entry.name].append(entry)
        for name in sorted(found, key=lambda name: name.split("/")):
            yield _one_of(found[name])

    def entry(self, relative: str) -> Entry:
        """The entry of one file, by its path below the folder."""
        name = printable(relative)
        if name != relative:
            self._unprintable[name] = relative
        try:
            status = (self.root / relative).stat()
        except PermissionError:
            return Entry(name, "", "no permission to read")
        except OSError:
            return Entry(name, "", "broken link")
        refused = "" if stat.S_ISREG(status.st_mode) else NO_FILE
        if stat.S_ISDIR(status.st_mode):
            refused = "link to a folder that is read elsewhere"
        elif status.st_size > LARGEST_FILE:
            refused = TOO_LARGE
        return Entry(name, f"{status.st_size}:{status.st_mtime_ns}", refused)

    def _walk(self) -> Iterator[tuple[str, str]]:
        """Paths below the folder, and for a folder that cannot be entered why; real folders come before linked ones."""
        above = {_identity(folder) for folder in (self.root.resolve(), *self.root.resolve().parents)}
        visited, folders, links = above, [""], list[str]()
        while folders or links:
            relative = folders.pop() if folders else links.pop(0)
            try:
                identity = _identity(self.root / relative)
                if relative and identity in visited:
                    yield relative, ""  # a link to what has been read, or a loop
                    continue
                visited.add(identity)
                with os.scandir(self.root / relative) as scanned:
                    inside = sorted(scanned, key=lambda item: item.name)
            except OSError as error:
                if not relative:
                    raise
                yield relative, f"folder that cannot be entered ({(error.strerror or '').lower()})"
                continue
            for item in inside:
                path = f"{relative}/{item.name}" if relative else item.name
                if _is_folder(item):
                    (links if item.is_symlink() else folders).append(path)
                else:
                    yield path, ""

    def read(self, name: str, most: int = LARGEST_FILE) -> bytes:
        """The content of one file, or its first bytes."""
        path = self.root / self._unprintable.get(name, name)
        with os.fdopen(os.open(path, READ), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # something took the file's place
                raise Unusable(NO_FILE)
            if status.st_size > LARGEST_FILE:
                raise Unusable(TOO_LARGE)
            return file.read(min(most, status.st_size))


def _is_folder(item: "os.DirEntry[str]") -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads nowhere, or to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _one_of(same: list[Entry]) -> Entry:
    """The entry of a name; where several files share it, one that is refused: nobody knows which of them is meant."""
    if len(same) == 1:
        return same[0]
    return Entry(same[0].name, " ".join(entry.stamp for entry in same), REPEATED_NAME)


class Zip:
    """A zip file, read in place: nothing is ever unpacked to a path that the zip names.

    It is opened once, and its directory read once, per process; threads may read at the same time.
    """

    def __init__(self, root: Path) -> None:
        """Opens the zip.

        Raises:
            zipfile.BadZipFile, ValueError: it is none, or its directory is damaged.
            OSError: it cannot be read.
        """
        self.root = root
        self._open()

    def __reduce__(self) -> tuple[type["Zip"], tuple[Path]]:
        """A copy in another process opens the file for itself."""
        return Zip, (self.root,)

    def _open(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._zip = zipfile.ZipFile(self.root)  # closed when nobody reads from it any more
        named = defaultdict(list)
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")
            if not name.endswith("/"):
                named[printable(PurePosixPath(name))].append(info)
        self._named = dict(named)

    def entries(self) -> Iterator[Entry]:
        """Every file in the zip; links, encrypted files, bombs and escaping names are refused."""
        for name, infos in sorted(self._named.items()):
            yield _one_of([Entry(name, f"{info.file_size}:{info.CRC}", _refusal(name, info)) for info in infos])

    def read(self, name: str, most: int = LARGEST_FILE) -> bytes:
        """The content of one file, at most as long as the zip's directory says, or its first bytes."""
        if self._process != os.getpid():  # a fork shares its parent's place in the file
            self._open()
        info = self._named[name][-1]
        try:
            with self._lock:  # zipfile counts its readers, and threads would miscount
                file = self._zip.open(info)
            try:
                return file.read(min(most, info.file_size))
            finally:
                with self._lock:
                    file.close()
        except NotImplementedError:
            raise Unusable("compressed in its zip by a method that cannot be read") from None
        except DAMAGED as error:
            raise Unusable(f"damaged in its zip ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    return "wrong checksum" if "CRC" in str(error) else "it cannot be unpacked"


def _refusal(name: str, info: zipfile.ZipInfo) -> str:
    """Why an entry of a zip must not be opened, or nothing."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match(r"[A-Za-z]:", name):
        return "name leaves the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link inside a zip"
    if info.flag_bits & 1:
        return "encrypted"
    if info.file_size > LARGEST_FILE:
        return TOO_LARGE
    if info.file_size > max(LARGE_ENTRY, MOST_EXPANDED * info.compress_size):
        return f"compressed to less than 1 in {MOST_EXPANDED}: no picture is"
    return ""


def open_archive(root: str, key: str) -> Archive:
    """The folder or zip at `root`; `key` is the option that named it, for the error.

    Raises:
        UserError: nothing is there, it is neither a folder nor a zip, or it cannot be read.
    """
    path = Path(root).expanduser()
    try:
        if path.is_dir():
            with os.scandir(path):
                return Folder(path)
        if not path.exists():
            raise UserError(f"{key}={root}: no such file or folder")
        if path.is_file():
            return Zip(path)
    except OSError as error:
        raise UserError(f"{key}={root} cannot be opened: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
        with path.open("rb") as file:
            if file.read(4) == b"PK\3\4":
                raise UserError(f"{key}={root} is a zip file that is damaged or cut short; fetch it again") from error
    raise UserError(f"{key}={root} is neither a folder nor a zip file")
