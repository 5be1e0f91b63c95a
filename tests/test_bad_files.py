"""A corpus of files as archives hold them: each is used right or set aside with its reason, and never breaks a run."""

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteo.config import DataConfig
from osteo.data import prepare
from osteo.data.store import square
from osteo.reading.pictures import decode

RNG = np.random.default_rng(0)
RAMP = np.tile(np.linspace(10, 245, 120).astype(np.uint8), (160, 1)) + RNG.integers(0, 8, (160, 120), dtype=np.uint8)
GREY = Image.fromarray(RAMP)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def alpha(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(255)
    return with_alpha


def bomb() -> bytes:
    content = bytearray(saved(Image.new("L", (8, 8)), "PNG"))
    content[16:24] = struct.pack(">II", 30000, 30000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def damaged(content: bytes, place: float, size: int = 64) -> bytes:
    start = int(len(content) * place)
    return content[:start] + bytes(size) + content[start + size :]


def nested_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("normal/inner.png", PNG)
    return buffer.getvalue()


PNG, JPEG = saved(GREY, "PNG"), saved(GREY, "JPEG", quality=95)
DEEP = Image.fromarray((RAMP.astype(np.uint16) * 16) + 500)
FLOAT = Image.fromarray(RAMP.astype(np.float32) / 300 - 0.2)
DICOM = bytes(128) + b"DICM" + bytes(500)

# name: content, and the largest mean difference in grey levels from the ramp
USED: dict[str, tuple[bytes, float]] = {
    "plain.png": (PNG, 0),
    "plain.jpg": (JPEG, 3),
    "UPPER.JPEG": (JPEG, 3),
    "rgb.png": (saved(GREY.convert("RGB"), "PNG"), 0),
    "rgb.jpg": (saved(GREY.convert("RGB"), "JPEG", quality=95), 3),
    "rgba.png": (saved(alpha(GREY), "PNG"), 1),
    "grey with alpha.png": (saved(GREY.convert("LA"), "PNG"), 1),
    "palette.png": (saved(GREY.convert("P"), "PNG"), 1),
    "palette few.png": (saved(GREY.convert("RGB").quantize(64), "PNG"), 6),
    "sixteen bit.png": (saved(DEEP, "PNG"), 12),
    "sixteen bit.tif": (saved(DEEP, "TIFF"), 12),
    "float.tif": (saved(FLOAT, "TIFF"), 12),
    "tiff.tiff": (saved(GREY, "TIFF"), 0),
    "lzw.tif": (saved(GREY, "TIFF", compression="tiff_lzw"), 0),
    "bitmap.bmp": (saved(GREY, "BMP"), 0),
    "cmyk.jpg": (saved(GREY.convert("CMYK"), "JPEG", quality=95), 4),
    "ycbcr.jpg": (saved(GREY.convert("YCbCr"), "JPEG", quality=95), 3),
    "progressive.jpg": (saved(GREY, "JPEG", quality=95, progressive=True), 3),
    "animated.gif": (saved(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - RAMP)]), 1),
    "animated.png": (saved(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - RAMP)]), 0),
    "web.webp": (saved(GREY.convert("RGB"), "WEBP", quality=95), 4),
    "turned by exif.jpg": (saved(GREY.rotate(90, expand=True), "JPEG", quality=95, exif=exif(6)), 3),
    "mirrored by exif.jpg": (saved(Image.fromarray(RAMP[:, ::-1]), "JPEG", quality=95, exif=exif(2)), 3),
    "png named.jpg": (PNG, 0),
    "jpeg named.png": (JPEG, 3),
    "Röntgen Knie β 膝.png": (PNG, 0),
    " blank around .png": (PNG, 0),
    "two.dots..png": (PNG, 0),
    "trailing bytes.jpg": (JPEG + b"\0" * 500, 3),
    "trailing bytes.png": (PNG + b"junk" * 50, 0),
    "interlaced is rare.png": (saved(GREY, "PNG", optimize=True), 0),
}
INVERTED = {"inverted.png": saved(Image.fromarray(255 - RAMP), "PNG"), "one bit.png": saved(GREY.convert("1"), "PNG")}
REFUSED = {
    "empty.png": (b"", "empty file"),
    "one byte.jpg": (b"\xff", "not a picture"),
    "text.jpg": (b"this is a letter, not a picture", "not a picture"),
    "html.png": (b"<!doctype html><title>404</title>", "not a picture"),
    "dicom.png": (DICOM, "^DICOM without pixel data"),
    "scan.dcm": (DICOM, "DICOM without pixel data"),
    "zip.png": (nested_zip(), "not a picture"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated|broken"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated|broken"),
    "header only.png": (PNG[:40], "(?i)truncated|broken|not a picture"),
    "header only.jpg": (JPEG[:200], "(?i)truncated|broken|not a picture"),
    "damaged.png": (damaged(PNG, 0.5), "broken|truncated|decod|CRC|checksum|corrupt|data"),
    "bomb.png": (bomb(), "more than 100 million pixels"),
}
STRAY = {
    "more.zip": nested_zip(),
    "notes.txt": b"text",
    "patient details.xlsx": b"no workbook",
    "Thumbs.db": b"",
    ".hidden.png": PNG,
}
COUNT = len(USED) + len(INVERTED) + len(REFUSED) + len(STRAY) + 3  # broken link, folder named .png, no permission


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, archives: Path) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("corpus") / "data"
    normal, sick = root / "normal", root / "osteoporosis"
    sick.mkdir(parents=True)
    normal.mkdir()
    for path in sorted((archives / "kaggle").rglob("*.*")):
        (root / path.parent.name / f"good {path.name}").write_bytes(path.read_bytes())
    for name, (content, _) in {**USED, **REFUSED}.items():
        (normal / name).write_bytes(content)
    for name, content in {**INVERTED, **STRAY}.items():
        (normal / name).write_bytes(content)
    (normal / "broken link.png").symlink_to(root / "nowhere.png")
    (normal / "folder.png").mkdir()
    (normal / "locked.png").write_bytes(PNG)
    (normal / "locked.png").chmod(0)
    yield root
    (normal / "locked.png").chmod(0o600)


