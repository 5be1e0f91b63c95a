"""What a report says of the radiographs themselves: samples, predictions, mistakes, and where the networks look."""

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from osteo import parts
from osteo.checks import check_data
from osteo.command_settings import ReportConfig
from osteo.config import Config
from osteo.data.datamodule import unit
from osteo.data.prepare import prepare, read_sources, reader
from osteo.data.sources import Source, clinical_rows
from osteo.data.store import Store
from osteo.errors import UserError, counted, listed
from osteo.evaluation import gradcam
from osteo.evaluation.bootstrap import Interval
from osteo.evaluation.probes import probe_on_folds
from osteo.files import cache_dir, display_path
from osteo.inference import explain
from osteo.inference.card import check_origin
from osteo.inference.model import load_model, to_batch
from osteo.reading.framing import decoded_size, frame
from osteo.reading.reader import read_picture
from osteo.records.record import Run
from osteo.report.figures import Panel, explained, panels
from osteo.report.html import embed
from osteo.report.results import Results
from osteo.report.rows import mistakes
from osteo.task import PREDICTED_T_SCORE, TASKS, THRESHOLD, Task, call_by_details, details_columns
from osteo.training.augment import paper_twins
from osteo.training.checkpoints import build_module, read_checkpoint
from osteo.training.hardware import present_accelerator
from osteo.types import Grey, ReadFile, Singles

SAMPLES, PREDICTIONS = 5, 12  # pictures of each class, and of the best run's test split
EXPLAINED = 400  # pictures that get a Grad-CAM, at most
RANDOMISED = 40  # untrained networks whose maps are compared with the model's, shared out among its runs
COMPARED = 4  # pictures of each run with which that is done
RANDOM_SEED = 1_000_000  # of the first of them: no run starts from the weights that one of these seeds draws
BATCH = 32
FEATURE_MAPS = {
    "feature_maps_right": "The correct call of which the best run was most confident.",
    "feature_maps_wrong": "The wrong call of which the best run was most confident.",
}
"""Figures of feature maps, with their captions."""
PANELS = ("samples", "augmentations", "predictions")
"""Figures of pictures alone."""
RADIOGRAPHS = (*PANELS, *FEATURE_MAPS)
"""Names of the figures that show pictures."""
NARROW_COLUMNS = 3  # maps in a row on a narrow screen
LAYERS, CHANNELS = 3, 6  # of a network whose feature maps are shown, at most

log = logging.getLogger(__name__)


class Mistake(NamedTuple):
    """A wrong call."""

    name: str
    picture: str
    """as a data URL"""
    overlay: str
    """the same with its Grad-CAM; empty where there is none"""
    caption: str
    """below that"""
    label: str
    call: str
    confidence: str
    """probability of the class that was called, in percent"""


@dataclass(frozen=True)
class PictureFindings:
    """What the pictures themselves show, as far as they can be read."""

    figures: dict[str, Figure] = field(default_factory=dict)
    narrow: dict[str, Figure] = field(default_factory=dict)
    """those whose parts cannot be stacked, drawn for a narrow screen"""
    mistakes: list[Mistake] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    """where the networks look"""
    sanity: gradcam.Sanity | None = None
    """whether the maps depend on what was learnt; None where there are no maps"""
    probes: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """accuracy and AUROC of what is seen without bone after `data.fit`, by name of `probes.PROBES`"""
    note: str = ""
    """why something is missing"""
    clinical: pd.DataFrame | None = None
    """what clinical sheets say of the tested pictures, one row each; None where the sheets are out of reach"""


def inspect_pictures(setting: Config, results: Results, config: ReportConfig) -> PictureFindings:
    """Figures of pictures, the best model's mistakes, and where the networks that tested the pictures look.

    Args:
        setting: of the best run, whose pictures are read.
        results: of the sweep.
        config: of the report.
    """
    figures: dict[str, Figure] = {}
    clinical = None
    try:
        with _plugins(setting, results, config):
            check_data(setting.data)
            sources = read_sources(setting.data, cache_dir(setting.data.cache))
        clinical = clinical_rows(results.experiment.pictures, sources)
        if config.pictures:
            figures = picture_figures(setting, reader(sources), results.best.system.best_run)
        return _explain(setting, sources, results, config, figures, clinical)
    except UserError as error:
        log.warning("what needs the pictures is left out: %s", error)
        return PictureFindings(figures, note=f"What needs the pictures is left out: {error}", clinical=clinical)


def _plugins(setting: Config, results: Results, config: ReportConfig) -> AbstractContextManager[None]:
    """Where something cannot be built, says which plugins the best model was trained with; see `parts.needed`."""
    again = f"osteo report {shlex.quote(display_path(Path(config.runs or '')))}"
    return parts.needed(setting.plugins, results.best.system.name, again)


