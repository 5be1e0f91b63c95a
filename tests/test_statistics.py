"""Intervals and tests against published values, other libraries, and simulated truth."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, brier_score_loss

from benchmarks import coverage
from osteo.evaluation.bootstrap import Interval, bootstrap, format_interval, proportion
from osteo.evaluation.metrics import all_metrics, evaluate, measure, metric_intervals, weighted_metrics
from osteo.evaluation.selection import best_on_test
from osteo.evaluation.tests import Answers, delong, delong_test, holm, mcnemar, paired_bootstrap

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


def answers(scores: np.ndarray) -> Answers:
    """One model's answers to pictures (N,), called above a half."""
    return Answers(np.asarray(scores, float)[None], np.full((1, len(scores)), 0.5), np.zeros((1, len(scores)), int))


def auroc(labels: np.ndarray, scores: np.ndarray, groups: list[int], **options: int) -> Interval:
    """The AUROC with its interval."""
    return metric_intervals(labels, np.asarray(scores, float)[None], groups, names=["auroc"], **options)["auroc"]


def test_delong_gives_what_proc_prints() -> None:
    labels, groups = np.array(POOR), list(range(113))
    wfns, s100b = np.array([WFNS], float), np.array([S100B])
    area, variance = delong(labels, s100b, groups)
    reach = 1.959964 * variance[0, 0] ** 0.5
    assert [area[0], area[0] - reach, area[0] + reach] == pytest.approx([0.7314, 0.6301, 0.8326], abs=5e-5)
    areas, covariance = delong(labels, np.vstack([wfns, s100b]), groups)
    z = (areas[0] - areas[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert z == pytest.approx(2.209, abs=5e-4)
    assert delong_test(labels, answers(wfns[0]), answers(s100b[0]), groups) == pytest.approx(0.02718, abs=5e-6)


def test_delong_of_several_networks_is_that_of_each_weighted_by_its_pairs() -> None:
    labels, scores = np.array(POOR), np.array([S100B])
    networks = np.arange(113) % 2
    areas, covariance = delong(labels, scores, list(range(113)), networks[None])
    alone = [delong(labels[networks == n], scores[:, networks == n], list(range(sum(networks == n)))) for n in (0, 1)]
    pairs = np.array([sum(labels[networks == n]) * sum(1 - labels[networks == n]) for n in (0, 1)], float)
    share = pairs / pairs.sum()
    assert areas[0] == pytest.approx(share @ [area[0] for area, _ in alone])
    assert covariance[0, 0] == pytest.approx(share**2 @ [variance[0, 0] for _, variance in alone], rel=0.05)
    assert areas[0] == pytest.approx(measure(labels, scores, networks=networks[None])["auroc"])


def test_copies_are_no_new_evidence_for_delong() -> None:
    labels, groups = np.array(POOR), list(range(113))
    scores = np.array([S100B])
    one = delong(labels, scores, groups)
    four = delong(np.repeat(labels, 4), np.repeat(scores, 4, axis=1), np.repeat(groups, 4).tolist())
    assert four[0] == pytest.approx(one[0])
    assert four[1] == pytest.approx(one[1])
    as_if_new = delong(np.repeat(labels, 4), np.repeat(scores, 4, axis=1), list(range(452)))
    assert as_if_new[1][0, 0] < one[1][0, 0] / 3.5


def test_delong_says_nothing_where_no_pair_or_no_variance_is() -> None:
    labels, groups = np.array([0, 1, 0, 1]), list("abcd")
    unpaired = answers(np.array([0.1, np.nan, 0.2, np.nan]))
    assert np.isnan(delong(labels, unpaired.probabilities, groups)[0]).all()
    assert np.isnan(delong_test(labels, unpaired, unpaired, groups))
    perfect = answers(np.array([0.1, 0.9, 0.2, 0.8]))
    assert np.isnan(delong_test(labels, perfect, perfect, groups))


def test_wilson_and_holm_as_published() -> None:
    assert proportion(40, 47) == pytest.approx((0.8511, 0.7231, 0.9259), abs=5e-5)  # the paper's accuracy
    assert proportion(0.5 * 47, 47) == pytest.approx((0.5, 0.3626, 0.6374), abs=5e-5)  # half a picture: the mean of two
    assert proportion(39.9999999, 47)[1:] == pytest.approx(proportion(40, 47)[1:], abs=1e-6)
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
    drawn, once = seen
    assert drawn.shape == (300, 18)  # the pictures, then each as the other class, called and not called
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 3]).all()
    of_cases = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1], bool)
    assert drawn[:, of_cases].sum(axis=1) == pytest.approx(3.0)  # so that the share of cases stays
    assert drawn[:, ~of_cases].sum(axis=1) == pytest.approx(3.0)
    assert once.tolist() == [[1.0] * 6 + [0.0] * 12]
    assert made.clusters == (2, 2)
    assert drawn[:, 6:].sum() / drawn.sum() == pytest.approx(1 / 3, abs=0.03)  # one cluster beside two


