"""How many labels are wrong, judged by copies that disagree, and how well anything can do on such labels."""

import numpy as np
import pandas as pd
import pytest

from osteo.audit.label_noise import (
    accuracy_ceiling,
    after_cleaning,
    auroc_ceiling,
    estimate,
    largest_noise,
)
from osteo.data.manifest import assign_groups, typed
from osteo.evaluation.metrics import measure


@pytest.mark.parametrize(
    ("disagree", "agree", "noise", "low", "high"),
    [
        (10, 7, 0.5, 0.208, 0.5),  # identical files of the whole Kaggle archive
        (7, 6, 0.5, 0.147, 0.5),  # of the 202 files at hand
        (2, 38, 0.0257, 0.0031, 0.0933),
        (0, 12, 0.0, 0.0, 0.157),
        (0, 1, 0.0, 0.0, 0.5),
        (17, 0, 0.5, 0.5, 0.5),  # more than coins would
    ],
)
def test_pairs_have_the_interval_of_clopper_and_pearson(
    disagree: int, agree: int, noise: float, low: float, high: float
) -> None:
    from scipy.stats import binomtest

    found = estimate("pairs", [[0, 1]] * disagree + [[1, 1]] * agree, 0.5)
    assert (found.exposures, found.contradictory) == (disagree + agree, disagree)
    assert [round(number, 3) for number in found.noise] == [pytest.approx(n, abs=6e-4) for n in (noise, low, high)]
    bounds = binomtest(disagree, disagree + agree).proportion_ci(0.95, method="exact")
    for end, share in zip(found.noise[1:], bounds, strict=True):
        assert end == pytest.approx((1 - np.sqrt(max(0.0, 1 - 2 * share))) / 2, abs=1e-6)  # 2 e (1 - e) disagree


def test_nothing_is_said_without_copies() -> None:
    found = estimate("none", [], 0.5)
    assert np.isnan([*found.noise, *found.auroc, *found.accuracy]).all()
    assert found.as_json()["auroc_ceiling"] == {"value": None, "low": None, "high": None}


def test_the_ceiling_is_what_the_true_class_reaches_on_noisy_labels() -> None:
    rng = np.random.default_rng(0)
    for noise, cases in ((0.1, 0.5), (0.1, 0.2), (0.25, 0.6)):
        truth = rng.random(200_000) < cases
        labels = truth ^ (rng.random(truth.size) < noise)
        reached = measure(labels.astype(int), truth[None].astype(float), names=("auroc", "accuracy"))
        assert auroc_ceiling(noise, labels.mean()) == pytest.approx(reached["auroc"], abs=0.003)
        assert accuracy_ceiling(noise, labels.mean()) == pytest.approx(reached["accuracy"], abs=0.003)
    assert auroc_ceiling(0.1, 0.5) == 0.9
    assert auroc_ceiling(0.3, 0.25) == 0.5  # noise alone explains a quarter of cases
    assert accuracy_ceiling(0.3, 0.25) == 0.75
    assert largest_noise(0.9, 0.5) == pytest.approx(0.1)
    assert auroc_ceiling(largest_noise(0.8, 0.3), 0.3) == pytest.approx(0.8)


def test_the_noise_of_simulated_labels_is_found() -> None:
    rng, found = np.random.default_rng(1), []
    sizes = [2] * 20 + [3] * 5 + [6] * 2
    for _ in range(100):
        truth = rng.random(len(sizes)) < 0.5
        sets = [(t ^ (rng.random(size) < 0.15)).astype(int).tolist() for t, size in zip(truth, sizes, strict=True)]
        found.append(estimate("simulated", sets, 0.5).noise)
    assert np.mean([interval.value for interval in found]) == pytest.approx(0.15, abs=0.01)
    held = sum(interval.low <= 0.15 <= interval.high for interval in found)
    assert held >= 95, "95 in 100 at least: the interval is exact"
    assert all(interval.low <= interval.value <= interval.high for interval in found)


def test_copies_that_agree_are_less_often_wrong_than_pictures_without_a_copy() -> None:
    found = estimate("pairs", [[0, 1]] * 8 + [[0, 0]] * 17, 0.5)
    assert found.noise.value == pytest.approx(0.2, abs=3e-4)  # 8 of 25 disagree: 2 x 0.2 x 0.8
    left = after_cleaning(found, [1] * 83 + [2] * 17, 0.5)
    assert left.noise.value == pytest.approx(0.83 * 0.2 + 0.17 * 0.04 / (0.04 + 0.64), abs=5e-4)
    assert left.auroc.value == pytest.approx(1 - left.noise.value)


def test_of_a_data_set_every_exposure_counts_once() -> None:
    from osteo.audit.findings import label_noise

    rows = [
        ("a", "1", 0), ("b", "1", 1),  # the same bytes, contradictory
        ("c", "2", 1), ("d", "2", 1), ("e", "3", 1),  # the same bytes, and an altered copy
        ("f", "4", 0), ("g", "5", 0), ("h", "6", 1),
        ("i", "6", None),  # a copy without a label
    ]  # fmt: skip
    columns = ["image_id", "sha256", "label"]
    manifest = assign_groups(typed(pd.DataFrame(rows, columns=columns).assign(split="", source="s")))
    by_files, by_copies, cleaned = label_noise(manifest, [("d", "e"), ("f", "g")])
    assert (by_files.exposures, by_files.contradictory) == (2, 1)
    assert (by_copies.exposures, by_copies.contradictory) == (3, 1)
    assert by_copies.share == 5 / 8
    assert cleaned.exposures == 3  # c, f and h
    assert cleaned.share == pytest.approx(2 / 3)
    e = by_copies.noise.value
    assert cleaned.noise.value == pytest.approx((e + e**2 / (e**2 + (1 - e) ** 2) + e**3 / (e**3 + (1 - e) ** 3)) / 3)
