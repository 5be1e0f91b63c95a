"""1 000 to 100 000 pictures of 224 x 224: preparation, an epoch of data, and memory.

`python -m benchmarks.growth COUNT FOLDER` measures one size in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.noise import python

SIDE, BATCH, DRAWN = 224, 64, 200
COUNTS = (1_000, 10_000, 100_000)


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of phantoms, each with grain of its own, in two class folders."""
    from osteo.data.phantom import draw

    rng = np.random.default_rng(0)
    drawn = [draw(rng, rng.uniform(-4, 1), height=SIDE, width=SIDE) for _ in range(DRAWN)]
    for name in ("normal", "osteoporosis"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        grain = np.random.default_rng(number).integers(0, 16, (SIDE // 4, SIDE // 4), dtype=np.uint8)
        picture = cv2.add(drawn[number % DRAWN], cv2.resize(grain, (SIDE, SIDE)))
        place = folder / ("normal", "osteoporosis")[number % 2] / f"{number}.jpg"
        cv2.imwrite(str(place), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


def measure_one(count: int, folder: Path) -> dict:
    """Seconds and peak anonymous memory (page cache aside)."""
    from osteo.config import DataConfig
    from osteo.data.datamodule import KneeDataModule
    from osteo.data.prepare import Prepared, prepare

    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    config = DataConfig("folder", root=str(folder / "pictures"), image_size=SIDE, cache=str(folder / "cache"))
    config.split.grouped = False
    start = time.perf_counter()
    prepare(config)
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    manifest, store = prepare(config)
    opened = time.perf_counter() - start
    config.split.train, config.split.val = 0.7, 0.2
    module = KneeDataModule(Prepared(manifest, store), batch_size=BATCH, seed=0, augment=lambda pictures, *_: pictures)
    epochs = []
    for _ in range(3):
        start, shown = time.perf_counter(), 0
        for items in module.train_dataloader():
            shown += len(module.gather(items, "train", augmented=False).labels)
        epochs.append((time.perf_counter() - start) / shown)
    over.set()
    watcher.join()
    return {
        "pictures": count,
        "prepared in, s": round(prepared, 1),
        "prepared, ms a picture": round(1e3 * prepared / count, 2),
        "opened in, s": round(opened, 2),
        "an epoch's data, ms a picture": round(1e3 * sorted(epochs)[1], 3),
        "peak anonymous memory, GiB": round(peak[0] / 2**20, 2),
        "store, GiB": round(sum(f.stat().st_size for f in (folder / "cache").rglob("*") if f.is_file()) / 2**30, 2),
    }


def measure() -> list[dict]:
    """One row per size."""
    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as temporary:
            write_pictures(Path(temporary) / "pictures", count)
            command = [*python("benchmarks.growth"), str(count), temporary]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure_one(int(sys.argv[1]), Path(sys.argv[2]))))
