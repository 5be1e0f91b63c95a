"""A page that answers one picture at a time, for the person at this computer.

A picture arrives as the body of a request, without a name, is read in memory, and is forgotten.
"""

import asyncio
import hashlib
import ipaddress
import json
import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from osteo.command_settings import ServeConfig
from osteo.errors import UserError
from osteo.evaluation.gradcam import overlay, without_colour
from osteo.inference.answer import WITHHELD, Answer, answer, heat_map, threshold_of
from osteo.inference.card import ASKED
from osteo.inference.model import Model, check_known, covariates_of, size_to_read
from osteo.reading.covariates import NUMBERS, WORDS, Patient
from osteo.reading.pictures import Unusable, is_dicom
from osteo.reading.reader import read_picture
from osteo.report.html import embed, render
from osteo.report.predictions import caveats
from osteo.serving.connections import MAX_CONNECTIONS, Connection
from osteo.types import Grey

log = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_WAITING = 8  # pictures beside the one that is being answered
MAX_OF_CLIENT = 6  # of one address, of those that wait or are answered
UPLOAD_SECONDS = 15.0  # in which a picture must have arrived
GRACE_SECONDS, SLOWEST = 3.0, 2**15  # after the first it must have come at this rate, in bytes per second
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"GIF8")
"""First bytes of PNG, JPEG, TIFF, BMP, WEBP and GIF; what else Pillow could read is refused."""
PATIENT = "X-Patient"
"""The header of a request with what is known of the patient, as a JSON object."""
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
    """Limits how many pictures wait at once, and how many come per minute.

    Args:
        a_minute: pictures per minute; None for any number.
    """

    def __init__(self, a_minute: int | None) -> None:
        self._inside: Counter[str] = Counter()
        self._times: deque[float] = deque(maxlen=a_minute)
        self._turn = asyncio.Lock()

    @contextmanager
    def place(self, client: str) -> Iterator[asyncio.Lock]:
        """Holds a place in the queue; whoever has one waits for the lock, whose holder is answered.

        Args:
            client: the address that asks, which may not have all places.

        Raises:
            HTTPException: 429 or 503.
        """
        now = time.monotonic()
        if self._times.maxlen is not None and len(self._times) == self._times.maxlen and now - self._times[0] < 60:
            seconds = {"Retry-After": str(math.ceil(60 - now + self._times[0]))}
            raise HTTPException(429, f"more than {self._times.maxlen} pictures per minute: wait a little", seconds)
        if self._inside.total() > MAX_WAITING or self._inside[client] >= MAX_OF_CLIENT:
            raise HTTPException(503, "too many pictures are waiting: try again", {"Retry-After": "5"})
        if self._times.maxlen is not None:
            self._times.append(now)
        self._inside[client] += 1
        try:
            yield self._turn
        finally:
            self._inside[client] -= 1
            self._inside += Counter()  # drops who has none


