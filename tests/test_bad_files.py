"""A corpus of files as archives hold them: each is used right or set aside with its reason, and never breaks a run."""

import io
import json
import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from osteo.app.hydra import fail
from osteo.app.messages import CONF, PACKAGE, Printable
from osteo.command_settings import PredictConfig
from osteo.config import DataConfig
from osteo.data import prepare
from osteo.data.splits import read_split_file
from osteo.data.store import Store
from osteo.errors import UserError
from osteo.files import name_of_file, read_table, write_table, write_text
from osteo.inference.predictions import Row, list_pictures, open_pictures
from osteo.reading.framing import square
from osteo.reading.pictures import decode
from osteo.records.record import Run
from osteo.report.html import render
from osteo.report.predictions import path_of, write, write_png
from osteo.report.summary import show_runs
from osteo.report.tables import terminal
from osteo.task import BINARY

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
    with pytest.raises(UserError, match=r"files cannot be used, folder/normal/.* first"):
        prepare.prepare(DataConfig(name="folder", root=str(corpus), image_size=64, strict=True))


def test_an_audit_of_the_corpus_ends(corpus: Path, tmp_path: Path, osteo: object) -> None:
    done = osteo("audit", "data=folder", f"data.root={corpus}", "output_dir=audit")  # type: ignore[operator]
    assert done.code == 0, done.err
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert {f"folder/normal/{name}" for name in REFUSED} <= set(audit["unreadable"])
    assert "mode CMYK" in audit["odd_pictures"]["folder/normal/cmyk.jpg"]
    assert "mode I;16" in audit["odd_pictures"]["folder/normal/sixteen bit.png"]


