"""From the bytes of a file to the grey picture in it, whatever the file is."""

from importlib.util import find_spec
from pathlib import PurePosixPath

import cv2

from osteo.reading.pictures import (
    LARGEST_FILE,
    PICTURES_AND_DICOM,
    Unusable,
    decode,
    describe_error,
    header,
    is_dicom,
)
from osteo.types import Grey

PNG_PIXELS_PER_BYTE = 8 * 1032  # at most: one bit each, deflated


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file of a folder is meant to be read: by its suffix, or by the preamble of DICOM in its first bytes.

    Hospitals name files IM000001 or 1.2.840.113, so any suffix will do where there is a preamble. DICOMDIR has one
    too, but is only a table of contents.
    """
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES_AND_DICOM or (is_dicom(head) and path.name.upper() != "DICOMDIR")


def read_picture(content: bytes, size: int) -> Grey:
    """Eight-bit grey pixels (H, W), upright, bone bright.

    Common picture formats are decoded as in training. DICOM is recognised by its content; see osteo.reading.dicom.

    Args:
        content: all bytes of the file.
        size: side of the square that the picture is resized to, in pixels; a JPEG is decoded at least twice as large.

    Raises:
        Unusable: whatever the reason; nothing else is raised.
    """
    if len(content) > LARGEST_FILE:
        raise Unusable("larger than 512 MiB")
    if is_dicom(content):
        if find_spec("pydicom") is None:
            raise Unusable("DICOM needs pip install 'osteo[dicom]'")
        from osteo.reading.apart import read_apart

        return read_apart(content)
    try:
        _check_png(content)
        return decode(content, size)
    except (OSError, ValueError, RuntimeError, SyntaxError, cv2.error) as error:
        reason = describe_error(error).partition(" (")[0]  # brackets hold numbers or bytes of the file
    except Exception:  # noqa: BLE001 - what a broken file makes of Pillow's parsers: struct.error, KeyError, ...
        reason = "damaged picture"
    if content[:2] in (b"\x02\0", b"\x08\0", b"\0\x08"):  # the groups that a DICOM data set starts with
        reason = "not a picture; if it is DICOM, its header (DICM at byte 128) is missing"
    raise Unusable(reason)


def _check_png(content: bytes) -> None:
    """Refuses a PNG file that declares more pixels or a longer chunk than it holds: OpenCV would allocate them all.

    Raises:
        OSError, ValueError: the file is cut short or declares too much, or it is not a picture.
    """
    width, height, kind, _ = header(content)
    if kind != "PNG":
        return
    at = 8
    while at < len(content) and content[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(content[at : at + 4])
    if at >= len(content) or width * height > PNG_PIXELS_PER_BYTE * len(content):
        raise ValueError("cut short, or not as large as it says")
