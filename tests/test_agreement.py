"""Predicted T-scores: metrics beside numpy's and scipy's, intervals against a known truth, paired tests."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage_classes as simulated
from osteo.errors import UserError
from osteo.evaluation.agreement import (
    AGREEMENT,
    compare_t_scores,
    cut_labels,
    evaluate_t_scores,
    t_score_intervals,
)  # fmt: skip
from osteo.evaluation.metrics import evaluate
from osteo.task import THRESHOLD, cut_logits

OF_AGREEMENT = ["mean_absolute_error", "bias", "agreement_low", "agreement_high", "pearson_r"]


def some(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted T-scores (N,), to a tenth."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1.5, 1.2, count).round(1)
    return true, (true + rng.normal(0.3, 0.8, count)).round(1)


def test_random_records_are_those_of_numpy_and_scipy() -> None:
    for seed in range(50):
        true, predicted = some(seed, 3 + seed)
        ours, differences = evaluate_t_scores(true, predicted), predicted - true
        reach = 1.96 * differences.std(ddof=1)
        expected = (
            np.abs(differences).mean(), differences.mean(), differences.mean() - reach, differences.mean() + reach,
            stats.pearsonr(true, predicted).statistic,
        )  # fmt: skip
        assert list(ours)[:5] == OF_AGREEMENT
        assert list(ours.values())[:5] == pytest.approx(expected, abs=1e-6)
        of_cut = evaluate(cut_logits(predicted), true <= -2.5)
        assert {name: ours[name] for name in of_cut} == of_cut


def test_weights_are_those_of_numpy() -> None:
    true, predicted = some(0, 40)
    weights = np.random.default_rng(1).exponential(size=(2, 40))
    found = {metric.name: metric.measure(weights, true, predicted) for metric in AGREEMENT}
    for row, of_row in enumerate(weights):
        differences = predicted - true
        assert found["bias"][row] == pytest.approx(np.average(differences, weights=of_row))
        assert found["mean_absolute_error"][row] == pytest.approx(np.average(np.abs(differences), weights=of_row))
        reach = 1.96 * np.cov(differences, aweights=of_row) ** 0.5
        assert found["agreement_high"][row] - found["bias"][row] == pytest.approx(reach)
        assert found["bias"][row] - found["agreement_low"][row] == pytest.approx(reach)
        covariance = np.cov(true, predicted, aweights=of_row)
        r = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5
        assert found["pearson_r"][row] == pytest.approx(r)


def test_a_t_score_at_the_cut_is_osteoporosis() -> None:
    at, above, below = -2.5, np.nextafter(-2.5, 0.0), np.nextafter(-2.5, -9.0)
    assert cut_labels([at, above, below]).tolist() == [1, 0, 1]
    found = evaluate_t_scores([at, above, below, -1.0], [at, -2.4, -2.6, 0.3])
    assert found["confusion_matrix"] == [[2, 0], [0, 2]]
    logits = cut_logits(np.array([at, above, below, -3.5]))
    assert (1.0 / (1.0 + np.exp(-logits)) > THRESHOLD).tolist() == [True, False, True, True]
    assert logits[3] == 1.0


def test_what_is_undefined_is_none() -> None:
    one = evaluate_t_scores([-3.0], [-2.7])
    assert (one["mean_absolute_error"], one["bias"], one["sensitivity"]) == (0.3, 0.3, 1.0)
    assert [one[name] for name in ("agreement_low", "agreement_high", "pearson_r", "auroc")] == [None] * 4
    assert evaluate_t_scores([-1.0, -2.0, -3.0], [-1.1] * 3)["pearson_r"] is None
    assert evaluate_t_scores([-1.0, -2.0], [-1.25, -2.25])["agreement_high"] == -0.25  # no spread
    assert {value for name, value in evaluate_t_scores([], []).items() if name != "confusion_matrix"} == {None}
    with pytest.raises(UserError, match="1 of 2 predicted T-scores are not finite"):
        evaluate_t_scores([-1.0, -2.0], [-1.0, np.inf])
    with pytest.raises(UserError, match="1 of 2 true T-scores are not finite"):
        evaluate_t_scores([np.nan, -2.0], [-1.0, -1.0])


def test_the_interval_of_a_bias_is_that_of_students_t_and_copies_are_no_new_evidence() -> None:
    true, predicted = some(2, 30)
    groups = [f"{number:02d}" for number in range(30)]
    found = t_score_intervals(true, predicted[None], groups, draws=4000)
    expected = stats.ttest_1samp(predicted - true, 0.0).confidence_interval()
    assert found["bias"][1:] == pytest.approx((expected.low, expected.high), abs=0.03)
    copies = t_score_intervals(np.tile(true, 3), np.tile(predicted, 3)[None], groups * 3, draws=4000)
    assert copies["bias"] == pytest.approx(found["bias"])
    assert copies["pearson_r"] == pytest.approx(found["pearson_r"])


def test_repeats_are_averaged_and_untested_pictures_are_no_evidence() -> None:
    true, first = some(3, 60)
    second = some(4, 60)[1]
    groups = [f"{number:02d}" for number in range(60)]
    both = t_score_intervals(true, np.stack([first, np.full(60, np.nan), second]), groups, draws=20)
    for name in OF_AGREEMENT:
        alone = [evaluate_t_scores(true, each)[name] for each in (first, second)]
        assert both[name].value == pytest.approx(np.mean(alone), abs=1e-6)
    first[25:] = np.nan
    whole = t_score_intervals(true, first[None], groups, draws=20)
    assert whole == t_score_intervals(true[:25], first[None, :25], groups[:25], draws=20)
    pair = compare_t_scores(true, first[None], second[None], groups, draws=20)
    assert pair == compare_t_scores(true[:25], first[None, :25], second[None, :25], groups[:25], draws=20)
    few = t_score_intervals(true[:5], second[None, :5], groups[:5], draws=20)
    assert np.isnan([few[name].low for name in OF_AGREEMENT]).all()
    nothing = t_score_intervals(true, np.full((1, 60), np.nan), groups, draws=20)
    assert np.isnan([interval.value for interval in nothing.values()]).all()


def test_a_model_differs_from_itself_by_nothing_and_a_swap_turns_the_sign() -> None:
    true, first = some(5, 60)
    second, groups = some(6, 60)[1], (np.arange(60) // 2).tolist()
    for name, same in compare_t_scores(true, first[None], first[None], groups, draws=200).items():
        assert (same.difference.value, same.p) == (0.0, 1.0), name
    forth = compare_t_scores(true, first[None], second[None], groups, draws=200)
    back = compare_t_scores(true, second[None], first[None], groups, draws=200)
    for name, one in forth.items():
        other = back[name]
        assert one.difference.value == -other.difference.value, name
        assert one.difference[1:] == pytest.approx((-other.difference.high, -other.difference.low), abs=1e-12), name
        assert one.p == pytest.approx(other.p, abs=1e-9)
    better = compare_t_scores(true, true[None] + 0.1, second[None], groups)
    assert better["mean_absolute_error"].p < 0.001
    assert better["mean_absolute_error"].difference.high < 0.0 < better["pearson_r"].difference.low


def test_intervals_cover_the_truth_and_tests_seldom_reject_it() -> None:
    """The bounds are those of a binomial with 80 data sets; `python -m benchmarks coverage_classes` takes more."""
    found = [simulated.one_set_of_t_scores(60, seed, draws=150) for seed in range(80)]
    for name in found[0]:
        share = np.mean([one[name] for one in found])
        if name.startswith("coverage"):
            assert share >= 0.85, (name, share)
        if name.startswith("type I error"):
            assert share <= 0.13, (name, share)