def test_the_same_seed_gives_the_same_interval_in_one_piece_or_many(
    scored: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, logits, groups = scored
    whole = auroc(labels, logits, groups, seed=3)
    assert whole == auroc(labels, logits, groups, seed=3)
    assert whole != auroc(labels, logits, groups, seed=4)
    monkeypatch.setattr("osteo.evaluation.bootstrap.CELLS", 3 * 200 * 64)
    assert auroc(labels, logits, groups, seed=3) == pytest.approx(whole)


def test_auroc_is_that_of_pairs_within_a_network() -> None:
    """Three networks, each with an offset of its own: within each every pair is in order, across them few are."""
    labels = np.array([0, 1, 0, 1, 0, 1, 1])
    scores, networks = np.array([0.1, 0.2, 0.4, 0.5, 0.7, 0.8, 0.9]), np.array([0, 0, 1, 1, 2, 2, 2])
    assert measure(labels, scores[None], networks=networks[None])["auroc"] == 1.0
    assert measure(labels, scores[None])["auroc"] == pytest.approx(9 / 12)
    scores[6] = 0.6  # wrong, in the network that has two of the four pairs
    assert measure(labels, scores[None], networks=networks[None])["auroc"] == pytest.approx(3 / 4)
    assert (
        measure(labels, scores[None], networks=networks[None])["accuracy"] == measure(labels, scores[None])["accuracy"]
    )
    alone = np.arange(7)
    assert np.isnan(measure(labels, scores[None], networks=alone[None])["auroc"])  # no network has a pair


def test_offsets_between_folds_leave_the_auroc_and_its_interval_alone() -> None:
    rng = np.random.default_rng(0)
    labels, networks, groups = np.arange(173) % 2, np.arange(173) % 5, list(range(173))
    logits = rng.normal(size=173) + 1.5 * labels
    moved = logits + 2.0 * rng.normal(size=5)[networks]
    found = [
        metric_intervals(labels, values[None], groups, names=["auroc"], networks=networks[None])["auroc"]
        for values in (logits, moved)
    ]
    assert found[0] == found[1]
    assert auroc(labels, moved, groups).value < found[0].value - 0.05
    assert 0.05 < found[0].high - found[0].low < 0.2


def test_no_error_among_few_pictures_is_no_certainty() -> None:
    labels = np.array([0] * 10 + [1] * 12)
    found = metric_intervals(labels, labels[None].astype(float), list(range(22)))
    for name in ("accuracy", "sensitivity", "specificity", "auroc", "f1_macro", "precision_macro", "recall_macro"):
        assert found[name].value == found[name].high == 1.0
        assert 0.6 < found[name].low < 0.98, name
    assert found["brier"].value == found["brier"].low == 0.0
    assert 0.02 < found["brier"].high < 0.3


def test_everything_called_alike_has_intervals_with_a_width() -> None:
    """A model that calls everything osteoporosis: its accuracy is the share of cases, and as uncertain."""
    labels, groups = np.array([0] * 20 + [1] * 27), list(range(47))
    found = metric_intervals(labels, np.full((1, 47), 0.9), groups)
    for name in ("accuracy", "sensitivity", "specificity", "precision_macro", "f1_macro"):
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].high - found[name].low > 0.01, name
    assert (found["auroc"].value, found["sensitivity"].value, found["specificity"].value) == (0.5, 1.0, 0.0)


