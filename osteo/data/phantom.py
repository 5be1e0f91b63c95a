"""Synthetic knee radiographs with a known T-score, in the layouts of the two real archives.

A picture is a map of what the beam passes on its way: soft tissue, cortical shells, trabecular bone. Lengths are in
millimetres, with the middle of the joint at (0, 0), y downwards and x towards the fibula. With the T-score fall the
thickness of the cortex, the density of trabecular bone and the anisotropy of its texture; exposure, pose, side, size,
soft tissue and film are drawn without regard to it.
"""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from osteo.config import PhantomConfig
from osteo.errors import counted
from osteo.files import alone, read_sealed, sha256_of, whole, write_sealed
from osteo.task import CLASSES, NEGATIVE
from osteo.types import Grey

log = logging.getLogger(__name__)

Map = npt.NDArray[np.floating[Any]]

VERSION = 1  # of the drawings: raise it when the same seed gives other pictures
T_SCORES = dict(zip(CLASSES, ((-0.9, 1.0), (-2.4, -1.1), (-4.0, -2.5)), strict=True))
"""Drawn evenly from these ranges; the WHO's cut-offs are -1 and -2.5."""
AGE_SLOPE = -9.0
"""Years per unit of the T-score, unless another slope is asked for; the noise beside it is `draw_age`'s."""
MENDELEY_FOLDER = "Osteoporosis Knee X-ray"
MENDELEY_PREFIX = dict(zip(CLASSES, ("N", "OP", "OS"), strict=True))
SHEET = "patient details.xlsx"
CHECKSUMS = "checksums.json"
HEADINGS = (  # of the published sheet, with its stray blanks and colons
    "S.No", "Patient Id", "Joint Pain:", "Gender", "Age", "Menopause Age", "height  (meter)", "Weight (KG) ", "Smoker",
    "Alcoholic", "Diabetic", "Hypothyroidism", "Number of Pregnancies", "Seizer Disorder", "Estrogen Use",
    "Occupation ", "History of Fracture", "Dialysis:", "Family History of Osteoporosis",
    "Maximum Walking distance (km)", "Daily Eating habits", "Medical History", "T-score Value", "Z-Score Value",
    "BMI: ", "Site", "Obesity", "Diagnosis",
)  # fmt: skip


class Sketch(NamedTuple):
    """A picture to draw: where it goes, what the patient has, and the seed of all the rest."""

    name: str
    class_name: str
    t_score: float
    seed: list[int]


def archives(config: PhantomConfig, cache: Path) -> Path:
    """The folder with the phantom archives of this seed and these counts, drawn where it is missing or damaged."""
    ages = [config.age_slope] if config.age_slope != AGE_SLOPE else []  # what was drawn before it keeps its key
    recipe = json.dumps([VERSION, config.seed, config.kaggle, config.mendeley, *ages], sort_keys=True)
    root = cache / "phantom" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if is_intact(root):
        return root
    log.info("drawing %s", counted(sum(config.kaggle.values()) + sum(config.mendeley.values()), "phantom radiograph"))
    with alone(root, "drawing them"):
        if not is_intact(root):
            if root.exists():
                log.warning("the phantom radiographs in the cache are damaged or of an older version: drawn anew")
                shutil.rmtree(root)
            write_archives(
                root, seed=config.seed, kaggle=config.kaggle, mendeley=config.mendeley, age_slope=config.age_slope
            )
    return root


def write_archives(
    root: Path, *, seed: int, kaggle: Mapping[str, int], mendeley: Mapping[str, int], age_slope: float = AGE_SLOPE
) -> None:
    """Writes root/kaggle and root/mendeley, laid out as the published archives, whole or not at all.

    Args:
        root: must not exist yet.
        seed: the same seed gives the same files; a picture does not depend on how many others there are.
        kaggle: pictures by class; mixed PNG and JPEG files, patients unknown.
        mendeley: pictures by class; JPEG files named by patient, some with both knees, and the clinical sheet.
        age_slope: years per unit of the T-score in the sheet; 0 where age is to say nothing.
    """
    first = [sketch for name, count in kaggle.items() for sketch in _kaggle(name, count, seed)]
    second = [sketch for name, count in mendeley.items() for sketch in _mendeley(name, count, seed)]
    with whole(root) as aside:
        for sketch in first + second:
            (aside / sketch.name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda sketch: (aside / sketch.name).write_bytes(_encode(sketch)), first + second))
        if second:
            _write_sheet(aside / "mendeley" / MENDELEY_FOLDER / SHEET, second, seed, age_slope)
        write_sealed(aside / CHECKSUMS, json.dumps(_checksums(aside)))


