"""Whose lead it is: the AUROC among pictures of patients who are alike in sex, source or age.

A case and a control are compared only within a stratum, or only where their ages are near: the covariate-adjusted AUROC
(Janes and Pepe 2009), weighted by pairs. A lead that vanishes there may tell the age and not the bone. Strata act as
networks do in `metrics.weighted_metrics`. Thirds of age are wide, and a model of age alone keeps some lead within them;
`matched_auroc` leaves it none.

Shapes: N pictures, R repeats.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from osteo.evaluation.bootstrap import DRAWS, Interval, bootstrap, format_interval, rows_of
from osteo.evaluation.metrics import by_network, metric_intervals
from osteo.types import Floats, Labels, Statistic

CALIPER = 5.0  # years by which the ages of a case and a control may differ
BLOCK = 256  # cases whose pairs are held at once
ALL_PICTURES, SAME_AGE = "all pictures", f"age within {CALIPER:g} years"
CHANCE = 0.5  # the AUROC of a model that sees nothing


def thirds(values: Floats) -> Floats:
    """The third of the known values that each lies in, 0, 1 or 2, (N,); NaN stays."""
    known = np.isfinite(values)
    edges = np.quantile(values[known], [1 / 3, 2 / 3]) if known.any() else np.zeros(2)
    return np.where(known, np.searchsorted(edges, values).astype(float), np.nan)


def auroc_interval(
    labels: Labels, probabilities: Floats, networks: Labels, groups: Sequence[object], draws: int, seed: int
) -> Interval:
    """The AUROC of probabilities (R, N), within networks and the mean over repeats, with its 95 % interval."""
    return metric_intervals(
        labels, probabilities, groups, names=("auroc",), networks=networks, draws=draws, seed=seed
    )["auroc"]  # fmt: skip


def stratified_auroc(
    labels: Labels,
    probabilities: Floats,
    networks: Labels,
    groups: Sequence[object],
    strata: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The AUROC of the pairs of a case and a control of one stratum and one network (Janes and Pepe 2009).

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        networks: (R, N).
        groups: (N,).
        strata: of a picture, None or NaN where it is not known, (N,); these have no pairs, nor has a stratum of one
            class.
        draws: of the bootstrap.
        seed: of the draws.
    """
    stratum = pd.factorize(pd.Series(list(strata), dtype=object))[0]
    cells = np.where((stratum >= 0) & np.isfinite(probabilities), networks * (stratum.max() + 1) + stratum, -1)
    has_pairs = np.zeros(cells.shape, bool)
    for of_repeat, into in zip(cells, has_pairs, strict=True):
        by_class = [of_repeat[labels == label] for label in (0, 1)]
        into[:] = np.isin(of_repeat, np.setdiff1d(np.intersect1d(*by_class), -1))
    inside = np.where(has_pairs, probabilities, np.nan)
    return auroc_interval(labels, inside, cells, groups, draws, seed)


