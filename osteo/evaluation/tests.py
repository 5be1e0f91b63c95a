"""Tests between models on the same pictures: the paired bootstrap, which leads, DeLong, McNemar, Holm's correction.

Whether a model adds to what is known of the patients is a question of nested models: `nested_test`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binom, binomtest, norm, rankdata

from osteo.evaluation.bootstrap import DRAWS, FEWEST, Bootstrapped, Comparison, clusters_of, number_clusters
from osteo.evaluation.metrics import all_metrics, bootstrap_metrics
from osteo.types import Floats, Labels

STEPS = 100  # of Newton's method


class Answers(NamedTuple):
    """What one of two models says of the pictures, each (R, N); NaN where a repeat did not test a picture."""

    probabilities: Floats
    thresholds: Floats
    networks: Labels
    """numbers of the networks that tested the pictures"""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p-values of one family of tests."""
    from statsmodels.stats.multitest import multipletests  # half a second, which an audit need not wait for

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def delong(
    labels: Labels, scores: Floats, groups: Sequence[object], networks: Labels | None = None
) -> tuple[Floats, Floats]:
    """Areas under correlated ROC curves and their covariance.

    DeLong, DeLong and Clarke-Pearson (1988), computed by ranks (Sun and Xu 2014). Where a group has several pictures
    its components are summed first, as Obuchowski (1997) does; where none has, the two are the same. With several
    networks an area is that of the pairs of a case and a control which one network tested.

    Args:
        labels: 0 or 1, (N,).
        scores: higher means 1; NaN where a picture was not tested, (S, N).
        groups: pictures of one patient or exposure, (N,).
        networks: numbers of the networks that gave the scores, (S, N); null where one gave all of a row.

    Returns:
        Areas (S,), NaN where there is no pair, and covariance (S, S).
    """
    cluster, positive = number_clusters(groups), labels == 1
    count = int(cluster.max()) + 1
    by_class = np.zeros((2, len(scores), count))
    areas = np.full(len(scores), np.nan)
    for row, of_row in enumerate(scores):
        known = np.isfinite(of_row)
        numbers = np.zeros(len(labels), int) if networks is None else networks[row]
        components, pairs = np.zeros(len(labels)), np.zeros(len(labels))
        for number in np.unique(numbers[known]):
            inside = known & (numbers == number)
            cases, controls = inside & positive, inside & ~positive
            ranks = np.zeros(len(labels))
            ranks[inside] = rankdata(of_row[inside])
            components[cases] = ranks[cases] - rankdata(of_row[cases])
            components[controls] = cases.sum() - ranks[controls] + rankdata(of_row[controls])
            pairs[cases], pairs[controls] = controls.sum(), cases.sum()
        total = pairs[positive].sum()
        if total:
            areas[row] = components[positive].sum() / total
            centred = (components - areas[row] * pairs) / total
            for label in (0, 1):
                of_class = known & (labels == label)
                summed = np.bincount(cluster[of_class], weights=centred[of_class], minlength=count)
                clusters = len(np.unique(cluster[of_class]))
                by_class[label, row] = summed * (clusters / max(clusters - 1, 1)) ** 0.5
    within = sum(part @ part.T for part in by_class)
    mixed = by_class[1] @ by_class[0].T  # of clusters with pictures of both classes
    return areas, np.asarray(within + mixed + mixed.T)


def delong_test(labels: Labels, first: Answers, second: Answers, groups: Sequence[object]) -> float:
    """The p-value of no difference between the mean AUROCs of two models' repeats; NaN where there is no variance."""
    scores = np.concatenate([first.probabilities, second.probabilities])
    areas, covariance = delong(labels, scores, groups, np.concatenate([first.networks, second.networks]))
    signs = np.r_[np.ones(len(first.probabilities)), -np.ones(len(second.probabilities))]
    for half in (signs > 0, signs < 0):
        signs[half & ~np.isfinite(areas)] = 0.0
        signs[half] /= max(np.abs(signs[half]).sum(), 1.0)
    value, error = float(signs @ np.nan_to_num(areas)), max(float(signs @ covariance @ signs), 0.0) ** 0.5
    return float(2 * norm.sf(abs(value) / error)) if error > 1e-12 else float("nan")


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


