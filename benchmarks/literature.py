"""The systems of the literature on the real radiographs, at a size that two cores can train.

Every system is trained on the same three grouped folds of ../shared/data/kaggle, cleaned, at 128 pixels (osteo's own at
the sizes of `experiment=best`); what is a pretrained backbone in its source is the one network here whose weights
lie in ../shared/weights, and networks that this cannot stand for start from random weights. Runs are kept in
$OSTEO_LITERATURE (default literature_runs/), so that the table may be cut off and taken up.
"""

import os
import subprocess
from pathlib import Path

from benchmarks.noise import python
from osteo.command_settings import ReportConfig
from osteo.evaluation.outcomes import check_run
from osteo.records.sweep import is_run, trained
from osteo.report.page import read_report

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORK = Path(os.environ.get("OSTEO_LITERATURE", "literature_runs")).resolve()
FOLDS = 3
SIDE = ["data.image_size=128"]
BASE = "tf_efficientnet_lite0"
WEIGHTS = [f"model.weights_file={SHARED}/weights/{BASE}.safetensors", "model.pretrained=false"]
SCRATCH = ["model.pretrained=false"]
DATA = ["data=kaggle", f"data.kaggle={SHARED}/data/kaggle", f"data.split.folds={FOLDS}", "logger=null"]
SYSTEMS = {
    "alrabai2025": ["model.backbone=densenet121", *SCRATCH, *SIDE, "trainer.max_epochs=4"],  # seven variants an epoch
    "abubakar2022": ["model.backbone=torchvision/googlenet", *SCRATCH, *SIDE, "trainer.max_epochs=12"],
    "wani2022": ["model.backbone=torchvision/alexnet", *SCRATCH, *SIDE, "trainer.max_epochs=12"],
    "sarhan2024": ["model.backbone=plain_cnn", *SCRATCH, *SIDE, "trainer.max_epochs=12"],
    "kumar2024": [f"model.backbone=gru/{BASE}", *WEIGHTS, *SIDE, "trainer.max_epochs=12"],
    "siddiqua2024": [f"model.backbone=stacked/{BASE}", *WEIGHTS, *SIDE, "trainer.max_epochs=12"],
    "rasool2024": [f"model.backbone=fused/{BASE}+resnet18", *WEIGHTS, *SIDE, "trainer.max_epochs=12"],
    "bonenet2025": [f"model.backbone=attended/{BASE}+test_vit", *WEIGHTS, *SIDE, "trainer.max_epochs=12"],
    "osteo_probe": WEIGHTS,
    "osteo_scratch": [],
}
"""Overrides of each system, beside its own file."""


def measure() -> list[dict]:
    """Trains what is missing; the rows of the report's table "Claimed and measured"."""
    for name in SYSTEMS:
        for fold in range(FOLDS):
            train(name, fold)
    report = read_report(ReportConfig(runs=str(WORK), pictures=False))
    return report.tables["literature"].to_dict("records")


def train(name: str, fold: int) -> None:
    """Trains a system on one fold, or goes on with it."""
    run = WORK / f"{name}-{fold}"
    if is_run(run) and trained(run, check_run)[0]:
        return
    begin = ["experiment=literature", f"experiment/literature={name}", *DATA, f"data.split.fold={fold}"]
    begin += [*SYSTEMS[name], f"output_dir={run}"]
    print(f"{name}, fold {fold}", flush=True)
    goes_on = [f"resume={run}"] if is_run(run) else begin
    subprocess.run([*python("osteo"), "train", *goes_on], check=True, stdout=subprocess.DEVNULL)
