"""A picture is dropped on a page, answered, and forgotten."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_images
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from benchmarks import fuzz
from osteo.config import ServeConfig
from osteo.data.phantom import write_archives
from osteo.inference import server
from osteo.inference.model import Model, load_models
from tests import dicom
from tests.conftest import REAL_DATA
from tests.test_report import CHROMIUM

HOME = "http://127.0.0.1"
NAME = "DOE^JANE"


@pytest.fixture(scope="module")
def knees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("knees") / "archives"
    mendeley = {"normal": 1, "osteopenia": 0, "osteoporosis": 1}
    write_archives(root, seed=5, kaggle={"normal": 40, "osteoporosis": 40}, mendeley=mendeley)
    return root / "kaggle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, knees: Path, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    command = [
        str(Path(sys.executable).with_name("osteo")), "train", "data=folder", f"data.root={knees}",
        "data.image_size=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "trainer.max_epochs=3", "model.backbone=test_resnet", "logger.wandb.mode=disabled", "output_dir=run",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def models(run: Path) -> list[Model]:
    return load_models([str(run)])


@pytest.fixture
def client(models: list[Model]) -> Iterator[TestClient]:
    with TestClient(server.make_app(models, ServeConfig()), base_url=HOME) as made:
        yield made


@pytest.fixture(scope="module")
def picture(knees: Path, models: list[Model]) -> np.ndarray:
    """Grey, as a file has it, of a phantom that no flag is raised for."""
    for path in sorted(knees.rglob("*.*")):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if not server.tell(models, png(grey), ServeConfig(interval=False, overlay=False))["flags"]:
            return grey
    raise AssertionError("all are flagged")


def png(grey: np.ndarray) -> bytes:
    return cv2.imencode(".png", grey)[1].tobytes()


def test_an_answer_is_that_of_predict(
    osteo: Callable, client: TestClient, run: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    files = {"a.png": png(picture), "b.dcm": dicom.file(picture, 8, PatientName=NAME)}
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    assert osteo("predict", str(run), "input=in", "output_dir=p").code == 0
    table = pd.read_csv("p/predictions.csv").set_index("file")
    for name, content in files.items():
        told = client.post("/answer", content=content).json()
        for key in ("calibrated", "low", "high", "threshold"):
            assert told[key] == pytest.approx(table.loc[name, key], abs=1e-6), (name, key)
        assert (told["call"], told["rule"], told["flags"]) == (table.loc[name, "call"], "Youden", [])
        assert told["picture"].startswith("data:image/jpeg;base64,")
        assert told["overlay"] != told["picture"]
        assert told["halves"] == []
        assert told["notes"] == json.loads(Path("p/predictions.json").read_text())["notes"]


def test_odd_pictures_are_withheld_and_two_knees_are_offered_apart(client: TestClient, picture: np.ndarray) -> None:
    odd = client.post("/answer", content=png(cv2.cvtColor(load_sample_images().images[0], cv2.COLOR_RGB2GRAY))).json()
    assert (odd["call"], odd["halves"]) == ("withheld", [])
    assert odd["flags"] == ["unlike the pictures that the model learnt from"]
    both = client.post("/answer", content=png(np.hstack([picture, picture[:, ::-1]]))).json()
    assert (both["call"], both["flags"]) == ("withheld", ["two knees"])
    left, right = both["halves"]
    alone = client.post("/answer", content=png(picture)).json()
    assert (left["side"], right["side"]) == ("left", "right")
    assert left["calibrated"] == pytest.approx(alone["calibrated"], abs=1e-6)
    assert left["call"] == alone["call"]


def test_what_was_not_asked_for_is_left_out(models: list[Model], picture: np.ndarray) -> None:
    with TestClient(server.make_app(models, ServeConfig(interval=False, overlay=False)), base_url=HOME) as client:
        told = client.post("/answer", content=png(picture)).json()
    assert [told[key] for key in ("low", "high", "overlay")] == [None] * 3


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 400, "empty file"),
        (b"hello", 415, "not PNG, JPEG, TIFF, BMP, WEBP, GIF or DICOM (with DICM at byte 128)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "not PNG"),
        (b"\x89PNG no", 400, "not a picture"),
        (bytes(128) + b"DICM" + b"x" * 50, 400, "DICOM without pixel data"),
    ],
)
def test_a_file_that_cannot_be_used_has_a_reason(client: TestClient, content: bytes, status: int, reason: str) -> None:
    done = client.post("/answer", content=content)
    assert done.status_code == status
    assert reason in done.json()["error"]
    assert list(done.json()) == ["error"]


def test_what_breaks_unforeseen_says_nothing_of_the_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(content: bytes, size: int) -> None:
        raise ValueError(NAME)

    monkeypatch.setattr(server, "read_picture", broken)
    done = client.post("/answer", content=b"BM")
    assert (done.status_code, done.json()) == (500, {"error": "this picture could not be answered"})
    assert "ValueError" in caplog.text
    assert NAME not in caplog.text


def test_files_that_are_too_large_are_refused_while_they_come(models: list[Model]) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield bytes(2**16)

    with TestClient(server.make_app(models, ServeConfig(most_mib=1)), base_url=HOME) as client:
        said = client.post("/answer", content=bytes(2**20 + 1))
        assert (said.status_code, said.json()) == (413, {"error": "larger than 1 MiB"})
        assert client.post("/answer", content=endless()).status_code == 413
        assert client.post("/answer", content=bytes(2**20)).status_code == 415


@pytest.mark.parametrize(("gone", "status", "reason"), [(False, 408, "did not come"), (True, 400, "cut off")])
def test_who_is_slow_or_leaves_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, gone: bool, status: int, reason: str
) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.sleep(0 if gone else 60)
        return {"type": "http.disconnect"}

    monkeypatch.setattr(server, "PATIENCE", 0.05)
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HTTPException, match=reason) as error:
        asyncio.run(server.body_of(request, 1))
    assert error.value.status_code == status


def test_a_form_is_refused_before_it_is_parsed(client: TestClient, picture: np.ndarray) -> None:
    done = client.post("/answer", files={"file": ("name.png", png(picture))})
    assert (done.status_code, done.json()) == (415, {"error": "send the file itself as the body, not a form"})


def test_so_many_a_minute(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(server.time, "monotonic", lambda: now)
    app = server.make_app(models, ServeConfig(a_minute=3))
    with TestClient(app, base_url=HOME) as client:
        assert [client.post("/answer", content=b"x").status_code for _ in range(4)] == [415] * 3 + [429]
        refused = client.post("/answer", content=b"x")
        assert (refused.headers["retry-after"], refused.json()["error"]) == (
            "60",
            "more than 3 pictures in a minute: wait a little",
        )
        now = 1060.0
        assert client.post("/answer", content=b"x").status_code == 415


def test_few_wait_and_the_rest_is_told_so(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    go, busy, most = threading.Event(), [], []

    def slow(*_: object) -> dict:
        busy.append(1)
        most.append(len(busy))
        go.wait(20)
        busy.pop()
        return {}

    monkeypatch.setattr(server, "tell", slow)
    with TestClient(server.make_app(models, ServeConfig(a_minute=None)), base_url=HOME) as client:
        codes: list[int] = []

        def ask() -> None:
            codes.append(client.post("/answer", content=b"BM").status_code)

        threads = [threading.Thread(target=ask) for _ in range(10)]  # one is answered, eight wait, one is refused
        for thread in threads:
            thread.start()
        while not codes:
            time.sleep(0.01)
        assert codes == [503]
        go.set()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [200] * 9 + [503]
    assert max(most) == 1


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1", "localhost@evil"])
def test_another_name_of_this_address_is_refused(client: TestClient, host: str) -> None:
    for done in (client.get("/", headers={"Host": host}), client.post("/answer", headers={"Host": host})):
        assert (done.status_code, done.json()) == (400, {"error": "unknown Host"})


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:81", ""])
def test_another_page_cannot_ask(client: TestClient, picture: np.ndarray, origin: str) -> None:
    done = client.post("/answer", content=png(picture), headers={"Origin": origin})
    assert (done.status_code, done.json()) == (403, {"error": "asked by another page"})
    assert client.post("/answer", content=png(picture), headers={"Origin": HOME}).status_code == 200


def test_names_of_a_server_that_others_reach(client: TestClient) -> None:
    assert server.is_ours("localhost:8000", "127.0.0.1")
    assert server.is_ours("[::1]:8000", "::1")
    for host in ("10.0.0.7:8000", "localhost", f"{socket.gethostname()}:8000"):
        assert server.is_ours(host, "0.0.0.0"), host
    assert not server.is_ours("evil.example:8000", "0.0.0.0")


def test_headers_and_what_is_not_there(client: TestClient, picture: np.ndarray) -> None:
    for done in (client.get("/"), client.get("/gone"), client.post("/answer", content=png(picture))):
        assert done.headers["cache-control"] == "no-store"
        assert done.headers["x-content-type-options"] == "nosniff"
        assert done.headers["referrer-policy"] == "no-referrer"
        policy = done.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
    for path in ("/docs", "/redoc", "/openapi.json", "/../../etc/passwd"):
        assert (client.get(path).status_code, client.get(path).json()) == (404, {"error": "Not Found"})
    assert (client.get("/answer").status_code, client.get("/answer").json()["error"]) == (405, "Method Not Allowed")
    page = client.get("/").text
    assert "Research use only, not a medical device" in page
    assert not re.search(r"https?://", page)


WATCH: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if WATCH is not None and event == "open":
        path, mode, flags = arguments
        if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            WATCH.append(str(path))


def test_nothing_is_written_and_nobody_is_named(
    client: TestClient,
    picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    global WATCH
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    told = {"PatientName": NAME, "PatientID": "MRN-4711", "InstitutionName": "St. Elsewhere", "StudyDate": "19700101"}
    large = np.tile(picture, (4, 4))  # more than a megabyte, where Starlette would spool
    files = [png(large), dicom.file(large, 8, **told), dicom.file(large, 8, **told)[:700], png(picture)[:100]]
    sys.addaudithook(_watch)
    try:
        WATCH = []
        replies = [client.post("/answer", content=content) for content in files]
        opened = [path for path in WATCH if path != os.devnull and not path.isdigit()]
    finally:
        WATCH = None
    assert [reply.status_code for reply in replies] == [200, 200, 400, 400]
    assert len(files[0]) > 2**20
    assert opened == []
    assert list(tmp_path.iterdir()) == []
    said = "".join(capfd.readouterr()) + caplog.text + "".join(reply.text for reply in replies)
    for value in (*told.values(), "JANE"):
        assert value not in said


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the original X-rays are not at hand")
def test_real_pictures_are_answered(client: TestClient) -> None:
    for path in sorted((REAL_DATA / "kaggle").rglob("*.*"))[::20]:
        told = client.post("/answer", content=path.read_bytes())
        assert told.status_code == 200, (path.name, told.text)
        assert 0.0 <= told.json()["low"] <= told.json()["calibrated"] <= told.json()["high"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a checkpoint"),
        (["nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
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
    monkeypatch.setattr("osteo.commands.launchers._is_installed", lambda package: False)
    done = osteo("serve", str(run))
    assert done.code == 2
    assert done.err == "osteo serve: osteo serve needs an extra that is not installed: pip install 'osteo[serve]'\n"


def test_an_open_address_is_warned_of_and_ctrl_c_ends_it(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "osteo", "serve", str(run), "port=0", "host=0.0.0.0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    said = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, wrong = process.communicate(timeout=30)
    assert (process.returncode, rest, wrong) == (0, "", "")
    assert said[0] == "host=0.0.0.0 is open to others: there is no encryption and no login\n"
    assert re.fullmatch(r"page         http://0\.0\.0\.0:\d+/ \(Ctrl-C ends it\)\n", said[2])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A real server: its process and its port."""
    with fuzz.server(run, tmp_path_factory.mktemp("served") / "served.txt") as (process, port):
        yield process, port
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_hundred_malformed_uploads(served: tuple, picture: np.ndarray) -> None:
    process, port = served
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
        said: list[str] = []
        asked: set[str] = set()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        page.on("filechooser", lambda _: None)  # from now on choosers are not the system's
        home = f"http://127.0.0.1:{served[1]}/"
        page.goto(home)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.type") == "file"

        def choose(name: str, wanted: str) -> None:
            with page.expect_file_chooser() as chooser:
                page.keyboard.press("Enter")
            chooser.value.set_files(tmp_path / name)
            page.locator("#said", has_text=wanted).wait_for(timeout=20_000)
            assert page.evaluate("document.activeElement.type") == "file"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert Axe().run(page).response["violations"] == []
            if folder := os.environ.get("OSTEO_SCREENSHOTS"):
                page.screenshot(path=f"{folder}/{scheme}-{name}", full_page=True)

        choose("knee.png", "Probability of osteoporosis")
        images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert images == [True, True]
        assert page.locator("#said h2").inner_text() == "knee.png"
        assert re.search(r"0\.\d\d \(0\.\d\d to 0\.\d\d\)", page.locator("#said dl").inner_text())
        choose("two.png", "The right half of the picture")
        assert "two knees" in page.locator("#said").inner_text()
        choose("broken.png", "No answer: not a picture")
        dropped = page.evaluate_handle(
            "bytes => { const held = new DataTransfer();"
            " held.items.add(new File([new Uint8Array(bytes)], 'dropped.png')); return held }",
            list(png(picture)),
        )
        page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
        page.locator("#said", has_text="Probability of osteoporosis").wait_for(timeout=20_000)
        assert page.locator("#said h2").inner_text() == "dropped.png"
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.get_by_text("Research use only, not a medical device", exact=True).first.is_visible()
        assert page.locator("header").bounding_box()["y"] == 0
        assert asked - {url for url in asked if url.startswith("data:")} == {home, f"{home}answer"}
        assert [line for line in said if "400" not in line] == []  # a broken file is a refused request
        browser.close()
