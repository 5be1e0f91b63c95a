"""What pretraining without labels brings on the real radiographs, over random weights and beside ImageNet's.

Three grouped folds of ../shared/data/kaggle, cleaned. Before each fold's training the network learns from the pictures
that neither validate nor test in it. Sweeps are kept in $OSTEO_PRETRAIN (default recipe_runs/pretrain), so that a study
may be cut off and taken up; what is not finished has no row. Half an hour on two cores that do nothing else.
"""

import os
import subprocess
from pathlib import Path

import timm
import torch

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
RANDOM = WORK / "random.pt"  # a file too, since a frozen backbone wants one
IMAGENET = f"model.weights_file={SHARED}/weights/{BACKBONE}.safetensors"
COMMON = [
    "data=kaggle", f"data.kaggle={SHARED}/data/kaggle", "data.clean=true", "data.fit=crop", "data.image_size=128",
    f"data.split.folds={FOLDS}", f"data.split.fold=range({FOLDS})", f"model.backbone={BACKBONE}", "logger=null",
]  # fmt: skip
PRETRAIN = ["trainer.max_epochs=20", "data.batch_size=32"]
PROBE = ["experiment=probe", "model.pretrained=false"]
FINETUNE = ["trainer.max_epochs=10", "trainer.monitor=epoch"]
LOW, HIGH = ["optimizer.lr=5e-4"], ["optimizer.lr=2e-3"]
"""Learning rates from weights of ImageNet, and from all others."""
SYSTEMS: dict[str, tuple[list[str] | None, list[str]]] = {
    "random weights": (None, [*HIGH, f"model.weights_file={RANDOM}"]),
    "ImageNet": (None, [*LOW, IMAGENET]),
    "simclr": (["method=simclr"], HIGH),
    "masked": (["method=masked"], HIGH),
    "ImageNet, then simclr": (["method=simclr", *LOW, IMAGENET], LOW),
    "byol": (["method=byol"], HIGH),
}
"""How the weights are pretrained, if at all, and what a training is told beside."""


def measure() -> list[dict]:
    """Trains what is missing; one row per system."""
    if not RANDOM.exists():
        RANDOM.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(timm.create_model(BACKBONE).state_dict(), RANDOM)
    for name, (pretraining, training) in SYSTEMS.items():
        if pretraining is not None:
            run("pretrain", place(name) / "phase1", [*PRETRAIN, *pretraining])
            training = [*training, f"model.weights_file={place(name)}/phase1/${{data.split.fold}}"]
        begins_with = [word for word in training if word.startswith("model.weights_file")]
        run("train", place(name) / "probe", [*PROBE, *begins_with])
        run("train", place(name) / "finetune", [*FINETUNE, *training])
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
    done = [name for name in SYSTEMS if is_done(place(name) / "probe") and is_done(place(name) / "finetune")]
    return [row(name) for name in done]


def row(name: str) -> dict:
    """What weights reach by a linear probe and by fine-tuning, and how far that is above random weights."""
    line = {"weights": name}
    for phase, title in (("probe", "linear probe"), ("finetune", "fine-tuned")):
        experiment, scratch = (
            read_experiment(trained(place(system) / phase, check_run)[0]) for system in (name, "random weights")
        )
        labels, groups = experiment.labels, experiment.groups
        model, reference = (of_one.of_kind("model")[0] for of_one in (experiment, scratch))
        found = metric_intervals(labels, model.probabilities, groups, networks=model.networks, names=["auroc"])["auroc"]
        line |= {"pictures": len(labels), f"AUROC, {title}": format_interval(found)}
        against = paired_bootstrap(labels, model.answers(), reference.answers(), groups)["auroc"]
        is_other = name != "random weights"
        line |= {f"less that of random weights, {title}": format_interval(against.difference) if is_other else "-"}
        line |= {f"p, {title}": f"{against.p:.2g}" if is_other else "-"}
    seconds = [run.read_environment()["seconds"] for run in runs_of(place(name) / "phase1")]
    return line | {"s of pretraining per fold": round(sum(seconds) / FOLDS)}
