"""The metrics of a binary classifier, once, for training and for records."""

from collections.abc import Iterable
from typing import Any

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
