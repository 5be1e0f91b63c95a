"""What pictures add to a patient's characteristics: image alone, clinical alone, both, and whose lead it is.

Every probability is out of fold: what gives it was fitted on pictures of other folds and of other groups. The image's
is its network's. A clinical model is fitted on the folds that the network did not test. The model of both is stacked
(Wolpert 1992): a logistic model that joins the covariates with the out-of-fold logit of the other folds. A logit that a
network gives to its own training pictures would be too good, and the joint model would trust it too much; that of a
picture that it never saw is what it will meet (van der Laan, Polley and Hubbard 2007). The networks of the other folds
have seen the tested fold, as in every such stack: it can reach the few coefficients, never a picture's own score.

DeLong's test is not valid for nested models that were fitted to the same pictures (Demler, Pencina and D'Agostino
2012), and even a proper difference of AUROC finds little. `nested_test` leads; the differences of AUROC by the paired
bootstrap say how much. `benchmarks/added_value.py` measures how often they find what is not there, and what is.

Shapes: N pictures, F covariates, R repeats. Networks are numbered as in `systems.System`: within a repeat a fold has
one; -1 where no network tested a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osteo.evaluation.bootstrap import (
    DRAWS,
    Comparison,
    Interval,
    bootstrap,
    format_interval,
    number_clusters,
    rows_of,
)
from osteo.evaluation.curves import net_benefit
from osteo.evaluation.metrics import bootstrap_metrics, by_network, metric_intervals
from osteo.evaluation.tests import NestedTest, centre, nested_test
from osteo.types import Floats, Labels, Statistic

IMAGE, CLINICAL, BOOSTED, BOTH = "image", "clinical", "clinical, boosted", "image and clinical"
"""The image alone; covariates alone, by logistic regression and by gradient boosting; both, by logistic regression."""
CALIPER = 5.0  # years by which the ages of a case and a control may differ
BLOCK = 256  # cases whose pairs are held at once
ALL_PICTURES, SAME_AGE = "all pictures", f"age within {CALIPER:g} years"
CHANCE = 0.5  # the AUROC of a model that sees nothing


# --- out-of-fold probabilities ---------------------------------------------------------------------------------------


def logistic() -> Any:
    """Logistic regression; gaps hold the median, and every covariate is scaled to a spread of 1, both as fitted."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), LogisticRegression(max_iter=1000)
    )


def boosting() -> Any:
    """Gradient boosting of shallow trees, which take a gap as a value of its own."""
    return HistGradientBoostingClassifier(max_depth=3, random_state=0)


def cross_fit(
    build: Callable[[], Any], features: Floats, labels: Labels, networks: Labels, groups: Sequence[object]
) -> Floats:
    """Probabilities of class 1 by models that were each fitted on the other folds of a repeat, (R, N).

    Args:
        build: makes an unfitted model of scikit-learn.
        features: of every repeat, (R, N, F), or the same in all, (N, F).
        labels: 0 or 1, (N,).
        networks: the fold of a picture in a repeat, -1 where it was not tested, (R, N).
        groups: a model is fitted on no picture of a group that it tests, (N,).

    Returns:
        NaN where a repeat did not test a picture, or where its other folds lack a class, as with a single hold-out.
    """
    found, cluster = np.full(networks.shape, np.nan), number_clusters(groups)
    for row, values in enumerate(np.broadcast_to(features, (*networks.shape, features.shape[-1]))):
        numbers = networks[row]
        for number in np.unique(numbers[numbers >= 0]):
            tested = numbers == number
            learnt = (numbers >= 0) & ~np.isin(cluster, cluster[tested])
            if len(np.unique(labels[learnt])) > 1:
                model = build().fit(values[learnt], labels[learnt])
                found[row, tested] = model.predict_proba(values[tested])[:, 1]
    return found


def out_of_fold(
    labels: Labels, logits: Floats, covariates: Floats, networks: Labels, groups: Sequence[object]
) -> dict[str, Floats]:
    """Probabilities of class 1 by IMAGE, CLINICAL, BOOSTED and BOTH, each (R, N).

    Args:
        labels: 0 or 1, (N,).
        logits: of the image model, best calibrated, (R, N); NaN where a repeat did not test a picture.
        covariates: numbers, NaN where one is not known, (N, F).
        networks: (R, N).
        groups: (N,).
    """
    folds = np.where(np.isfinite(logits), networks, -1)
    every = np.broadcast_to(covariates, (*logits.shape, covariates.shape[1]))
    joined = np.concatenate([every, centre(logits, networks)[:, :, None]], axis=2)
    return {
        IMAGE: np.asarray(expit(logits)),
        CLINICAL: cross_fit(logistic, covariates, labels, folds, groups),
        BOOSTED: cross_fit(boosting, covariates, labels, folds, groups),
        BOTH: cross_fit(logistic, joined, labels, folds, groups),
    }


# --- all of it -------------------------------------------------------------------------------------------------------


