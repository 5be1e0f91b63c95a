"""What reading takes, in time and memory, of files of every format that claim, inflate or nest more than they hold."""

import re
import sys
import threading
import time
from pathlib import Path

from benchmarks.hostile import USED, hostile
from osteo.reading import apart
from osteo.reading.pictures import Unusable
from osteo.reading.reader import read_header, read_picture

SHOWN_SIZE = 224  # pixels
PAUSE = 0.01  # seconds between two looks at the reading process


def measure() -> list[dict]:
    """One row per file, each read by a process that has read nothing before."""
    rows = []
    for name, outcome, content in hostile():
        row = read(name, content)
        row["as it should be"] = "yes" if re.search(outcome, str(row["outcome"])) else f"no: {outcome}"
        print(
            f"{row['file']}: {row['seconds']} s, {row['more MiB']} MiB, {row['outcome']}", file=sys.stderr, flush=True
        )
        rows.append(row)
    return rows


def read(name: str, content: bytes) -> dict[str, object]:
    """Seconds by the clock, the most memory of the reading process, what it was beforehand, and what came of a file."""
    apart.stop()
    apart._idle.append(apart._take())  # it has started, and no more
    before = peak(next(iter(apart._alive)))
    most, done = [before], threading.Event()
    watch = threading.Thread(target=_watch, args=(most, done))
    watch.start()
    start = time.perf_counter()
    try:
        header = read_header(content)
        grey = read_picture(content, SHOWN_SIZE)
        outcome = f"{USED}: {header.kind}, {header.mode}, {grey.shape[1]} x {grey.shape[0]}"
    except Unusable as error:
        outcome = str(error)
    seconds = time.perf_counter() - start
    most.append(max(map(peak, apart._alive), default=0))
    done.set()
    watch.join()
    return {
        "file": name, "bytes": len(content), "seconds": round(seconds, 2), "peak MiB": max(most) >> 20,
        "more MiB": (max(most) - before) >> 20, "outcome": outcome,
    }  # fmt: skip


def _watch(most: list[int], done: threading.Event) -> None:
    while not done.wait(PAUSE):
        most.append(max(map(peak, list(apart._alive)), default=0))


def peak(process: apart.Process) -> int:
    """The most bytes that a process has held in memory so far; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
