"""An audit of 20 000 phantoms of 256 x 256 pixels, as a user runs it: seconds, and memory that is not page cache."""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from osteo.data.phantom import draw


def paint(job: tuple[str, int]) -> None:
    """Draws one phantom into a file."""
    path, number = job
    rng = np.random.default_rng([1, number])
    t_score = rng.uniform(-4.0, -2.5) if "osteoporosis" in path else rng.uniform(-0.9, 1.0)
    cv2.imwrite(path, draw(rng, t_score, height=256, width=256))


def measure() -> list[dict]:
    """Draws the pictures, which is not timed, and audits them in a process of its own."""
    count = int(os.environ.get("OSTEO_PICTURES", "20000"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "pictures"
        names = ("normal", "osteoporosis")
        for name in names:
            (root / name).mkdir(parents=True)
        with ProcessPoolExecutor() as pool:
            jobs = [(str(root / names[number % 2] / f"{number}.png"), number) for number in range(count)]
            list(pool.map(paint, jobs, chunksize=64))
        code = "from osteo.cli import main; main()"
        arguments = [
            "audit",
            "data=folder",
            f"data.root={root}",
            f"data.cache={temporary}/cache",
            f"output_dir={temporary}/a",
        ]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit(f"the audit ended with {process.returncode}")
        found = (
            [line for line in process.stdout.read().splitlines() if "altered copies" in line] if process.stdout else []
        )
    return [
        {
            "pictures": count,
            "seconds": round(seconds),
            "pictures a second": round(count / seconds, 1),
            "peak anonymous memory GiB": round(peak, 2),
            "found": found[-1].lstrip("- ") if found else "",
        }
    ]


def anonymous(pid: int) -> float:
    """GiB of a process's memory that no file backs."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    kilobytes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
    return kilobytes[0] / 2**20 if kilobytes else 0.0
