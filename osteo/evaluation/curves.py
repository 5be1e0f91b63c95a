"""Curves as statistics of weighted rows, for the bootstrap to put bands around: ROC, calibration, decisions."""

from collections.abc import Sequence

import numpy as np

from osteo.evaluation.bootstrap import rows_of
from osteo.evaluation.metrics import by_network, cumulative_weights, mean_over_networks, pairs
from osteo.types import Floats, Labels, Statistic


def roc_and_pr(labels: Labels, probabilities: Floats, grid: Floats, networks: Labels | None = None) -> Statistic:
    """Two curves over one grid, as a statistic with 2 G columns, the mean over repeats.

    The first G are the sensitivity at each false positive rate of the grid (ROC), the last G the precision at each
    sensitivity of the grid. Both are averaged over networks as `metrics.weighted_metrics` averages their areas.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        grid: rising, from 0 to 1, (G,).
        networks: numbers of the networks that tested the pictures, (R, N); null where one tested all of a repeat.
    """
    rows = rows_of(labels)
    of_repeats = by_network(rows, probabilities, networks)
    repeats = [
        (scores, parts) for scores, parts in zip(probabilities[:, rows.picture], of_repeats, strict=True) if parts
    ]

    def statistic(weights: Floats) -> Floats:
        total, weights = np.zeros((len(weights), 2 * len(grid))), rows.weigh(weights)
        for scores, parts in repeats:
            curves = [_roc_and_pr(weights[:, part], rows.label[part], scores[part], grid) for part in parts]
            total += mean_over_networks(curves, [pairs(weights, rows.label, part) for part in parts])
        return total / len(repeats)

    return statistic


def _roc_and_pr(weights: Floats, labels: Labels, scores: Floats, grid: Floats) -> Floats:
    positives, negatives = cumulative_weights(weights, labels, scores)
    curves = np.empty((len(weights), 2 * len(grid)))
    with np.errstate(invalid="ignore"):
        sensitivity, false_positive_rate = positives / positives[:, -1:], negatives / negatives[:, -1:]
    precision = positives / np.maximum(positives + negatives, 1e-300)
    for row in range(len(weights)):
        last = np.searchsorted(false_positive_rate[row], grid, side="right") - 1
        curves[row, : len(grid)] = np.where(last >= 0, sensitivity[row, np.maximum(last, 0)], 0.0)
        first = np.minimum(np.searchsorted(sensitivity[row], grid - 1e-12), sensitivity.shape[1] - 1)
        curves[row, len(grid) :] = precision[row, first]
    return curves


def predictive_values(sensitivity: Floats, specificity: Floats, prevalence: float) -> tuple[Floats, Floats]:
    """Positive and negative predictive value where a share `prevalence` of those examined has osteoporosis (Bayes)."""
    absence = 1.0 - prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = prevalence * sensitivity / (prevalence * sensitivity + absence * (1.0 - specificity))
        negative = absence * specificity / (absence * specificity + prevalence * (1.0 - sensitivity))
    return positive, negative


def decisions(labels: Labels, probabilities: Floats, thresholds: Floats, prevalence: float) -> Statistic:
    """Sensitivity, specificity, and predictive values at a prevalence, as a statistic of weighted rows.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        thresholds: (R, N).
        prevalence: of osteoporosis where the model would be used.
    """
    rows, repeats = rows_of(labels), []
    for of_repeat, limits in zip(probabilities, thresholds, strict=True):
        known = np.isfinite(of_repeat)[rows.picture]
        calls = np.where(rows.is_prior, rows.is_called, (of_repeat > limits)[rows.picture])
        if known.any():
            repeats.append((known & (rows.label == 1), known & (rows.label == 0), calls))

    def statistic(weights: Floats) -> Floats:
        found, weights = np.zeros((2, len(weights))), rows.weigh(weights)
        with np.errstate(invalid="ignore"):
            for cases, controls, calls in repeats:
                found[0] += weights @ (cases & calls) / (weights @ cases)
                found[1] += weights @ (controls & ~calls) / (weights @ controls)
        sensitivity, specificity = found / len(repeats)
        return np.column_stack([sensitivity, specificity, *predictive_values(sensitivity, specificity, prevalence)])

    return statistic


def reliability(labels: Labels, probabilities: Floats, edges: Floats) -> Statistic:
    """The share of cases among pictures whose probability lies between two edges, pooled over repeats; NaN if none.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        edges: of the bins, rising, (B + 1,).
    """
    rows = rows_of(labels)
    which = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, len(edges) - 2)
    inside = (which[:, :, None] == np.arange(len(edges) - 1)) & np.isfinite(probabilities)[:, :, None]
    pictures = inside.sum(axis=0).astype(float)[rows.picture]  # (M, B)

    def statistic(weights: Floats) -> Floats:
        weights = rows.weigh(weights)
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ (pictures * rows.label[:, None])) / (weights @ pictures))

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
    rows = rows_of(labels)
    worth = np.where(rows.label[:, None] == 1, 1.0, -limits / (1.0 - limits))  # (M, T) of calling a picture
    repeats = [(known, p[known]) for p in probabilities[:, rows.picture] if (known := np.isfinite(p)).any()]

    def statistic(weights: Floats) -> Floats:
        total, weights = np.zeros((len(weights), len(limits))), rows.weigh(weights)
        for known, scores in repeats:
            drawn = weights[:, known]
            total += drawn @ (worth[known] * (scores[:, None] > limits)) / drawn.sum(axis=1, keepdims=True)
        return total / len(repeats)

    return statistic
