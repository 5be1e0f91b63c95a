"""Reading is bounded in memory and time, in formats on a list, whatever a file claims to be."""

import ast
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.bounded import peak
from benchmarks.hostile import FILES, SLOW, flat, png, radiograph, saved
from osteo.config import DataConfig
from osteo.data import prepare
from osteo.reading import apart, worker
from osteo.reading.pictures import FORMATS, Unusable, describe_damage
from osteo.reading.reader import read_colour, read_header, read_picture

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
LIBRARIES = 2**26  # bytes by which a process may grow that has yet to use some of what it imported


def read(content: bytes) -> str:
    try:
        header, grey = read_header(content), read_picture(content, 224)
    except Unusable as error:
        return str(error)
    assert grey.dtype == np.uint8
    return f"used: {header.kind}"


def starts_as(patch: pytest.MonkeyPatch, *programs: str) -> list[apart.Process]:
    """The next reading processes run these programs instead, the last for all others; those started are listed."""
    started: list[apart.Process] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> apart.Process:
        program = programs[min(len(started), len(programs) - 1)]
        started.append(popen([*command[:2], "-c", f"import osteo.reading.worker as w\n{program}\nw.main()"], **options))
        return started[-1]

    apart.stop()
    patch.setattr(subprocess, "Popen", start)
    return started


