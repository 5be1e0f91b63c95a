"""Known metrics on known predictions."""

import math

import pytest

from osteo.evaluation.metrics import evaluate

# (normal right, normal wrong, osteoporosis wrong, osteoporosis right) in the paper's Fig. 6, and its Table 2
PAPER = {
    "densenet201": ((18, 5, 2, 22), (0.8511, 0.8574, 0.8496, 0.8500)),
    "resnet50": ((17, 6, 3, 21), (0.8085, 0.8139, 0.8071, 0.8071)),
    "densenet121": ((18, 5, 6, 18), (0.7660, 0.7663, 0.7663, 0.7660)),
}


@pytest.mark.parametrize("backbone", PAPER)
def test_table_2_of_the_paper_follows_from_its_confusion_matrices(backbone: str) -> None:
    (right, wrong, missed, found), expected = PAPER[backbone]
    logits = [-2.0] * right + [2.0] * wrong + [-2.0] * missed + [2.0] * found
    labels = [0] * (right + wrong) + [1] * (missed + found)
    values = evaluate(logits, labels)
    table = tuple(round(values[name], 4) for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro"))
    assert table == expected
    assert values["confusion_matrix"] == [[right, wrong], [missed, found]]
    assert values["sensitivity"] == pytest.approx(found / 24, abs=1e-6)
    assert values["specificity"] == pytest.approx(right / 23, abs=1e-6)


def test_auroc_counts_pairs_in_order_and_half_of_the_ties() -> None:
    # pairs (normal, osteoporosis): 6 in all; in order 4, tied 1, reversed 1
    values = evaluate([0.0, 1.0, 1.0, 2.0, 0.5], [0, 0, 1, 1, 1])
    assert values["auroc"] == pytest.approx(4.5 / 6, abs=1e-6)


def test_logits_far_out_keep_their_order() -> None:
    assert evaluate([-90.0, -80.0, 20.0, 30.0], [0, 1, 0, 1])["auroc"] == pytest.approx(0.75)


def test_what_needs_both_classes_is_none_without_them() -> None:
    values = evaluate([-1.0, 1.0], [0, 0])
    assert values["auroc"] is None
    assert values["sensitivity"] is None
    assert values["specificity"] == 0.5
    assert not any(isinstance(v, float) and math.isnan(v) for v in values.values())
