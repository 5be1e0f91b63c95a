"""Intervals and tests against published values, other libraries, and simulated truth."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, brier_score_loss

from benchmarks import coverage
from osteo.evaluation.bootstrap import bootstrap, proportion
from osteo.evaluation.metrics import all_metrics, auroc_interval, evaluate, metric_intervals, weighted_metrics
from osteo.evaluation.tests import delong, delong_interval, delong_test, holm, mcnemar, paired_bootstrap

# Turck et al., Intensive Care Medicine 36 (2010): 113 patients after subarachnoid haemorrhage, as pROC ships them
POOR = [
    int(digit)
    for digit in "000011010010110010111010000000001001101100000000011000100"
    "01010011101101111000110100000010000000000001111110001000"
]
WFNS = [
    int(digit)
    for digit in "111132541252551252252111121211342145414255112411255212512"
    "22151125214524414121421232421451154221113125225552445111"
]
S100B = [
    0.13, 0.14, 0.1, 0.04, 0.13, 0.1, 0.47, 0.16, 0.18, 0.1, 0.12, 0.1, 0.44, 0.71, 0.04, 0.08, 0.49, 0.04, 0.07, 0.33,
    0.09, 0.09, 0.07, 0.11, 0.07, 0.17, 0.07, 0.11, 0.13, 0.19, 0.05, 0.16, 0.41, 0.14, 0.34, 0.35, 0.48, 0.09, 0.96,
    0.25, 0.5, 0.46, 0.16, 0.07, 0.43, 0.45, 0.11, 0.08, 0.09, 0.86, 0.52, 0.08, 0.06, 0.13, 2.07, 0.1, 0.14, 0.15,
    0.07, 0.06, 0.77, 0.05, 0.09, 0.3, 0.03, 0.09, 0.04, 0.23, 0.7, 0.09, 0.27, 0.71, 0.08, 0.26, 0.08, 0.16, 0.09,
    0.13, 0.1, 0.08, 0.11, 0.33, 0.11, 0.28, 0.07, 0.1, 0.32, 0.22, 0.07, 0.05, 0.24, 0.38, 0.1, 0.15, 0.08, 0.14, 0.1,
    0.07, 0.04, 0.19, 0.56, 0.14, 0.58, 0.32, 0.82, 0.74, 0.15, 0.47, 0.17, 0.44, 0.15, 0.5, 0.48,
]  # fmt: skip


def test_delong_gives_what_proc_prints() -> None:
    labels, groups = np.array(POOR), list(range(113))
    wfns, s100b = np.array([WFNS], float), np.array([S100B])
    one = delong_interval(labels, s100b, groups)
    assert one == pytest.approx((0.7314, 0.6301, 0.8326), abs=5e-5)
    assert delong_interval(labels, wfns, groups) == pytest.approx((0.8237, 0.7485, 0.8988), abs=5e-5)
    areas, covariance = delong(labels, np.vstack([wfns, s100b]), groups)
    z = (areas[0] - areas[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert z == pytest.approx(2.209, abs=5e-4)
    assert delong_test(labels, wfns, s100b, groups).p == pytest.approx(0.02718, abs=5e-6)


def test_copies_are_no_new_evidence_for_delong() -> None:
    labels, groups = np.array(POOR), list(range(113))
    scores = np.array([S100B])
    one = delong(labels, scores, groups)
    four = delong(np.repeat(labels, 4), np.repeat(scores, 4, axis=1), np.repeat(groups, 4).tolist())
    assert four[0] == pytest.approx(one[0])
    assert four[1] == pytest.approx(one[1])
    as_if_new = delong(np.repeat(labels, 4), np.repeat(scores, 4, axis=1), list(range(452)))
    assert as_if_new[1][0, 0] < one[1][0, 0] / 3.5


def test_repeats_on_different_pictures_have_no_delong_interval() -> None:
    scores = np.array([[0.1, 0.9, np.nan, 0.4], [0.2, 0.8, 0.5, np.nan]])
    assert delong_interval(np.array([0, 1, 0, 1]), scores, list("abcd")) is None


def test_wilson_and_holm_as_published() -> None:
    assert proportion(40, 47) == pytest.approx((0.8511, 0.7231, 0.9259), abs=5e-5)  # the paper's accuracy
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs() -> None:
    first = np.array([[1.0] * 9 + [0.0] * 1 + [1.0] * 20])
    second = np.array([[0.0] * 9 + [1.0] * 1 + [1.0] * 20])
    groups = list(range(30))
    assert mcnemar(first, second, groups)[:2] == (9, 1)
    assert mcnemar(first, second, groups)[2] == pytest.approx(2 * 11 / 1024)
    assert mcnemar(first, second, groups)[3] == pytest.approx(2 * 11 / 1024 - 10 / 1024)
    copies = mcnemar(np.repeat(first, 4, axis=1), np.repeat(second, 4, axis=1), np.repeat(groups, 4).tolist())
    assert copies == mcnemar(first, second, groups)
    assert mcnemar(first, first, groups) == (0, 0, 1.0, 1.0)


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200).round(1)  # with ties
    labels = (rng.random(200) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, logits, list(range(200))


def test_metrics_are_those_of_the_records_and_of_other_libraries(scored: tuple) -> None:
    labels, logits, _ = scored
    scores = 1 / (1 + np.exp(-logits))
    ours = dict(zip(all_metrics(), weighted_metrics(labels, scores[None])(np.ones((1, 200)))[0], strict=True))
    recorded = evaluate(logits, labels)
    for name in set(ours) & set(recorded):
        assert ours[name] == pytest.approx(recorded[name], abs=1e-6), name
    assert ours["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert ours["brier"] == pytest.approx(brier_score_loss(labels, scores))


def test_weights_count_as_repeated_pictures(scored: tuple) -> None:
    labels, logits, _ = scored
    scores = 1 / (1 + np.exp(-logits))
    weights = np.random.default_rng(1).integers(0, 4, 200)
    weighted = weighted_metrics(labels, scores[None])(weights[None].astype(float))
    repeated = np.repeat(labels, weights), np.repeat(scores, weights)
    assert weighted == pytest.approx(weighted_metrics(repeated[0], repeated[1][None])(np.ones((1, weights.sum()))))


def test_a_repeat_that_tested_nothing_does_not_count(scored: tuple) -> None:
    labels, logits, _ = scored
    one = np.ones((1, 200))
    with_none = np.vstack([logits, np.full(200, np.nan)])
    assert weighted_metrics(labels, with_none)(one) == pytest.approx(weighted_metrics(labels, logits[None])(one))


def test_draws_keep_groups_and_classes_together() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 0]), ["a", "a", "b", "b", "c", "d"]
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, :1]

    made = bootstrap(statistic, labels, groups, draws=300)
    drawn = seen[1]
    assert drawn.shape == (300, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 3]).all()
    assert (drawn[:, 0] + drawn[:, 5] == 2).all()  # two groups of normal pictures, two of osteoporosis
    assert (drawn[:, 2] + drawn[:, 4] == 2).all()
    assert made.smallest_stratum == 2
    assert sorted(map(tuple, 1 - seen[2])) == [(0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0), (0, 0, 1, 1, 0, 0),
                                               (1, 1, 0, 0, 0, 0)]  # fmt: skip


def test_the_same_seed_gives_the_same_interval_in_one_piece_or_many(
    scored: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, logits, groups = scored
    whole = auroc_interval(labels, logits, groups, seed=3)
    assert whole == auroc_interval(labels, logits, groups, seed=3)
    assert whole != auroc_interval(labels, logits, groups, seed=4)
    monkeypatch.setattr("osteo.evaluation.bootstrap.CELLS", 200 * 64)
    assert auroc_interval(labels, logits, groups, seed=3) == pytest.approx(whole)


def test_no_error_among_few_pictures_is_no_certainty() -> None:
    labels = np.array([0] * 10 + [1] * 12)
    found = metric_intervals(labels, labels[None].astype(float), list(range(22)))
    assert found["accuracy"] == pytest.approx((1.0, proportion(10, 10).low, 1.0))
    assert found["brier"] == pytest.approx((0.0, 0.0, 1 - proportion(10, 10).low))


def test_a_paired_difference_is_smaller_than_two_single_ones(scored: tuple) -> None:
    labels, logits, groups = scored
    first = 1 / (1 + np.exp(-logits))
    second = 1 / (1 + np.exp(-(logits + np.random.default_rng(2).normal(0, 0.3, 200))))
    half = np.full((1, 200), 0.5)
    pair = paired_bootstrap(labels, (first[None], half), (second[None], half), groups)["auroc"]
    alone = auroc_interval(labels, first, groups)
    assert pair.difference.value == pytest.approx(alone.value - auroc_interval(labels, second, groups).value)
    assert pair.difference.high - pair.difference.low < 0.5 * (alone.high - alone.low)
    assert 0.05 < pair.p <= 1.0
    same = paired_bootstrap(labels, (first[None], half), (first[None], half), groups)["auroc"]
    assert (same.difference.value, same.p) == (0.0, 1.0)


def test_intervals_cover_the_truth_also_with_copies_if_these_stay_together() -> None:
    """The bounds are those of a binomial with 150 trials; `python -m benchmarks coverage` takes many more."""
    found = coverage.rates(coverage.covered, coverage.Design(50, 4), sets=150, draws=400)
    for name in ("accuracy", "AUROC"):
        assert 0.90 <= found[f"{name}, cluster bootstrap"] <= 0.99, found
        assert found[f"{name}, plain bootstrap"] < 0.85, found
    single = coverage.rates(coverage.covered, coverage.Design(100, 1), sets=150, draws=400)
    assert all(0.90 <= share <= 0.99 for share in single.values()), single


def test_tests_seldom_find_a_difference_where_there_is_none() -> None:
    found = coverage.rates(coverage.rejected, coverage.Design(80, 1), sets=200, draws=400)
    assert all(0.005 <= share <= 0.10 for share in found.values()), found


def test_tests_find_a_difference_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.arange(200) % 2, list(range(200))
    good, poor = (norm.cdf(rng.normal(size=200) + distance * (labels - 0.5))[None] for distance in (2.5, 0.5))
    half = np.full((1, 200), 0.5)
    pair = paired_bootstrap(labels, (good, half), (poor, half), groups)
    assert pair["auroc"].p < 0.001
    assert pair["accuracy"].p < 0.001
    assert delong_test(labels, good, poor, groups).p < 0.001
    right = [((one > 0.5) == (labels == 1)).astype(float) for one in (good, poor)]
    assert mcnemar(*right, groups)[2] < 0.001
