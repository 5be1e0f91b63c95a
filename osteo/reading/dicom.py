"""DICOM to eight-bit grey, as a viewer would show it. Only the elements that describe pixels are read."""

import io
from collections.abc import Callable
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from osteo.reading.pictures import LARGEST_PICTURE, Header, Unusable, jpeg_2000, stretch
from osteo.types import Floats, Grey, Mask

T = TypeVar("T")

PALETTE = ("Red", "Green", "Blue")
PIXEL_ELEMENTS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{colour}PaletteColorLookupTable{part}" for colour in PALETTE for part in ("Descriptor", "Data")),
    *("FloatPixelData", "DoubleFloatPixelData", "PixelData"),
]
"""The elements that are read; none of them can name a patient."""
MULTI_FRAME = "multi-frame DICOM (more pixel data than one frame has): give single images"
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(content: bytes) -> Grey:
    """The one picture of a DICOM file, uint8 (H, W), bone bright, padding black.

    Stored values of 8 to 16 bits go through the modality table or slope and intercept, then through the first VOI
    table or window; without either, the darkest and the brightest value that are not padding become 0 and 255.
    MONOCHROME1 is inverted. Colour becomes luminance.

    Raises:
        Unusable: in words of our own, because pydicom's messages quote the file.
    """
    dataset = _try(_parse, content, otherwise="its elements cannot be read")
    pixels, photometric = _try(_decode, dataset, otherwise="its pixel data cannot be decoded")
    render = _render_grey if photometric in GREY else _render_colour
    return _try(render, pixels, photometric, dataset, otherwise="its table, window or rescaling makes no sense")


def read_dicom_header(content: bytes) -> Header:
    """Columns and rows, the format DICOM, and the photometric interpretation.

    Raises:
        Unusable: as `read_dicom`, as far as that shows without decoding.
    """
    dataset = _try(_parse, content, otherwise="its elements cannot be read")
    return Header(int(dataset.Columns), int(dataset.Rows), "DICOM", str(dataset.PhotometricInterpretation))


def _try(step: Callable[..., T], *arguments: Any, otherwise: str) -> T:
    """What a step returns; whatever it raises becomes a reason, without the error as its context."""
    try:
        return step(*arguments)
    except (Unusable, KeyboardInterrupt, SystemExit):
        raise
    except RecursionError:
        reason = "its elements are nested too deeply"
    except MemoryError:
        reason = "needs more memory than it is allowed"
    except BaseException:  # noqa: BLE001 - pydicom raises anything, and a decoder in Rust panics past Exception
        reason = otherwise
    raise Unusable(f"damaged DICOM: {reason}" if reason == otherwise else f"DICOM: {reason}")


class _Bounded(io.BytesIO):
    """The file as pydicom reads it, piece by piece; only to inflate it does it ask for all the rest, without limit."""

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes."""
        if size is None or size < 0:
            raise Unusable("DICOM with transfer syntax Deflated Explicit VR Little Endian, which cannot be read")
        return super().read(size)


def _parse(content: bytes) -> Any:
    """The data set, with nothing in it but what describes pixels, once it is known to be one that can be rendered."""
    from pydicom import dcmread

    dataset = dcmread(_Bounded(content), specific_tags=PIXEL_ELEMENTS)
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise Unusable("DICOM with float pixel data")
    if "PixelData" not in dataset:
        raise Unusable("DICOM without pixel data (a report, a plan, ...)")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Unusable(f"multi-frame DICOM ({frames} frames): give single images" if frames < 2**16 else MULTI_FRAME)
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if rows * columns > LARGEST_PICTURE:
        raise Unusable(f"more than 100 million pixels ({columns} x {rows})")
    allocated, stored = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    if allocated not in (8, 16) or not 1 < stored <= allocated:
        raise Unusable(f"DICOM with {stored} of {allocated} bits per pixel: 8 to 16 can be read")
    if dataset.get("HighBit", stored - 1) != stored - 1:
        raise Unusable("DICOM whose HighBit contradicts BitsStored")
    photometric, samples = dataset.get("PhotometricInterpretation"), _integer(dataset, "SamplesPerPixel")
    if photometric not in (*GREY, *COLOUR, "PALETTE COLOR") or samples != (3 if photometric in COLOUR else 1):
        raise Unusable("DICOM with colours that cannot be read")
    return dataset


def _integer(dataset: Any, name: str) -> int:
    """A positive integer of at most 16 bits; a longer one may identify a patient."""
    value = dataset.get(name)
    if not isinstance(value, int) or not 0 < value < 2**16:
        raise Unusable(f"DICOM without {name}")
    return value


def _decode(dataset: Any) -> tuple[npt.NDArray[Any], str]:
    """Stored values (H, W), or (H, W, 3) for colour, in native byte order, and the photometric interpretation."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax not in AllTransferSyntaxes:
        raise Unusable("DICOM with an unknown transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise Unusable(f"DICOM with transfer syntax {syntax.name}, for which no decoder is installed")
    if syntax.is_encapsulated:
        _check_codestream(dataset)
    elif len(dataset.PixelData) >= 2 * dataset.Rows * dataset.Columns * _bytes_per_pixel(dataset):
        raise Unusable(MULTI_FRAME)
    pixels, found = decoder.as_array(dataset, index=0, raw=True)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), str(found["photometric_interpretation"])


def _bytes_per_pixel(dataset: Any) -> int:
    return int(dataset.SamplesPerPixel * dataset.BitsAllocated) // 8