class AddedValue(NamedTuple):
    """The answers to one image model, of the pictures that all of them tested."""

    probabilities: dict[str, Floats]
    """by IMAGE, CLINICAL, BOOSTED and BOTH, (R, N)"""
    auroc: dict[str, Interval]
    """of the same"""
    differences: dict[str, Comparison]
    """of AUROC, BOTH less CLINICAL and BOTH less IMAGE, by the one that is taken off"""
    nested: NestedTest


def added_value(
    labels: Labels,
    logits: Floats,
    covariates: Floats,
    networks: Labels,
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> AddedValue:
    """What an image model adds to covariates, and they to it; arguments as `out_of_fold` and `bootstrap`."""
    probabilities = out_of_fold(labels, logits, covariates, networks, groups)
    known = np.logical_and.reduce([np.isfinite(of_model) for of_model in probabilities.values()])
    probabilities = {name: np.where(known, of_model, np.nan) for name, of_model in probabilities.items()}
    auroc = {name: _auroc(labels, of_model, networks, groups, draws, seed) for name, of_model in probabilities.items()}
    differences = {
        name: auroc_difference(
            labels, probabilities[BOTH], probabilities[name], networks, groups, draws=draws, seed=seed
        )
        for name in (CLINICAL, IMAGE)
    }
    nested = nested_test(labels, logits, covariates, networks, groups, draws=draws, seed=seed)
    return AddedValue(probabilities, auroc, differences, nested)


def auroc_difference(
    labels: Labels,
    first: Floats,
    second: Floats,
    networks: Labels,
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """The AUROC of one model's probabilities (R, N) less that of another's; both tested the same pictures."""
    one, other = (
        bootstrap_metrics(
            labels, of_model, groups, names=("auroc",), networks=networks, draws=draws, seed=seed, side=side
        )["auroc"]
        for side, of_model in enumerate((first, second))
    )  # fmt: skip
    return (one - other).compare(0, (0, 1))


def decision_curves(
    labels: Labels,
    probabilities: Mapping[str, Floats],
    groups: Sequence[object],
    at: Sequence[float] | Floats,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[Interval]]:
    """Net benefit at each threshold (Vickers and Elkin 2006) by model, and of calling "all" pictures and "none".

    Args:
        labels: 0 or 1, (N,).
        probabilities: by model, (R, N), NaN for the same pictures in all.
        groups: (N,).
        at: probabilities above which a picture is called, each in (0, 1).
        draws: of the bootstrap.
        seed: of the draws.
    """
    tested = np.isfinite(next(iter(probabilities.values())))
    constant = {name: np.where(tested, value, np.nan) for name, value in (("all", 1.0), ("none", 0.0))}
    inside = tested.any(axis=0)
    labels, groups, curves = labels[inside], list(np.asarray(groups, str)[inside]), {}
    for name, of_model in {**probabilities, **constant}.items():
        drawn = bootstrap(net_benefit(labels, of_model[:, inside], at), labels, groups, draws=draws, seed=seed)
        curves[name] = [drawn.interval(column) for column in range(len(at))]
    return curves


# --- whose lead it is ------------------------------------------------------------------------------------------------


def thirds(values: Floats) -> Floats:
    """The third of the known values that each lies in, 0, 1 or 2, (N,); NaN stays."""
    known = np.isfinite(values)
    edges = np.quantile(values[known], [1 / 3, 2 / 3]) if known.any() else np.zeros(2)
    return np.where(known, np.searchsorted(edges, values).astype(float), np.nan)


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
    return _auroc(labels, inside, cells, groups, draws, seed)


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
    found = {ALL_PICTURES: _auroc(labels, probabilities, networks, groups, draws, seed)}
    for name, of_pictures in strata.items():
        found[name] = stratified_auroc(labels, probabilities, networks, groups, of_pictures, draws=draws, seed=seed)
    if ages is not None:
        found[SAME_AGE] = matched_auroc(labels, probabilities, networks, groups, ages, draws=draws, seed=seed)
    return found


def _auroc(
    labels: Labels, probabilities: Floats, networks: Labels, groups: Sequence[object], draws: int, seed: int
) -> Interval:
    return metric_intervals(
        labels, probabilities, groups, names=("auroc",), networks=networks, draws=draws, seed=seed
    )["auroc"]  # fmt: skip


def describe_lead(model: str, intervals: Mapping[str, Interval]) -> str:
    """One sentence on whether a model's lead over chance vanishes within strata.

    A lead is an interval of the AUROC above a half; see `is_lost`.

    Args:
        model: its name.
        intervals: of `leads`.
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
    parts = [overall]
    if lost:
        parts.append(f"its lead vanishes among those alike in {' and '.join(lost)}, so it may tell this and not bone")
    if kept:
        parts.append(f"it leads among those alike in {' and '.join(kept)}")
    if undecided:
        parts.append(f"too few pairs are alike in {' and '.join(undecided)}, to say")
    return "; ".join(parts) + "."


def is_lost(overall: Interval, within: Interval) -> bool:
    """Whether a lead over all pictures vanishes within strata: they leave room for chance, and none for that lead."""
    return overall.low > CHANCE >= within.low and within.high < overall.value
