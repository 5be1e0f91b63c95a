"""Files that appear whole or not at all."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from osteo.errors import DISK, MachineError, UserError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a name beside `path` to write a file or a folder to; on success it becomes `path`, else it is removed.

    A folder that another process finished meanwhile is kept, and ours dropped: both were made from the same input.

    Args:
        path: of the file or folder.
        durable: of a file, wait until the disk has it, so that a power failure finds it whole under its name.

    Raises:
        OSError: the disk is full or the like; it names `path`.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", dir=path.parent))  # names end at 255 bytes
        inner = aside / path.name
        yield inner
        if inner.is_dir():
            try:
                inner.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        else:
            if durable:
                _sync(inner)
            inner.replace(path)
            if durable and os.name != "nt":  # where folders cannot be opened
                _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(file: Path, twin: Path) -> None:
    """Gives a file a second name; where the disk knows no hard links, as FAT and some network disks, it is copied."""
    try:
        twin.hardlink_to(file)
    except OSError:  # which number says so depends on the disk
        shutil.copyfile(file, twin)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, in UTF-8; what of a file's name is not UTF-8 stands as an escape.

    It outlives a power failure.
    """
    with whole(path, durable=True) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Writes a CSV file whole, without an index column, floats to full precision.

    Text that a spreadsheet would take for a formula stands behind an apostrophe, which `read_table` takes away.
    """
    cells = _map_text(table, lambda text: f"'{text}" if FORMULA.match(text) else text)
    write_text(path, cells.to_csv(index=False, lineterminator="\n").replace("\r", "\\x0d"))  # it would end a row


def read_table(path: Path | TextIO, **options: Any) -> "pd.DataFrame":
    """Reads a CSV file that `write_table` wrote, every text as it was.

    Args:
        path: of the file, or the file itself.
        options: of `pandas.read_csv`.
    """
    import pandas as pd

    return _map_text(pd.read_csv(path, **options), unquoted)


def unquoted(text: str) -> str:
    """Text as it was before `write_table` put an apostrophe before what looks like a formula."""
    return text[1:] if QUOTED_FORMULA.match(text) else text


FORMULA = re.compile(r"(?![+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$)'*([=@\t\uff1d\uff0b\uff0d\uff20]|[+-][\s\S])")
"""Text that a spreadsheet may take for a formula, behind any number of apostrophes; a number or a dash is none."""
QUOTED_FORMULA = re.compile(f"'(?:{FORMULA.pattern})")


def _map_text(table: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    import pandas as pd

    changed = table.copy()
    for name, column in table.items():
        if pd.api.types.is_string_dtype(column) or pd.api.types.is_object_dtype(column):
            values = [change(value) if isinstance(value, str) else value for value in column]
            changed[name] = pd.Series(values, column.index, dtype=column.dtype)
    return changed


def name_of_file(name: str, suffix: str) -> str:
    """A name and a suffix as a name that a disk takes: at most 255 bytes, and a hash of the name where it is cut."""
    content = name.encode(errors="backslashreplace")
    room = 255 - len(suffix.encode())
    if len(content) > room:
        mark = f"-{hashlib.sha256(content).hexdigest()[:12]}"
        content = content[: room - len(mark)].decode(errors="ignore").encode() + mark.encode()
    return content.decode() + suffix


RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)


def portable(name: str) -> str:
    """A relative path, with slashes, in names that every system takes, Windows too.

    Characters that Windows refuses become underscores, and a name that stands for a device there gets one before it.
    """
    parts = (re.sub(r'[<>:"\\|?*\x00-\x1f]|[ .]+$', "_", part) for part in name.split("/"))
    return "/".join(f"_{part}" if RESERVED.match(part) else part for part in parts)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ZIP = b"PK\x03\x04"
"""What a zip file begins with."""


def check_checksums(path: Path) -> None:
    """Compares each entry of a zip file with the checksum (CRC-32) that it was written with; other files have none.

    What torch.save writes is a zip file, and torch.load does not look at its checksums.

    Raises:
        UserError: the file is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{display_path(path)} is damaged ({type(error).__name__}); take another copy of it") from error
    if entry is not None:
        part = entry.partition("/")[2] or entry
        raise UserError(f"{display_path(path)} is damaged (the checksum of {part} is wrong); take another copy of it")


