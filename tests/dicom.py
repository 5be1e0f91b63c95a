"""DICOM files made for tests; FILES are those that pydicom ships."""

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
RNG = np.random.default_rng(0)


def picture(bits: int, *, signed: bool = False, shape: tuple[int, int] = (20, 31)) -> np.ndarray:
    """Stored values over the whole range of their bits, both ends among them."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = RNG.integers(low, high, shape)
    values.flat[:2] = low, high - 1
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def dataset(pixels: np.ndarray, bits: int, syntax: UID = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    found.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    found.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() + bytes(pixels.nbytes % 2)
    found["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def written(found: Dataset) -> bytes:
    buffer = io.BytesIO()
    with pydicom.config.disable_value_validation():
        pydicom.dcmwrite(buffer, found, enforce_file_format=True)
    return buffer.getvalue()


def file(pixels: np.ndarray, bits: int, syntax: UID = ExplicitVRLittleEndian, **elements: object) -> bytes:
    return written(dataset(pixels, bits, syntax, **elements))


def table(first: int, depth: int, entries: np.ndarray) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def compressed(frame: bytes, syntax: UID, pixels: np.ndarray, **elements: object) -> bytes:
    found = dataset(pixels, 8, syntax, **elements)
    found.PixelData = encapsulate([frame])
    found["PixelData"].is_undefined_length = True
    return written(found)
