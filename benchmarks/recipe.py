"""Which recipe wins on the real radiographs: framings, sizes, frozen features, fine-tuning, each ingredient once.

Every configuration runs on the same grouped folds of ../shared/data/kaggle, cleaned, and every repeat draws new folds.
Sweeps, one per repeat, are kept in $OSTEO_RECIPE (default recipe_runs/), so that a study may be cut off and taken up; a
row says how many repeats it has. What is best is chosen by validation, here as in osteo/report; all that was tried is
in the table.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.noise import python
from osteo.data.prepare import prepare
from osteo.evaluation import gradcam
from osteo.evaluation.bootstrap import format_interval
from osteo.evaluation.calibration import calibrate
from osteo.evaluation.metrics import metric_intervals
from osteo.evaluation.outcomes import check_run
from osteo.evaluation.systems import Experiment, System, read_experiment, validate
from osteo.evaluation.tests import holm, paired_bootstrap
from osteo.records.record import Run
from osteo.records.sweep import runs_of, trained
from osteo.report.radiographs import grad_cams

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORK = Path(os.environ.get("OSTEO_RECIPE", "recipe_runs")).resolve()
BACKBONE = "tf_efficientnet_lite0"
WEIGHTS = [
    f"model.backbone={BACKBONE}",
    f"model.weights_file={SHARED}/weights/{BACKBONE}.safetensors",
]
DATA = ["data=kaggle", f"data.kaggle={SHARED}/data/kaggle", "data.clean=true", "data.split.fold=range(5)"]
PROBE = [*WEIGHTS, "experiment=probe"]
FINETUNE = [*WEIGHTS, "experiment=finetune"]
OF_ALL = [*PROBE, "model.stages=true", "data.fit=crop", "data.image_size=320"]
PROBE_OF_ALL, SCRATCH, REFERENCE = "probe of all stages, crop 320", "scratch, ResNet18, crop 128", "probe, crop 224"
BEST_OF = (PROBE_OF_ALL, SCRATCH)
"""Whose answers `experiment=best` averages: the two that validation puts first, of two kinds."""
CONFIGURATIONS: dict[str, tuple[int, list[str]]] = {
    "default recipe from weights, pad 224": (3, [*WEIGHTS, "trainer.max_epochs=15"]),
    **{
        f"probe, {fit} {side}": (3, [*PROBE, f"data.fit={fit}", f"data.image_size={side}"])
        for fit, side in (
            ("pad", 224), ("resize", 224), ("crop", 224), ("bone", 224), ("crop", 320), ("bone", 320), ("crop", 448),
            ("bone", 448),
        )
    },
    **{
        f"probe of all stages, {fit} {side}": (
            3, [*PROBE, "model.stages=true", f"data.fit={fit}", f"data.image_size={side}"]
        )
        for fit, side in (("pad", 320), ("crop", 224), ("crop", 320), ("crop", 448), ("bone", 320))
    },
    "probe, crop 448 in 2 x 2 tiles": (3, [*PROBE, "data.fit=crop", "data.image_size=448", "model.patches=2"]),
    "probe, bone 448 in 2 x 2 tiles": (3, [*PROBE, "data.fit=bone", "data.image_size=448", "model.patches=2"]),
    f"{PROBE_OF_ALL}, head linear": (3, [*OF_ALL, "model.head=linear"]),
    f"{PROBE_OF_ALL}, epoch by val loss": (3, [*OF_ALL, "trainer.monitor=val/loss"]),
    f"{PROBE_OF_ALL}, without flips": (3, [*OF_ALL, "augment=none", "model.tta=[]"]),
    f"{PROBE_OF_ALL}, views turned and enlarged too": (3, [*OF_ALL, "model.tta=[hflip,rotate,zoom]"]),
    f"{PROBE_OF_ALL}, mixup 0.4": (3, [*OF_ALL, "augment.mixup=0.4"]),
    f"{PROBE_OF_ALL}, smoothing 0.2": (3, [*OF_ALL, "loss.label_smoothing=0.2"]),
    **{
        f"finetune, {fit} {side}": (3, [*FINETUNE, f"data.fit={fit}", f"data.image_size={side}"])
        for fit, side in (("pad", 224), ("crop", 224), ("crop", 320), ("crop", 448), ("bone", 448))
    },
    "finetune of all stages, crop 320": (3, [*FINETUNE, "model.stages=true", "data.fit=crop", "data.image_size=320"]),
    **{
        f"scratch, ResNet18, {fit} {side}": (3, ["experiment=scratch", f"data.fit={fit}", f"data.image_size={side}"])
        for fit, side in (("pad", 128), ("crop", 128), ("crop", 224))
    },
}  # fmt: skip
"""Repeats, and overrides."""


def measure() -> list[dict]:
    """Trains what is missing; one row per configuration, the best on validation first."""
    for name, (repeats, _) in CONFIGURATIONS.items():
        for repeat in range(repeats):
            train(name, repeat)
    return table()


def table() -> list[dict]:
    """One row per configuration of which a repeat has been trained."""
    found = {name: read_experiment(runs) for name in CONFIGURATIONS if (runs := runs_of_repeats(name))}
    rows = [row(name, experiment, found[REFERENCE]) for name, experiment in found.items()]
    rows += rows_of_best(found[REFERENCE])
    corrected = iter(holm([row["p"] for row in rows]))
    for line in rows:
        line["above width and height, p after Holm"] = f"{next(corrected):.2g}"
        del line["p"]
    return sorted(rows, key=lambda line: -line["AUROC on validation"])


def folder(name: str) -> Path:
    """Where the sweeps of a configuration are kept, each in a folder named by its repeat."""
    return WORK / name.replace(" ", "_").replace(",", "").replace("/", "_")


def runs_of_repeats(name: str) -> list[Run]:
    """The runs of a configuration's repeats that have ended."""
    repeats = [folder(name) / str(repeat) for repeat in range(CONFIGURATIONS[name][0])]
    return [run for sweep in repeats if is_done(sweep) for run in runs_of(sweep)]