def matched_auroc(
    labels: Labels,
    probabilities: Floats,
    networks: Labels,
    groups: Sequence[object],
    ages: Floats,
    *,
    caliper: float = CALIPER,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The AUROC of the pairs of a case and a control of about one age, tested by one network.

    Even so near in age the case is the older one more often than not, and a model that tells the age would be ahead.
    So pairs of unequal age have the mean of two: of those whose case is older, and of those whose control is. The AUROC
    of age itself is then a half.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        networks: (R, N).
        groups: (N,).
        ages: in years, NaN where one is not known, (N,).
        caliper: years by which the ages of a pair may differ.
        draws: of the bootstrap.
        seed: of the draws.
    """
    partners = np.abs(ages[:, None] - ages) <= caliper
    partners &= labels[:, None] != labels
    together = np.zeros_like(partners)
    for numbers, known in zip(networks, np.isfinite(probabilities), strict=True):
        together |= (numbers[:, None] == numbers) & known & known[:, None]
    inside = (partners & together).any(axis=1)
    if not inside.any():
        return Interval(np.nan, np.nan, np.nan)
    kept = list(np.asarray(groups, str)[inside])
    statistic = _matched(labels[inside], probabilities[:, inside], networks[:, inside], ages[inside], caliper)
    return bootstrap(statistic, labels[inside], kept, draws=draws, seed=seed, is_ranking=True).interval(0, (0, 1))


def _matched(labels: Labels, probabilities: Floats, networks: Labels, ages: Floats, caliper: float) -> Statistic:
    """The statistic of `matched_auroc`, over the pairs of all repeats."""
    rows = rows_of(labels)
    age = ages[rows.picture]
    tested = [
        (scores, part)
        for scores, parts in zip(probabilities[:, rows.picture], by_network(rows, probabilities, networks), strict=True)
        for part in parts
    ]

    def statistic(weights: Floats) -> Floats:
        weights = rows.weigh(weights)
        right, total = np.zeros((2, 3, len(weights)))  # of pairs whose control is older, of one age, whose case is
        for scores, part in tested:
            every, controls = np.flatnonzero(part & (rows.label == 1)), np.flatnonzero(part & (rows.label == 0))
            for start in range(0, len(every), BLOCK):
                cases = every[start : start + BLOCK]
                gap = age[cases, None] - age[controls]
                order = (np.sign(scores[cases, None] - scores[controls]) + 1.0) / 2.0
                for kind, side in enumerate((-1.0, 0.0, 1.0)):
                    counts = ((np.abs(gap) <= caliper) & (np.sign(gap) == side)).astype(float)
                    total[kind] += ((weights[:, cases] @ counts) * weights[:, controls]).sum(axis=1)
                    right[kind] += ((weights[:, cases] @ (counts * order)) * weights[:, controls]).sum(axis=1)
        with np.errstate(invalid="ignore"):
            balanced = (right[0] / total[0] + right[2] / total[2]) / 2.0 * (total[0] + total[2])
            return np.asarray((balanced + right[1]) / total.sum(axis=0))[:, None]

    return statistic


def leads(
    labels: Labels,
    probabilities: Floats,
    networks: Labels,
    groups: Sequence[object],
    *,
    strata: Mapping[str, Sequence[object]],
    ages: Floats | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """The AUROC over all pictures, which comes first, and within each kind of strata, by title.

    Args:
        labels: 0 or 1, (N,).
        probabilities: (R, N), NaN where a repeat did not test a picture.
        networks: (R, N).
        groups: (N,).
        strata: by the name of what is alike within one, such as "source"; each as `stratified_auroc` takes them.
        ages: in years, for `matched_auroc`, (N,).
        draws: of the bootstrap.
        seed: of the draws.
    """
    found = {ALL_PICTURES: auroc_interval(labels, probabilities, networks, groups, draws, seed)}
    for name, of_pictures in strata.items():
        found[name] = stratified_auroc(labels, probabilities, networks, groups, of_pictures, draws=draws, seed=seed)
    if ages is not None:
        found[SAME_AGE] = matched_auroc(labels, probabilities, networks, groups, ages, draws=draws, seed=seed)
    return found


def describe_lead(
    model: str, intervals: Mapping[str, Interval], *, adds: bool | None = None, known: Collection[str] = ()
) -> str:
    """One sentence on whether a model's lead over chance vanishes within strata.

    A lead is an interval of the AUROC above a half; see `is_lost`. The pairs within strata are few, and nested models
    find less than they do: where these say that the model adds to a covariate, the sentence does not deny it.

    Args:
        model: its name.
        intervals: of `leads`.
        adds: whether nested models find that the model adds to the covariates; None where they were not asked.
        known: strata by what the covariates hold, so that what is added is beyond them.
    """
    all_pictures = intervals[ALL_PICTURES]
    text = {k: f"{k}, {format_interval(v)}" if np.isfinite(v.value) else k for k, v in intervals.items()}
    within = {name: interval for name, interval in intervals.items() if name != ALL_PICTURES}
    overall = f"{model} has an AUROC of {format_interval(all_pictures)} over {ALL_PICTURES}"
    if not all_pictures.low > CHANCE:
        return f"{overall}, which shows no lead that strata could explain."
    kept = [text[name] for name, interval in within.items() if interval.low > CHANCE]
    lost = [text[name] for name, interval in within.items() if is_lost(all_pictures, interval)]
    undecided = [text[name] for name in within if text[name] not in kept + lost]
    covered = [text[name] for name in known if adds and text.get(name) in lost]
    vanished = [name for name in lost if name not in covered]
    parts = [overall]
    if covered:
        parts.append(
            f"little of its lead is left among those alike in {' and '.join(covered)}, so most of it may tell this, and"
            " what it adds is too little for these pairs to show"
        )
    if vanished:
        so = ", which the covariates do not hold, so what it adds" if adds else ", so it"
        parts.append(f"its lead vanishes among those alike in {' and '.join(vanished)}{so} may tell this and not bone")
    if kept:
        doubt = ", which nested models do not confirm" if adds is False else ""
        parts.append(f"it leads among those alike in {' and '.join(kept)}{doubt}")
    if undecided:
        parts.append(f"too few pairs are alike in {' and '.join(undecided)}, to say")
    return "; ".join(parts) + "."


def is_lost(overall: Interval, within: Interval) -> bool:
    """Whether a lead over all pictures vanishes within strata: they leave room for chance, and none for that lead."""
    return overall.low > CHANCE >= within.low and within.high < overall.value
