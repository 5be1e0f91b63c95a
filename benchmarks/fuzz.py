"""Ten thousand malformed uploads to a real osteo serve: does it live, answer everything, and keep its memory?

The uploads follow from a seed: random bytes, pictures and DICOM cut or with flipped bits, sizes that are not true,
connections that are slow or cut, wrong methods, headers and paths. They are bounded by their number and by ten minutes.
"""

import io
import random
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.faults import run_or_kill
from benchmarks.noise import python
from osteo.data.phantom import write_archives

SEED, UPLOADS, SECONDS = 0, 10_000, 600.0
CLIENTS = 6
FEW = {"normal": 1, "osteopenia": 0, "osteoporosis": 1}
TOO_LONG = 60.0  # seconds without a reply
CUT, WAITED_FOR = "cut by the client", "408"


class Good(NamedTuple):
    """Files that can be answered, by kind."""

    png: bytes
    jpeg: bytes
    tiff: bytes
    dicom: bytes


@dataclass
class Found:
    """What became of the uploads."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """status code, or how a connection ended; for each kind of upload"""
    latencies: list[float] = field(default_factory=list)
    """seconds to the status, unless it was the server that had to wait"""


def measure() -> list[dict]:
    """One row per kind of upload, preceded by one for the server."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_archives(root / "knees", seed=0, kaggle={"normal": 60, "osteoporosis": 60}, mendeley=FEW)
        told = ["data=folder", f"data.root={root / 'knees' / 'kaggle'}", "data.image_size=96", "data.batch_size=8"]
        told += ["model.backbone=test_resnet", "trainer.max_epochs=2", "logger.wandb.mode=disabled", "output_dir=run"]
        run_or_kill([*told, "trainer.accelerator=cpu"], root, None)
        picture = next((root / "knees" / "kaggle" / "normal").iterdir()).read_bytes()
        with server(root / "run", root / "served.txt") as (process, port):
            return attack(process, port, picture, UPLOADS, SECONDS)