@pytest.fixture
def patient() -> Iterator[None]:
    """A minute for every file: which limit a bomb meets first must not depend on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        starts_as(patch, "w.SECONDS = w.MOST_SECONDS = 60.0")
        patch.setattr(worker, "SECONDS", 60.0)
        patch.setattr(worker, "MOST_SECONDS", 60.0)
        yield
    apart.stop()


@pytest.fixture
def before() -> int:
    """Bytes that the one reading process holds that is there."""
    apart.stop()
    read_picture(flat("L", 8, 8, "PNG"))
    return max(map(peak, apart._alive))


def test_hostile_files_of_every_format_stay_within_the_limits(before: int) -> None:
    wrong = {}
    for name, (outcome, make) in FILES.items():
        if name in SLOW:
            continue
        content = make()
        start = time.monotonic()
        found = read(content)
        late = time.monotonic() - start > 2 * apart.WALL_CLOCK_FACTOR * worker.seconds_for(len(content))
        if not re.search(outcome, found) or late:
            wrong[name] = found, outcome
        more = max(map(peak, apart._alive), default=0) - before
        assert more <= worker.MEMORY + LIBRARIES, name
    assert wrong == {}


@pytest.mark.usefixtures("patient")
def test_a_bomb_that_fills_the_memory_allowed_takes_no_more(before: int) -> None:
    """A hundred million pixels of four channels, in 400 kB."""
    assert read(png(9999, 9999, 8, 6)) == "a picture that needs more memory than it is allowed"
    assert max(map(peak, apart._alive)) - before <= worker.MEMORY + LIBRARIES
    assert read(flat("L", 64, 64, "PNG")) == "used: PNG", "the process goes on with the next file"


CLAIMS = {
    "png_first_idat_ff.png": "^truncated",
    "tif_bigtile.tif": "^damaged|memory",
    "jp2_10k_rgba.png": "memory",
    "bmp_10k_rle_delta.bmp": "memory",
    "jpg_10k_headeronly.jpg": "^truncated",
    "jpg_2k_scans300.jpg": "^used",
    "eps.png": "^not a picture$",
}


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", CLAIMS)
def test_the_cases_end_with_a_reason(name: str, before: int) -> None:
    assert re.search(CLAIMS[name], read((CASES / name).read_bytes()))
    assert max(map(peak, apart._alive), default=0) - before <= worker.MEMORY + LIBRARIES


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a limit on CPU time")
def test_what_takes_too_long_is_ended_and_the_next_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "def read(*_):\n while True: pass\nw.read, w.SECONDS = read, 0.1"
    started = starts_as(monkeypatch, endless, "")
    content = flat("L", 64, 64, "PNG")
    assert re.fullmatch(r"picture that takes longer than 2\.0 s to read", read(content))
    assert read(content) == "used: PNG"
    assert len(started) == 2


def test_a_process_that_hangs_without_computing_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    apart.stop()
    monkeypatch.setattr(apart, "WALL_CLOCK_FACTOR", 0.1)
    stopped = []

    def stop_it(process: apart.Process, *request: object) -> None:
        stopped.append(process)
        process.send_signal(signal.SIGSTOP)
        return exchange(process, *request)

    exchange = apart._exchange
    with monkeypatch.context() as patch:
        patch.setattr(apart, "_exchange", stop_it)
        assert read(flat("L", 64, 64, "PNG")) == "picture that takes longer than 2.0 s to read"
    assert len(stopped) == apart.TRIES
    assert all(process.poll() is not None for process in stopped)


def test_no_more_processes_than_cores_and_none_is_left(before: int) -> None:
    sizes = range(8, 48)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda side: read_picture(flat("L", side, side + 1, "PNG")).shape, sizes))
    assert shapes == [(side + 1, side) for side in sizes]
    processes = list(apart._alive)
    assert 1 <= len(processes) <= apart.CORES
    apart.stop()
    assert all(process.poll() is not None for process in processes)


def test_reasons_quote_no_library() -> None:
    secret = "ZIMMERMANN"
    for error in (OSError(f"cannot read {secret}"), SyntaxError(secret), KeyError(secret), MemoryError(secret)):
        assert secret not in describe_damage(error)
    assert read(flat("L", 64, 64, "PNG")[:-40]).startswith("truncated")


def test_hostile_files_do_not_end_a_data_set(tmp_path: Path) -> None:
    """They are set aside, each with its reason, and the rest is used."""
    chosen = [name for name, (outcome, _) in FILES.items() if name not in SLOW and "used" not in outcome]
    for label in ("normal", "osteoporosis"):
        (tmp_path / label).mkdir()
        for number in range(10):
            picture = np.rot90(radiograph(40 + number, 50, 8), 2 * (label == "normal"))
            (tmp_path / label / f"{number}.png").write_bytes(saved(Image.fromarray(picture), "PNG"))
    for number, name in enumerate(chosen):
        (tmp_path / "normal" / f"hostile {number:02}.png").write_bytes(FILES[name][1]())
    config = DataConfig(name="folder", root=str(tmp_path), image_size=32)
    config.split.grouped = False
    manifest, store = prepare.prepare(config)
    hostile = manifest[manifest["image_id"].str.contains("hostile")].sort_values("image_id")
    assert set(hostile["split"]) == {"excluded"}
    for name, reason in zip(chosen, hostile["reason"], strict=True):
        assert re.search(FILES[name][0], reason), (name, reason)
    assert len(store.rows) - len(store.unreadable) == 20 == (manifest["split"] != "excluded").sum()


def test_only_the_reading_process_decodes() -> None:
    """A call of a decoder anywhere else would be without limits."""
    calls = {"cv2.imdecode", "cv2.imread", "Image.open", "pictures.decode"}
    found = set()
    for path in sorted((ROOT / "osteo").rglob("*.py")):
        if path.parent.name == "reading":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                found |= {f"{path.name}: {ast.unparse(node)}"} if ast.unparse(node) in calls else set()
            if isinstance(node, ast.ImportFrom) and node.module == "osteo.reading.pictures":
                found |= {f"{path.name}: {name.name}" for name in node.names if name.name in ("decode", "header")}
    assert found == set()
    assert not {"EPS", "PSD", "ICNS", "WMF"} & set(FORMATS)


def test_colour_is_measured_apart_too() -> None:
    assert read_colour(flat("RGB", 64, 64, "PNG")) == 0
    assert read_colour(saved(Image.new("RGB", (64, 64), "red"), "PNG")) == 255


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_honest_large_radiographs_are_read() -> None:
    make = FILES["TIFF, 16 bits, 4000 x 5000"][1]
    assert read_picture(make(), 224).shape == (5000, 4000)
