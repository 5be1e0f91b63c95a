"""The protocol ladder where the truth is known, and on the real radiographs.

Phantoms whose labels are drawn by lot: no picture says anything about its label, the truth is an AUROC of 0.5, and
what is above it is what a protocol leaks. Half of them have a copy, byte for byte or altered, some under the other
label. The network is small, starts from random weights and learns its pictures by heart.

The real files are those of ../shared/data/kaggle, of one source, so that other_source has nothing to test on. Sweeps
are kept in $OSTEO_LADDER (default ladder_runs/), so that one may be cut off and taken up.
"""

import os
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.noise import python
from osteo.data.phantom import write_archives
from osteo.evaluation.outcomes import check_run
from osteo.records.sweep import trained
from osteo.report.sections import ladder

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORK = Path(os.environ.get("OSTEO_LADDER", "ladder_runs")).resolve()
PHANTOMS, COPIED, CONTRADICTORY = 96, 48, 8
PROTOCOLS = ladder.PROTOCOLS[:4]
COMMON = ["experiment=ladder", "data=kaggle", f"protocol={','.join(PROTOCOLS)}", "logger=null", "callbacks=null",
          "trainer.monitor=epoch"]  # fmt: skip
SWEEPS: dict[str, tuple[int, list[str]]] = {
    "phantoms, labels by lot": (5, [
        f"data.kaggle={WORK}/phantoms", "model.backbone=test_resnet", "data.image_size=48", "trainer.max_epochs=30",
        "optimizer.lr=0.003", "optimizer.weight_decay=0",
    ]),
    "202 real pictures": (3, [
        f"data.kaggle={SHARED}/data/kaggle", "model.backbone=tf_efficientnet_lite0", "data.image_size=128",
        f"model.weights_file={SHARED}/weights/tf_efficientnet_lite0.safetensors", "trainer.max_epochs=5",
        "optimizer.lr=0.0005",
    ]),
}  # fmt: skip
"""Folds, and overrides."""


def measure(names: tuple[str, ...] = tuple(SWEEPS)) -> list[dict]:
    """One row per protocol and collection of pictures."""
    rows = []
    for name in names:
        if name.startswith("phantoms") and not (WORK / "phantoms").exists():
            plant(WORK / "phantoms")
        runs, seconds = train(name)
        found = ladder.find(ladder.read_by_protocol(runs, sensitivity=0.9), draws=2000, seed=0)
        table = found.tables[ladder.TABLE].drop(columns="system")
        rows += [{"pictures": name} | row for row in table.to_dict("records")]
        spent = sum(run.read_environment()["seconds"] for run in runs)
        print(f"{name}: {len(runs)} runs, {spent:.0f} s in all; {seconds:.0f} s of them now", flush=True)
    return rows


def train(name: str) -> tuple[list, float]:
    """The runs of a sweep, trained or gone on with where some are missing, and the seconds that this took."""
    sweep, begun = WORK / name.replace(" ", "_").replace(",", ""), time.perf_counter()
    folds, words = SWEEPS[name]
    if not sweep.is_dir() or len(trained(sweep, check_run)[0]) < folds * len(PROTOCOLS):
        begin = ["-m", *COMMON, *words, f"data.split.folds={folds}", f"output_dir={sweep}"]
        goes_on = [f"resume={sweep}"] if sweep.is_dir() else begin
        subprocess.run([*python("osteo"), "train", *goes_on], check=True, stdout=subprocess.DEVNULL)
    return trained(sweep, check_run)[0], time.perf_counter() - begun


def plant(root: Path, *, pictures: int = PHANTOMS, copied: int = COPIED, contradictory: int = CONTRADICTORY) -> None:
    """Writes phantoms in class folders by lot, and copies of some: every other one altered, the last ones elsewhere.

    Args:
        root: must not exist yet.
        pictures: different ones, half of each class.
        copied: of which there is a copy.
        contradictory: copies that stand in the other class's folder.
    """
    drawn = root.with_name(f"{root.name}_drawn")
    write_archives(drawn, seed=11, kaggle={"normal": pictures // 2, "osteoporosis": pictures // 2}, mendeley={})
    files = sorted((drawn / "kaggle").rglob("*.*"))
    classes = [("normal", "osteoporosis")[number % 2] for number in np.random.default_rng(0).permutation(pictures)]
    for class_name in ("normal", "osteoporosis"):
        (root / class_name).mkdir(parents=True)
    for number, (file, class_name) in enumerate(zip(files, classes, strict=True)):
        (root / class_name / f"{number}{file.suffix}").write_bytes(file.read_bytes())
        if number >= copied:
            continue
        is_other = number >= copied - contradictory
        other = {"normal": "osteoporosis", "osteoporosis": "normal"}[class_name] if is_other else class_name
        if number % 2:
            (root / other / f"{number}copy{file.suffix}").write_bytes(file.read_bytes())
        else:
            picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            smaller = cv2.resize(cv2.convertScaleAbs(picture, alpha=1.05, beta=4), None, fx=0.9, fy=0.9)
            cv2.imwrite(str(root / other / f"{number}altered.jpg"), smaller, [cv2.IMWRITE_JPEG_QUALITY, 85])
