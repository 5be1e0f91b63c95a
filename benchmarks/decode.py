"""Preparing pictures for training: osteo's store against a plain loop with PIL, over the same files."""

import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from osteo.data.manifest import typed
from osteo.data.phantom import write_archives
from osteo.data.store import open_store
from osteo.reading.framing import square
from osteo.reading.pictures import decode, header

REPEATS = 7


def files() -> tuple[str, list[Path]]:
    """The original X-rays where $OSTEO_XRAYS names their folder, else phantoms."""
    if given := os.environ.get("OSTEO_XRAYS"):
        return "original X-rays", sorted(path for path in Path(given).rglob("*") if path.is_file())
    root = Path(tempfile.mkdtemp()) / "phantom"
    write_archives(root, seed=0, kaggle={"normal": 100, "osteoporosis": 100}, mendeley={})
    return "phantoms", sorted(path for path in root.rglob("*") if path.is_file())


def pil_loop(contents: list[bytes], size: int) -> np.ndarray:
    """What a script does: open, to grey, resize, one after the other."""
    made = []
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            made.append(np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(made)


def measure() -> list[dict]:
    """Best of several times of both, in turn, and how far the pixels differ."""
    kind, paths = files()
    contents = {f"s/{number}": path.read_bytes() for number, path in enumerate(paths)}
    table = typed(_rows(contents))
    rows = []
    for size in (128, 224):
        ours, theirs = [], []
        for _ in range(REPEATS):
            start = time.perf_counter()
            plain = pil_loop(list(contents.values()), size)
            theirs.append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                store = open_store(
                    table, contents.__getitem__, Path(folder), image_size=size, fit="resize", twins=False
                )
                ours.append(time.perf_counter() - start)
                with_twins = time.perf_counter()
                open_store(table, contents.__getitem__, Path(folder), image_size=size, fit="resize")
                with_twins = time.perf_counter() - with_twins
                start = time.perf_counter()
                open_store(table, contents.__getitem__, Path(folder), image_size=size, fit="resize", twins=False)
                reopened = time.perf_counter() - start
                picture = np.stack([store.pictures[0, store.rows[f"{n:064d}"]] for n in range(len(contents))])
        full = np.stack([square(decode(content), size, "resize") for content in contents.values()])
        rows.append(
            {
                "files": f"{len(contents)} {kind}",
                "size": size,
                "PIL loop s": round(min(theirs), 2),
                "osteo s": round(min(ours), 2),
                "times faster": round(min(theirs) / min(ours), 1),
                "with CLAHE twins s": round(with_twins, 2),
                "reopened s": round(reopened, 4),
                "mean difference to PIL, grey levels": round(float(np.abs(picture.astype(int) - plain).mean()), 2),
                "to a full decode": round(float(np.abs(picture.astype(int) - full).mean()), 2),
            }
        )
    return rows


def _rows(contents: dict[str, bytes]) -> pd.DataFrame:
    rows = []
    for name, content in contents.items():
        width, height, _, _ = header(content)
        sha256 = f"{int(name[2:]):064d}"
        rows.append({"image_id": name, "sha256": sha256, "split": "", "width": width, "height": height})
    return pd.DataFrame(rows)
