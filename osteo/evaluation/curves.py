"""Curves as statistics of weighted pictures, for the bootstrap to put bands around: ROC, calibration, decisions."""

from collections.abc import Sequence

import numpy as np

from osteo.evaluation.metrics import cumulative_weights
from osteo.types import Floats, Labels, Statistic


def roc_and_pr(labels: Labels, probabilities: Floats, grid: Floats) -> Statistic:
    """Two curves over one grid, as a statistic with 2 G columns, the mean over repeats.

    The first G are the sensitivity at each false positive rate of the grid (ROC), the last G the precision at each
    sensitivity of the grid.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        grid: rising, from 0 to 1, (G,).
    """
    repeats = [(labels[known], row[known], known) for row in probabilities if (known := np.isfinite(row)).any()]

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), 2 * len(grid)))
        for of_repeat, scores, known in repeats:
            positives, negatives = cumulative_weights(weights[:, known], of_repeat, scores)
            sensitivity, false_positive_rate = positives / positives[:, -1:], negatives / negatives[:, -1:]
            precision = positives / np.maximum(positives + negatives, 1e-300)
            for row in range(len(weights)):
                last = np.searchsorted(false_positive_rate[row], grid, side="right") - 1
                total[row, : len(grid)] += np.where(last >= 0, sensitivity[row, np.maximum(last, 0)], 0.0)
                first = np.minimum(np.searchsorted(sensitivity[row], grid - 1e-12), sensitivity.shape[1] - 1)
                total[row, len(grid) :] += precision[row, first]
        return total / len(repeats)

    return statistic


def predictive_values(sensitivity: Floats, specificity: Floats, prevalence: float) -> tuple[Floats, Floats]:
    """Positive and negative predictive value where a share `prevalence` of those examined has osteoporosis (Bayes)."""
    absence = 1.0 - prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = prevalence * sensitivity / (prevalence * sensitivity + absence * (1.0 - specificity))
        negative = absence * specificity / (absence * specificity + prevalence * (1.0 - sensitivity))
    return positive, negative


def decisions(labels: Labels, probabilities: Floats, thresholds: Floats, prevalence: float) -> Statistic:
    """Sensitivity, specificity, and predictive values at a prevalence, as a statistic of weighted pictures.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        thresholds: (R, N).
        prevalence: of osteoporosis where the model would be used.
    """
    repeats = [
        (known, (p > t)[known])
        for p, t in zip(probabilities, thresholds, strict=True)
        if (known := np.isfinite(p)).any()
    ]

    def statistic(weights: Floats) -> Floats:
        rows = np.zeros((len(repeats), 2, len(weights)))
        for place, (known, called) in enumerate(repeats):
            for side, right in enumerate((called, ~called)):
                members = labels[known] == 1 - side
                drawn = weights[:, known]
                rows[place, side] = drawn @ (members & right) / (drawn @ members)
        sensitivity, specificity = rows.mean(axis=0)
        return np.column_stack([sensitivity, specificity, *predictive_values(sensitivity, specificity, prevalence)])

    return statistic


def reliability(labels: Labels, probabilities: Floats, edges: Floats) -> Statistic:
    """The share of cases among pictures whose probability lies between two edges, pooled over repeats; NaN if none.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        edges: of the bins, rising, (B + 1,).
    """
    which = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, len(edges) - 2)
    inside = (which[:, :, None] == np.arange(len(edges) - 1)) & np.isfinite(probabilities)[:, :, None]
    pictures = inside.sum(axis=0).astype(float)  # (N, B)

    def statistic(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ (pictures * labels[:, None])) / (weights @ pictures))

    return statistic


def net_benefit(labels: Labels, probabilities: Floats, at: Sequence[float] | Floats) -> Statistic:
    """The net benefit of calling pictures above a probability (Vickers and Elkin 2006), the mean over repeats.

    It is true positives less false positives weighed by the odds of the threshold, per picture.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        at: thresholds, each in (0, 1).
    """
    limits = np.asarray(at, float)
    worth = np.where(labels[:, None] == 1, 1.0, -limits / (1.0 - limits))  # (N, T) of calling a picture
    repeats = [(known, p[known]) for p in probabilities if (known := np.isfinite(p)).any()]

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), len(limits)))
        for known, scores in repeats:
            drawn = weights[:, known]
            total += drawn @ (worth[known] * (scores[:, None] > limits)) / drawn.sum(axis=1, keepdims=True)
        return total / len(repeats)

    return statistic