def is_intact(root: Path) -> bool:
    """Whether every file of `write_archives` is there, and no other, as it was written."""
    text = read_sealed(root / CHECKSUMS)
    return text is not None and json.loads(text) == _checksums(root)


def _checksums(root: Path) -> dict[str, str]:
    """SHA-256 by path below the root."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    with ThreadPoolExecutor() as pool:
        sums = pool.map(sha256_of, paths)
        return {path.relative_to(root).as_posix(): value for path, value in zip(paths, sums, strict=True)}


def _sketch(name: str, class_name: str, seed: int) -> Sketch:
    numbers = [seed, zlib.crc32(name.encode())]
    low, high = T_SCORES[class_name]
    return Sketch(name, class_name, round(float(np.random.default_rng([*numbers, 0]).uniform(low, high)), 2), numbers)


def _kaggle(class_name: str, count: int, seed: int) -> list[Sketch]:
    sketches = []
    for number in range(1, count + 1):
        ending = (".png", ".jpg", ".jpg", ".JPEG", ".png")[number % 5]
        suffix = ("", "n", "nn")[number % 3]
        sketches.append(_sketch(f"kaggle/{class_name}/{number}{suffix}{ending}", class_name, seed))
    return sketches


def _mendeley(class_name: str, count: int, seed: int) -> list[Sketch]:
    folder = f"mendeley/{MENDELEY_FOLDER}/{class_name}"
    endings = (".jpg", ".JPEG", ".jpg")
    names = [f"{folder}/{MENDELEY_PREFIX[class_name]}{n}{endings[n % 3]}" for n in range(1, count + 1)]
    return [_sketch(name, class_name, seed) for name in names]


def _encode(sketch: Sketch) -> bytes:
    """The file of a picture, in the format that its name says."""
    rng = np.random.default_rng([*sketch.seed, 1])
    both = sketch.name.startswith("mendeley") and rng.random() < 0.1
    height = int(rng.integers(400, 560))
    width = int(height * (rng.uniform(1.2, 1.4) if both else rng.uniform(0.45, 1.0)))
    picture = draw(rng, sketch.t_score, height=height, width=width, both=both)
    is_png = sketch.name.endswith(".png")
    if is_png or rng.random() < 0.5:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if is_png else [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 96))]
    return cv2.imencode(".png" if is_png else ".jpg", picture, options)[1].tobytes()


def draw(rng: np.random.Generator, t_score: float, *, height: int, width: int, both: bool = False) -> Grey:
    """Draws one radiograph.

    Args:
        rng: of everything but the T-score.
        t_score: in standard deviations from young adults; realistic from -4 to 1.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        both: show both knees side by side.

    Returns:
        uint8 (height, width).
    """
    field = rng.uniform(200.0, 260.0)  # mm from the upper to the lower edge
    scale = field / height
    x = (np.arange(width, dtype=np.float32) - width * rng.uniform(0.44, 0.56))[None, :] * np.float32(scale)
    y = (np.arange(height, dtype=np.float32) - height * rng.uniform(0.4, 0.55))[:, None] * np.float32(scale)
    angle = np.deg2rad(rng.normal(0.0, 3.0))
    across = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    along = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    side = 1.0 if rng.random() < 0.5 else -1.0
    patient = Patient.drawn(rng, t_score)
    if both:
        apart = np.float32(rng.uniform(62.0, 75.0))
        beam = _leg(rng, patient, across - apart, along, scale)
        beam = np.maximum(beam, _leg(rng, patient, -across - apart, along, scale))
    else:
        beam = _leg(rng, patient, np.float32(side) * across, along, scale)
    return _film(rng, beam, "R" if side > 0 else "L")


class Patient(NamedTuple):
    """What is the same in both knees of a patient."""

    size: float
    """of the bones, 1 on average"""
    fat: float
    """width of the soft tissue, 1 on average"""
    gap: float
    """joint space, mm"""
    density: float
    """of trabecular bone, 1 at a T-score of 0"""
    cortex: float
    """thickness of the cortex of the shafts, mm"""
    anisotropy: float
    """share of the trabeculae that follow the load, 0 to 1"""

    @staticmethod
    def drawn(rng: np.random.Generator, t_score: float) -> "Patient":
        """A patient of this T-score; what the bone shows differs a little from what was measured."""
        seen = t_score + rng.normal(0.0, 0.45, 3)
        return Patient(
            size=float(rng.uniform(0.88, 1.1)),
            fat=float(rng.uniform(0.85, 1.35)),
            gap=float(rng.uniform(4.0, 7.0)),
            density=float(np.clip(1.0 + 0.15 * seen[0], 0.3, 1.3)),
            cortex=float(np.clip(5.5 + 0.9 * seen[1], 1.8, 7.0)),
            anisotropy=float(np.clip(0.8 + 0.17 * seen[2], 0.1, 0.95)),
        )


def _leg(rng: np.random.Generator, patient: Patient, x: Map, y: Map, scale: float) -> Map:
    """What the beam meets in one leg, in arbitrary units; 0 beside it."""
    x = (x + _bend(rng, x.shape, scale)) / np.float32(patient.size)
    y = (y + _bend(rng, y.shape, scale)) / np.float32(patient.size)
    texture = _texture(rng, x.shape, patient.anisotropy, scale)
    valgus, half_gap = np.float32(rng.uniform(0.04, 0.12)), np.float32(patient.gap / 2)

    calf = 9.0 * np.exp(-(((y - 85.0) / 45.0) ** 2))
    thigh = 14.0 * _rise(-y, 20.0, 110.0)
    soft = _chord(x - valgus * y / 2, np.float32(patient.fat) * (52.0 + calf + thigh)) * 48.0

    spread = _rise(y, -80.0, -22.0)
    notch = 9.0 * np.exp(-((x / 8.0) ** 2)) + 7.0 * _rise(np.abs(x), 22.0, 42.0) ** 2
    femur = _bone(x + valgus * y, 13.5 + 26.0 * spread, patient, spread, -half_gap - notch - y, texture)

    spread = 1.0 - _rise(y, 6.0, 62.0)
    spines = 5.5 * (np.exp(-(((x - 4.5) / 3.0) ** 2)) + np.exp(-(((x + 4.5) / 3.0) ** 2)))
    slope = 4.0 * _rise(np.abs(x), 26.0, 40.0) ** 2
    tibia = _bone(x + valgus * y / 3, 12.5 + 25.5 * spread, patient, spread, y - half_gap + spines - slope, texture)

    head = np.exp(-(((y - 28.0) / 11.0) ** 2))
    fibula = _bone(x - 31.0 + 0.05 * y, 5.5 + 4.0 * head, patient, 0.6 * head, y - 17.0 - half_gap, texture)

    cap = np.sqrt(np.clip(1.0 - ((x - 2.0) / 20.0) ** 2 - ((y + 34.0) / 22.0) ** 2, 0.0, 1.0))
    patella = np.float32(0.4 + 0.6 * patient.density) * 9.0 * cap
    return np.asarray(soft + femur + tibia + fibula + patella, np.float32)


def _bone(x: Map, half_width: Map, patient: Patient, spread: Map, inside: Map, texture: Map) -> Map:
    """A tube of cortex filled with trabecular bone, closed by a subchondral plate.

    Args:
        x: distance from the axis.
        half_width: of the bone at each height.
        patient: thickness of the cortex and density.
        spread: 0 in the shaft, where the cortex is thick and the marrow empty, to 1 at the joint.
        inside: distance from the end of the bone, negative beyond it.
        texture: of trabecular bone, 0 on average.
    """
    cortex = np.minimum(np.float32(patient.cortex) * (1.0 - 0.75 * spread), half_width * 0.6)
    depth = np.minimum(half_width, 24.0)
    hollow = half_width - cortex
    chord = _chord(x, half_width)
    outer = chord * depth
    inner = _chord(x, hollow) * depth * hollow / half_width
    filled = np.float32(patient.density) * (0.25 + 0.75 * spread) * (1.0 + texture)
    closed = np.sqrt(np.clip(inside / 7.0, 0.0, 1.0))
    plate = 7.0 * np.exp(-(((inside - 1.2) / 1.2) ** 2)) * (inside > 0) * chord
    return np.asarray(closed * (2.1 * (outer - inner) + 0.9 * inner * filled) + plate, np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], anisotropy: float, scale: float) -> Map:
    """Trabeculae: noise drawn out along the load, mixed with noise of no direction; mean 0, deviation near 0.18."""
    layers = []
    for sigma_x, sigma_y in ((0.45, 3.0), (0.7, 0.7)):
        noise = rng.standard_normal(shape, dtype=np.float32)
        drawn_out = cv2.GaussianBlur(noise, (0, 0), max(sigma_x / scale, 0.3), sigmaY=max(sigma_y / scale, 0.3))
        layers.append(drawn_out / np.float32(drawn_out.std() + 1e-6))
    return np.asarray(np.float32(0.18) * (anisotropy * layers[0] + (1.0 - anisotropy) * layers[1]), np.float32)


def _bend(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Map:
    """A smooth shift of 2 mm or so, with a turn every 40 mm: no two knees have quite the same outline."""
    turns = [max(4, round(pixels * scale / 40.0)) for pixels in shape]
    knots = 2.0 * rng.standard_normal(turns, dtype=np.float32)
    return np.asarray(cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _chord(x: Map, radius: Map | np.float32) -> Map:
    """Relative length of a parallel beam's way through a cylinder: 1 in its middle, 0 beside it."""
    return np.asarray(np.sqrt(np.clip(1.0 - (x / radius) ** 2, 0.0, 1.0)), np.float32)


