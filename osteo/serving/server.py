"""A page that answers one picture at a time, for the person at this computer.

A picture comes as the body of a request, is looked at in memory and is forgotten; no name comes with it.
"""

import asyncio
import hashlib
import ipaddress
import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from osteo.config import ServeConfig
from osteo.errors import UserError
from osteo.evaluation.gradcam import overlay
from osteo.inference.answer import Answer, answer, heat_map, threshold_of
from osteo.inference.model import Model
from osteo.reading.pictures import Unusable, is_dicom
from osteo.reading.reader import read_picture
from osteo.report.html import embed, render
from osteo.report.predictions import caveats
from osteo.types import Grey

log = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WAITING = 8  # pictures beside the one that is being answered
PATIENCE = 15.0  # seconds in which a picture must have come
CONNECTIONS = 256  # at once
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"GIF8")
"""Of PNG, JPEG, TIFF, BMP, WEBP and GIF; what Pillow could read beside them has no business here."""
KINDS = "PNG, JPEG, TIFF, BMP, WEBP, GIF or DICOM (with DICM at byte 128)"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Gate:
    """Lets few pictures in at once, and few in a minute.

    Args:
        a_minute: at most; None for any number.
    """

    def __init__(self, a_minute: int | None) -> None:
        self.inside = 0
        self._times: deque[float] = deque(maxlen=a_minute)
        self._turn = asyncio.Lock()

    @contextmanager
    def place(self) -> Iterator[asyncio.Lock]:
        """Holds a place; who has one may wait for the lock, whose holder is answered.

        Raises:
            HTTPException: 429 or 503.
        """
        now = time.monotonic()
        if self._times.maxlen is not None and len(self._times) == self._times.maxlen and now - self._times[0] < 60:
            seconds = {"Retry-After": str(math.ceil(60 - now + self._times[0]))}
            raise HTTPException(429, f"more than {self._times.maxlen} pictures in a minute: wait a little", seconds)
        if self.inside > WAITING:
            raise HTTPException(503, "too many pictures are waiting: try again", {"Retry-After": "5"})
        if self._times.maxlen is not None:
            self._times.append(now)
        self.inside += 1
        try:
            yield self._turn
        finally:
            self.inside -= 1


def make_app(models: Sequence[Model], settings: ServeConfig) -> FastAPI:
    """The page at / and its answers at /answer.

    Raises:
        UserError: a model has no threshold by the rule that is asked for.
    """
    threshold_of(models, settings.rule)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gate, notes = Gate(settings.a_minute), caveats(models, settings)
    page = render(
        "serve.html.jinja", models=[asdict(m.card) for m in models], notes=notes, most=settings.most_mib, kinds=KINDS
    )
    policy = policy_of(page)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if not is_ours(request.headers.get("host", ""), settings.host):
            response: Response = JSONResponse({"error": "unknown Host"}, 400)
        elif request.headers.get("origin", own := f"{request.url.scheme}://{request.headers['host']}") != own:
            response = JSONResponse({"error": "asked by another page"}, 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS | {"Content-Security-Policy": policy})
        return response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/")
    async def home() -> Response:
        return HTMLResponse(page)

    @app.post("/answer")
    async def answered(request: Request) -> Response:
        with gate.place() as turn:
            content = await body_of(request, settings.most_mib)
            async with turn:
                told = await asyncio.to_thread(tell, models, content, settings)
        return JSONResponse(told | {"notes": notes})

    return app


def policy_of(page: str) -> str:
    """A content security policy that lets a page use its own scripts and styles, pictures in itself, and its server."""
    hashes = {
        tag: " ".join(
            f"'sha256-{b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"
            for found in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def is_ours(host: str, bound: str) -> bool:
    """Whether a Host header names this server; a page that has its own name rebound to our address does not.

    Args:
        host: the header.
        bound: what the server listens to; where it is no loopback address, any address will do, but no other name.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in LOOPBACK or bound in LOOPBACK:
            return name in LOOPBACK
        return name in (bound, socket.gethostname().lower()) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def body_of(request: Request, most_mib: int) -> bytes:
    """The body of a request, in memory.

    Raises:
        HTTPException: 400, 408, 413 or 415; as soon as it is known.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "send the file itself as the body, not a form")
    large = HTTPException(413, f"larger than {most_mib} MiB")
    if (said := request.headers.get("content-length", "")).isdecimal() and int(said) > most_mib * 2**20:
        raise large
    content = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for some in request.stream():
                content += some
                if len(content) > most_mib * 2**20:
                    raise large
    except TimeoutError:
        raise HTTPException(408, f"did not come within {PATIENCE:.0f} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "cut off") from None
    if not content:
        raise HTTPException(400, "empty file")
    if not content.startswith(BEGINNINGS) and not is_dicom(bytes(content[:132])):
        raise HTTPException(415, f"not {KINDS}")
    return bytes(content)


def tell(models: Sequence[Model], content: bytes, settings: ServeConfig) -> dict[str, Any]:
    """What there is to say of a file, ready for JSON; with two knees the halves' answers stand beneath `halves`.

    Raises:
        HTTPException: 400, why nothing can be said.
    """
    try:
        grey = read_picture(content, max(model.card.image_size for model in models))
        both = answer(models, [grey], rule=settings.rule, interval=settings.interval)[0]
        halves = []
        if parts := both.look.halves:
            two = answer(models, parts, rule=settings.rule, interval=settings.interval)
            for side, part, one in zip(("left", "right"), parts, two, strict=True):
                halves.append({"side": side} | plain(models, part, one, settings))
        return plain(models, grey, both, settings) | {"halves": halves}
    except Unusable as error:
        raise HTTPException(400, str(error)) from None
    except Exception as error:  # noqa: BLE001 - its message may quote the file, so neither page nor log gets it
        log.error("a picture could not be answered (%s)", type(error).__name__)
        raise HTTPException(500, "this picture could not be answered") from None


def plain(models: Sequence[Model], grey: Grey, found: Answer, settings: ServeConfig) -> dict[str, Any]:
    """One answer ready for JSON; what was not asked for, and a map that a backbone cannot give, is None."""
    heat = None
    if settings.overlay:
        with suppress(UserError):  # no spatial feature map
            heat = embed(overlay(found.shown, heat_map(models, grey)))
    return {
        "call": found.call,
        "calibrated": found.calibrated,
        "low": found.low if settings.interval else None,
        "high": found.high if settings.interval else None,
        "threshold": found.threshold,
        "rule": settings.rule,
        "flags": list(found.look.flags),
        "picture": embed(found.shown),
        "overlay": heat,
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        UserError: the port is taken, or the address is not this computer's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        hint = "; choose another, or port=0 for any that is free" if host in LOOPBACK else ""
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise UserError(f"host={host} port={port}: {reason}{hint}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """What decoders print of a broken file goes nowhere, since it may quote it; Python's own stderr stays."""
    kept, theirs = os.dup(2), sys.stderr
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as ours, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = ours
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        finally:
            sys.stderr = theirs
            os.dup2(kept, 2)
            os.close(kept)


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answers until it is interrupted."""
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="error",
        access_log=False, proxy_headers=False, server_header=False, limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    with quiet():
        uvicorn.Server(config).run(sockets=[listening])
