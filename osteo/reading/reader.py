"""From the bytes of a file to the grey picture in it, whatever the file is."""

import json
from importlib.util import find_spec
from pathlib import PurePosixPath

from osteo.reading.apart import ask
from osteo.reading.pictures import LARGEST_FILE, PICTURES_AND_DICOM, Header, Unusable, is_dicom
from osteo.reading.worker import COLOUR, HEADER, PICTURE
from osteo.types import Grey


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file of a folder is meant to be read: by its suffix, or by the preamble of DICOM in its first bytes.

    Hospitals name files IM000001 or 1.2.840.113, so any suffix will do where there is a preamble. DICOMDIR has one
    too, but is only a table of contents.
    """
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES_AND_DICOM or (is_dicom(head) and path.name.upper() != "DICOMDIR")


def read_picture(content: bytes, size: int = 0) -> Grey:
    """Eight-bit grey pixels (H, W), upright, bone bright, read in a process of bounded memory and time.

    Common picture formats are decoded as osteo.reading.pictures describes. DICOM is recognised by its content; see
    osteo.reading.dicom.

    Args:
        content: all bytes of the file.
        size: side of the square that the picture is resized to, in pixels; a JPEG is decoded at least twice as large.
            0 decodes all pixels.

    Raises:
        Unusable: whatever the reason; nothing else is raised.
        NotRead: an Unusable whose reason lies outside the file.
    """
    return _ask(PICTURE, content, size)[1]


def read_header(content: bytes) -> Header:
    """The size, format and mode of a picture, of DICOM too, bounded as `read_picture`.

    Raises:
        Unusable: whatever the reason; nothing else is raised.
    """
    return Header(*json.loads(_ask(HEADER, content)[0]))


def read_colour(content: bytes) -> float:
    """The mean difference between a picture's channels, in grey levels; 0 of DICOM.

    Raises:
        Unusable: whatever the reason; nothing else is raised.
    """
    return float(json.loads(_ask(COLOUR, content)[0]))


def _ask(task: bytes, content: bytes, size: int = 0) -> tuple[str, Grey]:
    if len(content) > LARGEST_FILE:
        raise Unusable("larger than 512 MiB")
    if is_dicom(content) and find_spec("pydicom") is None:
        raise Unusable("DICOM needs pip install 'osteo[dicom]'")
    return ask(task, content, size)
