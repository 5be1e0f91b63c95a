"""Archives as they come: folders and zips, class folders in any case and depth, and files that are no pictures."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import socket
import stat
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.hostile import radiograph, saved
from osteo import parts
from osteo.checks import check
from osteo.command_settings import PrepareConfig
from osteo.config import DataConfig
from osteo.data.archives import Folder, Zip
from osteo.data.manifest import COLUMNS, build_manifest, clean, copies, exclude, follow_t_scores
from osteo.data.prepare import prepare
from osteo.data.sources import Picture, Source, read_folder, read_kaggle, read_mendeley, read_source
from osteo.data.splits import leaks
from osteo.errors import UserError
from osteo.reading.framing import square
from osteo.reading.pictures import Unusable, decode
from osteo.task import CLASS_NAMES, TASKS, Task


def png(value: int, size: tuple[int, int] = (40, 50)) -> bytes:
    noise = np.random.default_rng(value).integers(0, 255, size, dtype=np.uint8)
    return bytes(cv2.imencode(".png", noise)[1])


def write(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent).as_posix())
    return target


def test_class_folders_are_found_in_any_case_and_depth(tmp_path: Path) -> None:
    root = write(
        tmp_path / "knees",
        **{
            "deep/Normal/a.PNG": png(1),
            "OSTEOPOROSIS/b.jpeg": png(2),
            "osteoporosis/more/c.png": png(3),
            "Osteopenia /d.png": png(4),
            "normal/notes.txt": b"text",
            "other/e.png": png(5),
            "__MACOSX/normal/f.png": png(6),
            "normal/.hidden.png": png(7),
        },
    )
    found = read_folder(str(root))
    assert {(p.name, p.class_name) for p in found.pictures} == {
        ("deep/Normal/a.PNG", "normal"),
        ("OSTEOPOROSIS/b.jpeg", "osteoporosis"),
        ("osteoporosis/more/c.png", "osteoporosis"),
        ("Osteopenia /d.png", "osteopenia"),
    }
    assert sorted(found.strays) == [
        "__MACOSX/normal/f.png", "normal/.hidden.png", "normal/notes.txt", "other/e.png",
    ]  # fmt: skip


def test_a_zip_reads_like_its_folder(archives: Path, tmp_path: Path) -> None:
    zip_path = zipped(archives / "kaggle", tmp_path / "K.zip")
    folder, archive = read_kaggle(str(archives / "kaggle")), read_kaggle(str(zip_path))
    one = build_manifest({"kaggle": folder}, tmp_path / "a")
    two = build_manifest({"kaggle": archive}, tmp_path / "b")
    assert list(one["sha256"]) == list(two["sha256"])
    assert list(one.columns) == list(COLUMNS)
    assert two["path"].str.startswith(f"{zip_path}/kaggle/").all()
    assert one["class_name"].value_counts().to_dict() == {"normal": 14, "osteoporosis": 14}


def test_mendeley_pictures_carry_their_patient(archives: Path, tmp_path: Path) -> None:
    table = build_manifest({"mendeley": read_mendeley(str(archives / "mendeley"))}, tmp_path)
    assert set(table["patient"]) == {*(f"N{i}" for i in range(1, 7)), *(f"OS{i}" for i in range(1, 7)), "OP1", "OP2"}
    left_out = table[table["split"] == "excluded"]
    assert set(left_out["class_name"]) == {"osteopenia"}
    assert left_out["label"].isna().all()


def test_the_ready_made_split_of_the_kaggle_archive_is_not_counted_twice(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        **{
            "normal/1.png": png(1),
            "normal/2.png": png(2),
            "normal/2 copy.png": png(2),
            "osteoporosis/3.png": png(3),
            "train/normal/1.png": png(1),
            "test/osteoporosis/3.png": png(3),
            "test/osteoporosis/1.png": png(1),
            "test/osteoporosis/4.png": png(4),
        },
    )
    table = build_manifest({"kaggle": read_kaggle(str(root))}, tmp_path / "cache")
    repeated = table[table["reason"] == "repeated in a ready-made split folder"]
    assert set(repeated["image_id"]) == {"kaggle/train/normal/1.png", "kaggle/test/osteoporosis/3.png"}
    same, contradictory = copies(table)
    assert same == [
        ["kaggle/normal/1.png", "kaggle/test/osteoporosis/1.png"],
        ["kaggle/normal/2 copy.png", "kaggle/normal/2.png"],
    ]
    assert contradictory == [["kaggle/normal/1.png", "kaggle/test/osteoporosis/1.png"]]
    kept = clean(table)
    assert set(kept.loc[kept["split"] != "excluded", "image_id"]) == {
        "kaggle/normal/2 copy.png", "kaggle/osteoporosis/3.png", "kaggle/test/osteoporosis/4.png",
    }  # fmt: skip


def test_a_hostile_zip_is_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("normal/a.png", "normal/b.png", "osteoporosis/c.png"):
            archive.writestr(name, png(ord(name[-5])))
        archive.writestr("normal/../../evil/normal/x.png", png(8))
        archive.writestr("/abs/normal/y.png", png(9))
        link = zipfile.ZipInfo("normal/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    table = build_manifest({"folder": read_folder(str(path))}, tmp_path / "cache").set_index("image_id")
    assert table["reason"].to_dict() == {
        "folder//abs/normal/y.png": "name leaves the archive",
        "folder/normal/../../evil/normal/x.png": "name leaves the archive",
        "folder/normal/a.png": "",
        "folder/normal/b.png": "",
        "folder/normal/link.png": "link inside a zip",
        "folder/osteoporosis/c.png": "",
    }
    assert not (tmp_path / "evil").exists()


def test_an_encrypted_zip_entry_is_set_aside(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("normal/a.png", png(1))
        archive.writestr("osteoporosis/b.png", png(2))
    raw = bytearray(content.getvalue())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flag the first entry as encrypted, in both headers
        raw[raw.index(mark) + offset] |= 1
    path = tmp_path / "locked.zip"
    path.write_bytes(raw)
    table = build_manifest({"folder": read_folder(str(path))}, tmp_path / "cache")
    assert list(table["reason"]) == ["encrypted", ""]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures in class folders; expected folders named normal and osteoporosis"),
        ({"normal/a.png": png(1)}, "has no pictures of class osteoporosis; found only: normal"),
        ({"osteoporosis/a.png": png(1)}, "has no pictures of class normal; found only: osteoporosis"),
    ],
)
def test_a_missing_class_is_one_line(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write(tmp_path / "data", **{"x.txt": b"", **files})
    with pytest.raises(UserError, match=message) as caught:
        build_manifest({"folder": read_folder(str(tmp_path / "data"))}, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_nothing_there_and_no_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_folder(str(tmp_path / "nowhere"))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="is neither a folder nor a zip file"):
        read_folder(str(tmp_path / "text.zip"))


def test_unusable_files_are_named_once_and_the_rest_is_used(
    tmp_path: Path, archives: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "mixed"
    good = sorted((archives / "kaggle").rglob("*.*"))
    for path in good:
        write(root, **{f"{path.parent.name}/{path.name}": path.read_bytes()})
    whole = png(77, (300, 300))
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200), dtype=np.uint8)).save(jpeg, "JPEG")
    write(
        root,
        **{
            "normal/empty.png": b"",
            "normal/text.jpg": b"not a picture at all",
            "normal/cut.png": whole[: len(whole) // 2],
            "normal/cut.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        },
    )
    (root / "normal" / "gone.png").symlink_to(root / "nowhere.png")
    config = DataConfig(name="folder", root=str(root), image_size=32)
    with caplog.at_level("WARNING"):
        manifest, _ = prepare(config)
    reasons = manifest[manifest["split"] == "excluded"].set_index("image_id")["reason"].to_dict()
    assert set(reasons) == {f"folder/normal/{n}" for n in ("empty.png", "text.jpg", "cut.png", "cut.jpg", "gone.png")}
    assert reasons["folder/normal/empty.png"] == "empty file"
    assert reasons["folder/normal/text.jpg"] == "not a picture"
    assert reasons["folder/normal/gone.png"] == "broken link"
    assert "truncated" in reasons["folder/normal/cut.jpg"]
    assert "truncated" in reasons["folder/normal/cut.png"]
    assert len([r for r in caplog.records if "set aside" in r.message]) == 5
    assert (manifest["split"] != "excluded").sum() == len(good)
    config.strict = True
    with pytest.raises(UserError, match=r"5 files cannot be used, folder/normal/cut.jpg first"):
        prepare(config)


def test_a_reason_given_first_stays(archives: Path, tmp_path: Path) -> None:
    table = build_manifest({"kaggle": read_kaggle(str(archives / "kaggle"))}, tmp_path)
    every = table["label"].notna()
    once = exclude(table, table["label"] == 1, "first")
    twice = exclude(once, every, "second")
    assert twice["reason"].value_counts().to_dict() == {"first": 14, "second": 14}


def test_the_manifest_is_read_back_unless_a_file_changes(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "k"
    for path in sorted((archives / "kaggle").rglob("*.*"))[::4]:
        write(root, **{f"{path.parent.name}/{path.name}": path.read_bytes()})
    first = build_manifest({"kaggle": read_kaggle(str(root))}, tmp_path)
    second = build_manifest({"kaggle": read_kaggle(str(root))}, tmp_path)
    assert first.equals(second)
    assert len(list((tmp_path / "manifests").iterdir())) == 1
    write(root, **{"normal/new.png": png(5)})
    assert len(build_manifest({"kaggle": read_kaggle(str(root))}, tmp_path)) == len(first) + 1


def test_the_same_files_under_other_names_of_classes_are_read_anew(tmp_path: Path) -> None:
    root = write(tmp_path / "data", **{"a/1.png": png(1), "b/2.png": png(2)})
    for classes in ({"a": "normal", "b": "osteoporosis"}, {"a": "osteoporosis", "b": "normal"}):
        table = build_manifest({"folder": read_folder(str(root), classes)}, tmp_path / "cache")
        assert table.set_index("image_id")["class_name"].to_dict() == {
            f"folder/{c}/{n}.png": classes[c] for c, n in ("a1", "b2")
        }


def test_only_what_is_in_the_bytes_is_remembered(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "k", **{"normal/text.png": b"a letter"})
    for path in (archives / "kaggle").rglob("*.*"):
        write(root, **{f"{path.parent.name}/{path.name}": path.read_bytes()})
    failing, reads = {"normal/1n.jpg": errno.EIO, "osteoporosis/3.JPEG": errno.EACCES}, []
    read_file = Folder.read

    def read(self: Folder, name: str, *most: int) -> bytes:
        reads.append(name)
        if name in failing:
            raise OSError(failing[name], os.strerror(failing[name]), str(root / name))
        return read_file(self, name, *most)

    monkeypatch.setattr(Folder, "read", read)
    config = DataConfig(name="folder", root=str(root), image_size=32, cache=str(tmp_path / "cache"))
    config.split.grouped = False
    for _ in range(2):
        reads.clear()
        caplog.clear()
        prepare(config)
        assert sorted(caplog.messages) == [
            "set aside folder/normal/1n.jpg: not read (input/output error); the next run tries again",
            "set aside folder/normal/text.png: not a picture",
            "set aside folder/osteoporosis/3.JPEG: not read (no permission); the next run tries again",
        ]
    assert sorted(reads) == sorted(failing)  # nothing else is read again
    with pytest.raises(UserError, match=r"3 files cannot be used, folder/normal/1n.jpg first \(not read"):
        prepare(replace(config, strict=True))
    failing.clear()
    healed, store = prepare(config)
    fresh, _ = prepare(replace(config, cache=str(tmp_path / "fresh")))
    assert healed.equals(fresh)
    assert list(healed.loc[healed["split"] == "excluded", "reason"]) == ["not a picture"]
    assert len(store.rows) == len(healed) - 1


@pytest.mark.parametrize("grouped", [False, True])
def test_a_file_that_changed_behind_its_size_and_time_is_hashed_again(
    tmp_path: Path, grouped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "k", **{f"{CLASS_NAMES[i % 2]}/{i}.png": png(i, (9, 9)) for i in range(24)})
    config = DataConfig(name="folder", root=str(root), image_size=32, cache=str(tmp_path / "cache"))
    config.split.grouped = grouped
    old = build_manifest({"folder": read_folder(str(root))}, tmp_path / "cache").set_index("image_id")["sha256"]
    target = root / "normal/4.png"
    status, content = target.stat(), target.read_bytes()
    other = next(file for file in (png(i, (9, 9)) for i in range(99, 999)) if len(file) == len(content))
    target.write_bytes(other)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    manifest, store = prepare(config)
    assert caplog.messages == [
        "folder/normal/4.png has changed since it was hashed, though its size and time are the same;"
        " all files are hashed again"
    ]
    new = manifest.set_index("image_id")["sha256"]
    assert list(new[new != old].items()) == [("folder/normal/4.png", hashlib.sha256(other).hexdigest())]
    assert np.array_equal(store.pictures[0, store.rows[new["folder/normal/4.png"]]], square(decode(other), 32, "pad"))
    assert not list((tmp_path / "cache/stores").glob(".*.part"))


def in_memory(source: str = "mine", **changes: str) -> Source:
    """A source of twenty pictures that lie nowhere; `changes` are made to the first."""
    content = {f"{i}.png": png(i) for i in range(20)}
    found = [Picture(f"{source}/{n}", source, n, n, CLASS_NAMES[i % 2], patient=f"P{i}") for i, n in enumerate(content)]
    return Source([replace(found[0], **changes), *found[1:]], read=content.__getitem__)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], DataConfig]:
    """Registers a source that returns something, for one test; gives the configuration that names it."""
    monkeypatch.setattr(parts.sources, "_parts", {})

    def register(found: object) -> DataConfig:
        parts.sources.register("my_source")(lambda data, cache: found(data, cache) if callable(found) else found)  # type: ignore[arg-type]
        return DataConfig(name="my_source", root="wherever", image_size=32)

    return register


def copies_of(root: Path) -> Path:
    """Two sources of 24 pictures, of which three are the same files in both."""
    for source in ("a", "b"):
        write(root / source, **{f"{CLASS_NAMES[i % 2]}/{i}.png": png(i + 100 * (source == "b")) for i in range(24)})
    for i in (3, 4, 8):
        write(root / "b", **{f"{CLASS_NAMES[i % 2]}/{i}.png": png(i)})
    return root


def test_a_split_that_leaks_is_spoken_of_before_training(
    registered: Callable[[object], DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copies_of(tmp_path / "data")
    config = registered(lambda *_: {name: read_source(name, str(root / name), "data.root") for name in "ab"})
    config.cache = str(tmp_path / "cache")
    config.split.test_source = "b"
    leaky, _ = prepare(config)
    assert {kind: len(sets) for kind, sets in leaks(leaky).items()} == {"pictures": 3, "clusters": 3, "patients": 0}
    (said,) = caplog.messages
    assert re.fullmatch(
        r"the split leaks: 3 groups of copies or of one patient \(3 of the same bytes, 0 of one patient\) in more than"
        r" one, a/normal/4.png \((train|val)\) and b/normal/4.png \(test\) first;"
        r" data.clean=true counts every picture once",
        said,
    )
    caplog.clear()
    config.split.test_source = None
    whole, _ = prepare(config)
    assert caplog.messages == []
    listed = whole[["image_id", "split"]].set_index("image_id")
    for image_id in ("a/osteoporosis/3.png", "b/osteoporosis/3.png"):
        listed.loc[image_id, "split"] = "val" if image_id.startswith("a") else "test"
    listed.to_csv(tmp_path / "split.csv")
    config.split.file, config.split.grouped = str(tmp_path / "split.csv"), False
    prepare(config)
    (said,) = caplog.messages
    assert said == (
        "the split leaks: 1 group of copies or of one patient (1 of the same bytes, 0 of one patient) in more than one,"
        " a/osteoporosis/3.png (val) and b/osteoporosis/3.png (test) first; mend the file, or data.clean=true counts"
        " every picture once"
    )
    caplog.clear()
    config.clean = True
    prepare(config)
    assert caplog.messages == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_named_as_the_cache(
    registered: Callable[[object], DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = registered({"mine": replace(in_memory(), stamp="now")})
    config.cache = str(tmp_path / "cache")

    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number), str(tmp_path / "cache/manifests/x"))

    monkeypatch.setattr("osteo.files.tempfile.mkdtemp", refuse)
    why = {errno.EACCES: "cannot be used: permission denied", errno.ENOSPC: "cannot be written: the disk is full"}
    said = rf"^the cache .*cache {why[number]}; set OSTEO_CACHE or data.cache to another folder$"
    with pytest.raises(UserError, match=said):
        prepare(config)


def leaks_of(config: DataConfig, caplog: pytest.LogCaptureFixture) -> str:
    """What is said of leaks."""
    caplog.clear()
    prepare(config)
    return "\n".join(message for message in caplog.messages if "leaks" in message or "copies" in message)


def test_altered_copies_in_two_splits_are_found_with_any_split(
    registered: Callable[[object], DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = copies_of(tmp_path / "data")
    for i in (3, 4, 8):  # of b, which are no copies any more
        (root / "b" / CLASS_NAMES[i % 2] / f"{i}.png").write_bytes(png(i + 500))
    picture = np.hstack([radiograph(80, 40, 8), 255 - radiograph(80, 40, 8)[::-1]])
    picture[20:50, 30:45] = 240
    (root / "a/normal/0.png").write_bytes(saved(Image.fromarray(picture), "PNG"))
    (root / "b/normal/0.png").write_bytes(saved(Image.fromarray(picture[:, ::-1]), "PNG"))
    config = registered(lambda *_: {name: read_source(name, str(root / name), "data.root") for name in "ab"})
    config.cache = str(tmp_path / "cache")
    config.split.test_source, config.split.grouped = "b", False
    assert re.fullmatch(
        r"the split leaks: 1 group of copies or of one patient \(0 of the same bytes, 0 of one patient\) in more than"
        r" one, a/normal/0.png \((train|val)\) and b/normal/0.png \(test\) first; data.split.grouped=true keeps them in"
        r" one split, or data.clean=true counts every picture once",
        leaks_of(config, caplog),
    )
    monkeypatch.setattr("osteo.data.prepare.MOST_SEARCHED_ANYWAY", 47)
    assert leaks_of(config, caplog) == (
        "altered copies are not looked for among 48 pictures, since data.split.grouped=false; osteo audit does"
    )


def test_a_leak_of_patients_is_mended_by_the_split_alone(
    registered: Callable[[object], DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_memory()
    patients = [f"P{i // 2}" for i in range(20)]
    named = [replace(p, patient=patients[i]) for i, p in enumerate(source.pictures)]
    config = registered({"mine": replace(source, pictures=named)})
    config.cache = str(tmp_path / "cache")
    config.split.grouped = False
    assert leaks_of(config, caplog).endswith(" first; data.split.grouped=true keeps them in one split")
    splits = ["train", "train", "val", "val", "test", "test"] + ["train", "test"] * 7
    stated = [replace(p, split=splits[i]) for i, p in enumerate(named)]
    config = registered({"mine": replace(source, pictures=stated)})
    config.cache = str(tmp_path / "cache")
    assert leaks_of(config, caplog).endswith(" first; correct the split in the labels file")
    table = pd.DataFrame({"image_id": [p.image_id for p in named], "split": splits})
    table.to_csv(tmp_path / "split.csv", index=False)
    config.split.file = str(tmp_path / "split.csv")
    assert leaks_of(config, caplog).endswith("; mend the file")


def test_a_registered_source_is_prepared_by_its_name(
    registered: Callable[[object], DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSTEO_CACHE", str(tmp_path))
    given: list[tuple[DataConfig, Path]] = []

    def read(data: DataConfig, cache: Path) -> dict[str, Source]:
        given.append((data, cache))
        return {"mine": in_memory()}

    config = registered(read)
    check(PrepareConfig(data=config))
    manifest, store = prepare(config)
    assert [(data.root, cache) for data, cache in given] == [("wherever", tmp_path)]
    assert manifest["label"].value_counts().to_dict() == {0: 10, 1: 10}
    assert set(manifest["split"]) == {"train", "val", "test"}
    expected = square(decode(png(3)), 32, "pad")
    assert np.array_equal(
        store.pictures[0, store.rows[manifest.set_index("image_id").loc["mine/3.png", "sha256"]]], expected
    )
    assert not (tmp_path / "manifests").exists()  # without a stamp, nobody knows whether they are still the same


def test_an_unknown_source_is_answered_with_all_names(registered: Callable[[object], DataConfig]) -> None:
    registered({})
    with pytest.raises(UserError) as caught:
        check(PrepareConfig(data=DataConfig(name="your_source")))
    assert str(caught.value) == (
        "data.name 'your_source' is unknown; choose one of: phantom, paper, clean, kaggle, mendeley, folder, my_source;"
        " did you mean my_source?"
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "data.name=my_source returned NoneType, not a mapping of names to osteo.data.sources.Source"),
        ({}, "data.name=my_source returned dict, not a mapping"),
        ([in_memory()], "data.name=my_source returned list, not a mapping"),
        ({"mine": [1]}, "not a mapping of names to osteo.data.sources.Source"),
        ({"a/b": in_memory("a/b")}, "returned a source named 'a/b'; a name is text without a slash"),
        ({"other": in_memory()}, "picture 0.png of source other needs the image_id other/0.png and that source"),
        ({"mine": in_memory(image_id="0.png")}, "needs the image_id mine/0.png and that source, not 0.png and mine"),
        ({"mine": in_memory(class_name="ill")}, "class of mine/0.png 'ill' is unknown; choose one of: normal, "),
        ({"mine": in_memory(name="1.png", image_id="mine/1.png")}, "data.name=my_source returned mine/1.png twice"),
        ({"mine": Source([])}, "source mine holds no pictures"),
        ({"mine": Source(in_memory().pictures[::2])}, "source mine has no pictures of class osteoporosis"),
    ],
)
def test_a_source_that_breaks_its_contract_is_one_line(
    registered: Callable[[object], DataConfig], tmp_path: Path, found: object, message: str
) -> None:
    config = registered(found)
    config.cache = str(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def reasons(root: Path) -> dict[str, str]:
    """Why each picture of a folder or zip is set aside, or nothing, by its name."""
    table = build_manifest({"folder": read_folder(str(root))}, root.parent / "cache")
    return {i.removeprefix("folder/"): reason for i, reason in zip(table["image_id"], table["reason"], strict=True)}


def two_classes(root: Path) -> Path:
    return write(root, **{"normal/a.png": png(1), "osteoporosis/b.png": png(2)})


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    os.mkfifo(root / "normal" / "pipe.png")
    (root / "normal" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "normal" / "socket.png"))
        found = reasons(root)
    odd = "not a regular file (a pipe, a socket or a device)"
    assert found == {
        "normal/a.png": "",
        "normal/device.png": odd,
        "normal/pipe.png": odd,
        "normal/socket.png": odd,
        "osteoporosis/b.png": "",
    }
    with pytest.raises(Unusable, match="not a regular file"):  # one that took a picture's place
        Folder(root).read("normal/pipe.png")
    for place in ("/dev/zero", root / "normal" / "pipe.png"):
        with pytest.raises(UserError, match=r"^data.root=\S+ is neither a folder nor a zip file$"):
            read_folder(str(place))


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    write(tmp_path / "elsewhere", **{"c.png": png(3), "deeper/d.png": png(4)})
    for link, target in {
        "osteopenia": tmp_path / "elsewhere",
        "again": root / "normal",
        "normal/self": root / "normal",
        "normal/up": tmp_path,
        "normal/root": "/",
        "zz": tmp_path / "elsewhere" / "deeper",
        "normal/file.png": root / "osteoporosis" / "b.png",
        "normal/round.png": "round.png",
    }.items():
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    found = read_folder(str(root))
    assert {p.name: p.refused for p in found.pictures} == {
        "normal/a.png": "",
        "normal/file.png": "",
        "normal/round.png": "broken link",
        "osteopenia/c.png": "",
        "osteopenia/deeper/d.png": "",
        "osteoporosis/b.png": "",
    }
    assert found.strays == ["again", "normal/root", "normal/self", "normal/up", "osteopenia/back", "zz"]
    assert found.read("osteopenia/deeper/d.png") == png(4)


def test_a_folder_that_cannot_be_entered_is_set_aside_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(two_classes(tmp_path / "data"), **{"normal/locked/c.png": png(3)})
    scandir = os.scandir

    def refuse(path: object) -> object:  # as the system does, unless root asks
        if str(path).endswith(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    locked = "locked"
    assert reasons(root) == {
        "normal/a.png": "",
        "normal/locked/*": "folder that cannot be entered (permission denied)",
        "osteoporosis/b.png": "",
    }
    locked = "data"
    with pytest.raises(UserError, match=r"^data.root=\S+/data cannot be opened: Permission denied$"):
        read_folder(str(root))


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not at hand")
@pytest.mark.parametrize(("name", "bad"), [("damaged_entry", 1), ("backslashes", 0)])
def test_the_shared_zips(name: str, bad: int) -> None:
    source = read_folder(str(CASES / f"{name}.zip"))
    assert len(source.pictures) == 12
    assert {picture.class_name for picture in source.pictures} == {"normal", "osteoporosis"}
    assert not any("\\" in picture.image_id for picture in source.pictures)
    broken = []
    for picture in source.pictures:
        try:
            assert decode(source.read(picture.name)).ndim == 2
        except Unusable as error:
            broken.append(str(error))
    assert broken == ["damaged in its zip (wrong checksum)"] * bad


def hostile_zip(path: Path) -> Path:
    """Two good pictures, and one of each kind that must be set aside."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile: one name twice
        archive.writestr("normal/a.png", png(1))
        archive.writestr("osteoporosis\\b.png", png(2))
        for name in ("checksum", "deflate", "method", "longer", "shorter", "twice", "twice", "./slash"):
            archive.writestr(f"normal/{name}.png", png(3))
        archive.writestr("normal\\slash.png", png(4))
        archive.writestr("normal/bomb.png", bytes(65 * 2**20), compresslevel=1)
        archive.writestr("normal/inner.zip", b"PK")
        places = {Path(info.filename).stem: info.header_offset for info in archive.infolist()}
    raw = bytearray(path.read_bytes())
    for name, at, value in (
        ("checksum", 16, b"1234"),
        ("method", 10, b"\x09\0"),  # deflate64
        ("longer", 24, b"\xff\xff\0\0"),
        ("shorter", 24, b"\x20\0\0\0"),
    ):  # in the zip's directory, whose records end with the name
        start = raw.rindex(f"normal/{name}.png".encode()) - 46 + at
        raw[start : start + len(value)] = value
    start = places["deflate"] + 30 + len("normal/deflate.png")
    raw[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    return path


def test_what_is_wrong_with_an_entry_of_a_zip_is_that_entrys_alone(tmp_path: Path) -> None:
    damaged, checksum = "damaged in its zip (it cannot be unpacked)", "damaged in its zip (wrong checksum)"
    assert reasons(hostile_zip(tmp_path / "bad.zip")) == {
        "normal/a.png": "",
        "osteoporosis/b.png": "",
        "normal/bomb.png": "compressed to less than 1 in 20: no picture is",
        "normal/checksum.png": checksum,
        "normal/deflate.png": damaged,
        "normal/longer.png": "",  # all of it is there
        "normal/method.png": "compressed in its zip by a method that cannot be read",
        "normal/shorter.png": checksum,
        "normal/slash.png": "several files of this name",
        "normal/twice.png": "several files of this name",
    }


def test_a_zip_that_is_cut_short_or_damaged_is_one_line(archives: Path, tmp_path: Path) -> None:
    whole = zipped(archives / "kaggle", tmp_path / "K.zip").read_bytes()
    damaged = whole.replace(b"PK\1\2", b"PK\0\0")
    unreadable = bytearray(whole)
    first = unreadable.index(b"PK\1\2")
    unreadable[first + 9] |= 8  # the name says that it is UTF-8
    unreadable[first + 46] = 0xE9
    for content in (whole[:-30], whole[: len(whole) // 2], damaged, bytes(unreadable)):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.zip is a zip file that is damaged or cut short; fetch it again$"):
            read_folder(str(tmp_path / "bad.zip"))


def many(path: Path, count: int) -> Zip:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(count):
            archive.writestr(f"normal/{number}.png", str(number) * 3000)
    return Zip(path)


def _read_in_child(archive: Zip, name: str) -> bytes:
    return archive.read(name)


def test_a_zip_is_opened_once_whoever_reads_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, opened = many(tmp_path / "many.zip", 300), []
    open_zip = zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *a, **k: (opened.append(1), open_zip(*a, **k))[1])
    names = [entry.name for entry in archive.entries()]
    expected = [Path(name).stem.encode() * 3000 for name in names]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(archive.read, names)) == expected
    assert not opened
    assert archive.read(names[1], 2) == expected[1][:2]
    assert pickle.loads(pickle.dumps(archive)).read(names[1]) == expected[1]
    if "fork" in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(_read_in_child, [(archive, name) for name in names]) == expected
    assert archive.read(names[2]) == expected[2]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shows its open files on Linux")
def test_a_zip_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    def is_open() -> bool:
        return str(tmp_path / "many.zip") in {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}

    many(tmp_path / "many.zip", 2)
    assert not is_open()
    source = read_folder(str(tmp_path / "many.zip"))
    assert source.read("normal/1.png")
    assert is_open()
    del source
    assert not is_open()


def test_copies_under_two_of_three_classes_are_set_aside_unless_a_t_score_decides(tmp_path: Path) -> None:
    names = {
        "normal/1.png": 1, "osteopenia/1.png": 1, "osteopenia/2.png": 2, "osteoporosis/2.png": 2, "normal/3.png": 3,
        "osteopenia/3.png": 3, "osteopenia/4.png": 4, "osteopenia/5.png": 4, "osteoporosis/6.png": 6,
    }  # fmt: skip
    root = write(tmp_path / "data", **{name: png(number) for name, number in names.items()})
    three, worse = TASKS["three_class"], TASKS["osteopenia_or_worse"]
    sources = {"folder": read_folder(str(root))}

    def kept(task: Task, known: dict[str, float], pairs: Sequence[tuple[str, str]] = ()) -> set[str]:
        table = build_manifest(sources, tmp_path / "cache", task=task)
        by_id = {f"folder/{name}": t_score for name, t_score in known.items()}
        left = clean(table, [(f"folder/{a}", f"folder/{b}") for a, b in pairs], by_id, task)
        return set(left.loc[left["split"] != "excluded", "image_id"].str.removeprefix("folder/"))

    assert kept(three, {}) == {"osteopenia/4.png", "osteoporosis/6.png"}
    assert kept(three, {}, [("osteopenia/4.png", "osteoporosis/6.png")]) == set()
    decided = {"osteopenia/2.png": -2.2, "normal/3.png": 0.1, "osteopenia/3.png": -1.5}  # those of 3 contradict
    assert kept(three, decided) == {"osteopenia/2.png", "osteopenia/4.png", "osteoporosis/6.png"}
    assert kept(worse, {}) == {"osteopenia/2.png", "osteopenia/4.png", "osteoporosis/6.png"}
    all_measured = dict.fromkeys(names, -1.5) | {"osteopenia/5.png": -1.6, "osteopenia/2.png": -2.2}
    table = build_manifest(sources, tmp_path / "cache", task=TASKS["t_score"])
    by_id = {f"folder/{name}": t_score for name, t_score in all_measured.items()}
    left = clean(follow_t_scores(table, by_id, complete=True), (), by_id, TASKS["t_score"])
    assert left.loc[left["split"] != "excluded", "image_id"].tolist() == [
        "folder/normal/1.png", "folder/normal/3.png", "folder/osteoporosis/6.png",
    ]  # fmt: skip


def test_the_audit_of_three_classes_says_how_often_copies_agree(tmp_path: Path) -> None:
    from osteo.audit.findings import label_noise

    table = build_manifest(
        {"folder": read_folder(str(write(tmp_path / "data", **{
            "normal/1.png": png(1), "osteopenia/1.png": png(1), "osteoporosis/2.png": png(2),
            "osteoporosis/2b.png": png(2), "osteopenia/3.png": png(3), "osteoporosis/3.png": png(3),
        })))}, tmp_path / "cache", task=TASKS["three_class"],
    )  # fmt: skip
    found = label_noise(table, [], TASKS["three_class"])[0]
    assert (found.exposures, found.contradictory) == (3, 1)