def drawn_for_pair(
    labels: Labels,
    answers: Answers,
    groups: Sequence[object],
    *,
    side: int,
    names: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Bootstrapped]:
    """The draws of one side of a pair, 0 or 1, of the metrics of these names; null for all."""
    return bootstrap_metrics(
        labels, answers.probabilities, groups, thresholds=answers.thresholds, networks=answers.networks,
        names=names, draws=draws, seed=seed, side=side,
    )  # fmt: skip


def compare(first: Mapping[str, Bootstrapped], second: Mapping[str, Bootstrapped]) -> dict[str, Comparison]:
    """The difference of every metric, first less second, from the draws of side 0 and of side 1."""
    metrics = all_metrics()
    return {name: (first[name] - second[name]).compare(0, metrics[name].needs) for name in first}


def paired_bootstrap(
    labels: Labels,
    first: Answers,
    second: Answers,
    groups: Sequence[object],
    *,
    names: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The difference of every metric between two models, on the pictures and repeats that both tested.

    Args:
        labels: 0 or 1, (N,).
        first: a model.
        second: the other one.
        groups: (N,).
        names: of the metrics; null for all.
        draws: how many.
        seed: of the draws.
    """
    both = np.isfinite(first.probabilities) & np.isfinite(second.probabilities)
    sides = [
        drawn_for_pair(
            labels, one._replace(probabilities=np.where(both, one.probabilities, np.nan)), groups,
            side=side, names=names, draws=draws, seed=seed,
        )
        for side, one in enumerate((first, second))
    ]  # fmt: skip
    return compare(*sides)


class NestedTest(NamedTuple):
    """Whether the image's logit belongs in a logistic model that has the covariates; NaN where nothing can be said."""

    log_odds: float
    """of class 1 by one standard deviation of the logit, at equal covariates"""
    likelihood_ratio: float
    """twice the gain in log likelihood; chi-squared with one degree of freedom where every group is one picture"""
    p: float
    """one-sided, of no added value, whatever the groups

    A logit that leans the wrong way adds nothing, however far it leans. Networks that learnt nothing lean that way out
    of fold: the more cases they saw, the fewer are left to test.
    """
    pictures: int
    """that were tested and have every covariate"""

    @property
    def adds(self) -> bool:
        """Whether added value is found."""
        return self.p <= 0.05


def nested_test(
    labels: Labels,
    logits: Floats,
    covariates: Floats,
    networks: Labels,
    groups: Sequence[object],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> NestedTest:
    """Tests added value: logistic models of the covariates with and without the image's out-of-fold logit.

    The logit is the mean over repeats, centred by network. Likelihoods have Firth's penalty, so that covariates which
    separate the classes give finite estimates (Heinze and Schemper 2002). Copies of a picture would double a likelihood
    ratio, so the p-value is of the score: the signs of the groups' contributions to it are flipped at random (Hemerik,
    Goeman and Finos 2020), which holds for pictures that depend on each other within a group. It is one-sided: where
    age all but separates the classes a handful of groups carry the score, and of both sides few flips are as far out.
    Pictures with a gap in a covariate have no part: to tell an age that the sheet does not have would count as added
    value. A covariate acts linearly on the log odds.

    Args:
        labels: 0 or 1, (N,).
        logits: of the image model, (R, N); NaN where a repeat did not test a picture.
        covariates: numbers, NaN where one is not known, (N, F).
        networks: (R, N).
        groups: (N,).
        draws: flips of signs.
        seed: of the flips.
    """
    tested = np.isfinite(logits).any(axis=0) & np.isfinite(covariates).all(axis=1)
    nothing = NestedTest(np.nan, np.nan, np.nan, int(tested.sum()))
    cluster = number_clusters(list(np.asarray(groups, str)[tested])) if tested.any() else np.zeros(0, int)
    truth = labels[tested]
    if min(map(len, clusters_of(truth, cluster))) < FEWEST:
        return nothing
    image = np.nanmean(centre(logits, networks)[:, tested], axis=0)
    design = _independent(np.column_stack([np.ones(len(truth)), covariates[tested]]))
    with_image = _independent(np.column_stack([design, image]))
    if with_image.shape[1] == design.shape[1]:  # the logit is a sum of covariates
        return nothing
    _, without = _firth(with_image, truth, fitted=design.shape[1])
    coefficients, likelihood = _firth(with_image, truth, fitted=with_image.shape[1])
    p = _flip_scores(design, with_image[:, -1], truth, cluster, draws, seed)
    return NestedTest(float(coefficients[-1]), max(0.0, 2.0 * (likelihood - without)), p, len(truth))


def _flip_scores(design: Floats, column: Floats, labels: Labels, cluster: Labels, draws: int, seed: int) -> float:
    """The p-value of no positive effect of one more column (N,) beside a design (N, P), by flips of clusters' scores.

    The scores are those of the penalised likelihood, so that the fitted design leaves nothing of itself in them. Where
    it all but separates the classes few clusters have a score that is not near 0, and those have a large part in the
    fit, which makes their scores too small. So each cluster's square counts less by its leverage (Bell and McCaffrey
    2002), and the observed sum is made smaller by as much as the squares are.
    """
    values = design @ _firth(design, labels, fitted=design.shape[1])[0]
    leverage, weight = _leverage(design, values), np.sqrt(expit(values) * expit(-values))
    explained = np.linalg.lstsq(weight[:, None] * design, weight * column, rcond=None)[0]
    residuals = labels - expit(values) + leverage * (0.5 - expit(values))
    scores = np.bincount(cluster, weights=(column - design @ explained) * residuals)
    left = 1.0 - np.minimum(np.bincount(cluster, weights=leverage), 1.0)
    observed = scores.sum() * ((left * scores**2).sum() / max((scores**2).sum(), 1e-300)) ** 0.5
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, len(scores)))
    return float((1 + np.count_nonzero(signs @ scores >= observed - 1e-12)) / (1 + draws))


