"""A picture is dropped on a page, answered, and forgotten."""

import asyncio
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_images
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from osteo.command_settings import ServeConfig
from osteo.inference.answer import answer
from osteo.inference.model import Model
from osteo.reading.framing import NOT_FOUND
from osteo.serving import server
from tests import dicom
from tests.conftest import REAL_DATA

HOME = "http://127.0.0.1"
NAME = "DOE^JANE"


def png(grey: np.ndarray) -> bytes:
    return cv2.imencode(".png", grey)[1].tobytes()


@pytest.fixture
def client(models: list[Model]) -> Iterator[TestClient]:
    with TestClient(server.make_app(models, ServeConfig()), base_url=HOME) as made:
        yield made


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
        reply = client.post("/answer", content=content).json()
        for key in ("calibrated", "low", "high", "threshold"):
            assert reply[key] == pytest.approx(table.loc[name, key], abs=1e-6), (name, key)
        assert (reply["call"], reply["rule"], reply["flags"]) == (table.loc[name, "call"], "Youden", [])
        assert reply["picture"].startswith("data:image/jpeg;base64,")
        assert reply["overlay"] != reply["picture"]
        assert reply["halves"] == []
        assert reply["notes"] == json.loads(Path("p/predictions.json").read_text())["notes"]


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


def test_what_holds_for_one_picture_is_not_what_holds_for_all(
    client: TestClient, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server, "answer", lambda *given, **more: [replace(one, notes=(NOT_FOUND,)) for one in answer(*given, **more)]
    )
    reply = client.post("/answer", content=png(picture)).json()
    assert reply["remarks"] == [NOT_FOUND]  # the page shows these beside the answer, and the others once
    assert NOT_FOUND not in reply["notes"]
    assert "answer.remarks" in client.get("/").text


def test_what_was_not_asked_for_is_left_out(models: list[Model], picture: np.ndarray) -> None:
    with TestClient(server.make_app(models, ServeConfig(interval=False, overlay=False)), base_url=HOME) as client:
        reply = client.post("/answer", content=png(picture)).json()
    assert [reply[key] for key in ("low", "high", "overlay")] == [None] * 3


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
        reply = client.post("/answer", content=bytes(2**20 + 1))
        assert (reply.status_code, reply.json()) == (413, {"error": "larger than 1 MiB"})
        assert client.post("/answer", content=endless()).status_code == 413
        assert client.post("/answer", content=bytes(2**20)).status_code == 415


@pytest.mark.parametrize(("gone", "status", "reason"), [(False, 408, "did not arrive"), (True, 400, "cut off")])
def test_who_is_slow_or_leaves_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, gone: bool, status: int, reason: str
) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.sleep(0 if gone else 60)
        return {"type": "http.disconnect"}

    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.05)
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
            "more than 3 pictures per minute: wait a little",
        )
        now = 1060.0
        assert client.post("/answer", content=b"x").status_code == 415


def test_few_wait_and_the_rest_are_refused(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    go, busy, most = threading.Event(), [], []

    def slow(*_: object) -> dict:
        busy.append(1)
        most.append(len(busy))
        go.wait(20)
        busy.pop()
        return {}

    monkeypatch.setattr(server, "answer_file", slow)
    with TestClient(server.make_app(models, ServeConfig(a_minute=None)), base_url=HOME) as client:
        codes: list[int] = []

        def ask() -> None:
            codes.append(client.post("/answer", content=b"BM").status_code)

        threads = [threading.Thread(target=ask) for _ in range(7)]  # one is answered, five wait, one is refused
        for thread in threads:
            thread.start()
        while not codes:
            time.sleep(0.01)
        assert codes == [503]
        go.set()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [200] * 6 + [503]
    assert max(most) == 1


def test_one_client_does_not_have_all_places() -> None:
    gate = server.Gate(None)
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(gate.place("first"))
        with pytest.raises(HTTPException, match="too many"), gate.place("first"):
            pass
        for name in ("second", "third", "fourth"):
            stack.enter_context(gate.place(name))
        with pytest.raises(HTTPException, match="too many"), gate.place("fifth"):
            pass
    with gate.place("first"):
        pass


async def trickle(size: int, seconds: float) -> AsyncIterator[dict[str, Any]]:
    while True:
        await asyncio.sleep(seconds)
        yield {"type": "http.request", "body": bytes(size), "more_body": True}


def test_a_body_has_a_slowest_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.5)
    for size, most in ((1, 0.3), (2**13, 1.0)):  # 100 bytes in a second, and enough of them, but too long
        request = Request({"type": "http", "method": "POST", "headers": []}, trickle(size, 0.01).__anext__)
        begun = time.monotonic()
        with pytest.raises(HTTPException, match="in time"):
            asyncio.run(server.body_of(request, 100))
        assert (0.09 if size == 1 else 0.49) < time.monotonic() - begun < most


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1", "localhost@evil"])
def test_another_name_of_this_address_is_refused(client: TestClient, host: str) -> None:
    for done in (client.get("/", headers={"Host": host}), client.post("/answer", headers={"Host": host})):
        assert (done.status_code, done.json()) == (400, {"error": "unknown Host"})


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:81", ""])
def test_another_page_cannot_ask(client: TestClient, picture: np.ndarray, origin: str) -> None:
    done = client.post("/answer", content=png(picture), headers={"Origin": origin})
    assert (done.status_code, done.json()) == (403, {"error": "the request comes from another page"})
    assert client.post("/answer", content=png(picture), headers={"Origin": HOME}).status_code == 200


def test_names_of_a_server_that_others_reach(client: TestClient) -> None:
    assert server.names_this_server("localhost:8000", "127.0.0.1")
    assert server.names_this_server("[::1]:8000", "::1")
    for host in ("10.0.0.7:8000", "localhost", f"{socket.gethostname()}:8000"):
        assert server.names_this_server(host, "0.0.0.0"), host
    assert not server.names_this_server("evil.example:8000", "0.0.0.0")


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
    planted = {
        "PatientName": NAME,
        "PatientID": "MRN-4711",
        "InstitutionName": "St. Elsewhere",
        "StudyDate": "19700101",
    }
    large = np.tile(picture, (4, 4))  # more than a megabyte, where Starlette would spool
    files = [png(large), dicom.file(large, 8, **planted), dicom.file(large, 8, **planted)[:700], png(picture)[:100]]
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
    output = "".join(capfd.readouterr()) + caplog.text + "".join(reply.text for reply in replies)
    for value in (*planted.values(), "JANE"):
        assert value not in output


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the original X-rays are not at hand")
def test_real_pictures_are_answered(client: TestClient) -> None:
    for path in sorted((REAL_DATA / "kaggle").rglob("*.*"))[::20]:
        reply = client.post("/answer", content=path.read_bytes())
        assert reply.status_code == 200, (path.name, reply.text)
        assert 0.0 <= reply.json()["low"] <= reply.json()["calibrated"] <= reply.json()["high"] <= 1.0