def test_the_corpus_is_large() -> None:
    assert COUNT >= 40


def test_every_file_is_used_right_or_set_aside_with_its_reason(corpus: Path) -> None:
    config = DataConfig(name="folder", root=str(corpus), image_size=64, fit="resize")
    config.split.grouped = False
    manifest, store = prepare.prepare(config)
    rows = manifest.set_index("image_id")
    expected = square(RAMP, 64, "resize").astype(int)
    for name, (_, tolerance) in USED.items():
        row = rows.loc[f"folder/normal/{name}"]
        assert row["split"] != "excluded", f"{name}: {row['reason']}"
        kept = store.pictures[0, store.rows[row["sha256"]]].astype(int)
        assert np.abs(kept - expected).mean() <= tolerance + 1, name
    for name in REFUSED:
        row = rows.loc[f"folder/normal/{name}"]
        assert row["split"] == "excluded", name
        assert re.search(REFUSED[name][1], row["reason"]), f"{name}: {row['reason']}"
        assert "/" not in row["reason"], "a reason names no path"
    assert rows.loc["folder/normal/broken link.png", "reason"] == "broken link"
    if os.geteuid():  # root may read everything
        assert rows.loc["folder/normal/locked.png", "reason"] == "no permission to read"
    strays = prepare.read_sources(config, Path("unused"))["folder"].strays
    assert {Path(name).name for name in strays} == set(STRAY)
    assert not any("folder.png" in image_id for image_id in rows.index)


def test_inverted_pictures_stay_inverted_and_keep_their_contrast() -> None:
    assert np.array_equal(decode(INVERTED["inverted.png"]), 255 - RAMP)
    assert set(np.unique(decode(INVERTED["one bit.png"]))) == {0, 255}


def test_strict_makes_the_first_bad_file_an_error(corpus: Path) -> None:
    from osteo.errors import UserError

    with pytest.raises(UserError, match=r"files cannot be used, folder/normal/.* first"):
        prepare.prepare(DataConfig(name="folder", root=str(corpus), image_size=64, strict=True))


def test_an_audit_of_the_corpus_ends(corpus: Path, tmp_path: Path, osteo: object) -> None:
    done = osteo("audit", "data=folder", f"data.root={corpus}", "output_dir=audit")  # type: ignore[operator]
    assert done.code == 0, done.err
    import json

    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert {f"folder/normal/{name}" for name in REFUSED} <= set(audit["unreadable"])
    assert "mode CMYK" in audit["odd_pictures"]["folder/normal/cmyk.jpg"]
    assert "mode I;16" in audit["odd_pictures"]["folder/normal/sixteen bit.png"]
