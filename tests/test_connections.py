"""Connections that are held and not used, from one address, while another client is answered."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn

from osteo.serving import connections, server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no 127.0.0.2 by themselves")
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LARGE = 2**25  # bytes: more than the system takes at once


async def application(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    size = LARGE if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": bytes(size)})


@pytest.fixture
def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server with little patience: 0.6 seconds, or what the test is parametrised with."""
    monkeypatch.setattr(connections, "PATIENCE", getattr(request, "param", 0.6))
    with server.listen("127.0.0.1", 0) as listening:
        running = uvicorn.Server(server.configure(application))
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([listening])))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        running.should_exit = True
        thread.join()


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))


def is_answered(port: int, address: str) -> bool:
    with connect(port, address) as client:
        client.sendall(GET)
        try:
            return client.recv(100).startswith(b"HTTP/1.1 200")
        except ConnectionResetError:
            return False


def send_slowly(client: socket.socket) -> None:
    """A byte at a time, for 20 seconds."""
    for _ in range(400):
        client.sendall(b"G")
        time.sleep(0.05)


def seconds_until_closed(client: socket.socket) -> float:
    """Raises TimeoutError where the server keeps the connection."""
    begun = time.monotonic()
    with suppress(ConnectionResetError):
        while client.recv(2**16):
            pass
    return time.monotonic() - begun


@pytest.mark.parametrize("port", [60.0], indirect=True)
def test_idle_connections_of_one_client_shut_nobody_out(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(300)]
        for client in idle[:20]:
            client.sendall(GET[:20])  # half a head
        assert is_answered(port, "127.0.0.2")
        assert not is_answered(port, "127.0.0.1")
    deadline = time.monotonic() + 20
    while not is_answered(port, "127.0.0.1"):  # the server has yet to see that they are closed
        assert time.monotonic() < deadline


def test_idle_connections_are_closed_and_their_client_is_answered(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(300)]
        for client in idle:
            seconds_until_closed(client)
        assert is_answered(port, "127.0.0.1")


@pytest.mark.parametrize(
    "sent", [b"", GET[:20], GET + GET[:20], b"POST / HTTP/1.1\r\nContent-Length: 9\r\nHost: a\r\n\r\nx"]
)
def test_a_head_that_does_not_end_is_not_waited_for(port: int, sent: bytes) -> None:
    with connect(port) as client:
        client.sendall(sent)
        assert seconds_until_closed(client) > 0.3


def test_a_head_a_byte_at_a_time_is_not_waited_for(port: int) -> None:
    with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_slowly(client)


def test_who_does_not_take_the_answer_is_not_waited_for(port: int) -> None:
    with connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/large "))
        time.sleep(1.2)
        taken = 0
        with suppress(ConnectionResetError):
            while part := client.recv(2**20):
                taken += len(part)
    assert taken < LARGE


@pytest.mark.parametrize("port", [2.0], indirect=True)
def test_a_client_that_uses_its_connection_keeps_it(port: int) -> None:
    with connect(port) as client:
        for _ in range(4):
            client.sendall(GET)
            answer = b""
            while not answer.endswith(b"\0\0"):
                answer += client.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.7)
