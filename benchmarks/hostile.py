"""Picture files that claim, inflate or nest more than they hold, of every format, and honest ones beside them.

Each is made by a few lines here: no file is anybody's picture. All are smaller than 25 MiB.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

Make = Callable[[], bytes]
USED = "used"
ANY = "used|picture|pixels|truncated|damaged"  # honest or not: what matters is that it ends, with a reason of ours
NONE = "not a picture"
MEMORY = "more memory"
BLOCK = bytes(2**20)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, width: int, height: int, kind: str, **options: Any) -> bytes:
    """A picture of one colour: as small as a format makes it."""
    return saved(Image.new(mode, (width, height)), kind, **options)


def radiograph(height: int, width: int, depth: int) -> np.ndarray:
    """A soft gradient with the noise of a detector, so that a file is as large as a real one."""
    rng = np.random.default_rng(0)
    down, across = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)[None]
    soft = (np.sin(down) * np.cos(across) + 1) * 0.4 * (2**depth - 1)
    noise = rng.integers(0, max(2 ** (depth - 9), 2), (height, width))
    return (soft + noise).astype(np.uint8 if depth == 8 else np.uint16)


@cache
def deflated(size: int) -> bytes:
    """So many zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(BLOCK) for _ in range(size >> 20)), packer.compress(bytes(size & 0xFFFFF))]) + (
        packer.flush()
    )


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, colour: int, *extra: bytes, interlaced: int = 0, data: bytes = b""
) -> bytes:
    """A PNG of zeros, or of the data given, with further chunks before them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    pixels = data or deflated(height * (1 + (width * depth * channels + 7) // 8))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deep_png(pixels: np.ndarray, colour: int) -> bytes:
    """A PNG of sixteen bits per channel, from (H, W, C)."""
    rows = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8)
    lines = np.pad(rows, ((0, 0), (1, 0)))
    return png(pixels.shape[1], pixels.shape[0], 16, colour, data=zlib.compress(lines.tobytes(), 1))


def tiff(tags: dict[int, tuple[int, Any]], data: bytes = b"", *, order: str = "<", big: bool = False) -> bytes:
    """A TIFF of one directory: type and values by tag, the data behind it; `DATA` as a value is the data's place."""
    offset, entry = ("Q", "HHQ") if big else ("I", "HHI")
    room = 8 if big else 4
    head = (b"II" if order == "<" else b"MM") + (
        struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    )
    size = struct.calcsize(f"<{entry}") + room
    behind = len(head) + struct.calcsize("Q" if big else "H") + size * len(tags) + room
    entries, values = b"", b""
    longer: dict[int, bytes] = {}
    for tag, (kind, given) in tags.items():
        numbers = given if isinstance(given, tuple) else (given,)
        longer[tag] = struct.pack(f"{order}{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind] }", *numbers)
    start = behind + sum(len(value) for value in longer.values() if len(value) > room)
    for tag, (kind, given) in sorted(tags.items()):
        value = longer[tag]
        count = len(given) if isinstance(given, tuple) else 1
        if given == DATA:
            value = struct.pack(f"{order}{offset}", start)
        elif len(value) > room:
            value, values = struct.pack(f"{order}{offset}", behind + len(values)), values + value
        entries += struct.pack(f"{order}{entry}", tag, kind, count) + value.ljust(room, b"\0")
    return head + struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + (bytes(room) + values + data)


DATA = 0xDA7A


def grey_tiff(
    pixels: np.ndarray, *, order: str = "<", big: bool = False, photometric: int = 1, deflate: bool = False
) -> bytes:
    """A TIFF of one strip, of 8 to 64 bits or floats, from (H, W) or (H, W, C)."""
    height, width, channels = (*pixels.shape, 1)[:3]
    bits = 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if deflate:
        data = zlib.compress(data)
    tags = {
        256: (4, width), 257: (4, height), 258: (3, (bits,) * channels), 259: (3, 8 if deflate else 1),
        262: (3, photometric), 273: (4, DATA), 277: (3, channels), 278: (4, height), 279: (4, len(data)),
        339: (3, ({"u": 1, "i": 2, "f": 3}[pixels.dtype.kind],) * channels),
    }  # fmt: skip
    return tiff(tags, data, order=order, big=big)


def packed_tiff(width: int, height: int, data: bytes, **tags: Any) -> bytes:
    """A deflated TIFF whose one strip holds the data."""
    extra = {int(name[1:]): value for name, value in tags.items()}
    base = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 8), 262: (3, 1), 273: (4, DATA), 277: (3, 1)}
    return tiff(base | {278: (4, height), 279: (4, len(data))} | extra, data)


