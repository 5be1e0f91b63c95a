"""Whether the tests of added value find what a picture adds to age, and nothing where it adds nothing.

Sheets of 200 pictures without pictures: one or two of a patient, five folds, whose networks each add an offset to the
logit (standard deviation 1). T-scores and ages are drawn as the phantoms' are (`osteo.data.phantom`); sex and body mass
index are drawn without regard to the T-score, and one in twenty of either is not known. The logit follows the T-score,
so that it adds to age, or age alone, in a line or in a curve, so that it adds nothing; or it is learnt: a model of each
fold finds age among nine features that say nothing. Two pictures of a patient share 0.7 of the variance of their noise.
A nested model is better at a one-sided p <= 0.05, a difference of AUROC found where its interval lies above zero, and a
lead lost where `strata.is_lost` says so.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import chi2

from osteo.data.phantom import T_SCORES, draw_age
from osteo.evaluation import metrics
from osteo.evaluation.clinical import added_value as av
from osteo.evaluation.clinical import strata
from osteo.evaluation.tests import nested_test

SETS = int(os.environ.get("OSTEO_SETS", "500"))
TESTED = 4 * SETS  # sheets of the nested models alone, which are quick
DRAWS = 500
PICTURES, FOLDS = 200, 5
ALIKE = 0.7  # share of a patient's noise that the pictures have in common
UNKNOWN = 0.05  # share of what is not known of sex and of body mass index
MIXES = {"osteoporosis or not": (0.3, 0.4, 0.3), "osteoporosis or normal": (0.5, 0.0, 0.5)}
"""Shares of normal, osteopenia and osteoporosis; without osteopenia age separates the classes all but wholly."""
IMAGES = {
    "T-score": lambda t_score, age, noise: -(t_score + 2.5) + 2.0 * noise,
    "age, in a line": lambda t_score, age, noise: 0.15 * (age - 55.0) + noise,
    "age, as learnt": lambda t_score, age, noise: 0.15 * (age - 55.0) + noise,
    "age, in a curve": lambda t_score, age, noise: 4.0 * expit((age - 58.0) / 4.0) + 0.7 * noise,
}
"""Logits by what they follow; only the first adds to age."""
LEARNT = "age, as learnt"
FEATURES = 10  # that it is learnt from
NESTED = f"nested models, one-sided p <= 0.05, {TESTED} sheets"
DESIGNS = [(mix, image) for mix in MIXES for image in IMAGES if mix == "osteoporosis or not" or image != LEARNT]


class Sheet(NamedTuple):
    """The pictures of one simulated study."""

    labels: np.ndarray
    logits: np.ndarray
    """(1, N)"""
    covariates: np.ndarray
    """age in years, sex, body mass index, (N, 3)"""
    networks: np.ndarray
    """(1, N)"""
    groups: list[int]


def draw(rng: np.random.Generator, mix: tuple[float, float, float], image: str, pictures: int = PICTURES) -> Sheet:
    """A sheet, and what a network would say of its pictures."""
    sizes = [1 + number % 2 for number in range(pictures)]
    patient = np.repeat(np.arange(pictures), sizes)[:pictures]
    count = patient[-1] + 1
    classes = rng.permutation(np.searchsorted(np.cumsum(mix), (np.arange(count) + 0.5) / count))
    ranges = np.array(list(T_SCORES.values()))[classes]
    t_score = rng.uniform(*ranges.T)
    age = np.array([float(draw_age(rng, of_patient)) for of_patient in t_score])
    others = rng.random(count) < 0.7, rng.normal(27.0, 4.0, count)
    covariates = np.column_stack([age, *others]).astype(float)
    covariates[:, 1:][rng.random((count, 2)) < UNKNOWN] = np.nan
    noise = ALIKE**0.5 * rng.normal(size=count)[patient] + (1 - ALIKE) ** 0.5 * rng.normal(size=pictures)
    networks = (rng.permutation(count) % FOLDS)[patient]
    labels, groups = (classes == len(mix) - 1).astype(int)[patient], patient.tolist()
    logits = IMAGES[image](t_score[patient], age[patient], noise) + rng.normal(size=FOLDS)[networks]
    if image == LEARNT:
        features = np.column_stack([logits, rng.normal(size=(count, FEATURES - 1))[patient]])
        features[:, 0] = av.centre(logits[None], networks[None])[0]
        logits = logit(av.cross_fit(av.logistic, features, labels, networks[None], groups)[0])
    return Sheet(labels, logits[None], covariates[patient], networks[None], groups)


def draw_seeded(mix: tuple[float, float, float], image: str, seed: int) -> Sheet:
    """One of the sheets of a design."""
    return draw(np.random.default_rng([seed, *(int(100 * share) for share in mix)]), mix, image)


def adds(mix: tuple[float, float, float], image: str, seed: int, draws: int = DRAWS) -> bool:
    """Whether nested models find added value in one sheet."""
    return nested_test(*draw_seeded(mix, image, seed), draws=draws, seed=seed).adds


def one_set(mix: tuple[float, float, float], image: str, seed: int, draws: int = DRAWS) -> dict[str, float]:
    """What the tests say of one sheet: 1 for found, 0 for not."""
    labels, logits, covariates, networks, groups = draw_seeded(mix, image, seed)
    every = covariates[None], np.dstack([covariates[None], av.centre(logits, networks)])
    clinical, both = (av.cross_fit(av.logistic, features, labels, networks, groups) for features in every)
    models = {"image": expit(logits), "clinical": clinical, "both": both}
    options = {"draws": draws, "seed": seed}
    nested = nested_test(labels, logits, covariates, networks, groups, **options)
    found = {
        f"AUROC, {name}": metrics.measure(labels, of_model, names=["auroc"], networks=networks)["auroc"]
        for name, of_model in models.items()
    }
    found[NESTED] = nested.adds
    found["likelihood ratio that takes pictures for patients"] = chi2.sf(nested.likelihood_ratio, 1) <= 0.05
    for name in ("clinical", "image"):
        difference = av.auroc_difference(labels, both, models[name], networks, groups, **options).difference
        found[f"AUROC, both above {name}"] = difference.low > 0.0
        found[f"AUROC, both below {name}"] = difference.high < 0.0
    ages = covariates[:, 0]
    thirds = {"third of age": strata.thirds(ages)}
    leads = strata.leads(labels, models["image"], networks, groups, strata=thirds, ages=ages, **options)
    for name, interval in list(leads.items())[1:]:
        found[f"AUROC, image, alike in {name}"] = interval.value
        found[f"lead lost, alike in {name}"] = strata.is_lost(leads[strata.ALL_PICTURES], interval)
    return found


def measure() -> list[dict]:
    """One row per finding, one column per design."""
    columns: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor() as pool:
        for mix, image in DESIGNS:
            found = list(pool.map(partial(one_set, MIXES[mix], image), range(SETS), chunksize=max(1, SETS // 40)))
            more = list(pool.map(partial(adds, MIXES[mix], image), range(SETS, TESTED), chunksize=max(1, SETS // 40)))
            title = f"{mix}; logit follows {image}"
            columns[title] = {name: float(np.nanmean([one[name] for one in found])) for name in found[0]}
            columns[title][NESTED] = float(np.mean([*(one[NESTED] for one in found), *more]))
            print(f"{title}:", columns[title], flush=True)
    return [
        {"mean over sheets, or share of them": name} | {title: f"{by[name]:.3f}" for title, by in columns.items()}
        for name in found[0]
    ]
