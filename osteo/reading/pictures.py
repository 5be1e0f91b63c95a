"""From the bytes of a picture file to eight-bit grey."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from osteo.reading.missing import FILLED, complaints, jpeg_has_end, png_has_rows
from osteo.types import Grey

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
DICOM = {".dcm", ".dicom"}
PICTURES_AND_DICOM = PICTURES | DICOM
LARGEST_PICTURE = 100_000_000  # pixels; the largest knee in the two archives has 5 million
LONGEST_SIDE = 65_535  # pixels; more than JPEG can have
PIXELS_PER_BYTE = {"PNG": 8 * 1032, "JPEG": 8 * 64}  # at most: one bit each, deflated; one bit for a block of 8 x 8
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF")
"""What Pillow may open, whatever else it could."""
COLOUR = ("LA", "RGB", "RGBA", "RGBX", "RGBa")
"""Modes with several channels, in the order that OpenCV takes them to have."""
ORIENTATION = 0x0112  # the tag that says how a picture is to be turned
NOT_READ = "more than eight bits per channel, stored in a way that cannot be read"
TRUNCATED = "truncated, or not as large as it says"
MOST_PAGES = 16  # of a TIFF that are looked at for one that is no thumbnail
LARGEST_FILE = 512 * 2**20  # bytes; a radiograph of 50 million pixels at 16 bits has a fifth of this
REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""OpenCV's flag by how many times smaller than the file a JPEG is decoded."""

TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, 1, (1,), 1, (32,), ()] = ("I", "I;32B")  # only little-endian is known
# white-is-zero of more than eight bits, wherever Pillow opens black-is-zero: it lacks some
TiffImagePlugin.OPEN_INFO.update(
    {
        (layout[0], 0, *layout[2:]): modes
        for layout, modes in list(TiffImagePlugin.OPEN_INFO.items())
        if layout[1] == 1 and modes[0][0] in "IF"
    }
)
NATIVE = re.compile(r"^([IF];\d+)B(S|F|)$")
"""Pillow's names for big-endian numbers, in which an N would stand for this machine's order."""
NUMBERS = {("I", 1, 32): np.uint32, ("L", 2, 8): np.int8}
"""Numbers of TIFF that Pillow takes for others, by its mode, whether they are unsigned (1) or signed (2), and bits."""


class Unusable(ValueError):  # noqa: N818 - a property of the file, not of this program
    """A file holds no picture that can be used; says why in a few words, without a path or anything about a patient."""


class NotRead(Unusable, OSError):  # noqa: N818
    """A file was not read for a reason that lies outside it: another try may succeed."""


class Header(NamedTuple):
    """What a picture's first bytes say of it."""

    width: int
    """pixels, before any orientation tag"""
    height: int
    """pixels"""
    kind: str
    """PNG, JPEG, ... as Pillow names formats, or DICOM"""
    mode: str
    """L, RGB, I;16, ... as Pillow names them; of DICOM, the photometric interpretation"""


def header(content: bytes) -> Header:
    """The size, format and mode of a picture; not bounded in memory or time, see osteo.reading.reader.

    Raises:
        Unusable: the picture has more than 100 million pixels, or a side is too long.
        OSError, ...: this is not a picture, or its header is damaged.
    """
    with _opened(content) as image:
        return _header_of(image, content)


