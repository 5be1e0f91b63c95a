"""Decoding, squaring and keeping pictures."""

import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from osteo.config import DataConfig
from osteo.data.manifest import typed
from osteo.data.prepare import Prepared, prepare
from osteo.data.store import ChangedFileError, Verification, open_store
from osteo.errors import UserError
from osteo.reading.framing import clahe, square
from osteo.reading.pictures import Unusable, decode, header, stretch
from osteo.types import Grey

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_mode_that_an_archive_may_hold_is_decoded_right() -> None:
    grey = Image.fromarray(RAMP)
    rgba = grey.convert("RGBA")
    rgba.putalpha(Image.new("L", grey.size, 255))
    exact = {
        "L": encoded(grey, "PNG"),
        "RGB": encoded(grey.convert("RGB"), "PNG"),
        "LA": encoded(grey.convert("LA"), "PNG"),
        "RGBA": encoded(rgba, "PNG"),
        "P": encoded(grey.convert("P"), "PNG"),
        "TIFF": encoded(grey, "TIFF"),
        "BMP": encoded(grey, "BMP"),
    }
    for mode, content in exact.items():
        assert np.array_equal(decode(content), RAMP), mode
    for mode, content in {
        "JPEG": encoded(grey, "JPEG", quality=95),
        "JPEG RGB": encoded(grey.convert("RGB"), "JPEG", quality=95),
        "CMYK": encoded(grey.convert("CMYK"), "JPEG", quality=95),
        "WEBP": encoded(grey.convert("RGB"), "WEBP", quality=95),
    }.items():
        assert np.abs(decode(content).astype(int) - RAMP).mean() < 3, mode


def test_transparency_lies_over_black() -> None:
    image = Image.fromarray(RAMP).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert decode(encoded(image, "PNG")).max() == 0


def test_sixteen_bits_keep_their_contrast() -> None:
    deep = (RAMP.astype(np.uint16) * 4) + 1000  # 12 bits of signal, far from both ends
    decoded = decode(encoded(Image.fromarray(deep), "PNG"))
    assert (int(decoded.min()), int(decoded.max())) == (0, 255)
    assert np.abs(decoded.astype(int) - RAMP).max() <= 1


def test_orientation_tag_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned = decode(encoded(Image.fromarray(RAMP), "JPEG", exif=exif, quality=95))
    assert turned.shape == (64, 48)
    assert np.abs(turned.astype(int) - np.rot90(RAMP, -1)).mean() < 3


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.abs(decoded.astype(int) - RAMP).max() <= 1


def test_a_cut_picture_is_refused_not_filled_with_grey() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        content = encoded(noise, kind)
        with pytest.raises((OSError, Unusable), match="truncated"):
            decode(content[: len(content) * 2 // 3])


def test_a_bomb_is_refused_by_its_header() -> None:
    small = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    import struct
    import zlib

    small[16:24] = struct.pack(">II", 30000, 30000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    with pytest.raises(Unusable, match="more than 100 million pixels"):
        header(bytes(small))


def test_reduced_decoding_is_close_to_the_full_one() -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 255, (1600, 1200), dtype=np.uint8), (0, 0), 6)
    content = encoded(Image.fromarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)), "JPEG", quality=95)
    fast, full = square(decode(content, 128), 128, "pad"), square(decode(content), 128, "pad")
    assert np.abs(fast.astype(int) - full).mean() < 1.0


def test_padding_keeps_proportions_and_resizing_does_not() -> None:
    white = np.full((100, 50), 255, np.uint8)
    padded = square(white, 64, "pad")
    assert padded[:, :16].max() == 0
    assert padded[:, 48:].max() == 0
    assert padded[:, 16:48].min() == 255
    assert square(white, 64, "resize").min() == 255


def test_clahe_is_opencv_s() -> None:
    picture = square(RAMP, 64, "resize")
    assert np.array_equal(clahe(picture), cv2.createCLAHE(2.0, (8, 8)).apply(picture))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        stretch(np.array([[0.0, np.nan]], np.float32))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pictures(count: int) -> tuple[pd.DataFrame, dict[str, bytes]]:
    files = sorted((encoded(Image.fromarray(np.roll(RAMP, i, 1)), "PNG") for i in range(count)), key=sha)
    content = {f"s/{i}": file for i, file in enumerate(files)}  # in the order in which a store keeps them
    rows = [{"image_id": name, "sha256": sha(data), "split": ""} for name, data in content.items()]
    return typed(pd.DataFrame(rows)), content


def counted(content: dict[str, bytes]) -> tuple[list[str], Callable[[str], bytes]]:
    """What has been read, and the function that reads."""
    reads: list[str] = []

    def read(image_id: str) -> bytes:
        reads.append(image_id)
        return content[image_id]

    return reads, read


