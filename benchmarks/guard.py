"""What the guard flags: held-out knees, the same knees spoilt, other radiographs and photographs.

The knees are the real ones where they lie beside the project, else phantoms. The guard learns from the training split,
takes its limit from validation, and is asked about the test split and everything else.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from osteo.config import DataConfig
from osteo.data.prepare import prepare
from osteo.inference import guard
from osteo.reading.framing import square
from osteo.reading.pictures import Unusable
from osteo.reading.reader import read_picture
from osteo.types import Grey

KAGGLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kaggle"
SIDE, CROPS, SEEDS = 224, 100, 5


def measure() -> list[dict]:
    """One row per kind of picture: the flagged share and the AUROC against held-out knees, means over splits."""
    source = DataConfig(name="folder", root=str(KAGGLE)) if KAGGLE.exists() else DataConfig()
    found: dict[str, list[tuple[int, float, float]]] = {}
    for seed in range(SEEDS):
        config = replace(source, clean=True, image_size=SIDE, split=replace(source.split, seed=seed))
        manifest, store = prepare(config)
        rows = manifest["sha256"].map(store.rows)
        train, val, test = (rows[manifest["split"] == name].to_numpy(int) for name in ("train", "val", "test"))
        plane = store.pictures[0]
        made = guard.fit(plane, train, val, test)
        held = [np.asarray(plane[row]) for row in test]
        inside = made.score(held)
        for kind, pictures in {"held-out knees": held, **others(held, seed)}.items():
            scores = made.score(pictures)
            truth = [0] * len(inside) + [1] * len(scores)
            auroc = float("nan") if kind == "held-out knees" else roc_auc_score(truth, np.r_[inside, scores])
            found.setdefault(kind, []).append((len(scores), float((scores > made.limit).mean()), auroc))
    knees = "real" if KAGGLE.exists() else "phantoms"
    return [
        {
            "pictures": kind,
            "how many a split": round(float(np.mean([count for count, *_ in measured]))),
            "flagged": round(float(np.mean([share for _, share, _ in measured])), 3),
            "AUROC against held-out knees": round(float(np.mean([auroc for *_, auroc in measured])), 3),
            "knees": f"{knees}, {SEEDS} splits",
        }
        for kind, measured in found.items()
    ]


def others(held: list[Grey], seed: int) -> dict[str, list[Grey]]:
    """What is not to be answered, by kind."""
    rng = np.random.default_rng(seed)
    return {
        "other radiographs and scans (pydicom's)": radiographs(),
        "photographs (crops of scikit-learn's)": photographs(rng),
        "noise": [rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8) for _ in range(20)],
        "inverted knees": [np.asarray(255 - picture, np.uint8) for picture in held],
        "knees turned by 90 degrees": [np.ascontiguousarray(np.rot90(picture)) for picture in held],
        "knees upside down": [np.ascontiguousarray(picture[::-1]) for picture in held],
        "two knees": [square(np.hstack([picture, picture[:, ::-1]]), SIDE, "pad") for picture in held],
    }


def radiographs() -> list[Grey]:
    """The pictures among pydicom's test files that have at least 32 pixels a side."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
            try:
                grey = read_picture(name.read_bytes(), SIDE)
            except Unusable:
                continue
            if min(grey.shape) >= 32:
                found.append(square(grey, SIDE, "pad"))
    return found


def photographs(rng: np.random.Generator) -> list[Grey]:
    """Random crops of two photographs."""
    crops = []
    for image in load_sample_images().images:
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        for _ in range(CROPS):
            side = int(rng.integers(80, min(grey.shape)))
            top, left = (int(rng.integers(0, length - side + 1)) for length in grey.shape)
            crops.append(square(grey[top : top + side, left : left + side], SIDE, "pad"))
    return crops