def _check_codestream(dataset: Any) -> None:
    """Compares the size and depth that a compressed picture declares with the elements, before memory is allocated."""
    from pydicom.encaps import get_frame, parse_basic_offsets

    if len(parse_basic_offsets(dataset.PixelData)) > 1:
        raise Unusable(MULTI_FRAME)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if codestream := jpeg_2000(frame):
        width, height, samples, depth = codestream
    elif frame.startswith(b"\xff\xd8"):
        at = 2
        while not (0xC0 <= frame[at + 1] <= 0xCF and frame[at + 1] not in (0xC4, 0xC8, 0xCC)) and frame[at + 1] != 0xF7:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4])
        depth, samples = frame[at + 4], frame[at + 9]
        height, width = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
    else:  # RLE declares no size
        return
    if (height, width, samples) != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise Unusable("DICOM whose compressed picture has another size than its elements say")
    if depth > dataset.BitsAllocated:
        raise Unusable("DICOM whose compressed picture is deeper than its elements say")


def _render_grey(pixels: npt.NDArray[Any], photometric: str, dataset: Any) -> Grey:
    """Grey levels are a function of the stored value, so they are computed once per value and then looked up."""
    index = pixels.view(f"u{pixels.dtype.itemsize}")
    stored = np.arange(2 ** (8 * pixels.dtype.itemsize)).astype(index.dtype).view(pixels.dtype).astype(np.float64)
    padding = _padding(stored, dataset)
    values = _rescale(stored, dataset)
    table = _window(values, dataset)
    if table is None:
        present = np.zeros(len(stored), bool)
        for row in index:
            present[row] = True
        table, present = np.zeros(len(stored), np.uint8), present & ~padding
        if present.any():
            table[present] = stretch(values[present].astype(np.float32))
    if photometric == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return _apply(table, index)


def _apply(table: Grey, index: npt.NDArray[Any]) -> Grey:
    """Looks up every pixel, row by row, since numpy widens an index to 64 bits."""
    grey = np.empty(index.shape, np.uint8)
    for target, row in zip(grey, index, strict=True):
        target[...] = table[row]
    return grey


def _padding(stored: Floats, dataset: Any) -> Mask:
    """Which stored values are padding: one value or a range, which may be written unsigned where pixels are signed."""
    if (value := dataset.get("PixelPaddingValue")) is None:
        return np.zeros(len(stored), bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = sorted(stored[int(end) % len(stored)] for end in (value, value if limit is None else limit))
    return np.asarray((stored >= first) & (stored <= last), bool)


def _rescale(stored: Floats, dataset: Any) -> Floats:
    """Maps stored values to modality values, by a table or by slope and intercept."""
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        return _look_up(stored, item.LUTDescriptor, item.LUTData, dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    values = stored * float(slope) + float(intercept)
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return values


def _window(values: Floats, dataset: Any) -> Grey | None:
    """Maps modality values to 0...255 by the first VOI table, else by the first window; None without either."""
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        windowed = _look_up(values, item.LUTDescriptor, item.LUTData, dataset)
        low, high = 0, 2 ** item.LUTDescriptor[2] - 1
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        from pydicom.pixels.processing import apply_windowing

        with np.errstate(over="ignore"):
            windowed = apply_windowing(np.concatenate([values, [-np.inf, np.inf]]), dataset)
        windowed, low, high = windowed[:-2], windowed[-2], windowed[-1]  # the ends of whatever range pydicom chose
    else:
        return None
    return np.asarray(np.round(np.clip((windowed - low) * (255.0 / (high - low)), 0, 255)), np.uint8)


def _look_up(values: Floats, descriptor: Any, data: Any, dataset: Any) -> Floats:
    """A table's entries for values; values below its range take the first entry, those above it the last.

    pydicom's own look-up wraps values round where the table's entries have fewer bits than its index.
    """
    entries, first, depth = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if not 8 <= depth <= 16:
        raise Unusable("DICOM with a table of too few or too many bits: 8 to 16 can be read")
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, "u1" if len(data) < 2 * entries else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, np.float64))[:entries]
    return np.asarray(table[np.clip(values - first, 0, entries - 1).astype(np.intp)])


def _render_colour(pixels: npt.NDArray[Any], photometric: str, dataset: Any) -> Grey:
    """Luminance; in YBR it is the first channel, as in a grey JPEG."""
    if photometric == "PALETTE COLOR":
        index = pixels.view(f"u{pixels.dtype.itemsize}")
        stored = np.arange(2 ** (8 * pixels.dtype.itemsize)).astype(index.dtype).view(pixels.dtype).astype(np.float64)
        channels = [_palette(stored, colour, dataset) for colour in PALETTE]
        return _apply(_luminance(np.stack(channels, axis=-1)[None])[0], index)
    eight = np.arange(2 ** (8 * pixels.dtype.itemsize)) * (255.0 / (2**dataset.BitsStored - 1))
    if photometric.startswith("YBR"):
        pixels = pixels[..., 0]
    scaled = _apply(np.round(np.clip(eight, 0, 255)).astype(np.uint8), pixels)
    return scaled if scaled.ndim == 2 else _luminance(scaled)


def _palette(stored: Floats, colour: str, dataset: Any) -> Grey:
    descriptor, data = (dataset[f"{colour}PaletteColorLookupTable{part}"].value for part in ("Descriptor", "Data"))
    wide = len(data) >= 2 * (descriptor[0] or 2**16)
    return np.round(_look_up(stored, descriptor, data, dataset) / (257 if wide else 1)).astype(np.uint8)


def _luminance(rgb: Grey) -> Grey:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), np.uint8)
