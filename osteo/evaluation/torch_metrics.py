"""The metrics that training follows by batch: torchmetrics', with ties as the records have them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAccuracy
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from osteo.evaluation.ties import join_ties
from osteo.task import BINARY, Task


class Accuracy(BinaryAccuracy):
    """The share of right calls; NaN where a logit is not finite."""

    spoilt: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("spoilt", torch.tensor(0.0), dist_reduce_fx="sum")  # 0, or NaN

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes float logits and int labels, both (B,)."""
        super().update(logits.sigmoid(), target)
        self.spoilt += (logits * 0.0).sum()

    def compute(self) -> Tensor:
        """The share, of all batches."""
        return super().compute() + self.spoilt


class ClassAccuracy(MulticlassAccuracy):
    """The share of right calls among several classes."""

    def __init__(self, count: int) -> None:
        super().__init__(count, average="micro", validate_args=False)

    def update(self, called: Tensor, truth: Tensor) -> None:
        """Takes labels, int64, both (B,)."""
        super().update(called, truth)


class Auroc(BinaryAUROC):
    """The area under the ROC curve of logits; those that arithmetic cannot tell apart are ties.

    NaN where a logit is not finite.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(normalization=None, validate_args=False, **kwargs)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes float logits and int labels, both (B,)."""
        super().update(logits, target)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Joins the ties of all batches; only the ranks of logits matter."""
        logits = join_ties(dim_zero_cat(self.preds).double().cpu().numpy())
        if not np.isfinite(logits).all():
            return torch.tensor(torch.nan, device=self.device)
        ranks = np.unique(logits, return_inverse=True)[1] / len(logits)
        return binary_auroc(torch.from_numpy(ranks), dim_zero_cat(self.target).cpu()).to(self.device)


def training_metrics(task: Task = BINARY) -> MetricCollection:
    """What is followed while training; takes by name what the task's metrics need, each (B,).

    `logits` of the positive class, and `target`, whether it is the true one, int; where there are more classes the
    labels `called` and `truth` too, int64.

    The manifest has checked the labels; torchmetrics would do so in every step, for which the GPU has to be waited for.
    """
    is_binary = task.kind in ("binary", "regression")
    accuracy = Accuracy(validate_args=False) if is_binary else ClassAccuracy(len(task.class_names))
    return MetricCollection({"accuracy": accuracy, "auroc": Auroc()})