def _rise(value: Map, start: float, end: float) -> Map:
    """0 up to start, 1 from end, smooth between."""
    t = np.clip((value - start) / (end - start), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def _film(rng: np.random.Generator, beam: Map, side: str) -> Grey:
    """Exposure, grain, fog, edges of the film and the letter of the side."""
    height, width = beam.shape
    white = float(np.percentile(beam[::4, ::4], 99.5)) * rng.uniform(0.95, 1.35)
    film = np.clip(beam / np.float32(white), 0.0, 1.0) ** np.float32(rng.uniform(0.75, 1.6))
    film += np.float32(rng.uniform(0.0, 0.08))
    film += np.float32(rng.uniform(0.005, 0.03)) * rng.standard_normal(beam.shape, dtype=np.float32)
    picture = np.asarray(np.clip(film * 255.0, 0.0, 255.0), np.uint8)
    if rng.random() < 0.3:  # a collimated beam
        edge = int(rng.integers(4, 20))
        picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:] = 0, 0, 0, 0
    if rng.random() < 0.2:
        picture[:, -2:] = 255
    if rng.random() < 0.7:
        size = height / 700.0
        at = (int(width * rng.choice([0.05, 0.86])), int(height * rng.uniform(0.08, 0.5)))
        box = (at[0] + int(30 * size), at[1] - int(32 * size))
        cv2.rectangle(picture, (at[0] - 4, at[1] + 4), box, int(rng.integers(90, 200)), -1)
        cv2.putText(picture, side, at, cv2.FONT_HERSHEY_SIMPLEX, size * 1.2, 255, 2, cv2.LINE_AA)
    return picture