@contextmanager
def server(checkpoint: Path, said: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A process of osteo serve on a free port, with no limit to pictures in a minute; `said` is what it prints."""
    with said.open("w") as out:  # a pipe that nobody reads would stop it
        command = [*python("osteo"), "serve", str(checkpoint), "port=0", "a_minute=null"]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not (match := re.search(r":(\d+)/ ", said.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"osteo serve did not start: {said.read_text()}")
            time.sleep(0.1)
        yield process, int(match[1])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def attack(
    process: "subprocess.Popen[bytes]", port: int, picture: bytes, uploads: int, seconds: float, seed: int = SEED
) -> list[dict]:
    """Sends malformed uploads, then a good picture; a row for the server, and one for each kind of upload.

    Raises:
        RuntimeError: the server has ended, or does not answer the good picture.
    """
    good = good_files(picture)
    kinds = [*CORRUPT, *WIRE]
    check_good(port, good)
    used, begun, found = [memory(process.pid)], time.monotonic(), Found()

    def one(number: int) -> None:
        if time.monotonic() - begun > seconds:
            return
        rng = random.Random(f"{seed}-{number}")
        kind = kinds[number % len(kinds)]
        request = post(CORRUPT[kind](rng, good)) if kind in CORRUPT else b""
        start = time.monotonic()
        outcome = talk(port, [request]) if request else WIRE[kind](rng, good, port)
        found.outcomes[f"{kind}\0{outcome}"] += 1
        if outcome not in (CUT, WAITED_FOR):
            found.latencies.append(time.monotonic() - start)

    with ThreadPoolExecutor(CLIENTS) as clients:
        for quarter in range(4):
            list(clients.map(one, range(quarter * uploads // 4, (quarter + 1) * uploads // 4)))
            used.append(memory(process.pid))
    took = time.monotonic() - begun
    if process.poll() is not None:
        raise RuntimeError(f"osteo serve ended with {process.returncode}")
    check_good(port, good)
    first = {
        "upload": f"all, seed {seed}, {CLIENTS} at once, in {took:.0f} s; a good picture was answered before and after",
        "number": sum(found.outcomes.values()),
        "outcomes": said_of(found.outcomes),
        "note": f"longest {max(found.latencies):.2f} s, median {np.median(found.latencies):.3f} s;"
        f" resident MiB before and after each quarter: {', '.join(f'{one:.0f}' for one in used)}",
    }
    rows = [first]
    for kind in kinds:
        mine = Counter({key: n for key, n in found.outcomes.items() if key.startswith(f"{kind}\0")})
        rows.append({"upload": kind, "number": sum(mine.values()), "outcomes": said_of(mine), "note": ""})
    return rows


def said_of(outcomes: Counter[str]) -> str:
    """How often each outcome was, the most frequent first."""
    counts: Counter[str] = Counter()
    for key, number in outcomes.items():
        counts[key.partition("\0")[2]] += number
    return ", ".join(f"{outcome}: {number}" for outcome, number in counts.most_common())


def memory(pid: int) -> float:
    """Resident MiB of a process (Linux); that which reads DICOM is another, and bounded."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def check_good(port: int, good: Good) -> None:
    """A good file of each kind is answered.

    Raises:
        RuntimeError: it is not.
    """
    for kind, content in good._asdict().items():
        for _ in range(5):
            outcome = talk(port, [post(content)])
            if outcome != "503":  # who came late still waits
                break
            time.sleep(2.0)
        if outcome != "200":
            raise RuntimeError(f"a good {kind} file was not answered: {outcome}")


def good_files(picture: bytes) -> Good:
    """The same picture as four kinds of file."""
    image = Image.open(io.BytesIO(picture)).convert("L").resize((300, 400))
    files = []
    for kind, more in (("PNG", {}), ("JPEG", {}), ("TIFF", {"compression": "tiff_lzw"})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        files.append(buffer.getvalue())
    return Good(*files, dicom(np.asarray(image)))


def dicom(pixels: np.ndarray) -> bytes:
    """A plain DICOM file of uint8 (H, W)."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.Rows, made.Columns, made.SamplesPerPixel = *pixels.shape, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def post(content: bytes, *, length: int | None = None, more: str = "", line: str = "POST /answer HTTP/1.1") -> bytes:
    """A request; its length may be a lie."""
    size = len(content) if length is None else length
    head = f"{line}\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\nConnection: close\r\n{more}\r\n"
    return head.encode("latin-1") + content


def talk(port: int, parts: list[bytes], *, pause: float = 0.0, cut: bool = False) -> str:
    """Sends parts of a request; the status, or how the connection ended."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG) as wire:
            try:
                for part in parts:
                    wire.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass  # refused before all was sent: the reply may still be there
            if cut:
                return CUT
            reply = wire.recv(64)
            while len(reply) < 12 and (more := wire.recv(64)):
                reply += more
    except TimeoutError:
        return "no reply"
    except OSError as error:
        return "closed without a reply" if isinstance(error, ConnectionResetError) else type(error).__name__
    return reply[9:12].decode("latin-1") if reply.startswith(b"HTTP/1.1 ") else "closed without a reply"


def flipped(rng: random.Random, content: bytes) -> bytes:
    """A few bits elsewhere, most of them near the beginning, where the sizes are."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 10, 100])):
        reach = rng.choice([200, 1000, len(changed)])
        changed[rng.randrange(min(reach, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_short(rng: random.Random, content: bytes) -> bytes:
    """The beginning of a file."""
    return content[: rng.randrange(1, len(content))]


def huge(rng: random.Random, _: Good) -> bytes:
    """A PNG, TIFF or BMP of a few bytes that claims to be large."""
    width, height = rng.choice([(65_535, 65_535), (2**31 - 1, 2**31 - 1), (9_999, 9_999), (1, 2**30), (0, 7)])
    kind = rng.randrange(3)
    if kind == 0:
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        data = b"IDAT" + zlib.compress(bytes(1000))
        chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data, b"IEND")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    if kind == 1:
        tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
        tags.append((279, 2**31))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, rng.randrange(3), 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + rng.randbytes(100)


def mixed(rng: random.Random, good: Good) -> bytes:
    """The beginning of one file and the end of another."""
    one, other = rng.choice(good), rng.choice(good)
    return one[: rng.randrange(20, len(one))] + other[rng.randrange(len(other)) :]


STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"BM", b"RIFF", b"GIF89a", bytes(128) + b"DICM")
CORRUPT = {
    "random bytes": lambda rng, good: rng.randbytes(rng.randrange(4000)),
    "random bytes that begin like a picture": lambda rng, good: rng.choice(STARTS) + rng.randbytes(rng.randrange(4000)),
    "PNG, bits flipped": lambda rng, good: flipped(rng, good.png),
    "PNG, cut short": lambda rng, good: cut_short(rng, good.png),
    "JPEG, bits flipped": lambda rng, good: flipped(rng, good.jpeg),
    "JPEG, cut short": lambda rng, good: cut_short(rng, good.jpeg),
    "TIFF, bits flipped": lambda rng, good: flipped(rng, good.tiff),
    "TIFF, cut short": lambda rng, good: cut_short(rng, good.tiff),
    "DICOM, bits flipped": lambda rng, good: flipped(rng, good.dicom),
    "DICOM, cut short": lambda rng, good: cut_short(rng, good.dicom),
    "two files in one": mixed,
    "a huge size claimed": huge,
}
"""Bodies of requests that are whole themselves."""

LENGTHS = (0, 1, 99, 500, 1000, 2000, 5000, 2**25, 2**25 + 1, 2**40, 10**30, -5)  # 2**25 is allowed, and waited for
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "post", "")
PATHS = (
    "/../../etc/passwd", "/answer/../answer", "//answer", "/answer%00", "/%2e%2e/%2e%2e/etc/passwd",
    "/answer?" + "a" * 999, "/docs", "/openapi.json", "http://evil.example/answer", "*", "/" + "x" * 20_000,
    "/answer\x01", "",
)  # fmt: skip
HEADERS = (
    "Host: evil.example\r\n", "Origin: http://evil.example\r\n", "Origin: null\r\n", "Content-Length: 7\r\n",
    "Content-Length: -1\r\n", "Content-Length: 9e9\r\n", "Transfer-Encoding: chunked\r\n",
    "X: " + "y" * 99_000 + "\r\n", "Content-Type: multipart/form-data; boundary=x\r\n", "Content-Encoding: gzip\r\n",
    "no colon\r\n", "\x00: \x00\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n", "Expect: 100-continue\r\n",
    "X-Forwarded-Host: a\r\n" * 300,
)  # fmt: skip

WIRE = {
    "a length that is not true": lambda rng, good, port: talk(port, [post(good.png, length=rng.choice(LENGTHS))]),
    "cut off by the client": lambda rng, good, port: talk(
        port, [post(good.jpeg)[: rng.randrange(1, len(good.jpeg))]], cut=True
    ),
    "slow, then cut off": lambda rng, good, port: talk(
        port, [bytes([b]) for b in post(good.png)[: rng.randrange(1, 60)]], pause=0.002, cut=True
    ),
    "a wrong method": lambda rng, good, port: talk(
        port, [post(b"x" * rng.randrange(2000), line=f"{rng.choice(METHODS)} /answer HTTP/1.1")]
    ),
    "a path that is a trick": lambda rng, good, port: talk(
        port, [post(good.png, line=f"POST {rng.choice(PATHS)} HTTP/1.{rng.choice('0123')}")]
    ),
    "wrong headers": lambda rng, good, port: talk(port, [post(rng.choice(good), more=rng.choice(HEADERS))]),
    "no HTTP at all": lambda rng, good, port: talk(port, [rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n"]),
}
"""Requests that are wrong themselves."""
