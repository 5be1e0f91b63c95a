"""What is told of a picture without seeing bone: of a file, or of the square that a network sees of it."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd

from osteo.data.candidates import WITHOUT_PADDING, find_parts
from osteo.evaluation.bootstrap import Interval
from osteo.evaluation.metrics import metric_intervals
from osteo.evaluation.systems import System, forest_scores
from osteo.types import Floats, Grey

PROBES = {
    "border": "the outermost pixels",
    "thumbnail_8x8": "a blurred picture of 8 x 8 pixels",
    "mean_spread": "mean and spread of the grey values",
    "outline": "the outline: how far plain borders reach in",
}
"""Titles; "outline" is of the fitted picture alone, where padding shows what shape the file had."""
MAX_PICTURES = 3000  # that a forest learns from; more change the second digit of an interval


def probe_features(picture: Grey) -> dict[str, Floats]:
    """What each probe sees of a square picture, uint8 (S, S); every value has one dimension."""
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    rim = np.ones(small.shape, bool)
    rim[1:-1, 1:-1] = False
    tiny = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA)
    return {
        "border": small[rim].astype(float),
        "thumbnail_8x8": tiny.ravel().astype(float),
        "mean_spread": np.array([picture.mean(), picture.std()]),
        "outline": np.array(find_parts(picture)[WITHOUT_PADDING]),
    }


def probe_on_folds(
    system: System, pictures: pd.DataFrame, fitted: Mapping[str, Grey], *, draws: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Accuracy and AUROC of each probe, trained and tested on the pictures of the same runs as a model.

    Args:
        system: a model.
        pictures: as `Experiment.pictures`.
        fitted: what a network sees of every picture that is used, by image_id.
        draws: of the bootstrap.
        seed: of the draws, and of the pictures that a forest learns from where there are many.
    """
    seen = {image_id: probe_features(picture) for image_id, picture in fitted.items()}
    scores = {name: np.full_like(system.probabilities, np.nan) for name in PROBES}

    def of(image_ids: Sequence[str], name: str) -> Floats:
        return np.stack([seen[image_id][name] for image_id in image_ids])

    for number, run in enumerate(system.runs):
        where = system.networks == number
        manifest = run.read_manifest()
        train = manifest[(manifest["split"] == "train") & manifest["image_id"].isin(seen.keys())]
        train = train.sample(MAX_PICTURES, random_state=seed) if len(train) > MAX_PICTURES else train
        if train["label"].nunique() < 2 or not where.any():  # a run of the same fold and seed stands for this one
            continue
        tested = list(pictures["image_id"][where.any(axis=0)])
        for name, of_probe in scores.items():
            of_probe[where] = forest_scores(of(list(train["image_id"]), name), train["label"], of(tested, name))
    labels, groups = pictures["label"].to_numpy(int), list(pictures["group"])
    return {
        name: metric_intervals(
            labels, of_probe, groups, names=("auroc", "accuracy"), networks=system.networks, draws=draws, seed=seed
        )
        for name, of_probe in scores.items()
    }
