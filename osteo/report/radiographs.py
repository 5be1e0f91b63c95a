"""What a report shows of the radiographs themselves: samples, predictions, and where the networks look."""

import logging
from typing import TYPE_CHECKING

from osteo.config import Config, ReportConfig
from osteo.errors import UserError
from osteo.types import ReadFile

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from osteo.data.sources import Source
    from osteo.data.store import Store
    from osteo.records.record import Run
    from osteo.report.page import Looked
    from osteo.report.results import Results

log = logging.getLogger(__name__)


def look(setting: Config, sources: "dict[str, Source]", results: "Results", config: ReportConfig) -> "Looked":
    """The best model's surest mistakes, and where the networks that tested the pictures look.

    Raises:
        UserError: the pictures are no longer what they were, or a checkpoint is gone.
    """
    import numpy as np

    from osteo.data.prepare import prepare
    from osteo.evaluation import gradcam as explain
    from osteo.report.html import embed
    from osteo.report.page import Looked
    from osteo.report.rows import mistakes

    _, store = prepare(setting.data, sources)
    system = results.best.system
    wrong = mistakes(results, results.best, config.mistakes)
    pictures = results.experiment.pictures
    sha256 = {str(i): str(sha) for i, sha in zip(pictures["image_id"], pictures["sha256"], strict=True)}
    if gone := sorted(image_id for image_id, sha in sha256.items() if sha not in store.rows):
        raise UserError(f"{len(gone)} pictures are no longer what they were, {gone[0]} first")
    note = ""
    try:
        log.info("looking where %s looks", system.name)
        maps, alike = grad_cams(system.runs, list(wrong["image_id"]), sha256, store)
    except UserError as error:
        maps, alike, note = {}, [], str(error)
    shown = []
    if not config.pictures:
        wrong, note = wrong[:0], "Radiographs are left out, as asked (pictures=false)."
    for image_id, label, probability in wrong[["image_id", "label", "probability"]].itertuples(index=False, name=None):
        picture = store.pictures[0, store.rows[sha256[image_id]]]
        names = ("normal", "osteoporosis")
        call = int(probability > 0.5)
        shown.append(
            {
                "name": image_id,
                "picture": embed(picture),
                "map": embed(explain.overlay(picture, maps[image_id])) if image_id in maps else "",
                "label": names[int(label)],
                "call": names[call],
                "sure": f"{probability if call else 1 - probability:.0%}",
            }
        )
    found = {i: explain.attention(np.asarray(store.pictures[0, store.rows[sha256[i]]]), cam) for i, cam in maps.items()}
    measured = {image_id: one for image_id, one in found.items() if one is not None}
    findings = explain.findings(measured, pictures, alike) if measured else []
    return Looked(shown, findings, note)


def grad_cams(
    runs: "list[Run]", first: list[str], sha256: dict[str, str], store: "Store"
) -> "tuple[dict[str, np.ndarray], list[float]]":
    """Grad-CAM of test pictures by the network that tested them, by image_id, float32 (S, S).

    Also how alike a map and an untrained network's are (Spearman's correlation), for some pictures of each run.

    Args:
        runs: of one model.
        first: pictures that are looked at in any case.
        sha256: of the other pictures too, by image_id.
        store: holds them.

    Raises:
        UserError: the backbone has no feature map, or a checkpoint is gone.
    """
    import torch

    from osteo.data.datamodule import unit
    from osteo.evaluation import gradcam as explain
    from osteo.training.module import load_module

    maps: dict[str, np.ndarray] = {}
    alike: list[float] = []
    for run in runs:
        predictions = run.read_table("predictions.csv")
        tested = [i for i in predictions.loc[predictions["split"] == "test", "image_id"] if i not in maps]
        kept = [i for i in tested if i in first]
        kept += [i for i in tested if i not in first][: max(0, EXPLAINED // len(runs) - len(kept))]
        if not kept:
            continue
        network = load_module(run.best_checkpoint).network
        rows = [store.rows[sha256[i]] for i in kept]
        for place in range(0, len(rows), 32):
            pictures = unit(torch.from_numpy(store.pictures[0, rows[place : place + 32]]))
            cams = explain.grad_cam(network, pictures)
            maps |= dict(zip(kept[place : place + 32], cams.numpy(), strict=True))
            if place == 0:
                some = pictures[:RANDOMISED]
                alike += explain.agreement(cams[:RANDOMISED], explain.grad_cam(network.untrained(), some))
    return maps, alike


def with_pictures(setting: Config, read: ReadFile, manifest: "pd.DataFrame", best: "Run") -> "dict[str, Figure]":
    """Samples by class, the variants of one picture, and the best run's predictions.

    Raises:
        UserError: the pictures are no longer where they were.
    """
    from osteo.data.store import square
    from osteo.reading.pictures import decode
    from osteo.report.figures import Shown, pictures
    from osteo.training.augment import paper_twins

    def picture(image_id: str) -> "np.ndarray":
        return square(decode(read(image_id), 224), 224, setting.data.fit)

    used = manifest[manifest["split"] != "excluded"]
    samples = []
    for name in ("normal", "osteoporosis"):
        ids = used.loc[used["class_name"] == name, "image_id"]
        samples.append((name, [Shown(picture(i), "") for i in ids.iloc[_spread(len(ids), SAMPLES)]]))
    one = picture(str(used["image_id"].iloc[0]))
    twins = paper_twins(setting.augment)
    variants = [Shown(one, "original"), *(Shown(change(one), name) for name, change in twins.items())]
    predictions = best.read_table("predictions.csv")
    test = predictions[predictions["split"] == "test"].reset_index(drop=True)
    drawn = test.iloc[_spread(len(test), PREDICTIONS)]
    marked = []
    for image_id, label, probability in drawn[["image_id", "label", "probability"]].itertuples(index=False, name=None):
        guess = int(probability > 0.5)
        sure = probability if guess else 1.0 - probability
        marked.append(Shown(picture(image_id), f"{('normal', 'osteoporosis')[guess]} {sure:.0%}", guess == label))
    return {
        "samples": pictures(samples),
        "augmentations": pictures([("", variants)]),
        "predictions": pictures([("", marked[place : place + 6]) for place in range(0, len(marked), 6)]),
    }


def _spread(count: int, wanted: int) -> list[int]:
    """Positions, evenly spread over `count` rows, at most `wanted` of them."""
    return sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(min(wanted, count))})


SAMPLES, PREDICTIONS = 5, 12  # pictures a class, and of the best run's test split


SAMPLES, PREDICTIONS = 5, 12  # pictures a class, and of the best run's test split


EXPLAINED = 400  # pictures at most whose Grad-CAM is looked at


RANDOMISED = 12  # pictures a run whose map is compared with an untrained network's
