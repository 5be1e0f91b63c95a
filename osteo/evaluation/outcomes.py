"""What a record says of predictions, whatever the task."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from osteo.evaluation.agreement import AGREEMENT, evaluate_t_scores
from osteo.evaluation.metrics import BUILT_IN, all_metrics, evaluate, measure
from osteo.evaluation.multiclass import evaluate_classes
from osteo.records.content import damaged
from osteo.records.record import Run
from osteo.task import BINARY, PREDICTED_T_SCORE, T_SCORE, TASKS, Task, probability_columns

log = logging.getLogger(__name__)

REPEATED = ("seed", "output_dir", "experiment", "logger", "claim", "keep", "print_config", "data.cache",
            "data.split.seed", "data.split.fold", "data.split.test_source")  # fmt: skip
"""Keys that may differ between runs of one system."""


def against_rest(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """A manifest or predictions with the label 1 for the positive class and 0 for the rest, as two classes have it."""
    return table.assign(label=(table["label"] == task.positive).astype(table["label"].dtype))


def without_fold(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by dotted keys, without the fold in the name of weights that were pretrained for it.

    `model.weights_file=phase1/${data.split.fold}` names other weights in every fold of one system.
    """
    name, fold = settings.get("model.weights_file"), settings.get("data.split.fold")
    if not name or fold is None or Path(str(name)).name != str(fold):
        return dict(settings)
    return {**settings, "model.weights_file": str(Path(str(name)).parent)}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        flattened |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flattened


def model_names(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The backbone, and the other keys that tell the systems apart; the source in their place, where that will do."""
    settings = [without_fold(run) for run in runs]
    recipes = [{key: str(value) for key, value in run.items() if not key.startswith(REPEATED)} for run in settings]
    names = [recipe["model.backbone"] for recipe in recipes]
    for key in sorted(recipes[0], key=lambda key: not key.endswith(".name")):  # optimizer.name before what it brings
        finer = [f"{name} {key}={recipe.get(key)}" for name, recipe in zip(names, recipes, strict=True)]
        names = max(names, finer, key=lambda kinds: len({*kinds}))  # the first where both are alike
    of_sources = [f"{run.get('claim.source')}: {run['model.backbone']}" for run in settings]
    is_enough = len({*zip(of_sources, names, strict=True)}) == len({*of_sources})
    return of_sources if is_enough and all("claim.source" in run for run in settings) else names


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a training by dotted keys."""
    return flatten(asdict(run.read_settings()))


def models_of(runs: Sequence[Run]) -> dict[str, str]:
    """The model that each run is one of, by the run's name: what differs in fold and seed alone is one model."""
    return {run.name: name for run, name in zip(runs, model_names(map(settings_of, runs)), strict=True)}


def evaluate_task(task: Task, predictions: pd.DataFrame) -> dict[str, Any]:
    """What metrics.json holds of one split's predictions; see `evaluate` of the module that the task asks for.

    Args:
        task: what was asked.
        predictions: rows of predictions.csv; where no T-score was measured, what these are compared by is None, and the
            class of a picture is the truth of their cut.

    Raises:
        UserError: what is predicted is not finite.
    """
    if task.kind == "regression" and T_SCORE not in predictions:
        of_cut = evaluate(predictions["logit"], predictions["label"] == task.positive)
        return dict.fromkeys(metric.name for metric in AGREEMENT) | of_cut
    if task.kind == "regression":
        return evaluate_t_scores(predictions[T_SCORE], predictions[PREDICTED_T_SCORE])
    if task.has_many_classes:
        probabilities = predictions[probability_columns(task)].to_numpy(float)
        return evaluate_classes(probabilities, predictions["label"], class_names=task.class_names)
    return evaluate(predictions["logit"], predictions["label"])


def evaluate_splits(predictions: pd.DataFrame, task: Task = BINARY) -> dict[str, Any]:
    """What metrics.json holds of a training: every metric of validation and test, as in test/accuracy."""
    results: dict[str, Any] = {}
    for split in ("val", "test"):
        rows = predictions[predictions["split"] == split]
        results |= {f"{split}/{name}": value for name, value in evaluate_task(task, rows).items()}
    return results


def warn_of_absent(predictions: pd.DataFrame, task: Task, split: str) -> None:
    """Says what cannot be measured of a split that lacks what the task is about: one of several classes, or T-scores.

    Args:
        predictions: or a manifest: the rows of the split.
        task: what was asked.
        split: its name.
    """
    if task.kind == "regression" and T_SCORE not in predictions:
        log.warning(
            "no %s picture has a T-score: errors, bias, limits of agreement and r have no value (-), and the cut is"
            " compared with the classes",
            split,
        )
    if task.kind not in ("nominal", "ordinal"):
        return
    present = set(predictions["label"])
    if absent := [name for label, name in enumerate(task.class_names) if label not in present]:
        log.warning(
            "no %s picture is of class %s: its AUROC and the means over the classes have no value (-)",
            split, " or ".join(absent),
        )  # fmt: skip


def check_run(run: Run) -> None:
    """Reads all that a report needs of a training, and computes its metrics once more from its predictions.

    Raises:
        DamagedError: the first file that is gone, damaged or contradicts another.
    """
    run.check()
    predictions, recorded, task = run.read_predictions(), run.read_metrics(), TASKS[run.read_settings().task]
    of_plugins = all_metrics().keys() - {metric.name for metric in BUILT_IN}  # they may have changed since
    for split in ("val", "test"):
        rows = predictions[predictions["split"] == split]
        computed, without_ties = evaluate_task(task, rows), {}
        if task.kind == "binary":  # as older versions had it
            labels, probabilities = rows["label"].to_numpy(int), expit(rows["logit"].to_numpy(float))
            without_ties = measure(
                labels, probabilities[None], names=computed.keys() - of_plugins - {"confusion_matrix"}
            )
        for name in computed.keys() - of_plugins:
            value = computed[name]
            given = recorded.get(f"{split}/{name}", value)
            if not (_agree(given, value) or _agree(given, without_ties.get(name, value))):
                raise damaged(
                    run.directory / "metrics.json",
                    f"is damaged: {split}/{name} is {given}, but predictions.csv gives {value}",
                )


def _agree(first: Any, second: Any) -> bool:
    """Whether two metrics are the same, but for the six digits that a record has; None and NaN are undefined."""
    if isinstance(first, list) or isinstance(second, list):
        return bool(first == second)
    one, other = (np.nan if value is None else float(value) for value in (first, second))
    return bool(np.isclose(one, other, rtol=0.0, atol=2e-6, equal_nan=True))