def test_a_contradictory_group_does_not_widen_the_sensitivity_of_the_others() -> None:
    labels = np.array([1] * 100 + [0] * 100)
    groups = [0, *range(1, 100), 0, *range(101, 200)]  # group 0 has a picture of each class
    found = metric_intervals(labels, np.where(labels == 1, 0.9, 0.2)[None], groups)["sensitivity"]
    assert found.value == found.high == 1.0
    assert 0.95 < found.low < 0.985


def test_one_patient_with_all_cases_says_nothing_of_cases() -> None:
    labels, scores = np.array([1] * 6 + [0] * 20), np.linspace(0.9, 0.1, 26)
    groups = [0] * 6 + list(range(1, 21))
    found = metric_intervals(labels, scores[None], groups)
    for name in ("auroc", "sensitivity", "f1_macro"):
        assert np.isnan(found[name][1:]).all(), name
        assert format_interval(found[name]) == f"{found[name].value:.3f} (-)"
    assert np.isfinite(found["specificity"]).all()
    pair = paired_bootstrap(labels, answers(scores), answers(scores[::-1]), groups)["auroc"]
    assert np.isnan(pair.p)
    assert np.isnan(pair.difference.low)


def test_untested_pictures_are_no_evidence() -> None:
    """Of 200 pictures a model tested 24: it has the interval that these alone would give."""
    rng = np.random.default_rng(0)
    labels, scores = np.arange(200) % 2, rng.random(200)
    first, second = scores + 0.3 * labels, rng.random(200) + 0.3 * labels
    some = np.r_[np.ones(24, bool), np.zeros(176, bool)]
    for one in (first, second):
        one[~some] = np.nan
    groups = [f"{number:03d}" for number in range(200)]
    whole = metric_intervals(labels, first[None], groups)
    alone = metric_intervals(labels[some], first[None, some], groups[:24])
    assert whole == alone
    pair = paired_bootstrap(labels, answers(first), answers(second), groups)
    assert pair == paired_bootstrap(labels[some], answers(first[some]), answers(second[some]), groups[:24])
    few = np.where(np.arange(200) < 4, first, np.nan)
    assert np.isnan(metric_intervals(labels, few[None], groups)["auroc"].low)
    assert np.isnan(paired_bootstrap(labels, answers(few), answers(second), groups)["accuracy"].p)


def test_no_p_is_below_what_a_permutation_of_so_few_could_give() -> None:
    labels, groups = np.array([0] * 4 + [1] * 4), list(range(8))
    right, wrong = labels * 0.8 + 0.1, 0.9 - labels * 0.8
    pair = paired_bootstrap(labels, answers(right), answers(wrong), groups)["auroc"]
    assert pair.difference.value == 1.0
    assert pair.p >= 2 / 70  # of the 70 ways to place four labels of eight two are as extreme
    assert pair.p < 0.05


def test_a_difference_turned_round_is_its_mirror_and_agrees_with_its_p() -> None:
    for seed in range(40):
        data = coverage.draw(np.random.default_rng(seed), coverage.DESIGNS[seed % 5], 0.95)
        first, second = data.models
        forth = paired_bootstrap(data.labels, first, second, data.groups, draws=400)
        back = paired_bootstrap(data.labels, second, first, data.groups, draws=400)
        for name, one in forth.items():
            other = back[name]
            assert one.difference == pytest.approx((-other.difference[0], -other.difference[2], -other.difference[1]))
            assert one.p == pytest.approx(other.p)
            assert (one.p <= 0.05) == (not one.difference.low <= 0.0 <= one.difference.high), (name, one)


