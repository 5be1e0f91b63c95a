"""Copies found by what was done to them: each of 20 real knees among all, and of 20 phantoms among 2000.

Real knees are those of OSTEO_REAL, a folder of pictures; without it their columns are empty. A phantom's changes are
planted all at once, each into 20 patients of its own.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from osteo.config import AugmentConfig
from osteo.data.alignment import Comparison
from osteo.data.duplicates import SIDE, Pair, compare_likely, join
from osteo.data.phantom import draw
from osteo.reading.framing import square
from osteo.training.augment import paper_twins

Grey = np.ndarray
Change = Callable[[Grey, np.random.Generator], Grey]

COPIES, PATIENTS = 20, int(os.environ.get("OSTEO_PICTURES", "2000"))
EXPORTED = "exported, "
"""Prefix of changes whose original is the square of 224 pixels that `export_augmented` writes."""


def patient(number: int) -> Grey:
    """A phantom of its own."""
    rng = np.random.default_rng([7, number])
    height = int(rng.integers(400, 560))
    return draw(rng, rng.uniform(-4.0, 1.0), height=height, width=int(height * rng.uniform(0.45, 1.0)))


def compressed(picture: Grey, quality: int) -> Grey:
    """A picture after it was a JPEG file."""
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def recoded(picture: Grey, rng: np.random.Generator) -> Grey:
    """A picture as a JPEG file of ordinary quality."""
    return compressed(picture, int(rng.integers(40, 90)))


def resized(picture: Grey, rng: np.random.Generator) -> Grey:
    """A picture at half its size or more."""
    factor = rng.uniform(0.5, 0.9)
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def cropped(picture: Grey, rng: np.random.Generator) -> Grey:
    """A picture without up to 5 % on every side."""
    top, bottom, left, right = (rng.uniform(0.0, 0.05, 4) * np.repeat(picture.shape, 2)).astype(int)
    return picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]


def brighter(picture: Grey, rng: np.random.Generator) -> Grey:
    """A picture with another gamma, contrast and brightness."""
    changed = (picture / 255.0) ** rng.uniform(0.75, 1.35) * rng.uniform(0.85, 1.1) * 255.0 + rng.uniform(-10, 10)
    return np.clip(changed, 0, 255).astype(np.uint8)


def padded(picture: Grey, value: int = 0) -> Grey:
    """A picture in the middle of a square."""
    height, width = picture.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    canvas = np.full((side, side), value, np.uint8)
    canvas[top : top + height, left : left + width] = picture
    return canvas


def labelled(picture: Grey, rng: np.random.Generator) -> Grey:
    """Letters over half the width and a sixth of the height, on a white plate or none, anywhere."""
    picture = picture.copy()
    height, width = picture.shape
    high, wide = height // 6, width // 2
    top, left = int(rng.integers(0, height - high)), int(rng.integers(0, width - wide))
    plate = rng.random() < 0.5
    if plate:
        picture[top : top + high, left : left + wide] = 255
    place = (left + wide // 20, top + int(high * 0.75))
    thickness = max(1, wide // 60)
    cv2.putText(picture, "KNEE L", place, cv2.FONT_HERSHEY_SIMPLEX, wide / 130, 0 if plate else 255, thickness)
    return picture


def shrunk(picture: Grey, longest: int = 64) -> Grey:
    """A picture whose longest side has so many pixels."""
    factor = longest / max(picture.shape)
    width, height = (max(1, round(side * factor)) for side in picture.shape[::-1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _twins() -> dict[str, Change]:
    return {name: lambda picture, rng, twin=twin: twin(picture) for name, twin in paper_twins(AugmentConfig()).items()}


CHANGES: dict[str, Change] = {
    **_twins(),
    "CLAHE, clip limit 4": lambda picture, rng: cv2.createCLAHE(4.0, (8, 8)).apply(picture),
    "rotation by 180 degrees": lambda picture, rng: np.ascontiguousarray(picture[::-1, ::-1]),
    "inverted grey": lambda picture, rng: 255 - picture,
    "padded to a square": lambda picture, rng: padded(picture),
    "padded to a square, white": lambda picture, rng: padded(picture, 255),
    "large label": labelled,
    "JPEG of quality 5": lambda picture, rng: compressed(picture, 5),
    "longest side 64 pixels": lambda picture, rng: shrunk(picture),
    "re-encoded": recoded,
    "resized": resized,
    "cropped by up to 5 %": cropped,
    "brighter or darker": brighter,
    "cropped, resized, re-encoded": lambda picture, rng: recoded(resized(cropped(picture, rng), rng), rng),
    "brighter, cropped, re-encoded": lambda picture, rng: recoded(cropped(brighter(picture, rng), rng), rng),
    **{EXPORTED + name: change for name, change in _twins().items()},
}


LOST = ("JPEG of quality 5", "longest side 64 pixels")
"""Changes after which only coarse detail can be compared."""


def thumbnail(picture: Grey) -> Grey:
    """What `open_thumbnails` keeps of a picture."""
    return square(picture, SIDE, "resize")


def planted(picture: Grey, name: str, seed: int) -> tuple[Grey, Grey]:
    """Thumbnails of an original and of its copy after a change."""
    original = square(picture, 224, "pad") if name.startswith(EXPORTED) else picture
    changed = CHANGES[name](original, np.random.default_rng([8, seed]))
    return thumbnail(original), thumbnail(np.ascontiguousarray(changed))


def judge(name: str, pairs: list[Pair], compared: list[Comparison], copies: dict[int, int]) -> dict[str, object]:
    """Copies found, the least alike of them, the nearest stranger of a copy, and copies joined to a stranger.

    Args:
        name: the change.
        pairs: as found.
        compared: what was compared, strangers among it.
        copies: the original of each copy.
    """
    truth = {(original, copy) for copy, original in copies.items()}
    found = {(pair.first, pair.second): pair.similarity for pair in pairs if pair.second in copies}
    strangers = [0.0]
    for comparison in compared:
        pair = tuple(sorted(comparison.candidate[:2]))
        if pair[1] in copies and pair not in truth:
            strangers.append(comparison.coarse if name in LOST else comparison.fine)
    return {
        "found": len(truth & found.keys()),
        "least alike": f"{min((found[pair] for pair in truth & found.keys()), default=0.0):.2f}",
        "nearest stranger": f"{max(strangers):.2f}",
        "false": len(found.keys() - truth),
    }


def judge_originals(thumbnails: Grey) -> tuple[dict[str, object], set[int]]:
    """The nearest pair that was not joined and how many were, before copies are planted; and who was joined."""
    compared, lost = compare_likely(thumbnails)
    pairs = join(compared, lost)
    joined = {(pair.first, pair.second) for pair in pairs}
    apart = [c.fine for c in compared if tuple(sorted(c.candidate[:2])) not in joined]
    row = {"found": "", "least alike": "", "nearest stranger": f"{max(apart):.2f}", "false": len(pairs)}
    return row, {number for pair in joined for number in pair}


def real_knees() -> list[Grey]:
    """The pictures of OSTEO_REAL, each content once."""
    folder = os.environ.get("OSTEO_REAL")
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    unique = {path.read_bytes(): path for path in reversed(files)}
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(unique.values())]


def measure_real() -> dict[str, dict[str, object]]:
    """One entry per change, and one of the files as they are: each change planted by itself."""
    knees = real_knees()
    if not knees:
        return {}
    thumbnails = np.stack([thumbnail(knee) for knee in knees])
    row, known = judge_originals(thumbnails)
    found = {"none": row}
    single = sorted(set(range(len(knees))) - known)
    chosen = single[:: len(single) // COPIES][:COPIES]
    for name in CHANGES:
        pairs = [planted(knees[number], name, seed) for seed, number in enumerate(chosen)]
        originals = thumbnails.copy()
        originals[chosen] = [original for original, _ in pairs]
        together = np.concatenate([originals, [copy for _, copy in pairs]])
        copies = {len(knees) + seed: number for seed, number in enumerate(chosen)}
        compared, lost = compare_likely(together)
        found[name] = judge(name, join(compared, lost), compared, copies)
    return found


def phantoms() -> list[Grey]:
    """Of as many patients."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(patient, range(PATIENTS)))


