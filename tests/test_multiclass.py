"""Metrics of three classes beside scikit-learn's, their intervals against a known truth, their paired tests."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sklearn

from benchmarks import coverage_classes as simulated
from osteo.errors import UserError
from osteo.evaluation.bootstrap import bootstrap_classes
from osteo.evaluation.metrics import evaluate, metric_intervals
from osteo.evaluation.multiclass import (
    class_intervals,
    class_metrics,
    compare_classes,
    confusion,
    evaluate_classes,
    join_class_ties,
)  # fmt: skip
from osteo.evaluation.ties import RESOLUTION

RECORDED = [
    "accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc", "auroc_macro", "auroc_normal",
    "auroc_osteopenia", "auroc_osteoporosis", "balanced_accuracy", "quadratic_weighted_kappa", "sensitivity",
    "specificity", "confusion_matrix",
]  # fmt: skip
CLASSES = [0, 1, 2]


def some(rng: np.random.Generator, count: int, shares: tuple[float, ...] = (0.3, 0.5, 0.2)) -> tuple:
    """Labels (N,) and probabilities (N, 3) with ties."""
    labels = rng.choice(3, size=count, p=shares)
    logits = (rng.normal(size=(count, 3)) + 1.5 * np.eye(3)[labels]).round(int(rng.choice([0, 1, 9])))
    return labels, softmax(logits, axis=1)


def of_sklearn(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """What is defined, by name."""
    calls, ranked, present = probabilities.argmax(axis=1), join_class_ties(probabilities[None])[0], set(labels.tolist())
    options = {"sample_weight": weights}
    macro = {"labels": CLASSES, "average": "macro", "zero_division": 0.0} | options
    expected = {
        "accuracy": sklearn.accuracy_score(labels, calls, **options),
        "confusion_matrix": sklearn.confusion_matrix(labels, calls, labels=CLASSES, **options),
        "balanced_accuracy": sklearn.balanced_accuracy_score(labels, calls, **options),
    }
    if len(present | set(calls.tolist())) > 1:
        kappa = sklearn.cohen_kappa_score(labels, calls, labels=CLASSES, weights="quadratic", **options)
        expected["quadratic_weighted_kappa"] = kappa
    if present == set(CLASSES):
        expected["auroc_macro"] = sklearn.roc_auc_score(labels, ranked, multi_class="ovr", average="macro", **options)
        expected["precision_macro"] = sklearn.precision_score(labels, calls, **macro)
        expected["recall_macro"] = sklearn.recall_score(labels, calls, **macro)
        expected["f1_macro"] = sklearn.f1_score(labels, calls, **macro)
    for label, name in enumerate(("normal", "osteopenia", "osteoporosis")):
        if label in present and len(present) > 1:
            expected[f"auroc_{name}"] = sklearn.roc_auc_score(labels == label, ranked[:, label], **options)
    if 2 in present:
        expected["sensitivity"] = sklearn.recall_score(labels == 2, calls == 2, **options)
    if present - {2}:
        expected["specificity"] = sklearn.recall_score(labels != 2, calls != 2, **options)
    return expected | ({"auroc": expected["auroc_osteoporosis"]} if "auroc_osteoporosis" in expected else {})


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_random_records_are_those_of_scikit_learn() -> None:
    """With ties, with classes that are never called and with classes that are absent."""
    rng, absent = np.random.default_rng(0), 0
    every = [(0.3, 0.5, 0.2), (0.0, 0.6, 0.4), (0.5, 0.5, 0.0), (0.45, 0.1, 0.45), (0.0, 0.0, 1.0)]
    for case in range(60):
        labels, probabilities = some(rng, int(rng.integers(1, 60)), every[case % len(every)])
        ours, expected = evaluate_classes(probabilities, labels), of_sklearn(labels, probabilities)
        assert list(ours) == RECORDED
        assert ours.pop("confusion_matrix") == expected.pop("confusion_matrix").tolist()
        assert {name for name, value in ours.items() if value is not None} == set(expected), case
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, abs=1e-6), (case, name)
        absent += len(set(labels.tolist())) < 3
    assert 25 < absent < 55


def test_weighted_pictures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels, probabilities = some(rng, 80)
    weights = rng.exponential(size=(3, 80))
    ranked = join_class_ties(probabilities[None])[0]
    for row in range(3):
        expected = of_sklearn(labels, probabilities, weights[row])
        assert confusion(weights, labels, probabilities)[row] == pytest.approx(expected.pop("confusion_matrix"))
        for name, value in expected.items():
            metric = class_metrics()[name]
            found = metric.measure(weights, labels, ranked if metric.is_ranking else probabilities)
            assert found.shape == (3,)
            assert found[row] == pytest.approx(value), name


def test_the_positive_class_has_the_numbers_of_its_binary_view() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(3, size=90)
    outputs = rng.normal(size=(90, 3)) + np.eye(3)[labels]
    logits = outputs[:, 2] - np.logaddexp(outputs[:, 0], outputs[:, 1])
    probabilities, groups = softmax(outputs, axis=1), (np.arange(90) // 2).tolist()
    assert evaluate_classes(probabilities, labels)["auroc"] == evaluate(logits, labels == 2)["auroc"]
    found = class_intervals(labels, probabilities[None], groups, draws=200)
    assert found["auroc"] == found["auroc_osteoporosis"]
    assert found["auroc"] == metric_intervals((labels == 2).astype(int), probabilities[None, :, 2], groups,
                                              names=["auroc"], draws=200)["auroc"]  # fmt: skip
    assert found["sensitivity"].value == sklearn.recall_score(labels == 2, probabilities.argmax(axis=1) == 2)


def test_probabilities_that_arithmetic_cannot_tell_apart_are_ties() -> None:
    logits = np.array([0.3, 0.3 + RESOLUTION / 2, -1.0, 2.0])
    probabilities = np.column_stack([1.0 - expit(logits), expit(logits)])
    joined = join_class_ties(probabilities[None])[0]
    assert joined[0, 1] == joined[1, 1] != probabilities[1, 1]
    assert (joined[2:] == probabilities[2:]).all()  # to the bit
    apart = join_class_ties(probabilities[None], np.array([[0, 1, 1, 1]]))[0]  # scores of two networks are no ties
    assert (apart == probabilities).all()
    two = {"class_names": ("no", "yes")}
    assert evaluate_classes(probabilities, [0, 1, 0, 1], **two)["auroc_yes"] == 0.875
    certain = join_class_ties(np.eye(2)[None, [0, 1, 1]])
    assert (certain == np.eye(2)[None, [0, 1, 1]]).all()
    assert [evaluate_classes([], [])[name] for name in RECORDED[:-1]] == [None] * 13
    with pytest.raises(UserError, match="1 of 4 sets of probabilities are not finite"):
        evaluate_classes(np.where(np.arange(4)[:, None] == 2, np.nan, probabilities), [0, 1, 0, 1], **two)


def test_auroc_is_taken_within_a_network_and_everything_is_the_mean_over_repeats() -> None:
    labels = np.array([0, 1, 2] * 6)
    offset = np.repeat([0.0, 3.0, -3.0], 6)  # of three networks
    middle = np.array([0.5, 1.0, 1.5])[labels]
    scores = np.column_stack([-middle + offset, np.zeros(18), middle + offset])
    networks = np.repeat(np.arange(3), 6)[None]
    right = softmax(scores, axis=1)[None]
    within = class_intervals(labels, right, list(range(18)), networks=networks, draws=20)
    pooled = class_intervals(labels, right, list(range(18)), draws=20)
    assert within["auroc"].value == within["auroc_normal"].value == 1.0 > pooled["auroc"].value
    ends = (within["auroc_normal"].value + within["auroc_osteopenia"].value + within["auroc"].value) / 3
    assert within["auroc_macro"].value == pytest.approx(ends)
    assert within["accuracy"] == pooled["accuracy"]
    one, other = some(np.random.default_rng(3), 18)[1], right[0]
    untested = np.full((18, 3), np.nan)
    alone = [class_intervals(labels, each[None], list(range(18)), draws=20) for each in (one, other)]
    both = class_intervals(labels, np.stack([one, untested, other]), list(range(18)), draws=20)
    for name, interval in both.items():
        assert interval.value == pytest.approx((alone[0][name].value + alone[1][name].value) / 2), name


def test_untested_pictures_are_no_evidence() -> None:
    rng = np.random.default_rng(4)
    labels, first = some(rng, 90)
    second = some(rng, 90)[1]
    groups = [f"{number:02d}" for number in range(90)]
    first[30:] = np.nan
    whole = class_intervals(labels, first[None], groups, draws=50)
    assert whole == class_intervals(labels[:30], first[None, :30], groups[:30], draws=50)
    pair = compare_classes(labels, first[None], second[None], groups, draws=50)
    assert pair == compare_classes(labels[:30], first[None, :30], second[None, :30], groups[:30], draws=50)


def test_draws_keep_groups_and_classes_together() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 2, 2]), list("aabbcde")
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, :1]

    made = bootstrap_classes(statistic, labels, groups, 3, draws=400)
    pair = bootstrap_classes(statistic, labels, groups, 3, draws=400, side=0)
    drawn, once, of_pair, _ = seen
    assert (made.clusters, pair.clusters) == ((1, 2, 2), (1, 2, 2))
    assert drawn.shape == (400, 7 + 9)  # the pictures, then each class called each way
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 3]).all()
    of_class = np.concatenate([labels, np.repeat(CLASSES, 3)])
    for label, count in enumerate((2, 3, 2)):
        assert drawn[:, of_class == label].sum(axis=1) == pytest.approx(float(count))
    assert once.tolist() == [[1.0] * 7 + [0.0] * 9]
    prior = drawn[:, 7:].reshape(400, 3, 3)
    recall = np.diagonal(prior, axis1=1, axis2=2) / prior.sum(axis=2)
    assert recall.mean(axis=0) == pytest.approx([0.5] * 3, abs=0.06)  # Beta(1/2, 1/2)
    assert recall.var(axis=0) == pytest.approx([0.125] * 3, abs=0.02)
    far = prior[:, 0, 2].sum() / prior[:, 0, 1:].sum()
    assert far == pytest.approx(1 / 9, abs=0.05)  # a share of 1 / 8 of that of a near call
    assert of_pair.shape == drawn.shape
    shares = of_pair[:, :7] / of_pair[:, :1]
    assert shares[:200, :2] == pytest.approx(shares[200:, :2])  # the same pictures on both sides


def test_few_pictures_without_a_mistake_are_no_certainty_and_too_few_say_nothing() -> None:
    labels = np.repeat(CLASSES, [8, 9, 10])
    found = class_intervals(labels, np.eye(3)[None, labels], list(range(27)), draws=400)
    for name, interval in found.items():
        assert interval.value == interval.high == 1.0, name
        assert 0.5 < interval.low < 0.98, name
    three = np.repeat(CLASSES, [8, 3, 10])  # of osteopenia
    few = class_intervals(three, np.eye(3)[None, three], list(range(21)), draws=50)
    unknown = {name for name, interval in few.items() if np.isnan(interval.low)}
    assert unknown == {"precision_macro", "recall_macro", "f1_macro", "auroc_macro", "auroc_osteopenia"}


def test_a_model_differs_from_itself_by_nothing_and_a_swap_turns_the_sign() -> None:
    rng = np.random.default_rng(5)
    labels, first = some(rng, 60)
    second, groups = some(rng, 60)[1], (np.arange(60) // 2).tolist()
    for name, same in compare_classes(labels, first[None], first[None], groups, draws=200).items():
        assert (same.difference.value, same.p) == (0.0, 1.0), name
    forth = compare_classes(labels, first[None], second[None], groups, draws=200)
    back = compare_classes(labels, second[None], first[None], groups, draws=200)
    for name, one in forth.items():
        other = back[name]
        assert one.difference.value == -other.difference.value, name
        assert one.difference[1:] == pytest.approx((-other.difference.high, -other.difference.low), abs=1e-12), name
        assert one.p == pytest.approx(other.p, abs=1e-9)
        assert (one.p <= 0.05) == (not one.difference.low <= 0.0 <= one.difference.high), name


@pytest.mark.slow
def test_intervals_cover_the_truth_and_tests_seldom_reject_it() -> None:
    """The bounds are those of a binomial with 50 data sets; `python -m benchmarks coverage_classes` takes more."""
    design = simulated.Design(60, 1.8)
    found = [simulated.one_set_of_classes(design, seed, draws=150) for seed in range(50)]
    for name in found[0]:
        share = np.mean([one[name] for one in found])
        if name.startswith("coverage"):
            assert share >= 0.85, (name, share)
        if name.startswith("type I error"):
            assert share <= 0.15, (name, share)
