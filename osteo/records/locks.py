"""Locks on run directories, so that no two processes work on one run."""

import errno
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from osteo.errors import UserError
from osteo.files import display_path

LOCK = ".lock"
"""The file that a process holds while it works on a run: network disks lock no folders."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system answers that has no locks; there, every process may work."""

_held: dict[Path, FileLock] = {}
"""Of this process, by run directory."""


def hold(directory: Path, *, seconds: float = 0) -> None:
    """Tells other processes that this one works on the run, until it ends or lets go.

    Args:
        directory: of the run.
        seconds: that another process is waited for.

    Raises:
        UserError: another process does, or the directory cannot be written.
    """
    if directory.resolve() in _held:
        return
    lock = FileLock(directory / LOCK, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process works on {display_path(directory)}; wait for it or stop it") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise UserError(f"output_dir {display_path(directory)} cannot be written: {error.strerror}") from error
    _held[directory.resolve()] = lock


def release(directory: Path) -> None:
    """Lets go of the run."""
    if (lock := _held.pop(directory.resolve(), None)) is not None:
        with suppress(OSError):  # what is left is no lock: that ends with its file being closed
            (directory / LOCK).unlink()
        lock.release(force=True)


def is_held(directory: Path) -> bool:
    """Whether a process works on the run."""
    if directory.resolve() in _held:
        return True
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a file system without locks, or one that only reads
        return False
