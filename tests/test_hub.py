"""The model hub: out of reach it costs seconds, and what its cache holds needs no network."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import save
from torch import Tensor

from osteo.errors import UserError
from osteo.networks import backbones
from osteo.networks.network import Network

COMMIT = "0" * 40
PLACE = "timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return dict(timm.create_model("test_resnet").state_dict())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A port where nobody answers yet, as the address of the hub, with an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield address
    close_session()


def pretrained(weights: dict[str, Tensor]) -> bool:
    """Whether a network that asks for pretrained weights gets these."""
    loaded = Network("test_resnet", image_size=64, pretrained=True, channels=3).backbone.state_dict()
    return torch.equal(loaded["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])


def test_a_hub_that_refuses_is_told_at_once(hub: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(UserError, match=r"could not be fetched from the model hub .* model.pretrained=false"):
        pretrained({})
    assert time.perf_counter() - begun < 5  # the hub's client alone takes 46


def test_a_hub_that_never_answers_is_waited_for_once(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "SECONDS", 0.3)
    begun = time.perf_counter()
    silent = socket.create_server(("127.0.0.1", int(hub.rpartition(":")[2])))  # it takes connections and says nothing
    with silent, pytest.raises(UserError, match="could not be fetched from the model hub"):
        pretrained({})
    assert 0.3 < time.perf_counter() - begun < 5


def test_weights_in_the_cache_need_no_network(hub: str, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    kept = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "snapshots" / COMMIT / "model.safetensors").write_bytes(save(weights))
    assert pretrained(weights)


def test_a_hub_in_reach_is_asked(hub: str, weights: dict[str, Tensor]) -> None:
    content = save(weights)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path in ("/", f"/{PLACE}")
            self.send_response(200 if found else 404)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", int(hub.rpartition(":")[2])), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert pretrained(weights)
    finally:
        server.shutdown()
        server.server_close()