def _explain(
    setting: Config,
    sources: dict[str, Source],
    results: Results,
    config: ReportConfig,
    figures: dict[str, Figure],
    clinical: pd.DataFrame | None,
) -> PictureFindings:
    manifest, store = prepare(setting.data, sources)
    store.confirm()
    system, pictures = results.best.system, results.experiment.pictures
    wrong = mistakes(results, results.best, config.mistakes)
    sha256 = {str(i): str(sha) for i, sha in zip(pictures["image_id"], pictures["sha256"], strict=True)}
    if gone := sorted(image_id for image_id, sha in sha256.items() if sha not in store.rows):
        raise UserError(f"{counted(len(gone), 'picture')} changed since the training, {gone[0]} first")
    stored = {image_id: np.asarray(store.pictures[0, store.rows[sha]]) for image_id, sha in sha256.items()}
    log.info("measuring what can be predicted without seeing bone")
    used = manifest[manifest["sha256"].isin(store.rows.keys())]
    fitted = {str(i): store.pictures[0, store.rows[s]] for i, s in zip(used["image_id"], used["sha256"], strict=True)}
    probes = probe_on_folds(system, pictures, fitted | stored, draws=results.draws, seed=results.seed)
    maps: dict[str, Singles] = {}
    sanity, drawn = None, dict[str, tuple[Figure, Figure]]()
    left_out: dict[str, list[str]] = {}
    try:
        log.info("computing the Grad-CAM maps of %s", system.name)
        with _plugins(setting, results, config):
            maps, sanity = grad_cams(
                system.runs, list(wrong["image_id"]), sha256, store, accelerator=config.accelerator
            )
    except UserError as error:
        left_out[str(error)] = ["the Grad-CAM maps"]
    try:
        if config.pictures:
            with _plugins(setting, results, config):
                drawn = feature_map_figures(system.best_run, stored, results.experiment.task, config.accelerator)
    except UserError as error:
        left_out.setdefault(str(error), []).append("the feature maps")
    for reason, missing in left_out.items():
        log.warning("%s of %s are left out: %s", listed(missing), system.name, reason)
    note = ". ".join(left_out)
    if not config.pictures:
        wrong, note = wrong[:0], f"Radiographs are left out, as asked (pictures=false). {note}".strip()
    measured = {i: share for i, cam in maps.items() if (share := gradcam.attention(stored[i], cam)) is not None}
    sentences = gradcam.findings(measured, pictures, sanity, results.experiment.task) if measured else []
    figures |= {name: wide for name, (wide, _) in drawn.items()}
    narrow = {name: of_phone for name, (_, of_phone) in drawn.items()}
    shown = _mistakes(wrong, system.best_run.read_manifest(), stored, maps, results.experiment.task)
    return PictureFindings(figures, narrow, shown, sentences, sanity, probes, note, clinical)


def _mistakes(
    wrong: pd.DataFrame, manifest: pd.DataFrame, stored: Mapping[str, Grey], maps: Mapping[str, Singles], task: Task
) -> list[Mistake]:
    """Of the positive class against the rest, each with the class that the manifest has."""
    rows, labels = [], manifest.set_index("image_id")["label"]
    for image_id, probability in wrong[["image_id", "probability"]].itertuples(index=False, name=None):
        picture = stored[image_id]
        overlay = caption = ""
        if (cam := maps.get(image_id)) is not None:
            overlay = embed(gradcam.overlay(picture, cam))
            caption = gradcam.without_colour(cam, task.sides[1]) or "Grad-CAM"
        called, confidence = _called(task.sides, probability)
        true = task.class_names[labels[image_id]]
        rows.append(Mistake(image_id, embed(picture), overlay, caption, true, called, confidence))
    return rows


def _called(sides: tuple[str, str], probability: float) -> tuple[str, str]:
    """The side that a probability of the positive class stands for, and the probability of that side in percent."""
    is_positive = bool(probability > THRESHOLD)
    return sides[is_positive], f"{probability if is_positive else 1.0 - probability:.0%}"


def called_by(task: Task, row: "pd.Series[Any]") -> tuple[str, str]:
    """The class that a row of predictions.csv is called, and its probability in percent, or the T-score."""
    details = {name: float(row[name]) for name in details_columns(task)}
    called = call_by_details(task, details)
    if called is None:
        return _called(task.sides, row["probability"])
    return (
        called,
        f"T {details[PREDICTED_T_SCORE]:.2f}" if PREDICTED_T_SCORE in details else f"{max(details.values()):.0%}",
    )


