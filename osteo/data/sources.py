"""Reads archives as they were downloaded, a folder or a zip, and names every picture in them."""

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import pandas as pd

from osteo.data.clinical import SHEETS, read_sheet
from osteo.errors import UserError, unknown
from osteo.reading.pictures import LARGEST_FILE, PICTURES
from osteo.task import CLASSES
from osteo.types import ReadFile

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Splits by the names of folders of a ready-made split, as the Kaggle archive is reported to hold."""


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


@dataclass(frozen=True)
class Picture:
    """One picture file as a source found it."""

    image_id: str
    """source/relative path, unique"""
    source: str
    name: str
    """name inside its archive"""
    path: str
    """where it lies, as the user wrote it; a zip counts as a folder"""
    class_name: str
    patient: str = ""
    """pseudonym within the source, or empty where nothing is known"""
    refused: str = ""
    """why the file must not be opened, or empty"""


@dataclass
class Source:
    """A data set: its pictures, what else lay there, and how to read one."""

    pictures: list[Picture]
    strays: list[str] = field(default_factory=list)
    """files that are no picture of a known class"""
    read: ReadFile = field(repr=False, default=lambda _: b"")
    """gives the bytes of a picture by its name"""
    stamp: str = ""
    """changes when the content of a picture does; empty where that is not known, so that all are read each time"""
    clinical: pd.DataFrame | None = field(repr=False, default=None)
    """what a clinical sheet says of the patients; see osteo.data.clinical"""


def class_of(name: str, classes: Mapping[str, str] | None = None) -> str | None:
    """The class named by the nearest folder above a file, in any case and depth, or None.

    Args:
        name: inside its archive.
        classes: the class that each folder stands for, by its name in lower case; without it, those named as a class.
    """
    known = classes or {class_name: class_name for class_name in CLASSES}
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if found := known.get(part.strip().casefold()):
            return found
    return None


def is_hidden(name: str) -> bool:
    """Whether a file is none of the user's: hidden, in a hidden folder, or what macOS adds to a zip."""
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in PurePosixPath(name).parts)


def read_source(
    source: str,
    root: str,
    key: str,
    *,
    patient_of: Callable[[str], str] = lambda _: "",
    classes: Mapping[str, str] | None = None,
) -> Source:
    """Finds the pictures of an archive by its class folders.

    Args:
        source: name of the source, the first part of every image_id.
        root: folder or zip.
        key: option that named it, for errors.
        patient_of: gives the patient from a name inside the archive.
        classes: as `class_of` takes them.

    Raises:
        UserError: the archive cannot be opened.
    """
    archive = open_archive(root, key)
    found = Source([], read=archive.read)
    stamps = []
    for entry in archive.entries():
        name, path = entry.name, PurePosixPath(entry.name)
        class_name = class_of(name, classes)
        if found.clinical is None and path.suffix.lower() in SHEETS and not entry.refused:
            found.clinical = read_sheet(archive.read(name))
        if class_name is None or is_hidden(name) or path.suffix.lower() not in PICTURES:
            found.strays.append(name)
            continue
        found.pictures.append(
            Picture(
                image_id=f"{source}/{name}",
                source=source,
                name=name,
                path=f"{root.rstrip('/')}/{name}",
                class_name=class_name,
                patient=patient_of(name),
                refused=entry.refused,
            )
        )
        stamps.append(f"{found.pictures[-1].path}:{entry.stamp}")
    found.stamp = "\n".join(stamps)
    return found


def read_mendeley(root: str) -> Source:
    """The Mendeley archive (doi 10.17632/fxjm8fb6mw.2): one picture per patient, whose id is the file's stem."""
    return read_source("mendeley", root, "data.mendeley", patient_of=lambda name: PurePosixPath(name).stem.upper())


def read_kaggle(root: str) -> Source:
    """The Kaggle archive stevepython/osteoporosis-knee-xray-dataset: nothing is known of its patients."""
    return read_source("kaggle", root, "data.kaggle")


def read_folder(root: str, classes: Mapping[str, str] | None = None) -> Source:
    """Any folder or zip with class folders; `classes` as `class_of` takes them."""
    return read_source("folder", root, "data.root", classes=classes)


def check_sources(found: object, key: str) -> dict[str, Source]:
    """The sources that a plugin's function has returned, as the rest of osteo relies on them.

    Args:
        found: what it has returned.
        key: option that named it, for errors.

    Raises:
        UserError: it is no mapping of names to sources, or a picture does not fit its source or has an unknown class.
    """
    if not isinstance(found, Mapping) or not found or not all(isinstance(source, Source) for source in found.values()):
        raise UserError(f"{key} returned {type(found).__name__}, not a mapping of names to osteo.data.sources.Source")
    for name, source in found.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise UserError(f"{key} returned a source named {name!r}; a name is text without a slash")
        for picture in source.pictures:
            if picture.source != name or picture.image_id != f"{name}/{picture.name}":
                raise UserError(
                    f"{key}: picture {picture.name} of source {name} needs the image_id {name}/{picture.name} and that"
                    f" source, not {picture.image_id} and {picture.source}"
                )
            if picture.class_name not in CLASSES:
                raise unknown(f"{key}: class of {picture.image_id}", picture.class_name, CLASSES)
        if repeated := [i for i, count in Counter(p.image_id for p in source.pictures).items() if count > 1]:
            raise UserError(f"{key} returned {repeated[0]} twice")
    return dict(found)