def test_a_store_is_built_once_and_opened_after(tmp_path: Path) -> None:
    table, content = pictures(5)
    reads, read = counted(content)
    first = open_store(table, read, tmp_path, image_size=32, fit="resize")
    again = open_store(table.iloc[::-1], read, tmp_path, image_size=32, fit="resize")
    assert len(reads) == 5
    assert first.rows == again.rows
    for data in content.values():
        expected = square(decode(data), 32, "resize")
        assert np.array_equal(again.pictures[0, again.rows[sha(data)]], expected)
        assert np.array_equal(again.pictures[1, again.rows[sha(data)]], clahe(expected))
    open_store(table, read, tmp_path, image_size=16, fit="resize")
    assert len(list((tmp_path / "stores").iterdir())) == 2


def test_two_builders_share_the_work(tmp_path: Path) -> None:
    table, content = pictures(6)
    begun, reads, stores = threading.Event(), [], []

    def build(wait: bool) -> None:
        def read(image_id: str) -> bytes:
            reads.append(image_id)
            begun.set()
            time.sleep(0.02)
            return content[image_id]

        if wait:
            begun.wait(10)  # the other is in the middle of building
        stores.append(open_store(table, read, tmp_path, image_size=16, fit="pad"))

    threads = [threading.Thread(target=build, args=(wait,)) for wait in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == sorted(content)  # each once
    assert np.array_equal(stores[0].pictures, stores[1].pictures)
    assert [path.name.startswith(".") for path in (tmp_path / "stores").iterdir()] == [False]


def test_a_store_is_built_where_a_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    table, content = pictures(3)
    store = open_store(table, content.__getitem__, tmp_path, image_size=16, fit="pad")
    assert len(store.rows) == 3
    assert [path.name.startswith(".") for path in (tmp_path / "stores").iterdir()] == [False]


def test_what_a_killed_builder_had_done_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osteo.data.store.CHUNK", 2)
    table, content = pictures(7)
    reads, read = counted(content)

    def die(image_id: str) -> bytes:
        if image_id == "s/4":
            raise KeyboardInterrupt
        return content[image_id]

    with pytest.raises(KeyboardInterrupt):
        open_store(table, die, tmp_path, image_size=16, fit="pad")
    left = [path.name for path in (tmp_path / "stores").iterdir()]
    assert sorted((name[0], name.rpartition(".")[2]) for name in left) == [(".", "lock"), (".", "part")]
    store = open_store(table, read, tmp_path, image_size=16, fit="pad")
    assert sorted(reads) == ["s/4", "s/5", "s/6"]
    for data in content.values():
        assert np.array_equal(store.pictures[0, store.rows[sha(data)]], square(decode(data), 16, "pad"))
    assert sorted(path.name for path in next((tmp_path / "stores").iterdir()).iterdir()) == [
        "index.json",
        "pictures.npy",
    ]


def test_a_killed_process_leaves_a_store_that_the_next_one_finishes(tmp_path: Path) -> None:
    """SIGKILL in the middle, in a process of its own."""
    script = (
        "import sys, time; from pathlib import Path; import osteo.data.store as s;"
        "from tests.test_store import pictures;"
        "s.CHUNK = 2; table, content = pictures(40);"
        "read = lambda i: (print(i, flush=True), time.sleep(0.05), content[i])[-1];"
        "s.open_store(table, read, Path(sys.argv[1]), image_size=16, fit='pad')"
    )
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.kill()
    process.wait()
    table, content = pictures(40)
    reads, read = counted(content)
    store = open_store(table, read, tmp_path, image_size=16, fit="pad")
    assert 20 <= len(reads) <= 32
    for data in content.values():
        assert np.array_equal(store.pictures[0, store.rows[sha(data)]], square(decode(data), 16, "pad"))


def built(table: pd.DataFrame, content: dict[str, bytes], folder: Path) -> Grey:
    """The pictures of a new store."""
    store = open_store(table, content.__getitem__, folder, image_size=16, fit="pad")
    assert store.confirm() == 0
    return store.pictures.copy()


def flip(folder: Path, shape: tuple[int, ...], plane: int, row: int) -> None:
    """Changes one bit of a stored picture, as a failing disk does."""
    (path,) = (folder / "stores").rglob("pictures.npy")
    pictures = np.lib.format.open_memmap(path, mode="r+")
    assert pictures.shape == shape
    pictures[plane, row, 3, 5] ^= 4
    pictures.flush()


@pytest.mark.parametrize("plane", [0, 1])
def test_a_flipped_bit_is_found_and_mended(tmp_path: Path, plane: int, caplog: pytest.LogCaptureFixture) -> None:
    table, content = pictures(5)
    whole = built(table, content, tmp_path)
    flip(tmp_path, whole.shape, plane, 3)
    reads, read = counted(content)
    store = open_store(table, read, tmp_path, image_size=16, fit="pad")
    assert store.confirm() == 1
    assert reads == ["s/3"]
    assert caplog.messages == ["1 stored picture had been damaged on the disk; decoded again"]
    assert np.array_equal(store.pictures, whole)
    assert open_store(table, read, tmp_path, image_size=16, fit="pad").confirm() == 0


def test_damage_that_is_found_while_pictures_are_used_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, content = pictures(5)
    whole = built(table, content, tmp_path)
    flip(tmp_path, whole.shape, 0, 2)
    from osteo.data.datamodule import KneeDataModule  # not above: other processes import this file

    begun, compare = threading.Event(), Verification._damaged

    def wait(self: Verification) -> list[int]:
        begun.wait(10)
        return compare(self)

    monkeypatch.setattr(Verification, "_damaged", wait)
    store = open_store(table, content.__getitem__, tmp_path, image_size=16, fit="pad")
    datamodule = KneeDataModule(Prepared(table.assign(split="train", label=[0, 1, 0, 1, 0]), store), batch_size=2)
    datamodule.setup("fit")
    begun.set()
    with pytest.raises(UserError, match=r"1 stored picture had been damaged on the disk, s/2 first, and used .* again"):
        datamodule.teardown("fit")
    assert np.array_equal(built(table, content, tmp_path), whole)


def test_a_damaged_picture_without_its_file_is_one_line(tmp_path: Path) -> None:
    table, content = pictures(5)
    whole = built(table, content, tmp_path)
    flip(tmp_path, whole.shape, 0, 2)

    def gone(image_id: str) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", image_id)

    store = open_store(table, gone, tmp_path, image_size=16, fit="pad")
    with pytest.raises(UserError, match=r"s/2 first, cannot be decoded again .*not read \(no such file or directory\)"):
        store.confirm()
    store = open_store(table, gone, tmp_path, image_size=16, fit="pad")
    assert store.unreadable == {table.loc[2, "sha256"]: "not read (no such file or directory)"}  # set aside from now on
    with pytest.raises(ChangedFileError, match="s/2 has changed since it was hashed"):
        open_store(table, lambda name: content[name] + b"?", tmp_path, image_size=16, fit="pad")
    assert np.array_equal(built(table, content, tmp_path), whole)


def test_a_picture_is_not_stored_under_the_hash_of_another(tmp_path: Path) -> None:
    table, content = pictures(3)
    content["s/1"] = content["s/2"]
    with pytest.raises(ChangedFileError, match="s/1 has changed since it was hashed"):
        open_store(table, content.__getitem__, tmp_path, image_size=16, fit="pad")
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT])
def test_what_the_disk_does_not_give_is_tried_again(tmp_path: Path, number: int) -> None:
    table, content = pictures(3)
    broken = {"s/1"}

    def read(image_id: str) -> bytes:
        if image_id in broken:
            raise OSError(number, os.strerror(number), f"/home/someone/{image_id}")
        return content[image_id] if image_id != "s/2" else b"not a picture"

    table.loc[2, "sha256"] = sha(b"not a picture")
    table = table.sort_values("sha256", ignore_index=True)
    damaged, unread = sha(b"not a picture"), sha(content["s/1"])
    for _ in range(2):
        store = open_store(table, read, tmp_path, image_size=16, fit="pad")
        why = "no permission" if number == errno.EACCES else os.strerror(number).lower()
        assert store.unreadable == {unread: f"not read ({why})", damaged: "not a picture"}
    broken.clear()
    for _ in range(2):
        store = open_store(table, read, tmp_path, image_size=16, fit="pad")
        assert store.unreadable == {damaged: "not a picture"}
        expected = square(decode(content["s/1"]), 16, "pad")
        assert np.array_equal(store.pictures[0, store.rows[unread]], expected)
        assert store.confirm() == 0


def test_real_archive_shape_gives_the_counts_of_the_paper(archives: Path) -> None:
    config = DataConfig(
        name="paper", kaggle=str(archives / "kaggle"), mendeley=str(archives / "mendeley"), image_size=32
    )
    manifest, store = prepare(config)
    used = manifest[manifest["split"] != "excluded"]
    assert used.groupby("source")["class_name"].value_counts().to_dict() == {
        ("kaggle", "normal"): 14,
        ("kaggle", "osteoporosis"): 14,
        ("mendeley", "normal"): 6,
        ("mendeley", "osteoporosis"): 6,
    }
    assert store.pictures.shape == (2, 40, 32, 32)
    assert store.unreadable == {}
