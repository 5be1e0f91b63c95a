"""What checkpoints reach on a data set."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from osteo.command_settings import EvaluateConfig
from osteo.errors import UserError, counted
from osteo.task import FIXED, T_SCORE, Task, details_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from osteo.inference.model import Model
    from osteo.types import Floats

log = logging.getLogger(__name__)


def name_of(config: EvaluateConfig) -> str:
    """The split that is asked about, as the manifest names it: where all pictures are, they are all for the test."""
    return "test" if config.split == "all" else config.split


def ask(models: "Sequence[Model]", config: EvaluateConfig) -> "tuple[pd.DataFrame, Floats, dict[str, Floats]]":
    """The manifest, and what the models say of the pictures that are asked about.

    That is the logits of the positive class, (models, N), ties joined; and what their task says beyond, (N,) each.

    Raises:
        UserError: the data cannot be had, nothing is left to ask about, or a logit is not finite.
    """
    import numpy as np

    from osteo.data.prepare import prepare, read_sources
    from osteo.data.sources import clinical_rows
    from osteo.evaluation.metrics import check_finite
    from osteo.evaluation.outcomes import warn_of_absent
    from osteo.evaluation.ties import join_ties
    from osteo.files import cache_dir
    from osteo.inference.card import data_hash
    from osteo.inference.model import mean_details

    task = models[0].network.task
    if config.data.task not in (None, task.name):
        raise UserError(
            f"data.task={config.data.task} differs from task={task.name}, for which {models[0].name} was"
            f" trained; leave it out"
        )
    logits, outputs = [], []
    sources, prepared = {}, {}
    for model in models:
        card = model.card
        framing: dict[str, Any] = {"image_size": card.image_size, "fit": card.fit, "enhance": card.enhance}
        names = () if model.covariates is None else model.covariates.names
        data = replace(config.data, **framing, task=task.name)
        data = replace(data, covariates=list(names or config.data.covariates))
        if names not in sources:
            sources[names] = read_sources(data, cache_dir(data.cache))
        if (key := (*framing.values(), names)) not in prepared:
            opened = prepare(data, sources[names], split=config.split != "all", complete=False)
            opened.store.confirm()
            prepared[key] = opened
        manifest, store = prepared[key]
        rows = manifest[manifest["split"] == name_of(config)]
        if rows.empty:
            raise UserError(f"split={config.split} has no pictures")
        used = manifest[manifest["split"] != "excluded"]
        same = data_hash(list(used["sha256"]), list(used["split"])) == model.card.data_hash
        warn_of_seen(model, rows, same_data=same, split=config.split)
        pictures = [store.pictures[0][store.rows[sha]] for sha in rows["sha256"]]
        features = model.covariates.features(clinical_rows(rows, sources[names])) if model.covariates else None
        outputs.append(model.outputs(pictures, features))
        of_model = model.positive(outputs[-1])
        check_finite(of_model, rows["image_id"], model.name)
        logits.append(join_ties(of_model))
    warn_of_absent(rows, task, name_of(config))
    return manifest, np.stack(logits), mean_details(task, outputs)


def warn_of_seen(model: "Model", rows: "pd.DataFrame", *, same_data: bool, split: str) -> None:
    """Warns of pictures that a model has learnt from, as far as its checkpoint and its run directory show them."""
    from osteo.networks.lineage import read_seen
    from osteo.records.content import DamagedError
    from osteo.records.record import Run

    pretrained = read_seen(str(model.path))
    if pretrained and (count := int(rows["sha256"].isin(pretrained.sha256).sum())):
        log.warning(
            "%s was pretrained on %d of these %s: the result may be too optimistic",
            model.name,
            count,
            counted(len(rows), "picture"),
        )
    if same_data and split in ("test", "val"):
        return
    try:
        of_training = Run(model.path.parent.parent).read_manifest()
    except DamagedError as error:
        log.warning("it is not known whether %s was trained on these pictures: %s", model.name, error)
        return
    learnt = set(of_training.loc[of_training["split"].isin(["train", "val"]), "sha256"])
    if seen := int(rows["sha256"].isin(learnt).sum()):
        log.warning(
            "%s was trained on %d of these %s: the result is too optimistic",
            model.name,
            seen,
            counted(len(rows), "picture"),
        )


def intervals_of_task(predictions: "pd.DataFrame", task: Task) -> "pd.DataFrame":
    """What a task is measured by beyond its positive class, with intervals: of three classes, or of T-scores."""
    import pandas as pd

    from osteo.evaluation.agreement import AGREEMENT, t_score_intervals
    from osteo.evaluation.bootstrap import format_interval
    from osteo.evaluation.multiclass import class_intervals, class_metrics

    groups, details = list(predictions["group"]), predictions[details_columns(task)].to_numpy(float)
    if task.kind == "regression" and T_SCORE not in predictions:
        return pd.DataFrame({"metric": metric.name, "95 % interval": "-"} for metric in AGREEMENT)
    if task.kind == "regression":
        found = t_score_intervals(predictions[T_SCORE].to_numpy(float), details.T, groups)
        names = [metric.name for metric in AGREEMENT]
    else:
        found = class_intervals(predictions["label"].to_numpy(int), details[None], groups, class_names=task.class_names)
        names = list(class_metrics(task.class_names))
    return pd.DataFrame({"metric": name, "95 % interval": format_interval(found[name])} for name in names)


def intervals(predictions: "pd.DataFrame", calibrated: "Floats", models: "Sequence[Model]") -> "pd.DataFrame":
    """Every metric with its interval, at the default threshold and at those that validation chose."""
    import pandas as pd

    from osteo.evaluation.bootstrap import format_interval
    from osteo.evaluation.metrics import all_metrics, metric_intervals
    from osteo.inference.answer import threshold_of

    labels, groups = predictions["label"].to_numpy(int), list(predictions["group"])
    columns = {"metric": list(all_metrics())}
    for rule in models[0].card.thresholds:
        threshold, scores = threshold_of(models, rule), calibrated
        if rule == FIXED:  # as in training: of what is not calibrated
            scores = predictions["probability"].to_numpy(float)
        found = metric_intervals(labels, scores[None], groups, thresholds=threshold).values()
        columns[f"at {rule} ({threshold:.2f})"] = [format_interval(interval) for interval in found]
    return pd.DataFrame(columns)
