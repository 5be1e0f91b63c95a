"""Radiographs of more than eight bits, and those whose white is zero, look like the eight-bit picture they were."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile import DATA, deep_png, grey_tiff, packed_tiff, radiograph, saved, tiff
from osteo.reading.pictures import Unusable
from osteo.reading.reader import read_header, read_picture

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
GREY = radiograph(90, 60, 8)
TWELVE = GREY.astype(np.uint16) * 16 + 5  # of 16 bits, 12 are used
OPAQUE = np.full_like(TWELVE, 2**16 - 1)


def stack(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, axis=-1)


def agree(content: bytes, expected: np.ndarray = GREY) -> None:
    """The pictures correlate, and the one read fills the range, so that its contrast is kept."""
    grey = read_picture(content)
    assert grey.shape == expected.shape
    assert np.corrcoef(grey.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.ptp(grey) >= np.ptp(expected) - 2


def bits(values: np.ndarray, depth: int) -> bytes:
    """Rows of values that have fewer than eight bits."""
    packed = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(packed.reshape(len(values), -1), axis=1).tobytes()


WIDE = {
    "png grey": deep_png(stack(TWELVE), 0),
    "png grey, alpha": deep_png(stack(TWELVE, OPAQUE), 4),
    "png rgb": deep_png(stack(TWELVE, TWELVE, TWELVE), 2),
    "png rgba": deep_png(stack(TWELVE, TWELVE, TWELVE, OPAQUE), 6),
    "tiff grey": grey_tiff(TWELVE),
    "tiff grey, big-endian": grey_tiff(TWELVE, order=">"),
    "tiff rgb": grey_tiff(stack(TWELVE, TWELVE, TWELVE), photometric=2),
    "tiff rgb, big-endian": grey_tiff(stack(TWELVE, TWELVE, TWELVE), photometric=2, order=">"),
    "tiff rgba": grey_tiff(stack(TWELVE, TWELVE, TWELVE, OPAQUE), photometric=2),
    "tiff signed": grey_tiff(TWELVE.astype(np.int16) - 2000),
    "tiff 32 bits": grey_tiff(TWELVE.astype(np.int32)),
    "tiff float": grey_tiff(TWELVE.astype(np.float32) / 1e4),
    "tiff big": grey_tiff(TWELVE, big=True),
    "jpeg 2000 grey": saved(Image.fromarray(TWELVE), "JPEG2000"),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_than_eight_bits_keep_their_contrast(name: str) -> None:
    agree(WIDE[name])


def test_colours_of_sixteen_bits_become_luminance_and_transparency_black() -> None:
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    luminance = np.asarray(Image.fromarray(blobs).convert("L"))
    agree(deep_png(blobs.astype(np.uint16) * 257, 2), luminance)
    agree(grey_tiff(blobs.astype(np.uint16) * 257, photometric=2), luminance)
    faded = TWELVE.copy()
    faded[:30] = 0
    alpha = np.where(np.arange(90)[:, None] < 30, 0, OPAQUE)
    for content in (deep_png(stack(TWELVE, alpha), 4), deep_png(stack(TWELVE, TWELVE, TWELVE, alpha), 6)):
        agree(content, (faded // 16).astype(np.uint8))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_white_is_zero_comes_out_bright(kind: type, order: str) -> None:
    values = GREY if kind == np.uint8 else TWELVE
    agree(grey_tiff((values.max() - values).astype(kind), order=order, photometric=0))
    agree(grey_tiff(values.astype(kind), order=order, photometric=1))


FULL_RANGE = GREY.astype(np.int64) * 255 // GREY.max() - 128
KINDS = {
    "int8": FULL_RANGE.astype(np.int8),
    "int16": (FULL_RANGE * 200).astype(np.int16),
    "int32": (FULL_RANGE * 2**24).astype(np.int32),
    "uint16": ((FULL_RANGE + 128) * 257).astype(np.uint16),
    "uint32": ((FULL_RANGE + 128) * 2**24).astype(np.uint32),
    "float32": (FULL_RANGE / 7).astype(np.float32),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_type_and_order_are_read_as_they_are_or_set_aside(kind: str, order: str) -> None:
    for photometric in (0, 1):
        values = KINDS[kind]
        if not photometric:
            values = (values.max().item() - values.astype(object) + values.min().item()).astype(values.dtype)
        for deflate in (False, True):
            content = grey_tiff(values, order=order, photometric=photometric, deflate=deflate)
            if kind == "int8" and not photometric:
                with pytest.raises(Unusable, match="not a picture"):
                    read_picture(content)
            else:
                agree(content)


def test_white_is_zero_of_few_bits_and_compressed() -> None:
    for depth in (1, 2, 4):
        few = GREY >> (8 - depth)
        tags = {"t258": (3, depth), "t262": (3, 0)}
        agree(packed_tiff(60, 90, zlib.compress(bits(few.max() - few, depth)), **tags), few * (255 // (2**depth - 1)))
    deep = zlib.compress((TWELVE.max() - TWELVE).tobytes())
    agree(packed_tiff(60, 90, deep, t258=(3, 16), t262=(3, 0)))
    fax = Image.fromarray(GREY > 99)
    agree(saved(fax, "TIFF", compression="group4"), np.asarray(fax.convert("L")))


def test_a_turned_picture_of_sixteen_bits_comes_upright() -> None:
    upside_down = np.ascontiguousarray(stack(TWELVE, TWELVE, TWELVE)[::-1, ::-1])
    tags = {256: (4, 60), 257: (4, 90), 258: (3, (16,) * 3), 259: (3, 1), 262: (3, 2), 273: (4, DATA), 274: (3, 3)}
    agree(tiff(tags | {277: (3, 3), 278: (4, 90), 279: (4, upside_down.nbytes)}, upside_down.tobytes()))


def test_planes_of_sixteen_bits_are_set_aside_rather_than_read_as_noise() -> None:
    size = TWELVE.nbytes
    tags = {256: (4, 60), 257: (4, 90), 258: (3, (16,) * 3), 259: (3, 1), 262: (3, 2), 277: (3, 3), 278: (4, 90)}
    tags |= {279: (4, (size,) * 3), 284: (3, 2)}
    start = len(tiff(tags | {273: (4, (0,) * 3)}))
    planes = tiff(tags | {273: (4, (start, start + size, start + 2 * size))}, TWELVE.tobytes() * 3)
    with pytest.raises(Unusable, match="stored in a way that cannot be read"):
        read_picture(planes)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
@pytest.mark.parametrize("name", ["white_is_zero_16.tif", "rgb16_of_12_bits.png"])
def test_the_cases_look_like_their_reference(name: str) -> None:
    agree((CASES / name).read_bytes(), read_picture((CASES / "reference.png").read_bytes()))


def test_a_header_names_size_format_and_mode() -> None:
    assert read_header(WIDE["tiff grey"]) == (60, 90, "TIFF", "I;16")
    assert read_header(WIDE["png rgb"]) == (60, 90, "PNG", "RGB")
