"""The card of a model's best checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from osteo.data.splits import by_split
from osteo.evaluation.bootstrap import format_interval
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.systems import validate
from osteo.report.html import render
from osteo.report.results import Result, Results
from osteo.report.sections.record import data_sha256, file_sha256
from osteo.report.sections.task import TaskSection
from osteo.task import RULES

FITS = {
    "pad": "padded to a square", "resize": "stretched to a square",
    "crop": "cropped to a square about the joint, 1.3 times as wide as the bone",
    "bone": "four tiles of bone, of the distal femur over the proximal tibia, 0.3 times as wide as the bone each",
    "clusters": "cropped to a square about the joint, found by clusters of brightness and edges",
}  # fmt: skip

ENHANCED = {"none": "", "equalise": ", smoothed, its histogram made even, smoothed again"}


def model_card(
    results: Results, result: Result, section: TaskSection | None, audit: Sequence[str], limits: Sequence[str],
    added: Sequence[str],
) -> str:  # fmt: skip
    """The card of a model's best checkpoint, as Markdown.

    Args:
        results: of the sweep.
        result: the model's.
        section: what its task says beyond the positive class.
        audit: lines on the data.
        limits: lines on what the figures do not say.
        added: lines on what it adds to covariates; none where none were asked for, or of another model.
    """
    system, task = result.system, results.experiment.task
    run = system.best_run
    facts, settings = run.read_environment(), run.read_settings()
    manifest = run.read_manifest()
    model, data = settings.model, settings.data
    start = "random numbers"
    if model.weights_file:
        start = f"the file {Path(model.weights_file).name}"
    elif model.pretrained:
        start = "timm's pretrained weights"
    reached = pd.DataFrame(
        {"metric": metric.title, "95 % interval": format_interval(result.intervals[metric.name])}
        for metric in all_metrics().values()
    )
    sensitivity = results.sensitivity
    return render(
        "model_card.md.jinja",
        name=system.name,
        run=run.name,
        validation=run.read_metrics()["val/auroc"],
        facts=facts,
        size=data.image_size,
        channels=model.channels,
        fit=FITS[data.fit] + ENHANCED[data.enhance],
        start=start,
        sha256=file_sha256(run.best_checkpoint),
        osteo=facts["osteo"],
        torch=facts["libraries"]["torch"],
        timm=facts["libraries"]["timm"],
        by_split=by_split(manifest, None),
        data=data.name,
        data_sha256=data_sha256(manifest),
        audit=audit,
        design=results.experiment.design,
        section=section,
        beyond=section.of_model(system.name) if section else None,
        task=task,
        reached=reached,
        shortcut=format_interval(results.shortcut.intervals["auroc"]),
        validated=validate(run.read_predictions(), task, sensitivity=sensitivity),
        rules={name: rule.meaning.format(sensitivity=sensitivity) for name, rule in RULES.items()},
        limits=limits,
        added=added,
    )