def make_app(models: Sequence[Model], settings: ServeConfig) -> FastAPI:
    """The page at / and its answers at /answer.

    Raises:
        UserError: a model has no threshold by the rule.
    """
    threshold_of(models, settings.rule)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gate, notes = Gate(settings.a_minute), caveats(models, settings.rule, interval=settings.interval)
    page = render(
        "serve.html.jinja",
        models=[model.card.facts() for model in models],
        notes=notes,
        asked=ASKED[models[0].card.task],
        most=settings.most_mib,
        kinds=KINDS,
        fields=fields_of(models),
    )
    policy = policy_of(page)

    @app.middleware("http")
    async def check_origin(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if not names_this_server(request.headers.get("host", ""), settings.host):
            response: Response = JSONResponse({"error": "unknown Host"}, 400)
        elif request.headers.get("origin", page_origin(request)) != page_origin(request):
            response = JSONResponse({"error": "the request comes from another page"}, 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS | {"Content-Security-Policy": policy})
        return response

    @app.exception_handler(HTTPException)
    async def report_error(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/")
    async def get_page() -> Response:
        return HTMLResponse(page)

    @app.post("/answer")
    async def post_answer(request: Request) -> Response:
        with gate.place(request.client.host if request.client else "") as turn:
            content = await body_of(request, settings.most_mib)
            patient = patient_of(request)
            async with turn:
                answers = await asyncio.to_thread(answer_file, models, content, settings, patient)
        return JSONResponse(answers | {"notes": notes})

    return app


def policy_of(page: str) -> str:
    """A content security policy that allows the scripts, styles and pictures inside a page, and its server."""
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


def page_origin(request: Request) -> str:
    """The origin of this server's page, under the name that the request uses for the server."""
    return f"{request.url.scheme}://{request.headers['host']}"


def names_this_server(host: str, bound: str) -> bool:
    """Whether a Host header names this server; a foreign name that was rebound to its address (DNS rebinding) does not.

    Args:
        host: the header.
        bound: what the server listens on; unless it is a loopback address, any address is accepted, but no other name.
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
        HTTPException: 400, 408, 413 or 415, as early as possible.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "send the file itself as the body, not a form")
    large = HTTPException(413, f"larger than {most_mib} MiB")
    if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > most_mib * 2**20:
        raise large
    content = bytearray()
    begun = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(min(UPLOAD_SECONDS, GRACE_SECONDS)) as limit:
            async for chunk in request.stream():
                content += chunk
                if len(content) > most_mib * 2**20:
                    raise large
                limit.reschedule(begun + min(UPLOAD_SECONDS, GRACE_SECONDS + len(content) / SLOWEST))
    except TimeoutError:
        raise HTTPException(408, "did not arrive in time") from None
    except ClientDisconnect:
        raise HTTPException(400, "cut off") from None
    if not content:
        raise HTTPException(400, "empty file")
    if not content.startswith(SIGNATURES) and not is_dicom(bytes(content[:132])):
        raise HTTPException(415, f"not {KINDS}")
    return bytes(content)


def patient_of(request: Request) -> Patient:
    """What the request says of the patient: in a header, since an address is logged and kept by others.

    Raises:
        HTTPException: 400, it is no JSON object of numbers and words.
    """
    try:
        found = json.loads(request.headers.get(PATIENT, "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(cell, str | int | float) for cell in found.values()):
        raise HTTPException(400, f"the header {PATIENT} must be a JSON object of numbers and words")
    return found


def fields_of(models: Sequence[Model]) -> list[dict[str, Any]]:
    """What the page asks of the patient: numbers with their limits, or words to choose from."""
    return [
        {
            "name": name,
            "title": "BMI" if name == "bmi" else name.replace("_", " ").capitalize(),
            "limits": NUMBERS.get(name),
            "words": list(WORDS.get(name, {})),
        }
        for name in covariates_of(models)
    ]


def answer_file(
    models: Sequence[Model], content: bytes, settings: ServeConfig, patient: Patient | None = None
) -> dict[str, Any]:
    """The answer to a file, ready for JSON; where it shows two knees, the answers to its halves are under `halves`.

    Raises:
        HTTPException: 400, why the file cannot be used, or 500.
    """
    try:
        grey = read_picture(content, size_to_read(models))
        check_known(models, patient or {})
        known = [patient or {}]
        whole = answer(models, [grey], rule=settings.rule, interval=settings.interval, patients=known)[0]
        halves = []
        if parts := whole.inspection.halves:
            of_parts = answer(models, parts, rule=settings.rule, interval=settings.interval, patients=known * 2)
            for side, part, of_part in zip(("left", "right"), parts, of_parts, strict=True):
                halves.append({"side": side} | as_json(models, part, of_part, settings))
        return as_json(models, grey, whole, settings) | {"halves": halves}
    except (Unusable, UserError) as error:  # of the picture, or of a covariate
        raise HTTPException(400, str(error)) from None
    except Exception as error:  # noqa: BLE001 - its message may quote the file, so it reaches neither page nor log
        log.error("a picture could not be answered (%s)", type(error).__name__)
        raise HTTPException(500, "this picture could not be answered") from None


def as_json(models: Sequence[Model], grey: Grey, found: Answer, settings: ServeConfig) -> dict[str, Any]:
    """One answer, ready for JSON; what was not requested, and a map that a backbone cannot give, is None.

    Raises:
        Unusable: there is no answer.
    """
    if found.error:
        raise Unusable(found.error)
    heat, pale = None, ""
    if settings.overlay and found.call != WITHHELD:
        with suppress(UserError):  # no spatial feature map
            cam = heat_map(models, grey)
            heat = embed(overlay(found.prepared, cam))
            pale = without_colour(cam, models[0].network.task.sides[1])
    return {
        "call": found.call,
        "calibrated": found.calibrated,
        "low": found.low if settings.interval else None,
        "high": found.high if settings.interval else None,
        "threshold": found.threshold,
        "positive": models[0].card.class_names[-1],
        "details": found.details,
        "rule": settings.rule,
        "flags": list(found.inspection.flags),
        "remarks": list(found.notes),
        "picture": embed(found.prepared),
        "overlay": heat,
        "without_colour": pale,
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

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
def silence_decoders() -> Iterator[None]:
    """Discards what decoders print about a broken file, since they may quote it; Python's sys.stderr still prints."""
    descriptor, stream = os.dup(2), sys.stderr
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as duplicate, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = duplicate
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        finally:
            sys.stderr = stream
            os.dup2(descriptor, 2)
            os.close(descriptor)


def configure(app: Any) -> uvicorn.Config:
    """How an ASGI application is served."""
    return uvicorn.Config(
        app, http=Connection, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="error",
        access_log=False, proxy_headers=False, server_header=False, limit_concurrency=MAX_CONNECTIONS + 1,
        timeout_graceful_shutdown=3,
    )  # fmt: skip


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answers requests until it is interrupted."""
    with silence_decoders():
        uvicorn.Server(configure(app)).run(sockets=[listening])
