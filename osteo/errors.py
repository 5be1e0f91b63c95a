"""The one exception that a user's mistake raises, and the words that messages share."""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend: one line that says what was wrong, what is allowed and what to do."""


def unknown(kind: str, name: object, choices: Iterable[str], *, most: int = 20) -> UserError:
    """An error that names the bad value and the good ones, the nearest first where there are many."""
    known = list(choices)
    near = get_close_matches(str(name).lower(), known, n=5, cutoff=0.5)
    if len(known) <= most:
        return UserError(f"{kind} '{name}' is unknown; choose one of: {', '.join(known)}")
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    return UserError(f"{kind} '{name}' is unknown among {len(known)} names{hint}")


def counted(number: int, noun: str) -> str:
    """A number of things in words: 1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException, *, most: int = 160) -> str:
    """The first line of an error, without its full stop; the name of its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:most]


UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns the direction of text, and bytes of a name that is not UTF-8."""


def printable(text: object) -> str:
    r"""Text on one line that a terminal prints and a file in UTF-8 holds; anything else stands as in \x1b or \xe9."""
    return UNPRINTABLE.sub(_escape, str(text))


def printable_lines(text: str) -> str:
    """Text of several lines, each of them printable."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


DISK = {
    errno.ENOSPC: "cannot be written: the disk is full",
    errno.EDQUOT: "cannot be written: the disk quota is used up",
    errno.EROFS: "cannot be written: it is read-only",
    errno.EACCES: "cannot be used: permission denied",
    errno.EPERM: "cannot be used: permission denied",
    errno.EIO: "cannot be used: the disk fails",
    errno.ESTALE: "cannot be used: the network disk is gone",
}


NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


NOT_DETERMINISTIC = " does not have a deterministic implementation"


class MachineError(UserError):
    """The machine's fault: what was begun goes on from its last checkpoint when it is resumed."""


class LostDeviceError(MachineError):
    """A GPU that this process cannot use any more."""


class OutOfMemoryError(UserError):
    """The batch does not fit into the memory of the device."""


def diagnose(error: BaseException) -> BaseException:
    """The trouble in one line where it is a known one, else the error itself."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in DISK:
        name = Path(error.filename).name if isinstance(error.filename, str | Path) else "a file"
        return MachineError(f"{name} {DISK[error.errno]}")
    if isinstance(error, RuntimeError) and NOT_DETERMINISTIC in text:
        name = text.partition(NOT_DETERMINISTIC)[0]
        return UserError(f"{name} has no deterministic implementation on this device; use trainer.deterministic=warn")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in text for w in NO_MEMORY)):
        return OutOfMemoryError(text.splitlines()[0] if text else "out of memory")
    if isinstance(error, RuntimeError) and text.startswith("CUDA error") and "device-side assert" not in text:
        return LostDeviceError(f"the GPU failed ({text.splitlines()[0].removeprefix('CUDA error: ')}); see nvidia-smi")
    return error