def is_done(sweep: Path) -> bool:
    """Whether every fold of a sweep has been trained."""
    return sweep.is_dir() and len(trained(sweep, check_run)[0]) == 5


def train(name: str, repeat: int) -> None:
    """Trains one repeat of a configuration, or goes on with it."""
    sweep = folder(name) / str(repeat)
    if is_done(sweep):
        return
    begin = ["-m", *DATA, *CONFIGURATIONS[name][1], "logger=null", f"output_dir={sweep}"]
    begin += [f"seed={repeat}", f"data.split.seed={repeat}"]
    print(f"{name}, repeat {repeat}", flush=True)
    goes_on = [f"resume={sweep}"] if sweep.is_dir() else begin
    subprocess.run([*python("osteo"), "train", *goes_on], check=True, stdout=subprocess.DEVNULL)


def rows_of_best(reference: Experiment) -> list[dict]:
    """What the mean of both networks reaches, in each repeat and over all, once both have been trained alike."""
    runs = [runs_of_repeats(name) for name in BEST_OF]
    if len(runs[0]) != len(runs[1]):
        return []
    experiment = read_experiment([*runs[0], *runs[1]])
    validation = validation_auroc(*runs)
    means = [system for system in experiment.of_kind("ensemble") if system.name.startswith("mean of 2 models")]
    return [
        row(f"best, {mean.name}", experiment, reference, replace(mean, validation={"auroc": validation}))
        for mean in means
        if not mean.name.endswith("weighted")
    ]


def validation_auroc(*runs: list[Run]) -> float:
    """The AUROC on validation of mean calibrated probabilities, itself the mean over folds and repeats."""
    values = []
    for together in zip(*runs, strict=True):
        tables = [run.read_predictions() for run in together]
        calibrated = [calibrate(table["logit"].to_numpy(), validate(table).temperature) for table in tables]
        of_val = [scores[table["split"] == "val"] for scores, table in zip(calibrated, tables, strict=True)]
        image_ids, labels = (
            tables[0].loc[tables[0]["split"] == "val", name].tolist() for name in ("image_id", "label")
        )
        if any(table.loc[table["split"] == "val", "image_id"].tolist() != image_ids for table in tables):
            raise ValueError("the networks were validated on different pictures")
        values.append(roc_auc_score(labels, np.mean(of_val, axis=0)))
    return float(np.mean(values))


def row(name: str, experiment: Experiment, reference: Experiment, mean: System | None = None) -> dict:
    """What a configuration reaches, or the mean of some."""
    model, shortcut = mean or experiment.of_kind("model")[0], experiment.of_kind("shortcut")[0]
    labels, groups = experiment.labels, experiment.groups
    intervals = metric_intervals(labels, model.probabilities, groups, networks=model.networks)
    against = paired_bootstrap(labels, model.answers(), shortcut.answers(), groups)["auroc"]
    probe = reference.of_kind("model")[0]
    shared = min(model.repeats, probe.repeats)
    beside = paired_bootstrap(labels, first(model, shared), first(probe, shared), groups)["auroc"]
    knee, area = evidence(name) if mean is None else ("-", "-")
    return {
        "configuration": name,
        "repeats": model.repeats,
        "AUROC on validation": round(model.validation["auroc"], 3),
        **{title: format_interval(intervals[key]) for key, title in
           (("auroc", "AUROC"), ("accuracy", "accuracy"), ("brier", "Brier"))},
        "width and height": format_interval(metric_intervals(
            labels, shortcut.probabilities, groups, networks=shortcut.networks, names=["auroc"])["auroc"]),
        "p": against.p,
        f"AUROC less that of {REFERENCE}": format_interval(beside.difference) if name != REFERENCE else "-",
        "p of that": f"{beside.p:.2g}" if name != REFERENCE else "-",
        "evidence in the knee": knee,
        "without aim": area,
        "s per fold": seconds(model.runs) if mean is None else "-",
    }  # fmt: skip


def seconds(runs: list[Run]) -> str:
    """What a run took, and on what."""
    facts = [run.read_environment() for run in runs]
    on = "/".join(sorted({of_run["accelerator"] for of_run in facts}))
    return f"{np.median([of_run['seconds'] for of_run in facts]):.1f} ({on})"


def first(model: System, repeats: int):
    """The answers of the first repeats."""
    answers = model.answers()
    return type(answers)(*(values[:repeats] for values in answers))


def evidence(name: str) -> list[str]:
    """The share of the first repeat's Grad-CAM that lies in the knee, and that of a map without aim; kept as a file."""
    kept = folder(name) / "evidence.json"
    if not kept.exists() and not runs_of_repeats(name)[0].best_checkpoint.exists():
        return ["-", "-"]  # trained elsewhere, and its checkpoints left there
    if not kept.exists():
        runs = runs_of_repeats(name)[:5]
        _, store = prepare(runs[0].read_settings().data)
        manifest = runs[0].read_manifest()
        sha256 = dict(zip(manifest["image_id"], manifest["sha256"], strict=True))
        maps, _ = grad_cams(runs, [], sha256, store)
        found = [
            gradcam.attention(np.asarray(store.pictures[0, store.rows[sha256[i]]]), cam) for i, cam in maps.items()
        ]
        inside, area = np.mean([(1 - one.outside, 1 - one.area) for one in found if one is not None], axis=0)
        kept.write_text(json.dumps([f"{inside:.0%}", f"{area:.0%}"]))
    return json.loads(kept.read_text())
