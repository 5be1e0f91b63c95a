"""What three channels cost where one says the same: the paper's backbones on grey pictures, as they are and as RGB."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BACKBONES = "densenet201,resnet50,densenet121"


def measure() -> list[dict]:
    """Trains a few steps of each, as a user would, and reads the records."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable, "-m", "osteo", "train", "-m", f"model.backbone={BACKBONES}", "model.channels=1,3",
            "data.image_size=224", "data.batch_size=16", "trainer.max_epochs=2", "trainer.limit_train_batches=8",
            "logger.wandb.mode=disabled", f"output_dir={temporary}/sweep",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        facts = [json.loads(path.read_text()) for path in sorted(Path(temporary).glob("sweep/*/environment.json"))]
    rows = []
    for backbone in BACKBONES.split(","):
        grey, rgb = (next(f for f in facts if (f["backbone"], f["channels"]) == (backbone, n)) for n in (1, 3))
        rows.append(
            {
                "backbone": backbone,
                "grey, pictures a second": grey["pictures_per_second"],
                "RGB, pictures a second": rgb["pictures_per_second"],
                "grey / RGB": round(grey["pictures_per_second"] / rgb["pictures_per_second"], 3),
                "grey, peak MiB": grey["peak_memory_mib"],
                "RGB, peak MiB": rgb["peak_memory_mib"],
                "precision": grey["precision"],
            }
        )
    return rows