def _independent(columns: Floats) -> Floats:
    """The columns that are no sum of earlier ones, with mean 0 and spread 1; the first, which is 1, as it is."""
    spread = columns.std(axis=0)
    scaled = (columns - columns.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    scaled[:, 0] = 1.0
    kept = [0]
    for number in range(1, scaled.shape[1]):
        if np.linalg.matrix_rank(scaled[:, [*kept, number]], tol=1e-6 * len(scaled) ** 0.5) > len(kept):
            kept.append(number)
    return np.asarray(scaled[:, kept])


def _firth(design: Floats, labels: Labels, *, fitted: int) -> tuple[Floats, float]:
    """Logistic regression with Jeffreys' prior (Firth 1993), by Newton's method.

    Args:
        design: independent columns, (N, P).
        labels: 0 or 1, (N,).
        fitted: only the first so many coefficients are; the others are 0.

    Returns:
        Coefficients (P,), and the penalised log likelihood.
    """

    def likelihood(coefficients: Floats) -> float:
        values = design @ coefficients
        penalty = np.linalg.slogdet(_information(design, values))[1] / 2
        return float(penalty - np.logaddexp(0.0, np.where(labels == 1, -values, values)).sum())

    coefficients = np.zeros(design.shape[1])
    reached = likelihood(coefficients)
    for _ in range(STEPS):
        values = design @ coefficients
        probabilities, information = expit(values), _information(design, values)
        slope = design.T @ (labels - probabilities + _leverage(design, values) * (0.5 - probabilities))
        step = np.zeros(design.shape[1])
        step[:fitted] = np.linalg.lstsq(information[:fitted, :fitted], slope[:fitted], rcond=None)[0]
        step /= max(1.0, np.abs(step).max() / 5.0)
        while (proposed := likelihood(coefficients + step)) < reached - 1e-9 and np.abs(step).max() > 1e-8:
            step /= 2.0
        coefficients, reached = coefficients + step, proposed
        if np.abs(step).max() < 1e-7:
            break
    return coefficients, reached


def _leverage(design: Floats, values: Floats) -> Floats:
    """What a picture's own label has to say of its log odds (N,), between 0 and 1, (N,); they sum to P."""
    inverse = np.linalg.pinv(_information(design, values))
    return np.asarray((design @ inverse * design).sum(axis=1) * expit(values) * expit(-values))


def _information(design: Floats, values: Floats) -> Floats:
    """Fisher's, (P, P), at log odds (N,)."""
    return np.asarray(design.T @ (design * (expit(values) * expit(-values))[:, None]))


def centre(logits: Floats, networks: Labels) -> Floats:
    """Logits less the mean of those that their network gave, so that networks with an offset have one scale, (R, N).

    No label has a part in it. A difference between folds, or between sources where each is a fold, is not counted.
    """
    centred = np.full(logits.shape, np.nan)
    for of_repeat, numbers, into in zip(logits, networks, centred, strict=True):
        for number in np.unique(numbers[np.isfinite(of_repeat)]):
            inside = np.isfinite(of_repeat) & (numbers == number)
            into[inside] = of_repeat[inside] - of_repeat[inside].mean()
    return centred
