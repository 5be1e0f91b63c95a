"""What is taken from validation is taken from validation alone, and does what it says on known numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from torchmetrics.functional.classification import binary_calibration_error

from osteo.evaluation import curves
from osteo.evaluation.calibration import calibrate, calibration_error, choose_thresholds, fit_temperature, log_loss
from osteo.evaluation.systems import validate


def test_temperature_finds_how_much_too_sure_a_model_is() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < expit(logits)).astype(int)
    assert fit_temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(logits / 2.0, labels) == pytest.approx(0.5, rel=0.05)
    assert log_loss(calibrated_logits := 3.0 * logits / 3.0, labels) < log_loss(3.0 * logits, labels)
    assert calibrate(3.0 * logits, 3.0) == pytest.approx(expit(calibrated_logits))


def test_log_loss_of_known_numbers() -> None:
    assert log_loss(np.array([0.0, 0.0]), np.array([0, 1])) == pytest.approx(np.log(2))
    assert log_loss(np.array([1000.0, -1000.0]), np.array([1, 0])) == pytest.approx(0.0)
    assert log_loss(np.array([np.log(3.0)]), np.array([0])) == pytest.approx(-np.log(0.25))


def test_thresholds_on_known_numbers() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([0, 0, 1, 0, 1, 0, 1, 1])
    found = choose_thresholds(probabilities, labels, sensitivity=0.75)
    assert found["0.5"] == 0.5
    assert found["Youden"] == pytest.approx(0.5)  # 3 of 4 cases, 3 of 4 controls, as at 0.25 and 0.75, but less unusual
    assert found["sensitivity"] == pytest.approx(0.5)
    assert choose_thresholds(probabilities, labels, sensitivity=1.0)["sensitivity"] == pytest.approx(0.25)
    all_called = choose_thresholds(np.array([0.1, 0.9]), np.array([1, 0]), sensitivity=1.0)["sensitivity"]
    assert 0.0 < all_called < 0.1


def test_predictive_values_follow_bayes() -> None:
    positive, negative = curves.predictive_values(np.array([0.9]), np.array([0.8]), 0.1)
    assert positive[0] == pytest.approx(0.09 / (0.09 + 0.18))
    assert negative[0] == pytest.approx(0.72 / (0.72 + 0.01))


def predictions(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, 120)
    label = (rng.random(120) < expit(logit)).astype(int)
    split, names = ["val"] * 60 + ["test"] * 60, [f"s/{number}.png" for number in range(120)]
    return pd.DataFrame({"image_id": names, "split": split, "logit": logit, "label": label})


def test_no_test_label_and_no_test_logit_changes_what_validation_says() -> None:
    table = predictions(1)
    validated = validate(table)
    shuffled, on_test = table.copy(), table["split"] == "test"
    shuffled.loc[on_test, "label"] = 1 - shuffled.loc[on_test, "label"]
    shuffled.loc[on_test, "logit"] = 99.0
    assert validate(shuffled) == validated
    changed = table.copy()
    changed.loc[~on_test, "label"] = changed.loc[~on_test, "label"].to_numpy()[::-1]
    assert validate(changed) != validated


def test_skill_is_what_validation_gains_on_knowing_the_share_of_cases() -> None:
    table = predictions(1)
    assert validate(table).skill > 0.05
    blind = table.assign(logit=np.random.default_rng(0).normal(size=120))
    assert validate(blind).skill < 0.02
    assert validate(table.assign(logit=-table["logit"])).skill == 0.0


def test_calibration_error_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random(200), rng.integers(0, 2, 200)
    expected = binary_calibration_error(torch.tensor(probabilities), torch.tensor(labels), n_bins=10)
    assert calibration_error(labels, probabilities[None]) == pytest.approx(float(expected), abs=1e-6)
    with_none = np.vstack([probabilities, np.full(200, np.nan)])
    assert calibration_error(labels, with_none) == calibration_error(labels, probabilities[None])


def test_net_benefit_and_reliability_on_known_numbers() -> None:
    labels = np.array([1, 1, 0, 0])
    probabilities = np.array([[0.9, 0.4, 0.6, 0.1]])
    one = np.ones((1, 4))
    found = curves.net_benefit(labels, probabilities, [0.05, 0.5, 0.75])(one)[0]
    assert found == pytest.approx([2 / 4 - 2 / 4 * 0.05 / 0.95, 1 / 4 - 1 / 4, 1 / 4])
    share = curves.reliability(labels, probabilities, np.array([0.0, 0.5, 1.0]))(one)[0]
    assert share == pytest.approx([0.5, 0.5])
    empty = curves.reliability(labels, probabilities, np.array([0.0, 0.05, 1.0]))(one)[0]
    assert np.isnan(empty[0])


def test_curves_pass_through_known_points() -> None:
    labels, probabilities = np.array([1, 0, 1, 0]), np.array([[0.9, 0.8, 0.7, 0.1]])
    grid = np.array([0.0, 0.5, 1.0])
    found = curves.roc_and_pr(labels, probabilities, grid)(np.ones((1, 4)))[0]
    assert found[:3] == pytest.approx([0.5, 1.0, 1.0])  # sensitivity at a false positive rate of 0, 0.5 and 1
    assert found[3:] == pytest.approx([1.0, 1.0, 2 / 3])  # precision at a sensitivity of 0, 0.5 and 1


def test_decisions_at_thresholds_that_differ_by_picture() -> None:
    labels, probabilities = np.array([1, 1, 0, 0]), np.array([[0.6, 0.3, 0.4, 0.2]])
    thresholds = np.array([[0.5, 0.2, 0.5, 0.1]])
    found = curves.decisions(labels, probabilities, thresholds, 0.5)(np.ones((1, 4)))[0]
    assert found == pytest.approx([1.0, 0.5, 2 / 3, 1.0])