def decode(content: bytes, size: int = 0) -> Grey:
    """Decodes a picture file to eight-bit grey, (H, W), upright; not bounded, see osteo.reading.reader.

    Grey and RGB JPEG and PNG files are decoded by OpenCV, a JPEG at a half, a quarter or an eighth where that
    still leaves twice `size` pixels on its shorter side. Everything rarer is decoded by Pillow: palettes, transparency
    (over black), CMYK, one bit. Of an animation, the first frame is taken. More than eight bits, and floats, are
    stretched from the darkest to the brightest pixel, so that they keep their contrast; white is not zero but bright.

    Raises:
        Unusable: the file is too large, or claims more than it holds.
        OSError, ValueError, ...: the file is no picture, is cut short or damaged.
    """
    with _opened(content) as image:
        width, height, kind, mode = _header_of(image, content)
        deep = _depth(image, content) > 8
        if kind == "JPEG" and jpeg_has_end(content):
            factor = 8
            if mode in ("L", "RGB"):
                factor = max((f for f in REDUCED if size and min(width, height) // f >= 2 * size), default=1)
            with complaints() as said:
                grey = _decode_plain(content, REDUCED[factor])
            if FILLED.search(said[0]):
                raise Unusable(TRUNCATED)
            if grey is not None and mode in ("L", "RGB"):
                return grey
        if kind == "PNG":
            grey = None if deep or mode not in ("L", "RGB") else _decode_plain(content)
            if grey is not None:
                return grey
            if not png_has_rows(content):
                raise Unusable(TRUNCATED)
        if deep and mode in COLOUR:
            if kind == "TIFF" and (image.tell() or image.tag_v2.get(284) == 2):  # type: ignore[attr-defined]
                raise Unusable(NOT_READ)  # OpenCV reads the first page, and makes noise of planes
            grey = _decode_deep(content, alpha=mode in ("LA", "RGBA"))
            return grey if kind == "TIFF" else _upright(grey, image)  # of TIFF, OpenCV has turned it
        kept = _kept_as(image)
        white_is_zero = kind == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
        ImageOps.exif_transpose(image, in_place=True)
        if kept or image.mode.startswith(("I", "F")):
            values = np.asarray(image)
            grey = stretch(values.view(kept) if kept else values)
            return 255 - grey if white_is_zero else grey  # Pillow itself inverts what has eight bits or fewer
        if image.mode in ("P", "PA", "LA", "RGBA", "RGBa", "La"):
            with_alpha = image.convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), with_alpha)
            return np.asarray(flat.convert("RGB").convert("L"), np.uint8)
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"), np.uint8)
        return np.asarray(image.convert("RGB").convert("L"), np.uint8)


def _decode_plain(content: bytes, flag: int = cv2.IMREAD_GRAYSCALE) -> Grey | None:
    grey = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    return None if grey is None else np.asarray(grey, np.uint8)


def colour(content: bytes) -> float:
    """The mean difference between the channels of a picture, in grey levels; 0 where OpenCV does not read it."""
    with _opened(content) as image:
        found = _header_of(image, content)
    reduced = cv2.IMREAD_REDUCED_COLOR_8 if found.kind == "JPEG" else cv2.IMREAD_COLOR
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), reduced)
    if picture is None:
        return 0.0
    small = (picture if found.kind == "JPEG" else picture[::4, ::4]).astype(np.int16)
    return float((small.max(axis=2) - small.min(axis=2)).mean())


def is_blank(grey: Grey) -> bool:
    """Whether a picture (H, W) shows nothing: a standard deviation below 4 of 255 once its grain is averaged away."""
    return float(cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).std()) < 4.0


