"""Whether a picture file holds all of its picture: decoders fill what is missing with grey, and say so only aside."""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

BLOCK = 2**20  # bytes inflated at once, and then dropped
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel by PNG's type of colour."""
PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""First row, every which row, first column and every which column of the passes of an interlaced PNG, Adam7."""
FILLED = re.compile(rb"premature end of data segment|found marker 0xd9 instead of RST")
"""What libjpeg says where a picture ended before its last row; it has filled the rest."""
MOST_SAID = 2**14  # bytes that are looked at


def jpeg_has_end(content: bytes) -> bool:
    """Whether a JPEG has pixels and, behind their beginning, the marker of its end: a thumbnail in it has one too."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xDA:  # pixels
            return content.rfind(b"\xff\xd9", at) > 0
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return False


def png_has_rows(content: bytes) -> bool:
    """Whether the pixels of a PNG, once inflated, are as many as it has rows for; bounded in memory.

    Layout as in the PNG specification (third edition, W3C 2025), sections 8 and 11.2.

    Raises:
        zlib.error: its pixels are damaged.
    """
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    bits = content[24] * CHANNELS[content[25]]
    passes = PASSES if content[28] else ((0, 1, 0, 1),)
    needed = 0
    for top, down, left, across in passes:
        rows, columns = len(range(top, height, down)), len(range(left, width, across))
        needed += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    inflater, found, at = zlib.decompressobj(), 0, 8
    while at < len(content) and found < needed:
        size = int.from_bytes(content[at : at + 4])
        data = content[at + 8 : at + 8 + size] if content[at + 4 : at + 8] == b"IDAT" else b""
        while data and found < needed and not inflater.eof:
            found += len(inflater.decompress(data, BLOCK))
            data = inflater.unconsumed_tail
        at += 12 + size
    return found >= needed


@contextmanager
def complaints() -> Iterator[list[bytes]]:
    """What C libraries print to standard error meanwhile, as one entry at its end; nothing of it is shown."""
    said: list[bytes] = []
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)  # what does not fit is lost
    os.dup2(writing, 2)
    try:
        yield said
        try:
            said.append(os.read(reading, MOST_SAID))
        except BlockingIOError:
            said.append(b"")
    finally:
        os.dup2(kept, 2)
        for end in (kept, reading, writing):
            os.close(end)
