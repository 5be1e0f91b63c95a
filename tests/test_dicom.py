"""What hospitals have: a DICOM file becomes the pixels that a viewer shows."""

import io
import os
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")

from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from osteo.data.store import Grey
from osteo.reading import apart, worker
from osteo.reading.pictures import PICTURES_AND_DICOM, NotRead, Unusable, decode
from osteo.reading.reader import looks_like_picture, read_picture
from tests.dicom import FILES, RNG, compressed, dataset, file, picture, saved, table, written


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.round(np.clip((values.astype(float) - low) / (float(high) - float(low)), 0, 1) * 255).astype(np.uint8)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """C.11.2.1.2.1 of the standard's part 3, a value at a time."""

    def one(x: float) -> float:
        if x <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if x > center - 0.5 + (width - 1) / 2:
            return 255.0
        return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255

    return np.round(np.vectorize(one)(values.astype(float))).astype(np.uint8)


def reason(content: bytes) -> str:
    with pytest.raises(Unusable) as caught:
        read_picture(content, 64)
    return str(caught.value)


def same(content: bytes, expected: np.ndarray) -> None:
    grey = read_picture(content, 64)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_without_a_window_the_values_present_fill_the_range(bits: int, signed: bool) -> None:
    pixels = picture(bits, signed=signed)
    same(file(pixels, bits), scaled(pixels, pixels.min(), pixels.max()))
    narrow = (pixels // 2).astype(pixels.dtype)
    same(file(narrow, bits), scaled(narrow, narrow.min(), narrow.max()))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_uncompressed_syntax_gives_the_same_pixels(syntax: UID) -> None:
    for bits in (8, 12):
        pixels = picture(bits)
        same(file(pixels, bits, syntax), scaled(pixels, 0, 2**bits - 1))


def test_monochrome1_is_inverted_so_that_bone_is_bright() -> None:
    pixels = picture(12)
    same(file(pixels, 12, PhotometricInterpretation="MONOCHROME1"), 255 - scaled(pixels, 0, 4095))
    windowed = {"WindowCenter": 1000, "WindowWidth": 500}
    content = file(pixels, 12, PhotometricInterpretation="MONOCHROME1", **windowed)
    same(content, 255 - linear(pixels, 1000, 500))


@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1000.5, 300), (-20, 101), (100, 1)])
def test_a_window_is_the_standards(center: float, width: float) -> None:
    for pixels in (picture(12), picture(12, signed=True)):
        same(file(pixels, 12, WindowCenter=center, WindowWidth=width), linear(pixels, center, width))


def test_of_several_windows_the_first_counts() -> None:
    pixels = picture(12)
    same(file(pixels, 12, WindowCenter=[900, 50], WindowWidth=[700, 10]), linear(pixels, 900, 700))


def test_linear_exact_and_sigmoid_windows() -> None:
    pixels, window = picture(12), {"WindowCenter": 2000, "WindowWidth": 800}
    same(file(pixels, 12, VOILUTFunction="LINEAR_EXACT", **window), scaled(pixels, 1600, 2400))
    sigmoid = np.round(255 / (1 + np.exp(-4 * (pixels.astype(float) - 2000) / 800))).astype(np.uint8)
    same(file(pixels, 12, VOILUTFunction="SIGMOID", **window), sigmoid)


@pytest.mark.parametrize("slope", [2.5, -0.5])
def test_a_window_looks_at_rescaled_values(slope: float) -> None:
    pixels = picture(12)
    values = pixels * slope - 1024
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -1024}
    same(file(pixels, 12, **rescale), scaled(values, values.min(), values.max()))
    same(file(pixels, 12, **rescale, WindowCenter=-500, WindowWidth=900), linear(values, -500, 900))


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_a_voi_table_goes_before_a_window(depth: int) -> None:
    pixels = picture(12)
    entries = np.round((np.arange(3000) / 2999) ** 2 * (2**depth - 1)).astype(np.uint16)
    expected = scaled(entries[np.clip(pixels.astype(int) - 500, 0, 2999)], 0, 2**depth - 1)
    same(file(pixels, 12, VOILUTSequence=table(500, depth, entries), WindowCenter=9, WindowWidth=9), expected)


def test_a_table_may_start_below_zero_and_be_written_as_numbers() -> None:
    pixels = picture(10, signed=True)
    entries = np.arange(1024)[::-1] * 4
    voi = table(-512, 12, entries)
    voi[0]["LUTData"].VR = "OW"
    same(file(pixels, 10, VOILUTSequence=voi), scaled(entries[pixels.astype(int) + 512], 0, 4095))
    voi[0].add_new("LUTData", "US", [int(entry) for entry in entries])
    same(file(pixels, 10, VOILUTSequence=voi), scaled(entries[pixels.astype(int) + 512], 0, 4095))


