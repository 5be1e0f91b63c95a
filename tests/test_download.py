"""Fetching the archives, from a server on this machine."""

import base64
import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from osteo.config import DataConfig
from osteo.data import download
from osteo.data.prepare import read_sources
from osteo.errors import UserError


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("normal/a.png", bytes(range(256)) * 2000)
    return buffer.getvalue()


CONTENT = archive()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every name, and cuts the first `cuts` answers short."""

    cuts = 0
    damage = False
    ranges: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked[6:].rstrip("-")) if asked else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        if self.server.damage:
            body = body[:1000] + b"?" + body[1001:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        checksum = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
        self.send_header("x-goog-hash", f"md5={checksum}")
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("DownloadDataset"):
            self.do_GET()
            return
        answer = json.dumps({"currentVersionNumber": 1}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Server]]:
    running: list[Server] = []

    def start(port: int = 0) -> Server:
        server = Server(("127.0.0.1", port), Handler)
        server.ranges = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        monkeypatch.setattr(download, "MENDELEY", f"http://127.0.0.1:{server.server_address[1]}/file.zip")
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_an_archive_is_fetched_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    path = download.mendeley(tmp_path)
    assert path.read_bytes() == CONTENT
    assert download.mendeley(tmp_path) == path
    assert server.ranges == [None]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_broken_download_goes_on_where_it_stopped(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    server.cuts = 1
    with pytest.raises(UserError, match=r"could not be fetched .* try again to go on where it stopped"):
        download.mendeley(tmp_path)
    assert not list(tmp_path.glob("*.zip"))
    assert download.mendeley(tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_download_that_was_complete_but_not_renamed_is_used(serve: Callable[..., Server], tmp_path: Path) -> None:
    serve()
    (tmp_path / "mendeley-fxjm8fb6mw-2.part").write_bytes(CONTENT)
    assert download.mendeley(tmp_path).read_bytes() == CONTENT


def test_damage_is_found_by_the_checksums_of_the_zip(serve: Callable[..., Server], tmp_path: Path) -> None:
    serve().damage = True
    with pytest.raises(UserError, match=r"arrived damaged \(checksum of normal/a.png\) and was removed"):
        download.mendeley(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [b"", CONTENT[: len(CONTENT) // 2], CONTENT[:1000] + b"?" + CONTENT[1001:]])
@pytest.mark.parametrize("suffix", [".zip", ".part"])
def test_what_is_damaged_in_the_cache_is_fetched_again(
    serve: Callable[..., Server], tmp_path: Path, suffix: str, damaged: bytes
) -> None:
    serve()
    (tmp_path / f"mendeley-fxjm8fb6mw-2{suffix}").write_bytes(damaged)
    path = download.mendeley(tmp_path)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_server_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "MENDELEY", "http://127.0.0.1:9/file.zip")
    with pytest.raises(UserError, match=r"set data.mendeley=FILE") as caught:
        download.mendeley(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_kaggle_archive_comes_by_kagglehub(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("kagglehub", reason="the extra 'download' is not installed")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")  # the client's own name for localhost:7777
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    server = serve(7777)
    server.damage = True
    with pytest.raises(UserError, match=r"the Kaggle archive could not be fetched \(DataCorruptionError\)"):
        download.kaggle()
    server.damage = False
    folder = download.kaggle()
    assert (folder / "normal" / "a.png").read_bytes() == bytes(range(256)) * 2000
    server.ranges.clear()
    assert download.kaggle() == folder
    assert server.ranges == []


def test_where_an_archive_was_downloaded_to_is_in_no_manifest(
    archives: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("kaggle", "mendeley"):
        monkeypatch.setattr(download, name, lambda *_, name=name: archives / name)
    sources = read_sources(DataConfig(name="paper", download=True), tmp_path)
    pictures = [picture for source in sources.values() for picture in source.pictures]
    assert len(pictures) == 42
    assert [picture.path for picture in pictures] == [picture.image_id for picture in pictures]
