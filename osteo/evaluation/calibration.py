"""What validation says of a run: the temperature of its logits and the thresholds of its calls."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from osteo.task import FIXED, SENSITIVITY, THRESHOLD, YOUDEN
from osteo.types import Floats, Labels

BINS = 10  # of the expected calibration error, equally wide
COLDEST, HOTTEST = 0.05, 20.0


def log_loss(logits: Floats, labels: Labels) -> float:
    """The mean negative log likelihood."""
    return float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -logits, logits))))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The number that logits are divided by so that their log loss is least (Guo et al. 2017), from 0.05 to 20."""
    span = np.log([COLDEST, HOTTEST])
    best = minimize_scalar(lambda u: log_loss(logits / np.exp(u), labels), bounds=tuple(span), method="bounded")
    return float(np.exp(best.x))


def calibrate(logits: Floats, temperature: float) -> Floats:
    """Probabilities of osteoporosis at a temperature."""
    return np.asarray(expit(logits / temperature))


def choose_thresholds(probabilities: Floats, labels: Labels, *, sensitivity: float = 0.9) -> dict[str, float]:
    """A threshold by each of `task.RULES`; a picture is called positive where its probability is above.

    Args:
        probabilities: of validation pictures, (N,).
        labels: of these, 0 or 1, (N,).
        sensitivity: the least that the third rule keeps, with the best specificity that it leaves.
    """
    values = np.unique(probabilities)
    candidates = np.r_[values[0] / 2, (values[1:] + values[:-1]) / 2, (1.0 + values[-1]) / 2]
    calls = probabilities[None, :] > candidates[:, None]
    positive = labels == 1
    sensitivities, specificities = calls[:, positive].mean(axis=1), (~calls)[:, ~positive].mean(axis=1)
    sums = sensitivities + specificities
    best = np.flatnonzero(np.isclose(sums, sums.max()))
    youden = candidates[best[np.argmin(np.abs(candidates[best] - THRESHOLD))]]  # of equally good ones the least unusual
    keeping = candidates[np.flatnonzero(sensitivities >= sensitivity - 1e-12)[-1]]
    return {FIXED: THRESHOLD, YOUDEN: float(youden), SENSITIVITY: float(keeping)}


def calibration_error(labels: Labels, probabilities: Floats) -> float:
    """The expected calibration error in ten equal bins, the mean over repeats.

    It comes without an interval: few pictures make it too large, and the bootstrap makes it larger still.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
    """
    errors = []
    for row in probabilities:
        known = np.isfinite(row)
        if known.any():
            which = np.minimum((row[known] * BINS).astype(int), BINS - 1)
            gaps = np.bincount(which, weights=row[known] - labels[known], minlength=BINS)
            errors.append(np.abs(gaps).sum() / known.sum())
    return float(np.mean(errors))
