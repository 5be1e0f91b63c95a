"""The one exception that a user's mistake raises, and the words that messages share."""

import errno
import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend: one line that says what was wrong, what is allowed and what to do."""


def unknown(kind: str, name: object, choices: Iterable[str], *, most: int = 24, meant: Sequence[str] = ()) -> UserError:
    """An error that names the bad value, the good ones, and what may have been meant; of many, the nearest alone."""
    known = list(choices)
    near = get_close_matches(str(name).lower(), known, n=5, cutoff=0.5)
    if len(known) <= most:
        nearest = meant or get_close_matches(str(name).rpartition(".")[2].lower(), known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return UserError(f"{kind} '{name}' is unknown; choose one of: {', '.join(known)}{hint}")
    near = [*meant, *near]
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    return UserError(f"{kind} '{name}' is unknown among {len(known)} names{hint}")


def counted(number: int, noun: str) -> str:
    """A number of things in words: 1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_or_are(number: int) -> str:
    """The verb that goes with a number of things."""
    return "is" if number == 1 else "are"


def listed(names: Sequence[str]) -> str:
    """Names in words: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


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


NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot) allocate memory|not enough memory|cudaErrorMemoryAllocation|cudaMalloc\w* failed"
    "|CUDA calloc|ALLOC(ATION)?_FAILED|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED|unable to find an engine",
    re.IGNORECASE,
)
"""What torch, NCCL and NVIDIA's libraries say where memory ran out.

cuBLAS and cuDNN cannot be initialised where no memory is left for their workspace, and then no engine of cuDNN's has
enough of it either.
"""
NOT_DETERMINISTIC = " does not have a deterministic implementation"


class MachineError(UserError):
    """The machine's fault: what was begun goes on from its last checkpoint when it is resumed."""


class LostDeviceError(MachineError):
    """A GPU that this process cannot use any more."""


class OutOfMemoryError(UserError):
    """The batch does not fit into the memory of the device."""


def chain_of(error: BaseException) -> list[BaseException]:
    """An error, and those that it came from, the last first."""
    chain = [error]
    for one in chain:
        for origin in (one.__cause__, one.__context__):
            if origin is not None and origin not in chain:
                chain.append(origin)
    return chain


def let_go(error: BaseException) -> None:
    """Forgets where an error came from: its traceback holds what every function had in hand, a network and its batch.

    To clear the frames is not enough, since a function keeps what it is enclosed by.
    """
    for one in chain_of(error):
        one.__traceback__ = None


def diagnose(error: BaseException) -> BaseException:
    """The trouble in one line where it is a known one, else the error itself."""
    text = str(error)
    is_of_gpu = isinstance(error, RuntimeError) and text.startswith("CUDA error")
    for known in chain_of(error) if is_of_gpu else [error]:  # what a GPU says may follow from that
        lines = [line.strip() for line in str(known).splitlines() if NO_MEMORY.search(line)]
        if isinstance(known, MemoryError) or (isinstance(known, RuntimeError) and lines):
            return OutOfMemoryError((lines or str(known).splitlines() or ["out of memory"])[0])
    if isinstance(error, OSError) and error.errno in DISK:
        is_named = isinstance(error.filename, str | Path)
        name = str(error.filename).removeprefix(f"{Path.cwd()}{os.sep}") if is_named else "a file"
        return MachineError(f"{name} {DISK[error.errno]}")
    if isinstance(error, RuntimeError) and NOT_DETERMINISTIC in text:
        name = text.partition(NOT_DETERMINISTIC)[0]
        return UserError(f"{name} has no deterministic implementation on this device; use trainer.deterministic=warn")
    if is_of_gpu and "device-side assert" not in text:
        return LostDeviceError(f"the GPU failed ({text.splitlines()[0].removeprefix('CUDA error: ')}); see nvidia-smi")
    return error
