"""The best of ten models on 47 test pictures, as measured and corrected for the choice (Tsamardinos et al. 2018).

Each model's scores share half of their variance with the others'. In the first row all are truly 0.85, in the second
they differ by a standard deviation of 0.03.
"""

import os

import numpy as np
from scipy.stats import norm

from benchmarks.coverage import covers, distance
from osteo.evaluation.selection import best_on_test
from osteo.evaluation.tests import Answers

SETS = int(os.environ.get("OSTEO_SETS", "500"))
MODELS, PICTURES, AREA, DRAWS = 10, 47, 0.85, 500
SPREADS = (0.0, 0.03)


def measure() -> list[dict]:
    """One row per spread of the models: bias, and how often the 95 % interval has the chosen model's truth."""
    rows = []
    for spread in SPREADS:
        errors, covered = [], []
        for seed in range(SETS):
            rng = np.random.default_rng([seed, int(100 * spread)])
            labels, both = np.arange(PICTURES) % 2, rng.normal(size=PICTURES)
            areas = np.clip(AREA + spread * rng.normal(size=MODELS), 0.6, 0.97)
            models = []
            for area in areas:
                noise = 0.5**0.5 * (both + rng.normal(size=PICTURES))
                scores = norm.cdf(noise + distance(area) * (labels - 0.5))[None]
                models.append(Answers(scores, np.full_like(scores, 0.5), np.zeros(scores.shape, int)))
            found = best_on_test(labels, models, range(PICTURES), metric="auroc", draws=DRAWS, seed=seed)
            truth = areas[found.number]
            errors.append([found.naive.value - truth, found.corrected.value - truth])
            covered.append([covers(found.naive, truth), covers(found.corrected, truth)])
        row: dict[str, object] = {"models": MODELS, "pictures": PICTURES, "spread of the true AUROC": spread}
        for column, name in enumerate(("as measured", "corrected")):
            row[f"bias, {name}"] = f"{np.mean(errors, axis=0)[column]:+.3f}"
            row[f"coverage, {name}"] = f"{np.mean(covered, axis=0)[column]:.3f}"
        rows.append(row)
    return rows
