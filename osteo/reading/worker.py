"""The process in which files are read: silent, bounded in time and memory, and free to crash.

Parsers and decoders meet untrusted files here; some allocate what a header claims, some hang on a few wrong bytes. What
they print or log may quote a patient's name, so it is discarded: pixels come back, or a reason in words of our own.
"""

import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import AvifImagePlugin, Jpeg2KImagePlugin, WebPImagePlugin  # noqa: F401 - before any limit

from osteo.reading.pictures import colour, decode, describe_damage, header, is_dicom
from osteo.types import Grey

SECONDS = 2.0  # of CPU time for any file
SECONDS_PER_BYTE = 5e-7  # in addition: a lossless JPEG 2000 takes less than half of this
MOST_SECONDS = 10.0
MEMORY = 2**29  # bytes beyond what the libraries and the file itself take
MOST_KEPT = 2**28  # bytes that libraries may fail to give back before another process takes over
REQUEST = struct.Struct(">cQI")  # what to read, bytes of the file, pixels
REPLY = struct.Struct(">?IIQ")  # whether it could be read, height and width of the pixels, bytes of the text
HEADER, PICTURE, COLOUR = b"h", b"p", b"c"
BARE_DICOM = (b"\x02\0", b"\x08\0", b"\0\x08")  # the groups that a DICOM data set starts with


def seconds_for(size: int) -> float:
    """How much CPU time a file of so many bytes may take: an honest one needs little per byte, a bomb much."""
    return min(SECONDS + SECONDS_PER_BYTE * size, MOST_SECONDS)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Reads one file after another until the requests end; a byte says that it is ready."""
    replies.write(b"!")
    replies.flush()
    used = _address_space()
    while _address_space() - used < MOST_KEPT and len(head := requests.read(REQUEST.size)) == REQUEST.size:
        task, length, size = REQUEST.unpack(head)
        content = requests.read(length)
        if is_dicom(content):
            import pydicom.pixels  # noqa: F401 - before any limit
        _limit(seconds_for(length), _address_space() + MEMORY)
        text, grey = "", None
        try:
            text, grey = read(task, content, size)
            good = True
        except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything: struct.error, KeyError, ...
            good, text = False, describe_damage(error)
            if text == "not a picture" and content[:2] in BARE_DICOM:
                text += "; if it is DICOM, its header (DICM at byte 128) is missing"
        _limit(0, None)
        height, width = (0, 0) if grey is None else grey.shape
        encoded = text.encode()
        replies.write(REPLY.pack(good, height, width, len(encoded)) + encoded)
        if grey is not None:
            replies.write(np.ascontiguousarray(grey).data)
        replies.flush()


def read(task: bytes, content: bytes, size: int) -> tuple[str, Grey | None]:
    """What was asked for: JSON, or the pixels of the picture at `size`."""
    if is_dicom(content):
        from osteo.reading.dicom import read_dicom, read_dicom_header

        if task == PICTURE:
            return "", read_dicom(content)
        return json.dumps(read_dicom_header(content) if task == HEADER else 0.0), None
    if task == PICTURE:
        return "", decode(content, size)
    return json.dumps(header(content) if task == HEADER else colour(content)), None


def _limit(seconds: float, address_space: int | None) -> None:
    """Has the system end this process after so much CPU time, whatever library it is in, and refuse more memory."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = hard if address_space is None else address_space
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Serves the process that started this one, over standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks: its files are not to blame
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with os.fdopen(os.dup(1), "wb") as replies, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # a library that prints must not garble the replies
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