def draw_age(rng: np.random.Generator, t_score: float, slope: float = AGE_SLOPE) -> int:
    """The age of a patient: 50 years at a T-score of -1.5, a slope with it, a deviation of 6 years, within 18 to 95."""
    return int(np.clip(50.0 + slope * (t_score + 1.5) + rng.normal(0.0, 6.0), 18, 95))


def _write_sheet(path: Path, patients: list[Sketch], seed: int, age_slope: float) -> None:
    """The clinical sheet: one row per patient, one patient without a picture, and three rows without a patient."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(HEADINGS)
    absent = _sketch(f"mendeley/{MENDELEY_FOLDER}/{NEGATIVE}/N{len(patients) + 1}.jpg", NEGATIVE, seed)
    for number, sketch in enumerate([*patients, absent], start=1):
        rng = np.random.default_rng([*sketch.seed, 2])
        female = bool(rng.random() < 0.7)
        age = draw_age(rng, sketch.t_score, age_slope)
        height, weight = round(float(rng.normal(1.59, 0.09)), 2), int(rng.normal(69.0, 10.0))
        sheet.append(
            (
                number, Path(sketch.name).stem, "yes" if rng.random() < 0.6 else "no",
                "female" if female else "male", age, int(rng.integers(42, 52)) if female and age > 52 else None,
                height, weight, "no", "no", "no", "no", int(rng.integers(0, 6)) if female else None,
                "no", "no", "phantom", "no", "no", "no", 2.0, "normal", "no", sketch.t_score,
                round(sketch.t_score + 0.5, 2), weight / height**2, "knee", "normal weight", sketch.class_name,
            )
        )  # fmt: skip
    for _ in range(3):
        sheet.append((None, None, None, None, 50, None, 1.6, 70))
    book.save(path)