EVIL = {  # a name on disk as bytes: the name that is shown
    b"caf\xe9.png": r"caf\xe9.png",
    b"line\nbreak\r.png": r"line\x0abreak\x0d.png",
    b"\x1b[2J\x1b]0;title\x07.png": r"\x1b[2J\x1b]0;title\x07.png",
    "gnp\u202e.png".encode(): r"gnp\u202e.png",
    b"[red]bold[reset] :bomb:.png": "[red]bold[reset] :bomb:.png",
    b"<script>alert(1).png": "<script>alert(1).png",
    b"=cmd|' _C calc'!A0.png": "=cmd|' _C calc'!A0.png",
    b'@x,"y".png': '@x,"y".png',
    b"+1.png": "+1.png",
    b"-2+3.png": "-2+3.png",
    b"'=quoted.png": "'=quoted.png",
    b"n" * 246 + b".png": "n" * 246 + ".png",
    ("β" * 123 + ".png").encode(): "β" * 123 + ".png",
    b"\xff" * 70 + b".png": r"\xff" * 70 + ".png",
}


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of pictures whose names were made to do harm; sixty-four grey pixels each, no two alike."""
    root = tmp_path_factory.mktemp("evil") / "=data [1] [red]"
    for label in ("normal", "osteoporosis"):
        (root / label).mkdir(parents=True)
        for number, name in enumerate(EVIL):
            noise = np.random.default_rng([number, len(label)]).integers(0, 255, (8, 8), dtype=np.uint8)
            (root / label / os.fsdecode(name)).write_bytes(saved(Image.fromarray(noise), "PNG"))
    return root


def test_any_name_is_used_and_read_back(evil: Path, tmp_path: Path) -> None:
    config = DataConfig(name="folder", root=str(evil), image_size=32, cache=str(tmp_path / "cache"))
    config.split.grouped = False
    manifest, _ = prepare.prepare(config)
    assert set(manifest["image_id"]) == {f"folder/{c}/{n}" for c in ("normal", "osteoporosis") for n in EVIL.values()}
    assert set(manifest["split"]) == {"train", "val", "test"}
    record = Run(tmp_path / "run [1]")
    record.write_manifest(manifest)
    assert record.read_manifest().equals(manifest)
    table = pd.DataFrame({"image_id": [*EVIL.values()], "logit": -1.5})
    record.write_predictions(table)
    assert record.read_table("predictions.csv").equals(table)
    (tmp_path / "split.csv").write_text(manifest[["image_id", "split"]].to_csv(index=False))
    assert read_split_file(tmp_path / "split.csv", "") == manifest.set_index("image_id")["split"].to_dict()
    twice, _ = prepare.prepare(config)
    assert twice.equals(manifest)


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    texts = [
        "=1",
        "@x",
        "+1",
        "-1",
        "-1.5e-3",
        "-x",
        "--",
        "-",
        "'",
        "'a",
        "'=x",
        "''=x",
        "'-5",
        "-2+3",
        "\t=",
        "\uff1d",
    ]
    table = pd.DataFrame({"text": texts, "number": -0.5, "mixed": pd.Series([None, -1.5, *texts[2:]], dtype=object)})
    write_table(tmp_path / "table.csv", table)
    raw = pd.read_csv(tmp_path / "table.csv", dtype={"text": str})
    for cell in raw["text"]:
        assert cell[0] not in "=@+-\uff1d\t" or cell in ("+1", "-1", "-1.5e-3", "-"), cell
    assert raw["number"].eq(-0.5).all()
    assert raw["mixed"][1] == "-1.5"
    assert read_table(tmp_path / "table.csv", dtype={"text": str})["text"].tolist() == texts
    write_table(tmp_path / "odd.csv", pd.DataFrame({"path": ["caf\udce9", "a\rb"]}))
    assert read_table(tmp_path / "odd.csv")["path"].tolist() == [r"caf\udce9", r"a\x0db"]


def test_the_answers_to_any_name_are_written(tmp_path: Path) -> None:
    facts = dict.fromkeys(("backbone", "fit", "trained_on", "seed", "data_hash", "osteo", "licence"), "-")
    facts |= {"image_size": 8, "temperature": 1.0}
    card = SimpleNamespace(intended_use="research", trained_on=8, backbone="test_resnet", facts=lambda: facts)
    model: Any = SimpleNamespace(card=card, guard=None, network=SimpleNamespace(task=BINARY))
    folder, names = tmp_path / "out [1]", list(EVIL.values())
    write(folder, [Row(name, "empty file", None, None) for name in names], [model], PredictConfig(interval=False))
    assert read_table(folder / "predictions.csv")["file"].tolist() == names
    assert [line["file"] for line in json.loads((folder / "predictions.json").read_text())["pictures"]] == names
    assert "<script>alert" not in (folder / "predictions.html").read_text(encoding="utf-8")
    for name in names:
        write_png(path_of(folder / "overlays", f"deep/{name}/{name} (left half)"), RAMP)
    assert sum(path.is_file() for path in (folder / "overlays").rglob("*")) == len(EVIL)


def test_a_single_file_of_any_name_is_answered(evil: Path) -> None:
    for name, shown in EVIL.items():
        archive, (entry,) = list_pictures(str(evil / "normal" / os.fsdecode(name)))
        assert entry.name == shown
        assert decode(archive.read(entry.name)).shape == (8, 8)


def test_predict_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "IM0001")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.png", PNG)
        archive.writestr("IM0002", DICOM)
    raw = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "in.zip").write_bytes(raw.replace(DICOM, bytes(len(DICOM))))
    model: Any = SimpleNamespace(card=SimpleNamespace(image_size=64, fit="pad"))
    found = {}
    for given in (tmp_path, tmp_path / "in.zip"):
        opened, entries = list_pictures(str(given))
        found |= {picture.name: picture.reason for picture in open_pictures(opened, entries, [model])}
    assert found == {
        "IM0002": "damaged in its zip (wrong checksum)",
        "a.png": "",
        "pipe.png": "not a regular file (a pipe, a socket or a device)",
    }
    with pytest.raises(UserError, match="is neither a folder nor a zip file"):
        list_pictures(str(tmp_path / "pipe.png"))


def test_exported_pictures_keep_apart_and_have_names_that_a_disk_takes(tmp_path: Path) -> None:
    ids = ["f/normal/a.png", "f/normal/a.jpg", "f/normal a.png", f"f/{'d' * 200}/{'e' * 200}.png"]
    used = pd.DataFrame({"image_id": ids, "sha256": list("0123"), "split": "train", "class_name": "normal"})
    pictures = np.arange(4, dtype=np.uint8).repeat(64).reshape(1, 4, 8, 8)
    store = Store(pictures, {"0": 0, "1": 1, "2": 2, "3": 3}, {})
    prepare.export(used, store, {"turned": np.transpose}, tmp_path / "out")
    written = list((tmp_path / "out" / "train" / "normal").iterdir())
    assert len(written) == 8
    assert sorted(decode(path.read_bytes())[0, 0] for path in written) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_terminal_shows_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Run(tmp_path / "sweep [1]" / "[red]")
    record.start("")
    record.set_status("failed", "[/] \x1b[2J\x1b]0;x\x07 :bomb:")
    show_runs(record.directory.parent)
    terminal().table(pd.DataFrame({"backbone": ["[/bold]", "\x1b[31mred"]}), title="[title]")
    shown = capsys.readouterr().out
    for text in (r"[/] \x1b[2J\x1b]0;x\x07 :bomb:", "sweep [1]/<run>/", "[red]", "[/bold]", r"\x1b[31mred", "[title]"):
        assert text in shown
    assert "\x1b" not in shown


def test_messages_hold_one_line_and_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("train", UserError("no such file: \x1b[2Ja\nb\udce9"))
    assert capsys.readouterr().err == "osteo train: no such file: \\x1b[2Ja\\x0ab\\xe9\n"
    record = logging.LogRecord("osteo", logging.WARNING, "", 0, "set aside %s\n%s", ("\x1b[2J", "\udcff"), None)
    assert Printable("%(message)s").format(record) == "set aside \\x1b[2J\n\\xff"
    for kind in ("job_logging", "hydra_logging"):
        text = (CONF / "hydra" / kind / "terse.yaml").read_text()
        assert text.count("format:") == text.count("class: osteo.app.messages.Printable")


def test_pages_escape_every_name() -> None:
    failed = [Row("<b>", "<b>", None, None)]
    page = render("predictions.html.jinja", title="none", figures=[], failed=failed, notes=["<b>"], models=[])
    assert page.count("&lt;b&gt;") == 3
    assert "<b>" not in page
    unescaped = re.compile(r"\|\s*safe|innerHTML|outerHTML|insertAdjacentHTML")
    templates = PACKAGE / "report" / "templates"
    assert not [path.name for path in templates.iterdir() if unescaped.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", ["n" * 255, "β" * 127, "\U0001f9b4" * 63])
def test_the_longest_name_that_a_disk_takes_is_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(name_of_file(name, ".png").encode()) <= 255
    assert name_of_file(name, ".png") != name_of_file(name[:-1] + "x", ".png")