def write_sealed(path: Path, text: str) -> None:
    """Writes a text file whole, with its SHA-256 in the first line, by which `read_sealed` knows a damaged one."""
    with whole(path) as aside:
        aside.write_bytes(_seal(text.encode("utf-8")))


def read_sealed(path: Path) -> str | None:
    """The text that `write_sealed` has written; None where it is missing, damaged or edited."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    text = content.partition(b"\n")[2]
    return text.decode("utf-8") if content == _seal(text) else None


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


@contextmanager
def alone(place: Path, work: str) -> Iterator[bool]:
    """Lets one process at a time work on `place`; others wait.

    Yields:
        False on a file system without locks, where others may be at work at the same time.
    """
    from filelock import FileLock, Timeout  # not before it is needed: every command imports this module

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"), timeout=0)
    is_alone = True
    try:
        try:
            lock.acquire()
        except Timeout:
            log.info("another process is %s; waiting for it", work)
            lock.acquire(timeout=-1)
    except OSError:
        is_alone = False
    try:
        yield is_alone
        with suppress(OSError):  # whoever still waits finds the work done; what is left is no lock
            Path(lock.lock_file).unlink()
    finally:
        lock.release()


def cache_dir(setting: str | None) -> Path:
    """Where stores, manifests and phantom archives are kept: the setting, else $OSTEO_CACHE, else ~/.cache/osteo.

    Raises:
        UserError: there can be no such folder.
    """
    folder = Path(setting or os.environ.get("OSTEO_CACHE") or "~/.cache/osteo").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        key = "data.cache" if setting else "OSTEO_CACHE"
        reason = (error.strerror or "").lower()
        raise UserError(f"{key}={display_path(folder)} cannot be a folder ({reason}); give another") from error
    return folder


@contextmanager
def writing_to_cache(folder: Path) -> Iterator[None]:
    """Says of trouble with the disk below a folder that it is the cache's, and what to do.

    Raises:
        MachineError: the disk is full, the folder is not this user's, or the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK or not Path(str(error.filename)).is_relative_to(folder):
            raise
        raise MachineError(
            f"the cache {display_path(folder)} {DISK[error.errno]}; set OSTEO_CACHE or data.cache to another folder"
        ) from error


def display_path(path: Path) -> str:
    """A path as it may be shown: relative to the working directory where it lies below, else as it is."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()  # Windows takes it, and so does Hydra
    except ValueError:
        return str(path)


def check_against(against: str | None) -> None:
    """Refuses what is neither a file nor the directory of a run, to compare with.

    Raises:
        UserError: one line that names it.
    """
    path = Path(against or ".").expanduser()
    if against and not path.exists():
        raise UserError(f"against={against}: no such file or directory")
    if against and path.is_dir() and not (path / "manifest.csv").exists():
        raise UserError(f"against={against} is not the directory of a run; give one, or a split file")


PATHS = {"root", "kaggle", "mendeley", "cache", "file", "weights_file", "output_dir", "resume"}
WITHHELD = {"labels", "patient", "columns", "clinical", "clinical_columns"}
"""Keys of a configuration whose value is a path, and those whose value may name a patient or a hospital."""


def public(value: Any, key: str = "") -> Any:
    """A configuration without what tells of a machine, a user or a patient: of a path or a URL, the last name stays."""
    if isinstance(value, Mapping):
        return {name: public(item, str(name)) for name, item in value.items()}
    if key in WITHHELD and value:
        return "given"
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and (key in PATHS or re.match(r"[/\\~]|\.\.|\w+:[/\\]", value)):
        return re.split(r"[/\\@]", value.rstrip("/\\"))[-1]
    return value
