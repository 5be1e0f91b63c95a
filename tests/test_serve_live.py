"""osteo serve as a process: at the command line, under a fuzzer, in a browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz
from tests.browser import CHROMIUM
from tests.test_serve import png


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run or a checkpoint"),
        (["nowhere.ckpt"], "nowhere.ckpt: no such run, sweep or checkpoint"),
        (["{run}", "port={taken}"], "address already in use; choose another, or port=0 for any that is free"),
        (["{run}", "port=70000"], "port=70000 is too large; the largest allowed is 65535"),
        (["{run}", "host=no.such.invalid"], "host=no.such.invalid port=8000: "),
        (["{run}", "most_mib=0"], "most_mib=0 is too small"),
        (["{run}", "a_minute=0"], "a_minute=0 is too small"),
        (["{run}", "rule=best"], "rule 'best' is unknown"),
    ],
)
def test_mistakes_are_one_line(osteo: Callable, run: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = osteo("serve", *(argument.format(run=run, taken=port) for argument in arguments))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_line(osteo: Callable, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osteo.app.extras._is_installed", lambda package: False)
    done = osteo("serve", str(run))
    assert done.code == 2
    assert done.err == "osteo serve: osteo serve needs an extra that is not installed: pip install 'osteo[serve]'\n"


def test_an_open_address_is_warned_of_and_ctrl_c_ends_it(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "osteo", "serve", str(run), "port=0", "host=0.0.0.0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(3)]
    port = int(lines[2].split("/ (")[0].rpartition(":")[2])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    rest, wrong = process.communicate(timeout=30)
    assert (process.returncode, rest, wrong) == (0, "", "")
    assert lines[0] == "host=0.0.0.0 lets other machines connect, without encryption or a login\n"
    assert re.fullmatch(r"page         http://0\.0\.0\.0:\d+/ \(Ctrl-C ends it\)\n", lines[2])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A real server: its process and its port."""
    with fuzz.server(run, tmp_path_factory.mktemp("served") / "served.txt") as (process, port):
        yield process, port
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_hundred_malformed_uploads(served: tuple, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    process, port = served
    monkeypatch.setattr(
        fuzz, "CLIENTS", 3
    )  # of six places of one client: what it cut off leaves its own a little later
    first, *rows = fuzz.attack(
        process, port, png(picture), 300, 120.0, seed=27
    )  # a seed that keeps it waiting for none
    assert first["number"] == 300
    assert len(rows) == len(fuzz.CORRUPT) + len(fuzz.WIRE)
    assert not re.search(r"\b50[0-9]|no reply", first["outcomes"]), first


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_the_page_by_keyboard(served: tuple, picture: np.ndarray, tmp_path: Path, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    (tmp_path / "knee.png").write_bytes(png(picture))
    (tmp_path / "two.png").write_bytes(png(np.hstack([picture, picture[:, ::-1]])))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=quiet)
        page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
        messages: list[str] = []
        urls: set[str] = set()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: urls.add(request.url))
        page.on("filechooser", lambda _: None)  # from now on choosers are not the system's
        home = f"http://127.0.0.1:{served[1]}/"
        page.goto(home)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.type") == "file"

        def choose(name: str, wanted: str) -> None:
            with page.expect_file_chooser() as chooser:
                page.keyboard.press("Enter")
            chooser.value.set_files(tmp_path / name)
            page.locator("#answer", has_text=wanted).wait_for(timeout=20_000)
            assert page.evaluate("document.activeElement.type") == "file"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert Axe().run(page).response["violations"] == []
            if folder := os.environ.get("OSTEO_SCREENSHOTS"):
                page.screenshot(path=f"{folder}/{scheme}-{name}", full_page=True)

        choose("knee.png", "Probability of osteoporosis")
        images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert images == [True, True]
        assert page.locator("#answer h2").inner_text() == "knee.png"
        assert re.search(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", page.locator("#answer dl").inner_text())
        choose("two.png", "The right half of the picture")
        assert "two knees" in page.locator("#answer").inner_text()
        choose("broken.png", "No answer: not a picture")
        dropped = page.evaluate_handle(
            "bytes => { const held = new DataTransfer();"
            " held.items.add(new File([new Uint8Array(bytes)], 'dropped.png')); return held }",
            list(png(picture)),
        )
        page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
        page.locator("#answer", has_text="Probability of osteoporosis").wait_for(timeout=20_000)
        assert page.locator("#answer h2").inner_text() == "dropped.png"
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.get_by_text("Research use only, not a medical device", exact=True).first.is_visible()
        assert page.locator("header").bounding_box()["y"] == 0
        assert urls - {url for url in urls if url.startswith("data:")} == {home, f"{home}answer"}
        assert [line for line in messages if "400" not in line] == []  # a broken file is a refused request
        browser.close()
