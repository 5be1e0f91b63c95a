"""What pictures add to a patient's characteristics: image alone, clinical alone, and both.

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
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osteo.evaluation.bootstrap import DRAWS, Comparison, Interval, bootstrap, number_clusters
from osteo.evaluation.clinical.strata import auroc_interval
from osteo.evaluation.curves import net_benefit
from osteo.evaluation.tests import Answers, NestedTest, centre, nested_test, paired_bootstrap
from osteo.task import THRESHOLD
from osteo.types import Floats, Labels

IMAGE, CLINICAL, BOOSTED, BOTH = "image", "clinical", "clinical, boosted", "image and clinical"
"""The image alone; covariates alone, by logistic regression and by gradient boosting; both, by logistic regression."""


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
    auroc = {
        name: auroc_interval(labels, of_model, networks, groups, draws, seed)
        for name, of_model in probabilities.items()
    }
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
    """The AUROC of one model's probabilities (R, N) less that of another's."""
    one, other = (Answers(of_model, np.full_like(of_model, THRESHOLD), networks) for of_model in (first, second))
    return paired_bootstrap(labels, one, other, groups, names=("auroc",), draws=draws, seed=seed)["auroc"]


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
