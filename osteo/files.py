"""Files that appear whole or not at all."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

log = logging.getLogger(__name__)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write a file or a folder to; on success it becomes `path`, else it is removed.

    A folder that another process finished meanwhile is kept, and ours dropped: both were made from the same input.

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
            inner.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, in UTF-8; what of a file's name is not UTF-8 stands as an escape."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file whole, without an index column, floats to full precision.

    Text that a spreadsheet would take for a formula stands behind an apostrophe, which `read_table` takes away.
    """
    cells = _map_text(table, lambda text: f"'{text}" if FORMULA.match(text) else text)
    write_text(path, cells.to_csv(index=False, lineterminator="\n").replace("\r", "\\x0d"))  # it would end a row


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Reads a CSV file that `write_table` wrote, every text as it was.

    Args:
        path: of the file.
        options: of `pandas.read_csv`.
    """
    return _map_text(pd.read_csv(path, **options), unquoted)


def unquoted(text: str) -> str:
    """Text as it was before `write_table` put an apostrophe before what looks like a formula."""
    return text[1:] if QUOTED_FORMULA.match(text) else text


FORMULA = re.compile(r"(?![+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$)'*([=@\t\uff1d\uff0b\uff0d\uff20]|[+-][\s\S])")
"""Text that a spreadsheet may take for a formula, behind any number of apostrophes; a number or a dash is none."""
QUOTED_FORMULA = re.compile(f"'(?:{FORMULA.pattern})")


def _map_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
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
    """Where stores, manifests and phantom archives are kept: the setting, else $OSTEO_CACHE, else ~/.cache/osteo."""
    return Path(setting or os.environ.get("OSTEO_CACHE") or "~/.cache/osteo").expanduser()


def display_path(path: Path) -> str:
    """A path as it may be shown: relative to the working directory where it lies below, else as it is."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
