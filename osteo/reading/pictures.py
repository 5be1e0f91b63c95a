"""From the bytes of a picture file to eight-bit grey."""

import io
import warnings

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from osteo.types import Grey

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
DICOM = {".dcm", ".dicom"}
PICTURES_AND_DICOM = PICTURES | DICOM
LARGEST_PICTURE = 100_000_000  # pixels; the largest knee in the two archives has 5 million
LARGEST_FILE = 512 * 2**20  # bytes; a radiograph of 50 million pixels at 16 bits has a fifth of this
REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""OpenCV's flag by how many times smaller than the file a JPEG is decoded."""


class Unusable(ValueError):  # noqa: N818 - a property of the file, not of this program
    """A file holds no picture that can be used; says why in a few words, without a path or anything about a patient."""


class NotRead(Unusable, OSError):  # noqa: N818
    """A file was not read for a reason that lies outside it: another try may succeed."""


def header(content: bytes) -> tuple[int, int, str, str]:
    """Width and height in pixels, format and mode, from a picture's first bytes.

    Raises:
        ValueError: the picture has more than 100 million pixels.
        OSError: this is not a picture.
    """
    if not content:
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
        try:
            with Image.open(io.BytesIO(content)) as image:
                (width, height), kind, mode = image.size, image.format or "", image.mode
        except Image.DecompressionBombError:
            raise ValueError("more than 100 million pixels") from None
    if width * height > LARGEST_PICTURE:
        raise ValueError(f"more than 100 million pixels ({width} x {height})")
    return width, height, kind, mode


def decode(content: bytes, size: int = 0) -> Grey:
    """Decodes a picture file to eight-bit grey, (H, W), upright.

    Grey and RGB JPEG and PNG files are decoded by OpenCV, a JPEG at a half, a quarter or an eighth where that
    still leaves twice `size` pixels on its shorter side. Everything rarer is decoded by Pillow: palettes, transparency
    (over black), CMYK, one bit; 16-bit and float pictures are stretched from their darkest to their brightest pixel,
    so that they keep their contrast. Of an animation, the first frame is taken.

    Raises:
        OSError, ValueError: the file is no picture, is cut short or is too large.
    """
    width, height, kind, mode = header(content)
    end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind)
    if end and mode in ("L", "RGB") and end in content[-65536:]:  # OpenCV silently fills what is cut off with grey
        factor = 1
        if kind == "JPEG" and size:
            factor = max((f for f in REDUCED if min(width, height) // f >= 2 * size), default=1)
        grey = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[factor])
        if grey is not None:
            return np.asarray(grey, np.uint8)
    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            return stretch(np.asarray(image, np.float32))
        if image.mode in ("P", "PA", "LA", "RGBA", "RGBa", "La"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.asarray(image.convert("RGB").convert("L"), np.uint8)


def stretch(values: npt.NDArray[np.float32]) -> Grey:
    """Maps the darkest pixel to 0 and the brightest to 255.

    Raises:
        ValueError: a pixel is not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are not finite")
    return np.round((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts so, with 132 bytes or more, has the preamble of DICOM."""
    return head[128:132] == b"DICM"


def describe_error(error: BaseException) -> str:
    """A reason in a few words, without a path."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, PermissionError):
        return "no permission to read"
    return str(error).split(":")[0].splitlines()[0][:120] or type(error).__name__