def stretch(values: npt.NDArray[Any]) -> Grey:
    """Maps the darkest value to 0 and the brightest to 255; real numbers of any type and shape.

    Raises:
        Unusable: a value is not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise Unusable("pixels that are not finite")
    scale = 255.0 / max(high - low, 1e-12)
    grey = np.empty(values.shape, np.uint8)
    for target, row in zip(np.atleast_2d(grey), np.atleast_2d(values), strict=True):  # so that no large copy is made
        target[...] = np.round((row.astype(np.float32) - low) * scale)
    return grey


@contextmanager
def _opened(content: bytes) -> Iterator[ImageFile]:
    """The picture as Pillow opens it, in a format that is read and no other: of some, it starts another program."""
    if not content:
        raise Unusable("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, for which there are limits here, and of metadata
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise Unusable("more than 100 million pixels") from None
        with image:
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _skip_thumbnails(image)
            yield image


def _skip_thumbnails(image: TiffImagePlugin.TiffImageFile) -> None:
    """Goes to the first page of a TIFF that is not a smaller form of another, as NewSubfileType says; else stays."""
    for page in range(MOST_PAGES):
        try:
            image.seek(page)
        except EOFError:
            break
        if not image.tag_v2.get(254, 0) & 1:
            return
    image.seek(0)


def _header_of(image: ImageFile, content: bytes) -> Header:
    """What an opened picture says of itself, unless it claims more than it may or holds: that would be allocated."""
    width, height = image.size
    if width * height > LARGEST_PICTURE:
        raise Unusable(f"more than 100 million pixels ({width} x {height})")
    if max(width, height) > LONGEST_SIDE:
        raise Unusable(f"more than {LONGEST_SIDE} pixels on a side ({width} x {height})")
    kind = {"MPO": "JPEG"}.get(image.format or "", image.format or "")  # several JPEG, of which the first is read
    most = PIXELS_PER_BYTE.get(kind)
    if (most and width * height > most * len(content)) or (kind == "PNG" and not _has_all_chunks(content)):
        raise Unusable(TRUNCATED)
    return Header(width, height, kind, image.mode)


def _has_all_chunks(content: bytes) -> bool:
    """Whether the chunks of a PNG file lead to its end: OpenCV would allocate as much as one claims to hold."""
    at = 8
    while at < len(content) and content[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(content[at : at + 4])
    return at < len(content)


def _depth(image: ImageFile, content: bytes) -> int:
    """Bits per channel, of the formats that can have more than eight in several channels."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]
    if image.format == "JPEG2000" and (codestream := jpeg_2000(content)):
        return codestream.depth
    return 8


def _kept_as(image: ImageFile) -> npt.DTypeLike | None:
    """The type of a TIFF's numbers where Pillow takes them for another; and has Pillow read them in the right order.

    libtiff hands out numbers in the order of this machine, which Pillow overlooks for some that are big-endian.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    for at, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            image.tile[at] = tile._replace(args=(NATIVE.sub(r"\1N\2", tile.args[0]), *tile.args[1:]))
    sample, depth = (image.tag_v2.get(tag, (1,)) for tag in (339, 258))
    return NUMBERS.get((image.mode, sample[0], depth[0]))


def _decode_deep(content: bytes, *, alpha: bool) -> Grey:
    """Grey of a picture with several channels of more than eight bits, of which Pillow would drop all but eight."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise Unusable(NOT_READ)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY if pixels.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)
    if alpha and pixels.shape[2] == 4:
        for row, opacity in zip(grey, pixels[..., 3], strict=True):
            row[...] = row * (opacity / np.float32(2**16 - 1))
    return stretch(grey)


def _upright(grey: Grey, image: ImageFile) -> Grey:
    """Turns pixels as the picture's orientation tag says."""
    turned = Image.fromarray(grey)
    turned.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return np.asarray(ImageOps.exif_transpose(turned), np.uint8)


class Codestream(NamedTuple):
    """What the first marker of JPEG 2000 declares."""

    width: int
    height: int
    samples: int
    """channels"""
    depth: int
    """bits per channel"""


def jpeg_2000(content: bytes) -> Codestream | None:
    """The declaration of JPEG 2000, bare or in a box (markers SOC and SIZ); None where there is none near the start."""
    start = content.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(content) < start + 43:
        return None
    right, bottom, left, top = (int.from_bytes(content[start + at : start + at + 4]) for at in (8, 12, 16, 20))
    samples, depth = int.from_bytes(content[start + 40 : start + 42]), (content[start + 42] & 127) + 1
    return Codestream(right - left, bottom - top, samples, depth)


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts so, with 132 bytes or more, has the preamble of DICOM."""
    return head[128:132] == b"DICM"


def describe_error(error: BaseException) -> str:
    """A reason in a few words, without a path."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, PermissionError):
        return "no permission to read"
    return str(error).split(":")[0].splitlines()[0][:120] or type(error).__name__


def describe_damage(error: BaseException) -> str:
    """Why a picture could not be decoded, in words of our own: those of a library may quote the file."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    message = str(error).lower()
    if isinstance(error, MemoryError) or "memory" in message:
        return "a picture that needs more memory than it is allowed"
    if "truncated" in message:
        return "truncated picture"
    return "damaged picture: its data cannot be decoded"
