"""Asks for files to be read in processes of their own, of which there are as many as threads ask, up to one per core.

They start when they are first needed and end with this process. One that dies takes a single file with it.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from osteo.reading.pictures import LARGEST_PICTURE, NotRead, Unusable, is_dicom
from osteo.reading.worker import REPLY, REQUEST, seconds_for
from osteo.types import Grey

Process = subprocess.Popen[bytes]

WALL_CLOCK_FACTOR = 5  # times the CPU limit may pass by the clock, since the machine may be busy
TRIES = 2  # a process may be ended by something other than its file: Ctrl-Z, a machine that runs out of memory
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_places = threading.BoundedSemaphore(CORES)
_idle: list[Process] = []
_alive: set[Process] = set()


def ask(task: bytes, content: bytes, size: int = 0) -> tuple[str, Grey]:
    """What a reading process finds in a file.

    Args:
        task: HEADER, PICTURE or COLOUR, see osteo.reading.worker.
        content: all bytes of the file.
        size: of the picture, in pixels.

    Returns:
        JSON and pixels, uint8 (H, W); one of them is empty.

    Raises:
        Unusable: it holds nothing that can be used, takes too much time or memory, or crashes the decoder.
        NotRead: no fault of the file.
    """
    kind = "DICOM" if is_dicom(content) else "picture"
    late = f"{kind} that takes longer than {seconds_for(len(content)):.1f} s to read"
    with _places:
        for _ in range(TRIES):
            process = _take()
            watch = threading.Timer(WALL_CLOCK_FACTOR * seconds_for(len(content)), process.kill)
            watch.start()
            try:
                good, text, grey = _exchange(process, task, content, size)
            except (OSError, EOFError, ValueError):  # the process died, or what it says makes no sense
                in_time = watch.is_alive()
                code = _end(process)
                if code == -getattr(signal, "SIGPROF", 0):
                    raise Unusable(late) from None
            except BaseException:  # such as Ctrl-C: a reply that is still to come must not be taken for the next file's
                _end(process)
                raise
            else:
                _idle.append(process)
                if not good:
                    raise Unusable(text)
                return text, grey
            finally:
                watch.cancel()
    if not in_time:
        raise NotRead(late)
    if code in (-signal.SIGTERM, -getattr(signal, "SIGKILL", 9)):
        raise NotRead(f"{kind} whose reading was stopped from outside")
    raise Unusable(f"{kind} that crashes its decoder")


@atexit.register
def stop() -> None:
    """Ends the reading processes; the next file starts another."""
    _idle.clear()
    for process in list(_alive):
        _end(process)


def _forget() -> None:
    """A fork must not share its parent's reading processes: each would read the other's replies."""
    global _places
    _places = threading.BoundedSemaphore(CORES)
    _idle.clear()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _take() -> Process:
    """A process that waits for a file."""
    with suppress(IndexError):
        while (process := _idle.pop()).poll() is not None:
            _end(process)
        return process
    path = [str(Path(__file__).parents[2]), *(str(Path(folder).absolute()) for folder in sys.path)]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "osteo.reading.worker"],
            bufsize=0,  # nothing is left in a buffer for a fork to send twice
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | single | {"PYTHONPATH": os.pathsep.join(path)},
        )
    except OSError:
        raise NotRead("the process that reads files does not start") from None
    _alive.add(process)
    assert process.stdout
    if not process.stdout.read(1):  # a byte once it is ready: its imports do not count against the limit
        _end(process)
        raise NotRead("the process that reads files does not start")
    return process


def _end(process: Process) -> int:
    """Ends a process and returns its exit code."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        pipe.close()
    _alive.discard(process)
    return process.wait()


def _exchange(process: Process, task: bytes, content: bytes, size: int) -> tuple[bool, str, Grey]:
    """Sends a file and reads the reply, as bare bytes: nothing that a decoder may have corrupted is unpickled."""
    assert process.stdin
    for piece in (REQUEST.pack(task, len(content), size), content):
        rest = memoryview(piece)
        while rest:
            rest = rest[process.stdin.write(rest) :]
    good, height, width, length = REPLY.unpack(_receive(process, REPLY.size))
    if height * width > LARGEST_PICTURE or length > 2**16:
        raise ValueError("no reply of ours")
    text = _receive(process, length).decode()
    return good, text, np.frombuffer(_receive(process, height * width), np.uint8).reshape(height, width)


def _receive(process: Process, size: int) -> bytearray:
    assert process.stdout
    received = bytearray(size)
    rest = memoryview(received)
    while rest:
        if not (count := process.stdout.readinto(rest)):  # type: ignore[attr-defined]
            raise EOFError
        rest = rest[count:]
    return received
