"""The metrics that training follows by batch: torchmetrics', with ties as the records have them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from osteo.evaluation.ties import join_ties


class Auroc(BinaryAUROC):
    """The area under the ROC curve of logits; those that arithmetic cannot tell apart are ties."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(normalization=None, validate_args=False, **kwargs)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes float logits and int labels, both (B,)."""
        super().update(logits, target)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Joins the ties of all batches; only the ranks of logits matter."""
        logits = join_ties(dim_zero_cat(self.preds).double().cpu().numpy())
        ranks = np.unique(logits, return_inverse=True)[1] / len(logits)
        return binary_auroc(torch.from_numpy(ranks), dim_zero_cat(self.target).cpu()).to(self.device)


def training_metrics() -> MetricCollection:
    """What is followed while training; takes by name `logits`, probabilities `preds`, int labels `target`, all (B,).

    The manifest has checked the labels; torchmetrics would do so in every step, for which the GPU has to be waited for.
    """
    return MetricCollection({"accuracy": BinaryAccuracy(validate_args=False), "auroc": Auroc()})