def test_a_modality_table_comes_first() -> None:
    pixels = picture(8)
    entries = (np.arange(256) ** 2) % 4096
    values = entries[pixels]
    same(file(pixels, 8, ModalityLUTSequence=table(0, 16, entries)), scaled(values, values.min(), values.max()))
    content = file(pixels, 8, ModalityLUTSequence=table(0, 16, entries), WindowCenter=2000, WindowWidth=1000)
    same(content, linear(values, 2000, 1000))


def test_padding_is_black_and_does_not_count() -> None:
    pixels = np.clip(picture(12, signed=True), -1000, 1000).astype(np.int16)
    pixels[:3] = -2000
    inside = pixels[3:]
    expected = scaled(pixels, inside.min(), inside.max())
    same(file(pixels, 12, PixelPaddingValue=-2000), expected)
    inverted = 255 - expected
    inverted[:3] = 0
    same(file(pixels, 12, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"), inverted)
    pixels[1] = -1990
    same(file(pixels, 12, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980), expected)
    same(file(np.full((4, 4), 7, np.uint8), 8, PixelPaddingValue=7), np.zeros((4, 4)))


@pytest.mark.parametrize("depth", [8, 16])
def test_dicom_and_png_of_one_picture_are_equal(depth: int) -> None:
    pixels = picture(depth)
    png = saved(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(read_picture(file(pixels, depth), 64), decode(png, 64))
    np.testing.assert_array_equal(read_picture(png, 64), decode(png, 64))


def test_colour_becomes_grey_as_in_a_colour_file() -> None:
    """Up to one level, by which OpenCV's PNG and Pillow differ, too; grey in colours stays what it was."""

    def near(content: bytes, expected: Grey) -> None:
        assert np.abs(read_picture(content, 64).astype(int) - expected).max() <= 1

    rgb = RNG.integers(0, 256, (21, 30, 3), dtype=np.uint8)
    png = decode(saved(Image.fromarray(rgb), "PNG"))
    near(file(rgb, 8), png)
    planar = dataset(rgb, 8, PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    near(written(planar), png)
    near(file(rgb.astype(np.uint16) * 257, 16), png)
    same(file(np.repeat(rgb[..., :1], 3, axis=2), 8), rgb[..., 0])
    same(file(rgb, 8, PhotometricInterpretation="YBR_FULL"), rgb[..., 0])
    palette = RNG.integers(0, 256, (3, 256), dtype=np.uint8)
    found = dataset(rgb[..., 0], 8, PhotometricInterpretation="PALETTE COLOR")
    for depth in (8, 16):
        for colour, entries in zip(("Red", "Green", "Blue"), palette, strict=True):
            setattr(found, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, depth])
            data = entries.tobytes() if depth == 8 else (entries.astype("<u2") * 257).tobytes()
            setattr(found, f"{colour}PaletteColorLookupTableData", data)
        near(written(found), decode(saved(Image.fromarray(palette.T[rgb[..., 0]]), "PNG")))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_compression_changes_nothing(bits: int, syntax: UID) -> None:
    for signed in (False, True):
        pixels = picture(bits, signed=signed, shape=(64, 48))
        found = dataset(pixels, bits)
        found.compress(syntax, generate_instance_uid=False)
        same(written(found), scaled(pixels, pixels.min(), pixels.max()))


def test_a_baseline_jpeg_is_what_pillow_makes_of_it() -> None:
    smooth = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    jpeg = saved(Image.fromarray(smooth), "JPEG", quality=95)
    grey = read_picture(compressed(jpeg, JPEGBaseline8Bit, smooth, WindowCenter=128, WindowWidth=256), 64)
    assert np.abs(grey.astype(int) - np.asarray(Image.open(io.BytesIO(jpeg)), int)).max() <= 1


def test_threads_share_the_process_without_mixing_pictures_up() -> None:
    pictures = [picture(8, shape=(16, 16 + number)) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for pixels, grey in zip(pictures, pool.map(lambda p: read_picture(file(p, 8), 64), pictures), strict=True):
            np.testing.assert_array_equal(grey, pixels)


def test_a_process_that_dies_takes_one_file_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = picture(8), picture(8)
    same(file(one, 8), one)
    exchange, deaths = apart._exchange, []

    def killed(process: apart.Process, *request: Any) -> tuple[bool, str, Grey]:
        if len(deaths) < most:
            deaths.append(process.pid)
            process.kill()
        return exchange(process, *request)

    def interrupted(process: apart.Process, task: bytes, content: bytes, size: int) -> tuple[bool, str, Grey]:
        process.stdin.write(worker.REQUEST.pack(task, len(content), size) + content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(apart, "_exchange", killed)
        most = 1
        same(file(one, 8), one)  # the next process reads it
        most = 3
        with pytest.raises(NotRead, match="DICOM whose reading was stopped from outside"):
            read_picture(file(one, 8), 64)
        assert len(set(deaths)) == 3
        patch.setattr(apart, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_picture(file(one, 8), 64)
    same(file(other, 8), other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_has_processes_of_its_own() -> None:
    pixels = picture(8)
    same(file(pixels, 8), pixels)
    mine = set(apart._alive)
    if not (child := os.fork()):
        wrong = True
        try:
            same(file(pixels, 8), pixels)
            wrong = bool(apart._alive & mine)
        finally:
            apart.stop()
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert apart._alive == mine
    assert all(process.poll() is None for process in mine)
    same(file(pixels, 8), pixels)


def test_one_picture_in_many_syntaxes_is_one_picture() -> None:
    plain = read_picture((FILES / "MR_small.dcm").read_bytes(), 64)
    for name in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"):
        same((FILES / f"MR_small_{name}.dcm").read_bytes(), plain)
    colour = read_picture((FILES / "SC_rgb_rle.dcm").read_bytes(), 64)
    for name in ("jpeg_gdcm", "gdcm_KY", "rle_16bit"):  # lossless JPEG, JPEG 2000, 16 bits
        same((FILES / f"SC_rgb_{name}.dcm").read_bytes(), colour)


def test_which_files_of_a_folder_count() -> None:
    dicom, other = bytes(128) + b"DICM", bytes(132)
    assert {".png", ".dcm", ".dicom"} <= PICTURES_AND_DICOM
    for name in ("a/knee.PNG", "knee.dcm", "KNEE.DICOM"):
        assert looks_like_picture(name, b"")
    for name in ("IM000001", "1.2.840.113", "a.b/IM1"):
        assert looks_like_picture(name, dicom)
        assert not looks_like_picture(name, other)
        assert not looks_like_picture(name, b"")
    assert not looks_like_picture("CD/DICOMDIR", dicom)


def test_without_the_extra_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osteo.reading.reader.find_spec", lambda _: None)
    assert reason(file(picture(8), 8)) == "DICOM needs pip install 'osteo[dicom]'"


def test_plain_files_that_are_no_picture() -> None:
    png = saved(Image.fromarray(picture(8)), "PNG")
    assert reason(b"") == "empty file"
    assert reason(b"hello") == "not a picture"
    claims = bytearray(png)
    claims[16:24] = (9000).to_bytes(4) * 2
    claims[29:33] = zlib.crc32(claims[12:29]).to_bytes(4)
    place = png.index(b"IDAT") - 4
    for content in (bytes(claims), png[:place] + b"\xff\xff\xff\xff" + png[place + 4 :], png[:-20]):
        assert reason(content) == "truncated, or not as large as it says"
    assert reason((FILES / "ExplVR_LitEndNoMeta.dcm").read_bytes()).endswith("its header (DICM at byte 128) is missing")


def test_what_pydicom_ships() -> None:
    """Every file of pydicom's own tests ends as a picture or with a reason, none after more than two seconds."""
    read_picture((FILES / "CT_small.dcm").read_bytes(), 64)  # the process is there
    kinds: Counter[str] = Counter()
    for path in sorted(FILES.glob("*.dcm")):
        start = time.monotonic()
        try:
            kinds["picture"] += bool(read_picture(path.read_bytes(), 64).size)
        except Unusable as error:
            kinds[str(error)] += 1
        assert time.monotonic() - start < 2, path.name
    assert kinds == {
        "picture": 44,
        "DICOM with transfer syntax Deflated Explicit VR Little Endian, which cannot be read": 1,
        "DICOM without pixel data (a report, a plan, ...)": 10,
        "DICOM without Rows": 2,
        "multi-frame DICOM (2 frames): give single images": 3,
        "multi-frame DICOM (15 frames): give single images": 3,
        "multi-frame DICOM (30 frames): give single images": 1,
        "DICOM with 32 of 32 bits per pixel: 8 to 16 can be read": 4,
        "DICOM with 1 of 1 bits per pixel: 8 to 16 can be read": 2,
        "not a picture": 1,
        "not a picture; if it is DICOM, its header (DICM at byte 128) is missing": 3,
        "damaged DICOM: its elements cannot be read": 1,  # badVR: a number of frames of "1A"
        "damaged DICOM: its pixel data cannot be decoded": 2,  # cut short; 12-bit JPEG that no decoder takes
        "DICOM whose compressed picture has another size than its elements say": 1,  # its own header is overwritten
    }
