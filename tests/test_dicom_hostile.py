"""DICOM files of which nothing may come out but pixels or a reason: a patient's, broken and hostile ones."""

import random
import struct
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="needs the extra dicom")

from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from osteo.reading import apart
from osteo.reading.pictures import Unusable
from osteo.reading.reader import read_picture
from osteo.reading.worker import MEMORY, seconds_for
from tests.dicom import FILES, compressed, dataset, file, picture, saved, table, written

SECRETS = {
    "PatientName": "ZIMMERMANN^JANE",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19480229",
    "PatientAddress": "17 Quincunx Lane",
    "InstitutionName": "St Obscurus Hospital",
    "ReferringPhysicianName": "QUACKENBUSH^T",
    "ImageComments": "shown to her daughter Philippa",
    "AccessionNumber": "ACC998877",
}
PIXELS = picture(12)
PLANTED = [*SECRETS.values(), "ZIMMERMANN", "Philippa", "private-diary"]


def planted(**elements: object) -> bytes:
    found = dataset(PIXELS, 12, **(SECRETS | elements))
    found.private_block(0x0011, "private-diary", create=True).add_new(1, "LO", "private-diary of ZIMMERMANN")
    return written(found)


def spoilt() -> Iterator[tuple[str, bytes]]:
    yield "good", planted()
    for name, mark in {
        "PhotometricInterpretation": "MARKMARK",
        "SpecificCharacterSet": "MARKMARK",
        "VOILUTFunction": "MARKMARK",
        "NumberOfFrames": "11111111",
        "WindowCenter": "11111111",
        "RescaleSlope": "11111111",
        "PatientBirthDate": "MARKMARK",
    }.items():
        window = {"WindowCenter": "5", "WindowWidth": "11111112", "RescaleSlope": "1", "RescaleIntercept": "0"}
        yield name, planted(**(window | {name: mark})).replace(mark.encode(), b"MRN-4711", 1)
    good = planted()
    yield "a number of frames", planted(NumberOfFrames="47110815")
    yield "syntax", good.replace(b"1.2.840.10008.1.2.1\0", b"QUACKENBUSH^T ACC998", 1)
    for tag in (b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\0\1", b"\x28\0\1\1", b"\x28\0\2\0", b"\x28\0\3\1"):
        at = good.index(tag + b"US")
        yield f"text in {tag!r}", good[: at + 4] + b"LO\x08\0MRN-4711" + good[at + 10 :]
        yield f"a number in {tag!r}", good[: at + 4] + b"IS\x08\x0047110815" + good[at + 10 :]
    at = good.index(b"\x10\0\x10\0PN")
    yield "unknown VR", good[: at + 4] + b"??" + good[at + 6 :]
    yield "length that lies", good[: at + 6] + b"\xff\xff" + good[at + 8 :]
    yield "name as a sequence", good[: at + 4] + b"SQ\0\0\xff\xff\xff\xff" + good[at + 8 :]
    for cut in range(140, len(good), 61):
        yield f"cut at {cut}", good[:cut]


def test_nothing_of_a_patient_comes_out(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(0)
    said, hidden, good = [], set(), planted()
    for name, content in spoilt():
        assert (content == good) == (name == "good"), name
        try:
            assert read_picture(content, 64).dtype == np.uint8
        except Unusable as error:
            said += [repr(error), *traceback.format_exception(error)]
            hidden.add(error.__context__)
    assert hidden == {None}
    said += [caplog.text, *capfd.readouterr(), *(str(warning.message) for warning in recwarn)]
    assert len(said) > 60
    for secret in [*PLANTED, "MRN-4711", "47110815", "ACC998"]:
        assert not [line for line in said if secret.casefold() in line.casefold()]


def test_only_what_describes_pixels_is_kept_of_a_file() -> None:
    from osteo.reading.dicom import PIXEL_ELEMENTS, _parse

    kept = _parse(planted())
    assert {element.keyword for element in kept} <= set(PIXEL_ELEMENTS)
    assert not any(secret in str(kept) for secret in PLANTED)


def bomb(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = packer.compress(b"\x09\0\x01\0UN\0\0\xff\xff\xff\x7f" + bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    more = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    head = file(picture(8), 8, DeflatedExplicitVRLittleEndian)
    meta = 144 + struct.unpack("<L", head[140:144])[0]
    return head[:meta] + start + more * mebibytes + packer.flush()


def nested(depth: int, tag: bytes) -> bytes:
    good = file(picture(8), 8)
    at = good.index(b"\x28\0\2\0US")
    level = tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    return good[:at] + level * depth + good[at:]


def hostile() -> Iterator[tuple[str, bytes, str]]:
    small = picture(8)
    good, huge = file(small, 8), {"Rows": 65535, "Columns": 65535}
    yield "absurd size", file(small, 8, **huge), "more than 100 million pixels (65535 x 65535)"
    yield "many frames", file(small, 8, NumberOfFrames=12), "multi-frame DICOM (12 frames): give single images"
    yield "frames unsaid", file(small, 8, PixelData=bytes(620 * 2)), "multi-frame DICOM (more pixel data"
    yield "float pixels", file(small, 8, FloatPixelData=bytes(8)), "DICOM with float pixel data"
    yield "one bit", file(small, 8, BitsAllocated=1, BitsStored=1, HighBit=0), "DICOM with 1 of 1 bits"
    yield "more stored than allocated", file(small, 12), "DICOM with 12 of 8 bits"
    yield "allocated lies", file(small, 8, BitsAllocated=16), "damaged DICOM: its pixel data cannot be decoded"
    yield "high bit lies", file(small, 8, HighBit=6), "DICOM whose HighBit"
    yield "signs", file(small, 8, PixelRepresentation=7), "damaged DICOM: its pixel data cannot be decoded"
    yield "samples", file(small, 8, SamplesPerPixel=4), "DICOM with colours that cannot be read"
    yield "colours", file(small, 8, PhotometricInterpretation="HSV"), "DICOM with colours that cannot be read"
    yield (
        "video",
        compressed(bytes(8), MPEG2MPML, small),
        "DICOM with transfer syntax MPEG2 Main Profile",
    )
    yield "no syntax known", good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.10"), "DICOM with an unknown"
    yield "no window", file(small, 8, WindowCenter=3, WindowWidth=0), "damaged DICOM: its table, window or rescaling"
    yield "infinite", file(small, 8, RescaleSlope="1e308", RescaleIntercept="1e308"), "damaged DICOM: its table"
    short = {"VOILUTSequence": table(0, 8, np.arange(4))}
    short["VOILUTSequence"][0].LUTDescriptor = [256, 0, 8]
    yield "short table", file(small, 8, **short), "damaged DICOM: its table"
    yield "deep table", file(small, 8, VOILUTSequence=table(0, 32, np.arange(4))), "DICOM with a table of too"
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel"):
        found = dataset(small, 8)
        delattr(found, name)
        yield f"no {name}", written(found), f"DICOM without {name}"
    for name, why in {
        "PhotometricInterpretation": "DICOM with colours",
        "PixelRepresentation": "damaged DICOM: its pixel data",
        "PixelData": "DICOM without pixel data",
    }.items():
        found = dataset(small, 8)
        delattr(found, name)
        yield f"no {name}", written(found), why
    at = good.index(b"\xe0\x7f\x10\0OB") + 8
    yield "negative length", good[:at] + b"\xfe\xff\xff\xff" + good[at + 4 : -100], "damaged DICOM: its pixel data"
    yield "endless length", good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :], "DICOM without pixel data"
    yield "cut", good[:-100], "damaged DICOM: its pixel data cannot be decoded"
    yield "nested", nested(20000, b"\x28\0\1\0"), "DICOM: its elements are nested too deeply"
    yield "nested table", nested(20000, b"\x28\0\x10\x30"), "DICOM: its elements are nested too deeply"
    yield "deflated bomb", bomb(4096), "DICOM with transfer syntax Deflated"
    jpeg = bytearray(saved(Image.fromarray(small), "JPEG"))
    sof = jpeg.index(b"\xff\xc0")
    jpeg[sof + 5 : sof + 9] = b"\xff\xff\xff\xff"
    yield "JPEG of another size", compressed(bytes(jpeg), JPEGBaseline8Bit, small), "DICOM whose compressed picture has"
    found = dataset(picture(8, shape=(64, 48)), 8)
    found.compress(JPEG2000Lossless, generate_instance_uid=False)
    whole = written(found)
    siz = whole.index(b"\xff\x4f\xff\x51")
    for name, place, value in (("size", 8, b"\x7f\xff\xff\xff" * 2), ("samples", 40, b"\x40\0")):
        changed = whole[: siz + place] + value + whole[siz + place + len(value) :]
        yield f"JPEG 2000 of other {name}", changed, "DICOM whose compressed picture has another size"
    large = whole[: siz + 8] + struct.pack(">6L", *[10000] * 2, 0, 0, *[10000] * 2) + whole[siz + 32 :]
    for tag in (b"\x28\0\x10\0US\2\0", b"\x28\0\x11\0US\2\0"):
        at = large.index(tag) + 8
        large = large[:at] + struct.pack("<H", 10000) + large[at + 2 :]
    yield "JPEG 2000 of much", large, ""
    at = good.index(b"\xe0\x7f\x10\0OB") + 8
    rle = struct.pack("<16L", 1, 64, *[0] * 14)
    wide = {"Rows": 9000, "Columns": 9000}
    yield "RLE bomb", compressed(rle + b"\x81\0" * 2**20, RLELossless, small, Rows=16, Columns=16), "a picture (16, 16)"
    yield "RLE of much", compressed(rle + b"\x81\0" * (9000**2 // 128 + 1), RLELossless, small, **wide), "a picture"
    yield "RLE too short", compressed(rle + b"\x81\0" * 9, RLELossless, small, **wide), "damaged DICOM"
    yield "JPEG that is none", compressed(b"\xff\xd8" + bytes(99), JPEGBaseline8Bit, small), "damaged DICOM"
    empty = b"\x28\0\x10\x30SQ\0\0" + struct.pack("<L", 8 * 2**18) + b"\xfe\xff\0\xe0\0\0\0\0" * 2**18
    yield "a table of 260 000 items", good[: at - 8] + empty + good[at - 8 :], "DICOM that takes longer than"
    many = b"\x09\0\1\0LO\0\0" * 2**20
    yield "a million elements", good.replace(b"\x28\0\2\0US", many + b"\x28\0\2\0US", 1), ""


def memory() -> int:
    """The most that a reading process ever took, in bytes, where the system tells it."""
    statuses = [Path(f"/proc/{process.pid}/status") for process in apart._alive]
    lines = [line for status in statuses if status.is_file() for line in status.read_text().splitlines()]
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), default=0)


def test_hostile_files() -> None:
    """Each has its reason, soon; twice the CPU that it may take, for tests may share a machine."""
    wrong = {}
    for name, content, why in hostile():
        read_picture(file(picture(8), 8), 64)  # the process is there
        start = time.monotonic()
        try:
            said = f"a picture {read_picture(content, 64).shape}"
        except Unusable as error:
            said = str(error)
        seconds = time.monotonic() - start
        print(f"{name} {seconds:.2f} s, {memory() >> 20} MiB: {said}")
        if not said.startswith(why) or seconds > 2 * seconds_for(len(content)) or memory() > MEMORY + 2**28:
            wrong[name] = (said, seconds, memory())
    assert wrong == {}


def mutated(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        where = rng.randrange(min(len(changed), rng.choice((400, len(changed)))) or 1)
        match rng.randrange(4):
            case 0 | 1:
                changed[where : where + 1] = rng.randbytes(1)
            case 2:
                changed[where : where + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"))
            case 3 if rng.random() < 0.3:
                other = rng.choice(others)
                start = rng.randrange(len(other))
                changed[where : where + rng.randrange(64)] = other[start : start + rng.randrange(64)]
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def test_two_thousand_spoilt_files() -> None:
    rng = random.Random(0)
    small = Image.fromarray(picture(8))
    names = (
        "CT_small",
        "MR_small_RLE",
        "MR_small_jpeg_ls_lossless",
        "693_J2KI",
        "SC_rgb_small_odd_jpeg",
        "SC_rgb_jpeg_gdcm",
    )
    corpus = [(FILES / f"{name}.dcm").read_bytes() for name in names]
    corpus += [file(picture(12), 12, VOILUTSequence=table(0, 12, np.arange(4096)), PixelPaddingValue=0)]
    corpus += [saved(small, kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")]
    outcomes: Counter[str] = Counter()
    slow, deadline = {}, time.monotonic() + 20
    while outcomes.total() < 2000 and time.monotonic() < deadline:
        content = mutated(rng.choice(corpus), rng, corpus)
        start = time.monotonic()
        try:
            outcomes["picture"] += read_picture(content, 64).ndim == 2
        except Unusable as error:
            outcomes[str(error)] += 1
        if (seconds := time.monotonic() - start) > 2:
            slow[content] = seconds
    assert not slow
    assert outcomes.total() > 500
    print(outcomes)
