"""The terminal's streams, which may be closed before the work is done (`2>&-`, `| head`): the work goes on without."""

import io
import os
import sys
from typing import TextIO


def keep_streams() -> None:
    """Gives this process streams that can be written to until its end, whoever has closed them."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        stream = getattr(sys, name)
        if number and (stream is None or stream is getattr(sys, f"__{name}__")):
            setattr(sys, name, _lasting(number, stream))


def finish_streams() -> None:
    """Writes what is left; ends with 1 and one line where that cannot be done."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"osteo: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _lasting(number: int, stream: TextIO | None) -> io.TextIOWrapper:
    """The stream of a file descriptor; a name that its encoding lacks is written in escapes."""
    encoding = stream.encoding if stream else "utf-8"
    if stream:
        stream.flush()
    buffered = io.BufferedWriter(_Lasting(number, "wb", closefd=False))
    is_direct = number == 2 or os.isatty(number)
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=is_direct)


class _Lasting(io.FileIO):
    """A file that is nowhere once its reader has gone."""

    def write(self, content: object) -> int:
        """Called by the buffer above it."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not isinstance(error, BrokenPipeError):
                raise  # once: a full disk
            return len(memoryview(content).cast("B"))  # type: ignore[arg-type]
