"""The metrics of a binary classifier, once, for training and for records."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryConfusionMatrix,
    BinaryRecall,
    BinarySpecificity,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from osteo.evaluation.bootstrap import _ranking
from osteo.types import Floats, Statistic

SCALARS = (
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "auroc",
    "sensitivity",
    "specificity",
)


def training_metrics() -> MetricCollection:
    """What is followed while training; takes probabilities and int labels, both (B,)."""
    return MetricCollection({"accuracy": BinaryAccuracy(), "auroc": BinaryAUROC()})


def evaluate(logits: Iterable[float], labels: Iterable[int], *, threshold: float = 0.5) -> dict[str, Any]:
    """Every metric of a record from logits and labels, 0 normal and 1 osteoporosis.

    A picture is predicted osteoporosis where its probability is above the threshold.
    Precision, recall and F1 are macro averages over the two classes, as in the paper's Table 2. Sensitivity is the
    recall of osteoporosis, specificity that of normal. A metric that is undefined because a class is absent is None.

    Returns:
        The names of `SCALARS`, and "confusion_matrix": [[normal right, normal wrong], [missed, osteoporosis right]].
    """
    probabilities = torch.tensor(list(logits), dtype=torch.float64).sigmoid()
    truth = torch.tensor(list(labels), dtype=torch.int64)
    predicted = (probabilities > threshold).to(torch.int64)
    macro: dict[str, Any] = {"num_classes": 2, "average": "macro"}
    by_class = MetricCollection(
        {
            "accuracy": BinaryAccuracy(),
            "precision_macro": MulticlassPrecision(**macro),
            "recall_macro": MulticlassRecall(**macro),
            "f1_macro": MulticlassF1Score(**macro),
            "sensitivity": BinaryRecall(),
            "specificity": BinarySpecificity(),
        }
    )
    present = set(truth.tolist())
    measured = by_class(predicted, truth) | (
        {"auroc": BinaryAUROC()(probabilities, truth)} if len(present) == 2 else {}
    )
    # six digits: torchmetrics divides in float32
    values: dict[str, Any] = {"auroc": None} | {name: round(float(value), 6) for name, value in measured.items()}
    values["sensitivity"] = values["sensitivity"] if 1 in present else None
    values["specificity"] = values["specificity"] if 0 in present else None
    matrix: Tensor = BinaryConfusionMatrix()(predicted, truth)
    return {name: values[name] for name in SCALARS} | {"confusion_matrix": matrix.tolist()}


METRICS = (
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "brier",
)


def metrics(labels: npt.NDArray[np.int_], probabilities: Floats, thresholds: Floats | float = 0.5) -> Statistic:
    """The columns of `METRICS` as a statistic of weighted pictures, the mean over repeats.

    Args:
        labels: 0 or 1, (N,).
        probabilities: of osteoporosis, (R, N); NaN where a repeat did not test a picture.
        thresholds: a picture is called osteoporosis where its probability is above, (R, N) or one for all.
    """
    limit = np.broadcast_to(np.asarray(thresholds, float), probabilities.shape)
    repeats = [
        (known, labels[known], scores[known], (scores > bound)[known])
        for known, scores, bound in zip(np.isfinite(probabilities), probabilities, limit, strict=True)
        if known.any()
    ]

    def statistic(weights: Floats) -> Floats:
        total = np.zeros((len(weights), len(METRICS)))
        for known, truth, scores, called in repeats:
            total += _metrics(weights[:, known], truth, scores, called)
        return total / max(len(repeats), 1)

    return statistic


def _metrics(weights: Floats, truth: npt.NDArray[np.int_], scores: Floats, called: npt.NDArray[np.bool_]) -> Floats:
    ones = truth == 1
    tp, fn = weights @ (ones & called), weights @ (ones & ~called)
    fp, tn = weights @ (~ones & called), weights @ (~ones & ~called)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        precision = np.nan_to_num(tp / (tp + fp)), np.nan_to_num(tn / (tn + fn))  # nothing called: 0, as usual
        f1 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
        total = weights.sum(axis=1)
        auroc, average_precision = _ranking(weights, truth, scores)
        columns = [
            (tp + tn) / total,
            sum(precision) / 2,
            (sensitivity + specificity) / 2,
            sum(f1) / 2,
            auroc,
            average_precision,
            sensitivity,
            specificity,
            weights @ (scores - truth) ** 2 / total,
        ]
    return np.column_stack(columns)
