"""Tests between models on the same pictures: DeLong, McNemar, the paired bootstrap, Holm's correction."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom, binomtest, norm, rankdata

from osteo.evaluation.bootstrap import DRAWS, Comparison, Interval, bootstrap, number_clusters
from osteo.evaluation.metrics import all_metrics, weighted_metrics
from osteo.types import Floats, Labels


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p-values of one family of tests."""
    from statsmodels.stats.multitest import multipletests  # half a second, which an audit need not wait for

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def delong(labels: Labels, scores: Floats, groups: Sequence[object]) -> tuple[Floats, Floats]:
    """Areas under correlated ROC curves and their covariance.

    DeLong, DeLong and Clarke-Pearson (1988), computed by ranks (Sun and Xu 2014). Where a group has several pictures
    its components are summed first, as Obuchowski (1997) does; where none has, the two are the same.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1, (S, N).
        groups: pictures of one patient or exposure, (N,).

    Returns:
        Areas (S,) and covariance (S, S).
    """
    positive = labels == 1
    cases, controls = scores[:, positive], scores[:, ~positive]
    m, n = cases.shape[1], controls.shape[1]
    ranks = np.stack([rankdata(row) for row in scores])
    of_cases = (ranks[:, positive] - np.stack([rankdata(row) for row in cases])) / n  # (S, m)
    of_controls = 1.0 - (ranks[:, ~positive] - np.stack([rankdata(row) for row in controls])) / m  # (S, n)
    areas = of_cases.mean(axis=1)
    cluster = number_clusters(groups)
    count = int(cluster.max()) + 1

    def summed(components: Floats, which: Labels) -> Floats:
        centred = components - areas[:, None]
        return np.stack([np.bincount(which, weights=row, minlength=count) for row in centred])

    with_cases, with_controls = len(np.unique(cluster[positive])), len(np.unique(cluster[~positive]))
    by_case, by_control = summed(of_cases, cluster[positive]), summed(of_controls, cluster[~positive])
    both = by_case @ by_control.T * count / max(count - 1, 1) / (m * n)
    covariance = by_case @ by_case.T * with_cases / max(with_cases - 1, 1) / m**2
    covariance += by_control @ by_control.T * with_controls / max(with_controls - 1, 1) / n**2
    return areas, np.asarray(covariance + both + both.T)


def delong_interval(labels: Labels, probabilities: Floats, groups: Sequence[object]) -> Interval | None:
    """The mean AUROC of repeats (R, N) with DeLong's interval; None where repeats tested different pictures."""
    contrast = _contrast(labels, probabilities, groups, np.full(len(probabilities), 1 / len(probabilities)))
    if contrast is None:
        return None
    value, error = contrast
    reach = float(norm.ppf(0.975)) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def delong_test(labels: Labels, first: Floats, second: Floats, groups: Sequence[object]) -> Comparison | None:
    """The difference between the mean AUROCs of two models' repeats, each (R, N), by DeLong's covariance."""
    signs = np.r_[np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]
    contrast = _contrast(labels, np.concatenate([first, second]), groups, signs)
    if contrast is None:
        return None
    value, error = contrast
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else float(value == 0.0)
    reach = float(norm.ppf(0.975)) * error
    return Comparison(Interval(value, value - reach, value + reach), p)


def _contrast(labels: Labels, scores: Floats, groups: Sequence[object], signs: Floats) -> tuple[float, float] | None:
    """A weighted sum of AUROCs and its standard error; None where not all tested the same pictures of both classes."""
    known = np.isfinite(scores)
    if not (known == known[0]).all() or len(np.unique(labels[known[0]])) < 2:
        return None
    areas, covariance = delong(labels[known[0]], scores[:, known[0]], np.asarray(groups, str)[known[0]].tolist())
    return float(signs @ areas), max(float(signs @ covariance @ signs), 0.0) ** 0.5


def mcnemar(first_right: Floats, second_right: Floats, groups: Sequence[object]) -> tuple[int, int, float, float]:
    """McNemar's exact test of two models' right and wrong calls.

    A group votes for the model that was right more often over its pictures and repeats; with one repeat and single
    pictures that is McNemar's test itself, and with copies of a picture it does not count them as new evidence.

    Args:
        first_right: 1 right, 0 wrong, NaN not tested, (R, N).
        second_right: the same of the other model.
        groups: (N,).

    Returns:
        Votes for the first and for the second, the exact two-sided p, and its mid-p, which is less conservative
        (Fagerland, Lydersen and Laake 2013).
    """
    lead = np.nan_to_num(first_right - second_right).sum(axis=0)
    cluster = number_clusters(groups)
    votes = np.bincount(cluster, weights=lead)  # whole numbers
    first, second = int((votes > 0).sum()), int((votes < 0).sum())
    if first + second == 0:
        return 0, 0, 1.0, 1.0
    fewer = min(first, second)
    exact = float(binomtest(first, first + second).pvalue)
    middle = 2 * binom.cdf(fewer, first + second, 0.5) - binom.pmf(fewer, first + second, 0.5)
    return first, second, exact, float(min(1.0, middle))


def paired_bootstrap(
    labels: Labels,
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The difference of every metric between two models, on the pictures and repeats that both tested.

    Args:
        labels: 0 or 1, (N,).
        first: probabilities and thresholds, each (R, N).
        second: the same of the other model.
        groups: (N,).
        draws: how many.
        seed: of the draws.
    """
    both = np.isfinite(first[0]) & np.isfinite(second[0])
    names = list(all_metrics())
    drawn = [
        bootstrap(
            weighted_metrics(labels, np.where(both, scores, np.nan), thresholds, names=names),
            labels, groups, draws=draws, seed=seed,
        )
        for scores, thresholds in (first, second)
    ]  # fmt: skip
    difference, clusters = drawn[0] - drawn[1], len(set(np.asarray(groups, str)))
    return {name: difference.compare(column, clusters) for column, name in enumerate(names)}
