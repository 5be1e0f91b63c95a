"""What a network's outputs say, whatever the task: the logit of the positive class, and the classes' probabilities.

Shapes: outputs (B,) where a task has one, else (B, K); see `osteo.task.Kind`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from osteo.task import PREDICTED_T_SCORE, T_SCORE_CUTS, Kind, Task, cut_logits, probability_columns
from osteo.types import Floats

LEAST_GAP = 1e-3
"""between two cuts, so that the class between them keeps a probability and a gradient"""

ROUNDED = 1e-6
"""what a gap counts as that rounding of large outputs has closed"""


class Cuts(nn.Module):
    """Proportional odds (McCullagh 1980): the log odds of being beyond each of K ordered cuts of one latent value."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1))
        self.gaps = nn.Parameter(torch.zeros(count - 1))

    def forward(self, latent: Tensor) -> Tensor:
        """Maps (B, 1) to (B, K), which fall from left to right."""
        return latent - torch.cat([self.first, self.first + (LEAST_GAP + softplus(self.gaps)).cumsum(0)])

    @torch.no_grad()
    def begin_at(self, log_odds: Sequence[float]) -> None:
        """Has a latent value of 0 give these log odds."""
        beyond_least = [max(before - after - LEAST_GAP, LEAST_GAP) for before, after in pairwise(log_odds)]
        self.first.fill_(-log_odds[0])
        self.gaps.copy_(torch.tensor([gap + math.log(-math.expm1(-gap)) for gap in beyond_least]))


def positive_logit(kind: Kind, outputs: Tensor) -> Tensor:
    """The logit of the positive class against the rest, (B,)."""
    if kind == "nominal":
        return outputs[:, -1] - outputs[:, :-1].logsumexp(1)
    if kind == "ordinal":
        return outputs[:, -1]
    return cut_logits(outputs) if kind == "regression" else outputs


def log_probabilities(kind: Kind, outputs: Tensor) -> Tensor:
    """The log probabilities of all classes, (B, C), of a nominal or ordinal task."""
    if kind == "nominal":
        return outputs.log_softmax(1)
    beyond, before = logsigmoid(outputs), logsigmoid(-outputs)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    gaps = (outputs[:, :-1] - outputs[:, 1:]).clamp_min(ROUNDED)
    between = beyond[:, :-1] + before[:, 1:] + torch.log(-torch.expm1(-gaps))
    return torch.cat([before[:, :1], between, beyond[:, -1:]], dim=1)


def details_of(task: Task, outputs: Tensor) -> dict[str, Floats]:
    """What a task says beyond the positive class, (N,) each: the probability of every class, or the T-score."""
    if task.kind == "regression":
        return {PREDICTED_T_SCORE: outputs.double().numpy()}
    if not task.has_many_classes:
        return {}
    probabilities = log_probabilities(task.kind, outputs.double()).exp().numpy()
    return dict(zip(probability_columns(task), probabilities.T, strict=True))


def columns_of(task: Task, outputs: Tensor) -> dict[str, Floats]:
    """What predictions.csv has, (N,) each: logit and probability of the positive class, then `details_of` the task."""
    logits = positive_logit(task.kind, outputs)
    return {"logit": logits.numpy(), "probability": logits.double().sigmoid().numpy(), **details_of(task, outputs)}


def facts_of(task: Task, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What metrics of training take, of a task's outputs, float (B,) or (B, K), and labels, float (B,)."""
    truth = labels.long()
    if task.kind == "regression":
        return {"logits": positive_logit(task.kind, outputs), "target": (labels <= T_SCORE_CUTS[-1]).long()}
    if task.kind == "binary":
        return {"logits": outputs, "target": truth}
    target = (truth == task.positive).long()
    called = log_probabilities(task.kind, outputs).argmax(1)
    return {"logits": positive_logit(task.kind, outputs), "target": target, "called": called, "truth": truth}
