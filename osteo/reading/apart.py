"""DICOM is read in a process of its own: silent, bounded in time and memory, and free to crash.

Its parser and decoders meet untrusted files; some hang on a few wrong bytes. What they print or log
may quote a patient's name, so it is discarded: pixels come back, or a reason in words of our own.
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

SECONDS = 1.5  # of CPU time for any file
SECONDS_PER_BYTE = 5e-7  # in addition: a lossless JPEG 2000 takes less than half of this
MOST_SECONDS = 30.0
WALL_CLOCK_FACTOR = 10  # times the CPU limit may pass by the clock, since the machine may be busy
MEMORY = 3 * 2**29  # bytes beyond what the libraries take

_lock = threading.Lock()
_reader: "subprocess.Popen[bytes] | None" = None


def read_apart(content: bytes) -> Grey:
    """The picture in a DICOM file, uint8 (H, W); threads take turns.

    Raises:
        Unusable: it holds none that can be used, or reading it takes too much time or memory, or crashes the decoder.
    """
    with _lock:
        reader = _started()
        watch = threading.Timer(WALL_CLOCK_FACTOR * seconds_for(content), reader.kill)
        watch.start()
        try:
            return _ask(reader, content)
        except Unusable:
            raise
        except (OSError, ValueError, struct.error):  # the process died
            stop()
            reason = "DICOM that crashes its decoder"
            if not watch.is_alive() or -reader.wait() == getattr(signal, "SIGPROF", None):
                reason = f"DICOM that takes longer than {seconds_for(content):.1f} s to read"
        except BaseException:  # such as Ctrl-C: a reply that is still to come must not be taken for the next file's
            stop()
            raise
        finally:
            watch.cancel()
    raise Unusable(reason)


def seconds_for(content: bytes) -> float:
    """How much CPU time a file may take: an honest file needs little per byte, a decompression bomb much."""
    return min(SECONDS + SECONDS_PER_BYTE * len(content), MOST_SECONDS)


@atexit.register
def stop() -> None:
    """Ends the reading process, if there is one; the next file starts another."""
    global _reader
    if _reader:
        _reader.kill()
        with suppress(OSError):  # what it has not yet read is lost
            _reader.communicate()
    _reader = None


def _forget() -> None:
    """A fork must not share its parent's reading process: each would read the other's replies."""
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
        if not _reader.stdout.read(1):  # a byte once it is ready: its imports do not count against the limit
            raise Unusable("DICOM, but the process that reads it does not start")
    return _reader


def _ask(reader: "subprocess.Popen[bytes]", content: bytes) -> Grey:
    """Sends a file and reads the reply, as bare bytes: nothing that a decoder may have corrupted is unpickled."""
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
    """The loop of the reading process: a length and a file in; height, width and pixels, or a reason, out."""
    _limit_memory()
    replies.write(b"!")
    replies.flush()
    while len(head := requests.read(8)) == 8:
        content = requests.read(struct.unpack(">Q", head)[0])
        _limit_cpu(seconds_for(content))
        try:
            grey = read_dicom(content)
            replies.write(struct.pack(">II", *grey.shape) + grey.tobytes())
        except Unusable as error:
            reason = str(error).encode()
            replies.write(struct.pack(">II", 0, len(reason)) + reason)
        _limit_cpu(0)
        replies.flush()


def _limit_cpu(seconds: float) -> None:
    """Has the system end this process after so much CPU time, whatever library it is in; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    import pydicom.pixels  # noqa: F401 - before any limit

    with os.fdopen(os.dup(1), "wb") as replies, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # a library that prints must not garble the replies
        _serve(sys.stdin.buffer, replies)
