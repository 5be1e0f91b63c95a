"""The metrics that training follows by epoch: torchmetrics', with ties as the records have them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
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


class Epoch(Metric):
    """What a network put out in an epoch, kept where it was computed: no batch waits for the device, none is measured.

    Its `values` are metrics of their own, as Lightning logs them: computed when they are read.

    Args:
        task: that the network answers.
        facts: of the task's outputs and the labels of an epoch, what `training_metrics` takes.
    """

    outputs: list[Tensor]
    labels: list[Tensor]
    losses: list[Tensor]
    values: Any

    def __init__(self, task: Task, facts: Callable[[Tensor, Tensor], Mapping[str, Tensor]]) -> None:
        super().__init__()
        self._facts, self._metrics = facts, training_metrics(task)
        self.values = nn.ModuleDict({name: Value(self, name) for name in ("loss", *self._metrics)})
        for name in ("outputs", "labels", "losses"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Keeps a batch: the task's outputs, float (B,) or (B, K), labels and losses, float (B,)."""
        for kept, given in zip((self.outputs, self.labels, self.losses), (outputs, labels, losses), strict=True):
            kept.append(given.detach().clone())  # a graph writes to the same tensors again

    def compute(self) -> dict[str, Tensor]:
        """The mean loss and the metrics of all batches, by name."""
        outputs, labels, losses = map(dim_zero_cat, (self.outputs, self.labels, self.losses))
        self._metrics.reset()
        self._metrics.update(**self._facts(outputs, labels))
        return {"loss": losses.mean(), **self._metrics.compute()}


class Value(Metric):
    """One value of an epoch; it is updated with the epoch."""

    def __init__(self, epoch: Epoch, name: str) -> None:
        super().__init__()
        self._of = (epoch, name)  # no submodule: the epoch has this one as its own

    def update(self) -> None:
        """Says that the epoch has a batch."""

    def compute(self) -> Tensor:
        """The value."""
        epoch, name = self._of
        return epoch.compute()[name]

    def reset(self) -> None:
        """Forgets the epoch."""
        super().reset()
        self._of[0].reset()
