"""What the best of several models reaches where it was chosen by the very pictures that it is tested on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from osteo.evaluation.bootstrap import DRAWS, Interval, clusters_of, number_clusters
from osteo.evaluation.metrics import all_metrics, metric_intervals, weighted_metrics
from osteo.evaluation.tests import Answers
from osteo.types import Floats, Labels


class Selected(NamedTuple):
    """The model with the best value on test."""

    number: int
    """among the models"""
    naive: Interval
    """as if it had been the only one"""
    corrected: Interval
    """what it reaches on other pictures; NaN where there are too few to tell"""


def best_on_test(
    labels: Labels,
    models: Sequence[Answers],
    groups: Sequence[object],
    *,
    metric: str,
    draws: int = DRAWS,
    seed: int = 0,
) -> Selected:
    """Corrects the best of several values for having been chosen as the best.

    In every draw the model that is best on the clusters drawn is measured on those left out; the mean of that has no
    bias by choice (bootstrap bias-corrected, Tsamardinos, Greasidou and Borboudakis 2018). Towards the worse its
    interval reaches as far as those of the models chosen do, on average over the draws; towards the better it ends
    where that of the best does, which may truly be the best. That is cautious: `benchmarks/selection.py` has how much.

    Args:
        labels: 0 or 1, (N,).
        models: what they say.
        groups: pictures of one group are drawn together, (N,).
        metric: by its name, by which the best is chosen.
        draws: how many.
        seed: of the draws.
    """
    sign = 1.0 if all_metrics()[metric].direction == "max" else -1.0
    intervals = [
        metric_intervals(
            labels, one.probabilities, groups, thresholds=one.thresholds, names=[metric], networks=one.networks,
            draws=draws, seed=seed,
        )[metric]
        for one in models
    ]  # fmt: skip
    values = sign * np.array([interval.value for interval in intervals])
    best = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    drawn = _draw(labels, groups, draws, seed)
    statistics = [
        weighted_metrics(labels, one.probabilities, one.thresholds, names=[metric], networks=one.networks)
        for one in models
    ]
    inside, outside = (
        np.stack([statistic(weights)[:, 0] for statistic in statistics])
        for weights in (drawn, (drawn == 0.0).astype(float))
    )  # (S, D)
    chosen = np.argmax(np.where(np.isfinite(inside), sign * inside, -np.inf), axis=0)
    reached = outside[chosen, np.arange(draws)]
    share = np.bincount(chosen, minlength=len(models)) / draws
    value = float(np.nanmean(reached)) if np.isfinite(reached).any() else float("nan")
    worse, better = (1, 2) if sign > 0 else (2, 1)
    ends = {worse: value + float(share @ [interval[worse] - interval.value for interval in intervals])}
    ends[better] = intervals[best][better]
    return Selected(best, intervals[best], Interval(value, ends[1], ends[2]))


def _draw(labels: Labels, groups: Sequence[object], draws: int, seed: int) -> Floats:
    """How often each picture is drawn, (D, N): clusters with replacement, within each class."""
    cluster = number_clusters(groups)
    rng, counts = np.random.default_rng(seed), np.zeros((draws, int(cluster.max()) + 1))
    controls, cases = clusters_of(labels, cluster)
    for members in (cases, np.setdiff1d(controls, cases)):
        if len(members):
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return np.asarray(counts[:, cluster])
