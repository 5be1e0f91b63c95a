"""DICOM is read in a process of its own: silent, bounded in time and memory, and free to crash.

Its parser and its decoders meet files that nobody vouches for; some hang on a few wrong bytes. What they print or log
may quote a patient's name, so it goes nowhere: pixels come back, or a reason in our own words.
"""

import atexit
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from osteo.reading.dicom import read_dicom
from osteo.reading.pictures import Unusable
from osteo.types import Grey

SECONDS = 1.5  # of CPU for any file
SECONDS_A_BYTE = 5e-7  # beside them: a lossless JPEG 2000 takes less than half of this
MOST_SECONDS = 30.0
PATIENCE = 10  # times as long by the clock, for a machine that is busy
MEMORY = 3 * 2**29  # bytes beside what the libraries take

_lock = threading.Lock()
_reader: "subprocess.Popen[bytes] | None" = None


def read_apart(content: bytes) -> Grey:
    """The picture of a DICOM file, uint8 (H, W); one at a time, whatever the thread.

    Raises:
        Unusable: it has none that can be used, or reading it takes too much time or memory, or breaks the decoder.
    """
    with _lock:
        reader = _started()
        watch = threading.Timer(PATIENCE * seconds_for(content), reader.kill)
        watch.start()
        try:
            return _ask(reader, content)
        except Unusable:
            raise
        except (OSError, ValueError, struct.error):  # its end broke off
            stop()
            reason = "DICOM that breaks its decoder"
            if not watch.is_alive() or -reader.wait() == getattr(signal, "SIGPROF", None):
                reason = f"DICOM that takes longer than {seconds_for(content):.1f} s to read"
        except BaseException:  # such as Ctrl-C: an answer that is still to come must not become the next file's
            stop()
            raise
        finally:
            watch.cancel()
    raise Unusable(reason)


def seconds_for(content: bytes) -> float:
    """How much CPU a file may take: an honest one needs little for a byte, a bomb much."""
    return min(SECONDS + SECONDS_A_BYTE * len(content), MOST_SECONDS)


@atexit.register
def stop() -> None:
    """Ends the process, if there is one; the next file starts another."""
    global _reader
    if _reader:
        _reader.kill()
        with suppress(OSError):  # what it has not read is lost
            _reader.communicate()
    _reader = None


def _forget() -> None:
    """A fork must not share its parent's process: each would read the other's answers."""
    global _reader, _lock
    _reader, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _started() -> "subprocess.Popen[bytes]":
    global _reader
    if _reader is None or _reader.poll() is not None:
        stop()
        _reader = subprocess.Popen(
            [sys.executable, "-m", "osteo.reading.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert _reader.stdout
        if not _reader.stdout.read(1):  # once it is ready: its imports are not on the watch
            raise Unusable("DICOM, but the process that reads it does not start")
    return _reader


def _ask(reader: "subprocess.Popen[bytes]", content: bytes) -> Grey:
    """Plain bytes both ways: nothing that a decoder may have corrupted is unpickled."""
    assert reader.stdin
    assert reader.stdout
    reader.stdin.write(struct.pack(">Q", len(content)))
    reader.stdin.write(content)
    reader.stdin.flush()
    height, width = struct.unpack(">II", reader.stdout.read(8))
    if not height:
        raise Unusable(reader.stdout.read(width).decode())
    pixels = bytearray(reader.stdout.read(height * width))
    return np.frombuffer(pixels, np.uint8).reshape(height, width)


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The loop of the process: a length and a file in, the size of a picture and its pixels or a reason out."""
    _limit_memory()
    replies.write(b"!")
    replies.flush()
    while len(head := requests.read(8)) == 8:
        content = requests.read(struct.unpack(">Q", head)[0])
        _allow(seconds_for(content))
        try:
            grey = read_dicom(content)
            replies.write(struct.pack(">II", *grey.shape) + grey.tobytes())
        except Unusable as error:
            reason = str(error).encode()
            replies.write(struct.pack(">II", 0, len(reason)) + reason)
        _allow(0)
        replies.flush()


def _allow(seconds: float) -> None:
    """The system ends the process after so much CPU, in whatever library it then is; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    import pydicom.pixels  # noqa: F401 - before the watch

    with os.fdopen(os.dup(1), "wb") as answers, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # a library that prints must not garble the answers
        _serve(sys.stdin.buffer, answers)