def test_two_models_that_call_everything_alike_differ_by_nothing_either_way() -> None:
    labels, groups = np.arange(40) % 2, list(range(40))
    first, second = np.full(40, 0.9), np.linspace(0.6, 0.9, 40)
    found = paired_bootstrap(labels, answers(first), answers(second), groups)["accuracy"]
    assert found.difference.value == 0.0
    assert found.difference.low == pytest.approx(-found.difference.high)
    assert 0.01 < found.difference.high < 0.1
    assert found.p == pytest.approx(1.0, abs=0.05)
    alike = paired_bootstrap(labels, answers(second), answers(second + 0.01), groups)["auroc"]
    assert (alike.difference.value, alike.p) == (0.0, 1.0)
    assert format_interval(alike.difference) == "0.000 (-)"


def test_a_paired_difference_is_smaller_than_two_single_ones(scored: tuple) -> None:
    labels, logits, groups = scored
    first = 1 / (1 + np.exp(-logits))
    second = 1 / (1 + np.exp(-(logits + np.random.default_rng(2).normal(0, 0.3, 200))))
    pair = paired_bootstrap(labels, answers(first), answers(second), groups)["auroc"]
    alone = auroc(labels, first, groups)
    assert pair.difference.value == pytest.approx(alone.value - auroc(labels, second, groups).value)
    assert pair.difference.high - pair.difference.low < 0.5 * (alone.high - alone.low)
    assert 0.05 < pair.p <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("design", coverage.DESIGNS, ids=lambda design: design.title)
def test_intervals_cover_the_truth_and_tests_seldom_reject_it(design: coverage.Design) -> None:
    """The bounds are those of a binomial with 120 data sets; `python -m benchmarks coverage` takes many more."""
    found = [coverage.one_set(design, 0.85, seed, draws=400) for seed in range(120)]
    for name in found[0]:
        share = np.mean([one[name] for one in found])
        kind, of = name.split("|")
        if kind == "coverage" and "DeLong" not in of and "Wilson" not in of:
            assert share >= 0.86, (name, share)
        if name == "type I error|AUROC, paired bootstrap":
            assert share <= 0.11, (name, share)
        if kind == "interval and p agree":
            assert share == 1.0, name


def test_tests_find_a_difference_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.arange(200) % 2, list(range(200))
    good, poor = (answers(norm.cdf(rng.normal(size=200) + distance * (labels - 0.5))) for distance in (2.5, 0.5))
    pair = paired_bootstrap(labels, good, poor, groups)
    assert 0.0 < pair["auroc"].p < 0.001
    assert 0.0 < pair["accuracy"].p < 0.001
    assert delong_test(labels, good, poor, groups) < 0.001


def test_the_best_of_ten_equal_models_is_corrected_for_its_choice() -> None:
    """Every model is truly 0.85; the bounds are three standard errors of the mean over 60 data sets."""
    naive, corrected, covered = [], [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels, both = np.arange(47) % 2, rng.normal(size=47)
        models = [
            answers(norm.cdf(0.5**0.5 * (both + rng.normal(size=47)) + coverage.distance(0.85) * (labels - 0.5)))
            for _ in range(10)
        ]
        found = best_on_test(labels, models, list(range(47)), metric="auroc", draws=200, seed=seed)
        assert found.naive.value == max(measure(labels, one.probabilities)["auroc"] for one in models)
        naive.append(found.naive.value - 0.85)
        corrected.append(found.corrected.value - 0.85)
        covered += found.corrected.low <= 0.85 <= found.corrected.high
    assert 0.04 < np.mean(naive) < 0.09
    assert abs(np.mean(corrected)) < 0.02
    assert covered >= 53
