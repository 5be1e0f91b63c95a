"""What pretraining without labels brings on the real radiographs, over random weights and beside ImageNet's.

Three grouped folds of ../shared/data/kaggle, cleaned. Before each fold's training the network learns from the pictures
that neither validate nor test in it. Sweeps are kept in $OSTEO_PRETRAIN (default recipe_runs/pretrain), so that a study
may be cut off and taken up; what is not finished has no row. Half an hour on two cores that do nothing else.
"""

import os
import subprocess
from pathlib import Path

from benchmarks.noise import python
from benchmarks.recipe import SHARED
from osteo.evaluation.bootstrap import format_interval
from osteo.evaluation.metrics import metric_intervals
from osteo.evaluation.outcomes import check_run
from osteo.evaluation.systems import read_experiment
from osteo.evaluation.tests import paired_bootstrap
from osteo.records.sweep import runs_of, trained

WORK = Path(os.environ.get("OSTEO_PRETRAIN", "recipe_runs/pretrain")).resolve()
BACKBONE, FOLDS = "tf_efficientnet_lite0", 3
IMAGENET = f"model.weights_file={SHARED}/weights/{BACKBONE}.safetensors"
COMMON = [
    "data=kaggle", f"data.kaggle={SHARED}/data/kaggle", "data.clean=true", "data.fit=crop", "data.image_size=128",
    f"data.split.folds={FOLDS}", f"data.split.fold=range({FOLDS})", f"model.backbone={BACKBONE}", "logger=null",
]  # fmt: skip
PRETRAIN = ["trainer.max_epochs=15", "data.batch_size=32"]
TRAIN = ["trainer.max_epochs=10", "trainer.monitor=epoch"]
LOW, HIGH = ["optimizer.lr=5e-4"], ["optimizer.lr=2e-3"]
"""Learning rates from weights of ImageNet, and from all others."""
SYSTEMS: dict[str, tuple[list[str] | None, list[str]]] = {
    "random weights": (None, HIGH),
    "ImageNet": (None, [*LOW, IMAGENET]),
    "masked": (["method=masked"], HIGH),
    "simclr": (["method=simclr"], HIGH),
    "ImageNet, then simclr": (["method=simclr", *LOW, IMAGENET], LOW),
    "byol": (["method=byol"], HIGH),
}
"""How the weights are pretrained, if at all, and what a training is told beside."""


def measure() -> list[dict]:
    """Trains what is missing; one row per system."""
    for name, (pretraining, training) in SYSTEMS.items():
        if pretraining is not None:
            run("pretrain", place(name) / "phase1", [*PRETRAIN, *pretraining])
            training = [*training, f"model.weights_file={place(name)}/phase1/${{data.split.fold}}"]
        run("train", place(name) / "phase2", [*TRAIN, *training])
    return table()


def place(name: str) -> Path:
    """Where the sweeps of a system are kept."""
    return WORK / name.replace(",", "").replace(" ", "_")


def is_done(sweep: Path) -> bool:
    """Whether every fold of a sweep has ended."""
    runs = runs_of(sweep) if sweep.is_dir() else []
    return len(runs) == FOLDS and all(run.has_status and run.status()["state"] == "done" for run in runs)


def run(command: str, sweep: Path, settings: list[str]) -> None:
    """Runs a sweep over the folds, or goes on with it."""
    if is_done(sweep):
        return
    print(sweep.relative_to(WORK), flush=True)
    words = [f"resume={sweep}"] if sweep.is_dir() else ["-m", *COMMON, *settings, f"output_dir={sweep}"]
    subprocess.run([*python("osteo"), command, *words], check=True, stdout=subprocess.DEVNULL)


def table() -> list[dict]:
    """One row per system of which every fold has been trained."""
    done = [name for name in SYSTEMS if is_done(place(name) / "phase2")]
    experiments = {name: read_experiment(trained(place(name) / "phase2", check_run)[0]) for name in done}
    rows = []
    for name, experiment in experiments.items():
        labels, groups, model = experiment.labels, experiment.groups, experiment.of_kind("model")[0]
        found = metric_intervals(labels, model.probabilities, groups, networks=model.networks, names=["auroc"])["auroc"]
        row = {"weights": name, "pictures": len(labels), "AUROC": format_interval(found)}
        if name != "random weights" and "random weights" in experiments:
            scratch = experiments["random weights"].of_kind("model")[0]
            against = paired_bootstrap(labels, model.answers(), scratch.answers(), groups)["auroc"]
            row |= {"less that of random weights": format_interval(against.difference), "p": f"{against.p:.2g}"}
        before, after = ([run.read_environment()["seconds"] for run in runs] for runs in (
            runs_of(place(name) / "phase1"), model.runs))  # fmt: skip
        row |= {"s per fold before": f"{sum(before) / FOLDS:.0f}", "s per fold": f"{sum(after) / FOLDS:.0f}"}
        rows.append(row)
    return rows