def directories(count: int) -> bytes:
    """A TIFF of many directories of one picture, the last of which is followed by the first."""
    tags = {256: (4, 8), 257: (4, 8), 258: (3, 8), 262: (3, 1), 273: (4, 8), 279: (4, 64)}
    one = tiff(tags)
    places = [8 + (len(one) - 8) * number for number in range(1, count)] + [8]
    return one[:8] + b"".join(one[8:-4] + struct.pack("<I", place) for place in places) + bytes(64)


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = flat("L", side, side, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def resized_jpeg(width: int, height: int, mode: str = "L", marker: bytes = b"\xff\xc0") -> bytes:
    """A JPEG whose header claims another size, or another coding, than its data have."""
    content = flat(mode, 64, 64, "JPEG")
    at = content.index(b"\xff\xc0")
    return content[:at] + marker + content[at + 2 : at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def resized_jp2(side: int, mode: str = "L", tile: int = 0, samples: int = 0) -> bytes:
    """A JPEG 2000 whose codestream claims another size, tile or number of channels."""
    content = bytearray(flat(mode, 64, 64, "JPEG2000", no_jp2=True))
    at = content.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", content, at + 8, side, side)
    struct.pack_into(">II", content, at + 24, tile or side, tile or side)
    if samples:
        one = bytes(content[at + 42 : at + 45])
        content[at + 40 : at + 45] = struct.pack(">H", samples) + one * samples
        struct.pack_into(">H", content, at + 4, 38 + 3 * samples)
    return bytes(content)


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    """A BMP with a grey palette where it needs one."""
    palette = b"".join(bytes([v * 255 // max(2**bits - 1, 1)] * 3 + [0]) for v in range(2**bits)) if bits <= 8 else b""
    place = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", place + len(data), 0, 0, place) + head + palette + data


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    """A GIF of 8 x 8 pixels on a screen of another size, with blocks before it."""
    one = flat("L", 8, 8, "GIF")
    return (
        one[:6]
        + struct.pack("<HH", width, height)
        + one[10 : one.index(b"\x2c")]
        + b"".join(blocks)
        + (one[one.index(b"\x2c") :])
    )


def resized_webp(width: int, height: int) -> bytes:
    """A lossless WebP whose header claims another size."""
    content = bytearray(flat("RGB", 64, 64, "WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[at : at + 4], "little") & ~0xFFFFFFF
    content[at : at + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def resized_avif(side: int) -> bytes:
    """An AVIF whose box claims another size than its frame."""
    content = bytearray(flat("RGB", 64, 64, "AVIF", speed=10))
    at = content.index(b"ispe") + 8
    struct.pack_into(">II", content, at, side, side)
    return bytes(content)


FRAMES = [Image.new("L", (64, 64), number % 256) for number in range(5000)]
EIGHT, SIXTEEN = partial(radiograph, depth=8), partial(radiograph, depth=16)
FILES: dict[str, tuple[str, Make]] = {
    # PNG
    "PNG, first data chunk of 4 GiB": ("truncated", lambda: png(8, 8, 8, 0)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(20)),
    "PNG, later chunk of 4 GiB": ("truncated", lambda: png(8, 8, 8, 0)[:-12] + b"\xff\xff\xff\xfftEXt" + bytes(20)),
    "PNG, 30000 x 30000 pixels": ("100 million", lambda: png(30000, 30000, 8, 0, data=b"x")),
    "PNG, 9999 x 9999 pixels claimed": ("truncated", lambda: png(9999, 9999, 8, 6, data=b"x")),
    "PNG, 9999 x 9999 interlaced, claimed": ("truncated", lambda: png(9999, 9999, 16, 6, data=b"x", interlaced=1)),
    "PNG, bomb of 1 bit": (ANY, lambda: png(9999, 9999, 1, 0)),
    "PNG, bomb of 8 bits": (USED, lambda: png(9999, 9999, 8, 0)),
    "PNG, bomb of RGBA": (MEMORY, lambda: png(9999, 9999, 8, 6)),
    "PNG, bomb of 16-bit RGBA": (MEMORY, lambda: png(9999, 9999, 16, 6)),
    "PNG, bomb of more rows than it claims": (ANY, lambda: png(8, 8, 8, 0, data=deflated(2**29))),
    "PNG, profile that inflates": (ANY, lambda: png(8, 8, 8, 0, chunk(b"iCCP", b"p\0\0" + deflated(2**29)))),
    "PNG, zTXt that inflates": ("damaged", lambda: png(8, 8, 8, 0, chunk(b"zTXt", b"p\0\0" + deflated(2**29)))),
    "PNG, iTXt that inflates": ("damaged", lambda: png(8, 8, 8, 0, chunk(b"iTXt", b"p\0\1\0\0\0" + deflated(2**29)))),
    "PNG, 100 texts that inflate": (
        "memory|damaged",
        lambda: png(8, 8, 8, 0, *[chunk(b"zTXt", b"p\0\0" + deflated(2**20 - 9))] * 100),
    ),
    "PNG, 200000 texts": (ANY, lambda: png(8, 8, 8, 0, *[chunk(b"tEXt", b"p\0q")] * 200_000)),
    "PNG, animation of 2 billion frames": (
        ANY,
        lambda: png(8, 8, 8, 0, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    ),
    "PNG, 90 million pixels in a row": ("on a side", lambda: png(90_000_000, 1, 1, 0)),
    "PNG, 90 million rows": ("on a side", lambda: png(1, 90_000_000, 8, 0)),
    "PNG, 16 bits, 4000 x 5000": (USED, lambda: deep_png(SIXTEEN(5000, 4000)[..., None], 0)),
    # TIFF
    "TIFF, tile of 46336 x 46336": (
        "damaged|memory",
        lambda: packed_tiff(
            8, 8, zlib.compress(bytes(64)), t322=(4, 46336), t323=(4, 46336), t324=(4, DATA), t325=(4, 9)
        ),
    ),
    "TIFF, tile of 2 billion x 1": (
        "damaged|memory|not a picture",
        lambda: packed_tiff(
            8, 8, zlib.compress(bytes(64)), t322=(4, 2**31 - 16), t323=(4, 16), t324=(4, DATA), t325=(4, 9)
        ),
    ),
    "TIFF, strip that inflates": (ANY, lambda: packed_tiff(8, 8, deflated(2**29))),
    "TIFF, rows per strip of 4 billion": (
        USED,
        lambda: packed_tiff(8, 8, zlib.compress(bytes(64)), t278=(4, 2**32 - 1)),
    ),
    "TIFF, 9999 x 9999 deflated": (ANY, lambda: packed_tiff(9999, 9999, deflated(9999**2))),
    "TIFF, 9999 x 9999 of 16 bits": (ANY, lambda: packed_tiff(9999, 9999, deflated(2 * 9999**2), t258=(3, 16))),
    "TIFF, 9999 x 9999 LZW": (ANY, lambda: flat("L", 9999, 9999, "TIFF", compression="tiff_lzw")),
    "TIFF, 9999 x 9999 fax": (ANY, lambda: flat("1", 9999, 9999, "TIFF", compression="group4")),
    "TIFF, 65535 channels": (NONE, lambda: packed_tiff(99, 99, b"x", t277=(3, 65535), t258=(3, (8,) * 65535))),
    "TIFF, a tag of 4 billion values": (
        ANY,
        lambda: grey_tiff(EIGHT(64, 64)).replace(
            struct.pack("<HHI", 258, 3, 1), struct.pack("<HHI", 258, 3, 2**32 - 1)
        ),
    ),
    "TIFF, 20000 directories": (USED, lambda: directories(20_000)),
    "TIFF, a directory that follows itself": (USED, lambda: directories(1)),
    "TIFF, big": (USED, lambda: grey_tiff(SIXTEEN(2000, 1500), big=True)),
    "TIFF, 16 bits, 4000 x 5000": (USED, lambda: grey_tiff(SIXTEEN(5000, 4000))),
    "TIFF, 32 bits, 2000 x 2500": (USED, lambda: grey_tiff(SIXTEEN(2500, 2000).astype(np.int32))),
    "TIFF, float, 2000 x 2500": (USED, lambda: grey_tiff(SIXTEEN(2500, 2000).astype(np.float32))),
    "TIFF, 64 bits": (NONE, lambda: grey_tiff(SIXTEEN(64, 64).astype(np.float64))),
    # JPEG
    "JPEG, 2000 scans of 1000 x 1000": (ANY + "|longer than", lambda: scans(2000, 1000)),
    "JPEG, 100 scans of 2000 x 2000": (USED, lambda: scans(100, 2000)),
    "JPEG, 9999 x 9999 without data": ("truncated", lambda: resized_jpeg(9999, 9999)),
    "JPEG, CMYK, 9999 x 9999 without data": ("truncated", lambda: resized_jpeg(9999, 9999, "CMYK")),
    "JPEG, 65500 x 65500": ("100 million", lambda: resized_jpeg(65500, 65500)),
    "JPEG, no height": (NONE, lambda: resized_jpeg(64, 0)),
    "JPEG, arithmetic, without data": ("truncated|arithmetic", lambda: resized_jpeg(9999, 9999, marker=b"\xff\xc9")),
    "JPEG, lossless marker": ("damaged|truncated", lambda: resized_jpeg(64, 64, marker=b"\xff\xc3")),
    "JPEG, 9999 x 9999 of one grey": (USED, lambda: flat("L", 9999, 9999, "JPEG")),
    "JPEG, CMYK, 9999 x 9999": (ANY, lambda: flat("CMYK", 9999, 9999, "JPEG")),
    "JPEG, progressive RGB, 9999 x 9999": (ANY, lambda: flat("RGB", 9999, 9999, "JPEG", progressive=True)),
    "JPEG, 60000 comments": (
        USED,
        lambda: resized_jpeg(64, 64).replace(b"\xff\xdb", b"\xff\xfe\0\x03x" * 60_000 + b"\xff\xdb", 1),
    ),
    # JPEG 2000
    "JPEG 2000, 9999 x 9999 RGBA claimed": (MEMORY + "|damaged|truncated", lambda: resized_jp2(9999, "RGBA")),
    "JPEG 2000, tiles of one pixel": ("damaged|truncated|memory", lambda: resized_jp2(9999, tile=1)),
    "JPEG 2000, 16000 channels": (NONE + "|damaged", lambda: resized_jp2(64, samples=16_000)),
    "JPEG 2000, 16 bits, 4000 x 5000": (USED, lambda: saved(Image.fromarray(SIXTEEN(5000, 4000)), "JPEG2000")),
    # BMP
    "BMP, run lengths with jumps": (ANY, lambda: bmp(9999, 9999, 8, 1, b"\0\2\xff\xff" * 300 + b"\0\1")),
    "BMP, 4-bit run lengths": (ANY, lambda: bmp(9999, 9999, 4, 2, b"\xff\0" * 300 + b"\0\1")),
    "BMP, 9999 x 9999 of 32 bits claimed": ("truncated|damaged", lambda: bmp(9999, 9999, 32, 0, bytes(400))),
    "BMP, 1 bit": (USED, lambda: bmp(64, 64, 1, 0, bytes(8 * 64))),
    "BMP, 4 bits": (USED, lambda: bmp(64, 64, 4, 0, bytes(32 * 64))),
    "BMP, 16 bits": (USED, lambda: bmp(64, 64, 16, 0, bytes(128 * 64))),
    "BMP, 32 bits, top down": (USED, lambda: bmp(64, -64, 32, 0, bytes(256 * 64))),
    # GIF
    "GIF, screen of 9999 x 9999": (ANY, lambda: gif(9999, 9999)),
    "GIF, screen of 65535 x 65535": ("100 million", lambda: gif(65535, 65535)),
    "GIF, 20000 comments": (ANY, lambda: gif(8, 8, b"\x21\xfe" + (b"\xff" + b"x" * 255) * 20_000 + b"\0")),
    "GIF, 200000 comments of one byte": (ANY, lambda: gif(8, 8, *[b"\x21\xfe\1x\0"] * 200_000)),
    "GIF, 9999 x 9999 of one grey": (ANY, lambda: flat("L", 9999, 9999, "GIF")),
    "GIF, 5000 frames": (USED, lambda: flat("L", 64, 64, "GIF", save_all=True, append_images=FRAMES)),
    # WebP and AVIF
    "WebP, 16383 x 6000 claimed": (ANY + "|" + NONE, lambda: resized_webp(16383, 6000)),
    "WebP, 12000 x 8000": (ANY, lambda: flat("RGB", 12000, 8000, "WEBP", method=0)),
    "WebP, animation of 4000 x 4000": (
        ANY,
        lambda: flat(
            "RGB", 4000, 4000, "WEBP", method=0, save_all=True, append_images=[Image.new("RGB", (4000, 4000), "red")]
        ),
    ),
    "AVIF, 9999 x 9999 claimed": (ANY + "|" + NONE, lambda: resized_avif(9999)),
    "AVIF, 8000 x 8000": (ANY, lambda: flat("RGB", 8000, 8000, "AVIF", speed=10)),
    # others, named as a picture
    "PostScript": (NONE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"),
    "PDF": (NONE, lambda: b"%PDF-1.7\n" + bytes(99)),
    "Photoshop": (NONE, lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9999, 9999, 8, 3) + bytes(99)),
    **{
        kind: (NONE, partial(flat, "L", 64, 64, kind))
        for kind in ("PCX", "PPM", "TGA", "SGI", "ICNS", "ICO", "IM", "DDS")
    },
    "XPM": (NONE, lambda: b'/* XPM */\nstatic char *x[] = {\n"9999 9999 2 1",\n'),
}
"""By name: what is to come of it, as a pattern, and how it is made."""
CLAIMS = ("claimed", "without data", "run lengths", "screen")
SLOW = frozenset(
    name
    for name in FILES
    if any(size in name for size in ("9999", "8000", "4000 x", "5000", "2000 x", "bomb", "200000", "2000 scans"))
    and not any(word in name for word in CLAIMS)
)
"""Files that take long to make or to read, beside those that only claim to be large."""


def hostile() -> Iterator[tuple[str, str, bytes]]:
    """Name, what is to come of it, and content of every file, made as they are needed."""
    for name, (outcome, make) in FILES.items():
        yield name, outcome, make()
