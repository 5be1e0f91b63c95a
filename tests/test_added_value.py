"""What a picture adds to age: against other libraries, and where the truth was planted."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks import added_value as benchmark
from osteo.evaluation.bootstrap import Interval
from osteo.evaluation.clinical import added_value as av
from osteo.evaluation.clinical import strata
from osteo.evaluation.metrics import measure
from osteo.evaluation.tests import NestedTest, _firth, centre, nested_test

MIX = benchmark.MIXES["osteoporosis or not"]
COLUMN = {"image": "T-score", "age": "age, in a line"}


def sheet(follows: str, seed: int = 1) -> benchmark.Sheet:
    """Simulated pictures whose logit follows bone, or age alone."""
    return benchmark.draw(np.random.default_rng(seed), MIX, COLUMN[follows], pictures=400)


@pytest.fixture(scope="module")
def of_age() -> benchmark.Sheet:
    return sheet("age")


# --- out-of-fold probabilities


def test_a_model_is_fitted_on_other_folds_and_other_groups_alone() -> None:
    rng = np.random.default_rng(0)
    labels, features = rng.integers(0, 2, 60), rng.normal(size=(60, 2))
    networks = np.stack([np.arange(60) % 3, np.arange(60) // 20])
    groups = [number // 2 for number in range(60)]  # every group lies in two folds of the first repeat
    found = av.cross_fit(av.logistic, features, labels, networks, groups)
    for repeat in range(2):
        for fold in range(3):
            tested = networks[repeat] == fold
            learnt = ~np.isin(groups, np.array(groups)[tested])
            scale = features[learnt].mean(axis=0), features[learnt].std(axis=0)
            by_hand = LogisticRegression().fit((features[learnt] - scale[0]) / scale[1], labels[learnt])
            expected = by_hand.predict_proba((features[tested] - scale[0]) / scale[1])[:, 1]
            assert found[repeat, tested] == pytest.approx(expected, abs=1e-6)


def test_no_label_of_a_fold_reaches_its_own_clinical_probabilities(of_age: benchmark.Sheet) -> None:
    swapped = np.where(of_age.networks[0] == 2, 1 - of_age.labels, of_age.labels)
    for build in (av.logistic, av.boosting):
        before, after = (
            av.cross_fit(build, of_age.covariates, labels, of_age.networks, of_age.groups)
            for labels in (of_age.labels, swapped)
        )
        inside = of_age.networks == 2
        assert np.array_equal(before[inside], after[inside])
        assert not np.array_equal(before[~inside], after[~inside])


def test_a_gap_is_filled_from_the_folds_that_learn() -> None:
    covariates = np.array([[10.0], [20.0], [90.0], [np.nan], [np.nan], [np.nan]] * 2)
    labels, networks = np.array([0, 1, 1, 0, 1, 0] * 2), np.array([[0] * 6 + [1] * 6])
    covariates[6:9] += 100.0  # the median of the other fold is another one
    found = av.cross_fit(av.logistic, covariates, labels, networks, list(range(12)))
    filled = av.cross_fit(av.logistic, np.where(np.isnan(covariates), 120.0, covariates), labels, networks,
                          list(range(12)))  # fmt: skip
    assert found[0, 3] == pytest.approx(filled[0, 3])  # the first fold is tested by a model of the second
    assert found[0, 9] != pytest.approx(filled[0, 9])


def test_a_single_hold_out_has_no_other_folds_to_learn_from(of_age: benchmark.Sheet) -> None:
    one = np.zeros_like(of_age.networks)
    value = av.added_value(of_age.labels, of_age.logits, of_age.covariates, one, of_age.groups, draws=50)
    assert np.isnan(value.probabilities[av.BOTH]).all()
    assert np.isnan(value.differences[av.IMAGE].p)
    assert 0.0 < value.nested.p <= 1.0  # it needs no other model


def test_offsets_of_networks_are_taken_off() -> None:
    logits = np.array([[1.0, 3.0, 11.0, 13.0, np.nan]])
    assert centre(logits, np.array([[0, 0, 1, 1, -1]]))[0] == pytest.approx([-1, 1, -1, 1, np.nan], nan_ok=True)


# --- nested models


def test_firth_adds_half_a_picture_to_every_cell() -> None:
    exposed, labels = np.repeat([1, 1, 0, 0], [9, 0, 4, 12]), np.repeat([1, 0, 1, 0], [9, 0, 4, 12])
    found, _ = _firth(np.column_stack([np.ones(25), exposed]), labels, fitted=2)
    assert found[1] == pytest.approx(np.log(9.5 * 12.5 / (0.5 * 4.5)), abs=1e-5)


def test_the_likelihood_ratio_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(3)
    covariates, image = rng.normal(size=(1500, 2)), rng.normal(size=1500)
    labels = (rng.random(1500) < expit(covariates @ [1.0, -0.5] + 0.15 * image)).astype(int)
    once = np.zeros((1, 1500), int)
    found = nested_test(labels, image[None], covariates, once, range(1500))
    with_image = sm.Logit(labels, sm.add_constant(np.column_stack([covariates, image]))).fit(disp=0)
    without = sm.Logit(labels, sm.add_constant(covariates)).fit(disp=0)
    assert found.likelihood_ratio == pytest.approx(2 * (with_image.llf - without.llf), rel=0.01)
    assert found.log_odds == pytest.approx(with_image.params[-1] * image.std(), rel=0.01)


def test_the_p_value_is_that_of_the_score_that_is_robust_to_clusters() -> None:
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(400), 3)
    age, image = rng.normal(size=400)[patient], rng.normal(size=400)[patient]
    labels = (rng.random(400)[patient] < expit(age + 0.25 * image)).astype(int)
    once = np.zeros((1, 1200), int)
    found = nested_test(labels, image[None], age[:, None], once, patient.tolist(), draws=4000)
    models = [
        sm.GEE(labels, sm.add_constant(np.column_stack(columns)), groups=patient, family=sm.families.Binomial())
        for columns in ((age, image), (age,))
    ]
    expected = models[0].compare_score_test(models[1].fit())["p-value"]
    assert found.log_odds > 0.0
    assert found.p == pytest.approx(float(expected) / 2, rel=0.15)  # that is of both sides
    alone = nested_test(labels, image[None], age[:, None], once, range(1200), draws=4000)
    assert alone.p < found.p / 3  # as if every picture were another patient


def test_copies_of_a_column_and_constant_ones_change_nothing(of_age: benchmark.Sheet) -> None:
    labels, logits, covariates, networks, groups = of_age
    more = np.column_stack([covariates, covariates[:, 0] * 2 + 1, np.full(len(labels), 7.0)])
    assert nested_test(labels, logits, more, networks, groups).p == pytest.approx(
        nested_test(labels, logits, covariates, networks, groups).p, abs=0.01
    )


def test_an_age_that_the_sheet_does_not_have_is_no_added_value(of_age: benchmark.Sheet) -> None:
    labels, logits, covariates, networks, groups = of_age
    gaps = covariates.copy()
    gaps[np.isin(groups, np.unique(groups)[::2]), 0] = np.nan
    filled = np.where(np.isnan(gaps), np.nanmedian(gaps, axis=0), gaps)
    complete = nested_test(labels, logits, gaps, networks, groups)
    assert complete.p > 0.05
    assert complete.pictures == np.isfinite(gaps).all(axis=1).sum()
    assert nested_test(labels, logits, filled, networks, groups).p < 0.001


def test_classes_that_age_separates_leave_nothing_to_add() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 40)
    age = np.where(labels == 1, 70.0, 40.0) + rng.uniform(-5, 5, 80)
    found = nested_test(labels, rng.normal(size=(1, 80)), age[:, None], np.zeros((1, 80), int), range(80))
    assert np.isfinite(found.likelihood_ratio)
    assert found.p > 0.05


def test_a_logit_that_is_a_sum_of_covariates_and_too_few_patients_say_nothing(of_age: benchmark.Sheet) -> None:
    labels, _, covariates, networks, groups = of_age
    age = covariates[:, :1]
    assert np.isnan(nested_test(labels, age.T, age, np.zeros_like(networks), groups).p)
    few = np.flatnonzero(labels == 1)[:4].tolist() + np.flatnonzero(labels == 0)[:40].tolist()
    found = nested_test(labels[few], age[few].T, age[few], np.zeros((1, 44), int), [groups[place] for place in few])
    assert np.isnan(found.p)


def test_a_logit_that_leans_the_wrong_way_adds_nothing(of_age: benchmark.Sheet) -> None:
    labels, _, covariates, networks, groups = of_age
    against = 0.4 * np.random.default_rng(0).normal(size=(1, 400)) - labels
    found = nested_test(labels, against, covariates, networks, groups)
    assert found.p > 0.999
    assert not found.adds
    towards = nested_test(labels, -against, covariates, networks, groups)
    assert towards.p < 0.001
    assert towards.adds
    assert not NestedTest(np.nan, np.nan, np.nan, 10).adds


# --- planted truth


def test_a_lead_that_is_age_alone_vanishes_among_pictures_of_like_age(of_age: benchmark.Sheet) -> None:
    labels, logits, covariates, networks, groups = of_age
    age = covariates[:, 0]
    found = strata.leads(
        labels, expit(logits), networks, groups, strata={"sex": covariates[:, 1], "third of age": strata.thirds(age)},
        ages=age, draws=200,
    )  # fmt: skip
    assert found[strata.ALL_PICTURES].low > 0.8
    assert found["sex"].low > 0.75
    matched = found[strata.SAME_AGE]
    assert matched.value == pytest.approx(0.5, abs=0.08)
    assert matched.low < 0.5 < matched.high < 0.75
    assert found["third of age"].value < found[strata.ALL_PICTURES].value
    sentence = strata.describe_lead("resnet50", found)
    assert "its lead vanishes among those alike in" in sentence
    assert f"age within 5 years, {matched.value:.3f} (" in sentence
    assert f"it leads among those alike in sex, {found['sex'].value:.3f} (" in sentence
    value = av.added_value(labels, logits, covariates, networks, groups, draws=200)
    assert value.nested.p > 0.05
    assert value.differences[av.CLINICAL].difference.low <= 0.0


def test_what_bone_says_beyond_age_is_found() -> None:
    labels, logits, covariates, networks, groups = sheet("image")
    logits = logits * 3.0  # a logit of any scale
    value = av.added_value(labels, logits, covariates, networks, groups, draws=400)
    assert value.nested.p < 0.05
    assert value.nested.log_odds > 0.5
    assert value.auroc[av.BOTH].value > value.auroc[av.CLINICAL].value > 0.9
    assert value.auroc[av.BOOSTED].value > 0.85
    assert value.differences[av.IMAGE].difference.low > 0.0
    assert value.differences[av.IMAGE].p < 0.05
    plain = measure(labels, expit(logits), names=["auroc"], networks=networks)["auroc"]
    assert value.auroc[av.IMAGE].value == pytest.approx(plain)


def test_the_auroc_within_strata_is_that_of_each_weighted_by_its_pairs(of_age: benchmark.Sheet) -> None:
    labels, logits, covariates, networks, groups = of_age
    sex = [None if np.isnan(value) else ("female", "male")[int(value)] for value in covariates[:, 1]]
    right, pairs = 0.0, 0
    for name in ("female", "male"):
        for fold in range(5):
            inside = np.array([value == name for value in sex]) & (networks[0] == fold)
            weight = int(labels[inside].sum() * (1 - labels[inside]).sum())
            right += weight * roc_auc_score(labels[inside], logits[0, inside])
            pairs += weight
    found = strata.stratified_auroc(labels, expit(logits), networks, groups, sex, draws=50)
    assert found.value == pytest.approx(right / pairs)


def test_the_auroc_of_age_itself_is_a_half_among_pictures_of_like_age(of_age: benchmark.Sheet) -> None:
    labels, logits, covariates, networks, groups = of_age
    age = covariates[:, 0]
    assert strata.matched_auroc(labels, expit(age / 10)[None], networks, groups, age, draws=50).value == pytest.approx(
        0.5
    )
    near = np.abs(age[:, None] - age) <= 5.0
    pair = near & (labels[:, None] == 1) & (labels == 0) & (networks[0][:, None] == networks[0])
    assert (age[:, None] > age)[pair].mean() > 0.55  # were it not for the balance
    right = (np.sign(logits[0][:, None] - logits[0]) + 1) / 2
    older = np.sign(age[:, None] - age)
    shares = {side: np.average(right, weights=pair & (older == side)) for side in (-1, 0, 1)}
    same = (pair & (older == 0)).sum() / pair.sum()
    found = strata.matched_auroc(labels, logits, networks, groups, age, draws=50)
    assert found.value == pytest.approx((1 - same) * (shares[-1] + shares[1]) / 2 + same * shares[0])


def test_strata_of_one_class_and_unknown_ages_have_no_pairs() -> None:
    labels, networks, scores = np.array([0, 1] * 10), np.zeros((1, 20), int), np.linspace(0.1, 0.9, 20)[None]
    groups = list(range(20))
    assert np.isnan(strata.stratified_auroc(labels, scores, networks, groups, labels, draws=20).value)
    assert np.isnan(strata.stratified_auroc(labels, scores, networks, groups, [None] * 20, draws=20).value)
    assert np.isnan(strata.matched_auroc(labels, scores, networks, groups, np.full(20, np.nan), draws=20).value)
    assert np.isnan(strata.matched_auroc(labels, scores, networks, groups, 40.0 + 30 * labels, draws=20).value)
    assert strata.thirds(np.array([1.0, 2.0, 3.0, np.nan])).tolist()[:3] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("within", "end"),
    [
        (Interval(0.52, 0.41, 0.63), "; its lead vanishes among those alike in age, 0.520 (0.410 to 0.630), so it may"
                                     " tell this and not bone."),
        (Interval(0.82, 0.71, 0.93), "; it leads among those alike in age, 0.820 (0.710 to 0.930)."),
        (Interval(0.72, 0.41, 0.95), "; too few pairs are alike in age, 0.720 (0.410 to 0.950), to say."),
        (Interval(np.nan, np.nan, np.nan), "; too few pairs are alike in age, to say."),
    ],
)  # fmt: skip
def test_one_sentence_says_whose_lead_it_is(within: Interval, end: str) -> None:
    found = {strata.ALL_PICTURES: Interval(0.9, 0.85, 0.94), "age": within}
    assert (
        strata.describe_lead("resnet50", found)
        == "resnet50 has an AUROC of 0.900 (0.850 to 0.940) over all pictures" + end
    )
    found[strata.ALL_PICTURES] = Interval(0.6, 0.45, 0.7)
    assert strata.describe_lead("resnet50", found).endswith("which shows no lead that strata could explain.")


LOST, KEPT = Interval(0.52, 0.41, 0.63), Interval(0.82, 0.71, 0.93)
ALL_LEAD = "resnet50 has an AUROC of 0.900 (0.850 to 0.940) over all pictures; "
AGE_LOST, SOURCE_LOST = "age, 0.520 (0.410 to 0.630)", "source, 0.520 (0.410 to 0.630)"
AGE_KEPT, SOURCE_KEPT = "age, 0.820 (0.710 to 0.930)", "source, 0.820 (0.710 to 0.930)"
LITTLE = (
    f"little of its lead is left among those alike in {AGE_LOST}, so most of it may tell this, and what it adds is too"
    " little for these pairs to show"
)
OF_SOURCE = (
    f"its lead vanishes among those alike in {SOURCE_LOST}, which the covariates do not hold, so what it adds may tell"
    " this and not bone"
)


@pytest.mark.parametrize(
    ("adds", "age", "source", "said"),
    [
        (True, LOST, LOST, f"{LITTLE}; {OF_SOURCE}."),
        (True, LOST, KEPT, f"{LITTLE}; it leads among those alike in {SOURCE_KEPT}."),
        (True, KEPT, LOST, f"{OF_SOURCE}; it leads among those alike in {AGE_KEPT}."),
        (True, KEPT, KEPT, f"it leads among those alike in {AGE_KEPT} and {SOURCE_KEPT}."),
        *(
            (adds, age, source, said.format(doubt))
            for adds, doubt in ((False, ", which nested models do not confirm"), (None, ""))
            for age, source, said in (
                (LOST, LOST, f"its lead vanishes among those alike in {AGE_LOST} and {SOURCE_LOST}, so it may tell this"
                             " and not bone."),
                (LOST, KEPT, f"its lead vanishes among those alike in {AGE_LOST}, so it may tell this and not bone; it"
                             f" leads among those alike in {SOURCE_KEPT}{{}}."),
                (KEPT, LOST, f"its lead vanishes among those alike in {SOURCE_LOST}, so it may tell this and not bone;"
                             f" it leads among those alike in {AGE_KEPT}{{}}."),
                (KEPT, KEPT, f"it leads among those alike in {AGE_KEPT} and {SOURCE_KEPT}{{}}."),
            )
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_lead_agrees_with_whether_it_adds(
    adds: bool | None, age: Interval, source: Interval, said: str
) -> None:
    found = {strata.ALL_PICTURES: Interval(0.9, 0.85, 0.94), "age": age, "source": source}
    assert strata.describe_lead("resnet50", found, adds=adds, known=["sex", "age"]) == ALL_LEAD + said
    assert not (adds and "vanishes among those alike in age" in said)


def test_net_benefit_of_calling_all_and_none_is_known(of_age: benchmark.Sheet) -> None:
    labels, at = of_age.labels, [0.2, 0.5]
    curves = av.decision_curves(labels, {"image": expit(of_age.logits)}, of_age.groups, at, draws=50)
    share = labels.mean()
    odds = np.array(at) / (1 - np.array(at))
    assert [point.value for point in curves["all"]] == pytest.approx(share - (1 - share) * odds)
    assert [point.value for point in curves["none"]] == [0.0, 0.0]
    called = expit(of_age.logits[0]) > 0.2
    expected = (called & (labels == 1)).mean() - odds[0] * (called & (labels == 0)).mean()
    assert curves["image"][0].value == pytest.approx(expected)


@pytest.mark.parametrize(("mix", "often"), [("osteoporosis or not", 0.4), ("osteoporosis or normal", 0.24)])
def test_added_value_is_found_where_it_is_and_seldom_where_it_is_not(mix: str, often: float) -> None:
    """Also where age all but separates the classes; `python -m benchmarks added_value` takes more sheets."""
    sheets, found = 100, dict.fromkeys(COLUMN, 0)
    for follows in COLUMN:
        for seed in range(sheets):
            of_seed = benchmark.draw(np.random.default_rng([seed, 9]), benchmark.MIXES[mix], COLUMN[follows])
            found[follows] += nested_test(*of_seed, draws=400).adds
    assert found["age"] / sheets <= 0.08
    assert found["image"] / sheets >= often