def grad_cams(
    runs: Sequence[Run],
    first: Sequence[str],
    sha256: Mapping[str, str],
    store: Store,
    *,
    seed: int = RANDOM_SEED,
    accelerator: str = "auto",
) -> tuple[dict[str, Singles], gradcam.Sanity | None]:
    """Grad-CAM of test pictures by the network that tested them, by image_id, (S, S), and their sanity check.

    Each run's network is compared with other untrained ones, on some of its pictures; None where there is no map.

    Args:
        runs: of one model.
        first: pictures that get a map in any case.
        sha256: of the other pictures too, by image_id.
        store: holds them.
        seed: of the first untrained network.
        accelerator: that computes the maps, see `osteo.inference.model.load_model`.

    Raises:
        UserError: the backbone has no feature map, or a checkpoint is gone or of another run.
    """
    maps: dict[str, Singles] = {}
    correlations: list[float] = []
    compared, each = 0, math.ceil(RANDOMISED / len(runs))
    for number, run in enumerate(runs):
        predictions = run.read_predictions()
        tested = [i for i in predictions.loc[predictions["split"] == "test", "image_id"] if i not in maps]
        chosen = [i for i in tested if i in first]
        chosen += [i for i in tested if i not in first][: max(0, EXPLAINED // len(runs) - len(chosen))]
        if not chosen:
            continue
        stored = read_checkpoint(run.best_checkpoint)
        check_origin(stored, run.best_checkpoint, run)
        network = build_module(stored, run.best_checkpoint).network.to(present_accelerator(accelerator))
        rows = [store.rows[sha256[i]] for i in chosen]
        for start in range(0, len(rows), BATCH):
            pictures = unit(torch.from_numpy(store.pictures[0, rows[start : start + BATCH]]))
            cams = gradcam.grad_cam(network, pictures)
            maps |= dict(zip(chosen[start : start + BATCH], cams.numpy(), strict=True))
            if start == 0:
                untrained = (network.untrained(seed=seed + number * each + n) for n in range(each))
                correlations += gradcam.compare_randomised(network, untrained, pictures[:COMPARED])
                compared += len(pictures[:COMPARED])
    return maps, gradcam.Sanity(tuple(correlations), compared) if maps else None


def picture_figures(setting: Config, read: ReadFile, best: Run) -> dict[str, Figure]:
    """Samples of each class, the variants of one picture, and the best run's predictions.

    Raises:
        UserError: the pictures are no longer where they were.
    """

    def picture(image_id: str) -> Grey:
        data = setting.data
        return frame(read_picture(read(image_id), decoded_size(224, data.fit)), 224, data.fit, data.enhance).picture

    manifest = best.read_manifest()
    used = manifest[manifest["split"] != "excluded"]
    samples, task = [], TASKS[setting.task]
    for label, name in enumerate(task.class_names):
        ids = used.loc[used["label"] == label, "image_id"]
        samples.append((name, [Panel(picture(i), "") for i in ids.iloc[_spread(len(ids), SAMPLES)]]))
    original = picture(str(used["image_id"].iloc[0]))
    twins = paper_twins(setting.augment)
    variants = [Panel(original, "original"), *(Panel(change(original), name) for name, change in twins.items())]
    predictions = best.read_predictions()
    test = predictions[predictions["split"] == "test"].reset_index(drop=True)
    chosen = test.iloc[_spread(len(test), PREDICTIONS)]
    predicted = []
    for _, row in chosen.iterrows():
        called, why = called_by(task, row)
        true = task.class_names[int(row["label"])]
        told = f"{called} {why}" + (f"\ntrue class {true}" if task.has_many_classes and called != true else "")
        predicted.append(Panel(picture(str(row["image_id"])), told, called == true))
    rows = [("", predicted[start : start + 6]) for start in range(0, len(predicted), 6)]
    return dict(zip(PANELS, (panels(samples), panels([("", variants)]), panels(rows)), strict=True))


def feature_map_figures(
    best: Run, stored: Mapping[str, Grey], task: Task, accelerator: str = "auto"
) -> dict[str, tuple[Figure, Figure]]:
    """What the best run's network sees of its most confident right and wrong calls, for a wide and a narrow screen.

    None where it gives no map.

    Args:
        best: the run.
        stored: its test pictures, as the network sees them, by image_id.
        task: that it was asked.
        accelerator: that computes them, see `osteo.inference.model.load_model`.

    Raises:
        UserError: the checkpoint cannot be used, or the network has no layers that maps are drawn of.
    """
    predictions = best.read_predictions()
    test = predictions[predictions["split"] == "test"]
    test = test.iloc[np.argsort(-(test["probability"] - THRESHOLD).abs(), kind="stable")]
    figures: dict[str, tuple[Figure, Figure]] = {}
    model = load_model(best.best_checkpoint, accelerator)
    layers = explain.stage_layers(model.network, LAYERS)
    for _, row in test.iterrows():
        called, why = called_by(task, row)
        true = task.class_names[int(row["label"])]
        name, image_id = list(FEATURE_MAPS)[called != true], str(row["image_id"])
        if name in figures or image_id not in stored:
            continue
        batch = to_batch([stored[image_id]])
        try:
            heat = gradcam.grad_cam(model.network, batch)[0].numpy()
        except UserError:
            heat = None
        maps = explain.feature_maps(model.network, batch, layers)
        shown = [explain.most_active(layer, of_layer, CHANNELS) for layer, of_layer in maps.items()]
        facts = [f"{model.card.backbone}, run {best.name}", f"true class {true}", f"called {called}, {why}"]
        facts += filter(None, [] if heat is None else [gradcam.without_colour(heat, task.sides[1])])
        wide, narrow = (explained(stored[image_id], heat, facts, shown, columns) for columns in (None, NARROW_COLUMNS))
        figures[name] = wide, narrow
        if len(figures) == len(FEATURE_MAPS):
            break
    return figures


def _spread(count: int, most: int) -> list[int]:
    """Positions, evenly spread over `count` rows, at most `most` of them."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(min(most, count))})