def measure_phantoms(patients: list[Grey]) -> dict[str, dict[str, object]]:
    """The same of phantoms: all changes planted at once, each into patients of its own."""
    thumbnails = np.stack([thumbnail(picture) for picture in patients])
    found = {"none": judge_originals(thumbnails)[0]}
    added: list[Grey] = []
    copies: dict[str, dict[int, int]] = {name: {} for name in CHANGES}
    for place, name in enumerate(CHANGES):
        for number in range(COPIES * place, COPIES * (place + 1)):
            thumbnails[number], copy = planted(patients[number], name, number)
            copies[name][PATIENTS + len(added)] = number
            added.append(copy)
    together = np.concatenate([thumbnails, added])
    compared, lost = compare_likely(together)
    pairs = join(compared, lost)
    return found | {name: judge(name, pairs, compared, of_one) for name, of_one in copies.items()}


def measure() -> list[dict]:
    """One row per change: of 20 real knees and of 20 phantoms."""
    return beside(measure_real(), measure_phantoms(phantoms()))


def beside(real: dict[str, dict[str, object]], phantoms: dict[str, dict[str, object]]) -> list[dict]:
    """The results of both, one row per change."""
    rows = []
    for name, of_phantoms in phantoms.items():
        row: dict[str, object] = {"change": "none: the pictures as they are" if name == "none" else name}
        for kind, result in (("real", real.get(name, {})), ("phantoms", of_phantoms)):
            keys = ("found", "least alike", "nearest stranger", "false")
            row |= {f"{key}, {kind}": result.get(key, "") for key in keys}
        rows.append(row)
    return rows
