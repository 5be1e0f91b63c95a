"""Five folds whose networks put their logits at different places: the AUROC of all pairs, and of those within a fold.

Every fold is truly 0.85, with 173 pictures in all; the offsets of the networks are normal.
"""

import os

import numpy as np

from benchmarks.coverage import DRAWS, Design, covers, distance
from osteo.evaluation.metrics import metric_intervals

SETS = int(os.environ.get("OSTEO_SETS", "500"))
AREA, FOLDS = 0.85, 5
OFFSETS = (0.0, 0.5, 1.0, 2.0)  # standard deviations, on the scale of the logit
PICTURES = Design("173 pictures", 99, 74)


def measure() -> list[dict]:
    """One row per spread of the offsets: mean AUROC and how often its 95 % interval has the truth."""
    rows = []
    for spread in OFFSETS:
        found: dict[str, list[tuple[float, bool]]] = {"pooled": [], "within a fold": []}
        for seed in range(SETS):
            rng = np.random.default_rng([seed, int(10 * spread)])
            labels = np.repeat([1, 0], [PICTURES.cases, PICTURES.controls])
            networks = rng.permutation(len(labels)) % FOLDS
            scores = rng.normal(size=len(labels)) + distance(AREA) * labels
            logits = distance(AREA) * scores + spread * rng.normal(size=FOLDS)[networks]
            for name, by in (("pooled", None), ("within a fold", networks[None])):
                interval = metric_intervals(
                    labels, logits[None], range(len(labels)), names=["auroc"], networks=by, draws=DRAWS, seed=seed
                )["auroc"]
                found[name].append((interval.value, covers(interval, AREA)))
        row: dict[str, object] = {"standard deviation of the offsets": spread}
        for name, values in found.items():
            means = np.mean(values, axis=0)
            row |= {f"{name}, mean AUROC": f"{means[0]:.3f}", f"{name}, coverage": f"{means[1]:.3f}"}
        rows.append(row)
    return rows
