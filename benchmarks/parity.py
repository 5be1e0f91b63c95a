"""One picture, one logit: training's test, evaluate, predict and every exported format, in float32.

On the real knees where they lie beside the project, else on phantoms.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.guard import KAGGLE
from benchmarks.noise import python
from osteo.inference.export import open_exported
from osteo.inference.formats import SUFFIXES
from osteo.inference.model import load_model
from osteo.reading.reader import read_picture
from osteo.records.record import Run

BACKBONES = ("resnet18", "densenet121", "test_vit")


def measure() -> list[dict]:
    """One row per backbone: the largest difference of a logit from that of training's test, over its test pictures."""
    rows = []
    data = ["data=folder", f"data.root={KAGGLE}"] if KAGGLE.exists() else ["data=phantom"]
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            train = [
                *data, "data.image_size=128", f"model.backbone={backbone}", "trainer.max_epochs=2",
                "trainer.precision=32-true", "trainer.accelerator=cpu", "logger.wandb.mode=disabled",
            ]  # fmt: skip
            if backbone == "test_vit":
                train[len(data)] = "data.image_size=160"
            osteo(folder, "train", *train, "output_dir=run")
            osteo(folder, "evaluate", "run", *data, "output_dir=evaluated")
            record = Run(folder / "run").read_table("predictions.csv").query("split == 'test'")
            trained = record.set_index("image_id")["logit"]
            manifest = Run(folder / "run").read_manifest().set_index("image_id")
            (folder / "in").mkdir()
            for image_id in trained.index:
                kept = folder / "in" / image_id.replace("/", "_")
                kept.write_bytes(Path(manifest["path"][image_id]).read_bytes())
            osteo(folder, "predict", "run", "input=in", "output_dir=predicted", "overlay=false", "interval=false")
            found = {
                "evaluate": Run(folder / "evaluated").read_table("predictions.csv").set_index("image_id")["logit"],
                "predict": pd.read_csv(folder / "predicted/predictions.csv").set_index("file")["logit"],
            }
            model = load_model(Run(folder / "run").best_checkpoint)
            names = [image_id.replace("/", "_") for image_id in trained.index]
            pictures = [
                model.prepare(read_picture((folder / "in" / kept).read_bytes(), model.card.image_size))
                for kept in names
            ]
            for kind, suffix in SUFFIXES.items():
                osteo(folder, "export", "run", f"format={kind}", f"output=exported{suffix}")
                logits = open_exported(folder / f"exported{suffix}").logits(pictures)
                found[kind] = pd.Series(logits, index=names)
            apart = {
                kind: float(np.abs(logits[trained.index if kind == "evaluate" else names].to_numpy() - trained).max())
                for kind, logits in found.items()
            }
            rows.append(
                {"backbone": backbone, "test pictures": len(trained)} | {k: f"{v:.1e}" for k, v in apart.items()}
            )
            print(rows[-1], flush=True)
    return rows


def osteo(folder: Path, *arguments: str) -> None:
    """Runs a command as a user would."""
    done = subprocess.run([*python("osteo"), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"osteo {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
