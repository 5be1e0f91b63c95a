"""A backbone that takes grey pictures in [0, 1] and returns what a task asks of each. Knows nothing of training."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.functional import dropout

from osteo import parts
from osteo.checks import check_tiles
from osteo.errors import UserError, first_line
from osteo.networks.backbones import create_backbone, usual_size
from osteo.networks.fusion import LateFusion
from osteo.networks.names import LINEAR, STANDARDISED, check_head_name
from osteo.networks.outputs import Cuts, positive_logit
from osteo.networks.torchvision import Shape
from osteo.networks.views import Views, cut, join, separate
from osteo.networks.weights import classifiers
from osteo.reading.covariates import Covariates
from osteo.task import BINARY, TASKS, Task

MISFITS = (AssertionError, RuntimeError, ValueError, IndexError)
"""What backbones raise where a size does not fit."""
SIZES = range(32, 513, 32)
"""Among which a size that fits is looked for."""


class Network(nn.Module):
    """Normalisation, backbone, head, and the outputs of a task.

    Args:
        backbone: any name that timm knows, torchvision/NAME, or what a plugin has registered.
        image_size: side of the pictures, in pixels; backbones of a fixed input size are built for it.
        pretrained: start from the library's weights.
        weights_file: start from a local file of weights, or a run directory, instead.
        channels: 1, or 3 to show the backbone the grey picture three times.
        drop_rate: dropout before the classifier.
        head: linear; standardised, linear on features of mean 0 and variance 1; or what a plugin has registered.
        head_args: arguments of a registered head.
        freeze: none; norms, the backbone's norm layers keep parameters and running statistics while it is trained; or
            backbone, all of it does.
        stages: the head is given the mean of every stage's feature map, not of the last one alone.
        patches: tiles on each side of a picture, of which each gets a logit; the picture's is their mean.
        tta: views beside the picture as it is, whose outputs are averaged in evaluation; see `Views`.
        task: name of what is asked; see `osteo.task.TASKS`.
        covariates: what `Covariates.to_dict` gives, where they are fused with the picture; see `fuse`.

    Raises:
        UserError: a name is unknown, the size does not fit, or weights cannot be had.
        ValueError: `drop_rate` is no share, or `freeze` is unknown.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        pretrained: bool = False,
        weights_file: str | None = None,
        channels: int = 1,
        drop_rate: float = 0.0,
        head: str = LINEAR,
        head_args: Mapping[str, Any] | None = None,
        freeze: str = "none",
        stages: bool = False,
        patches: int = 1,
        tta: Sequence[str] = (),
        task: str = BINARY.name,
        covariates: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.task = TASKS[task]
        if not 0.0 <= drop_rate < 1.0:  # NaN is not
            raise ValueError(f"drop_rate={drop_rate} must be at least 0 and less than 1")
        if freeze not in ("none", "norms", "backbone"):
            raise ValueError(f"freeze={freeze} must be none, norms or backbone")
        check_tiles(image_size, patches)
        width = check_backbone(backbone, image_size // patches, head=head, stages=stages, task=self.task)
        self.name, self.image_size, self.channels, self.patches = backbone, image_size, channels, patches
        self.drop_rate = drop_rate
        self.views = Views(tta, image_size)
        self._parts = {"head": head, "head_args": head_args, "patches": patches, "stages": stages, "task": task}
        shape = Shape(image_size // patches, channels, logits_of(self.task, head), drop_rate, stages)
        self.backbone: Any = create_backbone(backbone, shape, pretrained=pretrained, weights_file=weights_file)
        self.head = None if head == LINEAR else _make_head(head, width, head_args or {}, self.task)
        self.cuts = Cuts(self.task.outputs) if self.task.kind == "ordinal" else None
        # One grey channel stands for three equal ones: their kernels are summed, and what they subtract is averaged.
        usual: Any = self.backbone.pretrained_cfg
        for name in ("mean", "std"):
            values = torch.tensor(usual[name])
            self.register_buffer(name, values.mean() if channels == 1 else values.view(3, 1, 1))
        self.fusion: LateFusion | None = None
        if covariates is not None:
            self.fuse(Covariates.from_dict(covariates))
        self._freeze = freeze
        for layer in self.frozen_layers():
            layer.eval().requires_grad_(False)
        if freeze == "backbone":  # what belongs to no layer too, such as a transformer's tokens
            learns = {id(parameter) for parameter in self.classifier().parameters()}
            for parameter in self.backbone.parameters():
                parameter.requires_grad_(id(parameter) in learns)

    def train(self, mode: bool = True) -> "Network":
        """Enters training, in which frozen layers stay as they are in evaluation, or evaluation."""
        super().train(mode)
        for layer in self.frozen_layers():
            layer.eval()
        return self

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return int(self.backbone.num_features)

    @property
    def device(self) -> torch.device:
        """Where it computes, and where what it is given must lie."""
        return self.mean.device

    def fuse(self, covariates: Covariates) -> None:
        """Has the network take covariates beside the picture, which change nothing until it learns."""
        self._parts["covariates"] = covariates.to_dict()
        self.fusion = LateFusion(covariates, self.task.outputs if self.task.kind == "nominal" else 1)

    def forward(self, pictures: Tensor, covariates: Tensor | None = None) -> Tensor:
        """The task's outputs: logits (B,) of a binary one, else (B,) or (B, K).

        Args:
            pictures: float (B, 1, S, S) in [0, 1]; or what `pooled` gives for them, (B, F), or (B, V, F) of all views.
            covariates: features of the patients, float (B, C), of a network that takes them; None for patients of whom
                nothing is known.
        """
        outputs = self._of_pictures(pictures)
        return outputs if self.fusion is None else self.fusion(outputs, covariates)

    def _of_pictures(self, pictures: Tensor) -> Tensor:
        if pictures.ndim == 2:
            return self._classify_pooled(pictures)
        if pictures.ndim == 3:
            of_views = pictures[:, : len(self.views)]
            outputs = self._classify_pooled(of_views.flatten(0, 1))
            return outputs.view(*of_views.shape[:2], *outputs.shape[1:]).mean(1)
        if self.training or len(self.views) == 1:
            return self._outputs(pictures)
        return torch.stack([self._outputs(view) for view in self.views(pictures)]).mean(0)

    def _outputs(self, pictures: Tensor) -> Tensor:
        tiles = cut(pictures, self.patches)
        return self._mean_of_tiles(self._to_outputs(self.backbone(self.normalise(tiles))))

    def normalise(self, pictures: Tensor) -> Tensor:
        """What the backbone sees of float (B, 1, S, S) in [0, 1]: (B, channels, S, S)."""
        return (pictures.expand(-1, self.channels, -1, -1) - self.mean) / self.std

    def features(self, pictures: Tensor) -> Tensor:
        """The last features of float (B, 1, S, S) in [0, 1]: a map (B, F, H, W) or (B, H, W, F), or tokens."""
        tiles = self.backbone.forward_features(self.normalise(cut(pictures, self.patches)))
        return join(tiles, self.patches, self.num_features)

    def classify(self, features: Tensor) -> Tensor:
        """Maps features to logits of the positive class (B,), of patients of whom nothing is known."""
        tiles = separate(features, self.patches, self.num_features)
        outputs = self._mean_of_tiles(self._to_outputs(self.backbone.forward_head(tiles)))
        if self.fusion is not None:
            outputs = self.fusion(outputs, None)
        return positive_logit(self.task.kind, outputs)

    def pooled(self, pictures: Tensor) -> Tensor:
        """What the classifier gets of float (B, 1, S, S) in [0, 1], in evaluation: (B, F), the mean of the tiles."""
        tiles = self.backbone.forward_features(self.normalise(cut(pictures, self.patches)))
        pooled: Tensor = self.backbone.forward_head(tiles, pre_logits=self.head is None)
        return pooled.view(len(pictures), -1, pooled.shape[-1]).mean(1)

    def _classify_pooled(self, pooled: Tensor) -> Tensor:
        (last,) = [layer for layer in self.classifier() if layer not in (self.cuts, self.fusion)]
        output: Tensor = last(dropout(pooled, self.drop_rate, self.training))
        return self._finish(output.flatten(1))

    def _mean_of_tiles(self, outputs: Tensor) -> Tensor:
        return outputs.view(-1, self.patches**2, *outputs.shape[1:]).mean(1) if self.patches > 1 else outputs

    def classifier(self) -> nn.ModuleList:
        """What is new in a network that starts from weights: its last layers."""
        last = [self.head] if self.head else classifiers(self.backbone)
        return nn.ModuleList([*last, *(layer for layer in (self.cuts, self.fusion) if layer is not None)])

    @torch.no_grad()
    def begin_at(self, outputs: Sequence[float], of_covariates: Tensor | None = None) -> None:
        """Has the network give these outputs (K,) for every picture, until it learns, and what covariates add to them.

        What makes logits gets no weights but a bias: timm draws the weights of some families so large that a training
        would begin with a loss of several times that of a guess, and spoil the backbone's weights.
        """
        auxiliary = getattr(self.backbone, "aux_head", None)  # of VOLO, added to the first
        layers = [layer for layer in self.classifier().modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        bias = torch.tensor([0.0] if self.cuts else outputs)
        makes_logits = [layer for layer in layers if len(layer.weight) == len(bias)]
        for layer in makes_logits[-1:] if self.head else makes_logits:  # of a head, the last alone
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.copy_(torch.zeros_like(bias) if layer is auxiliary else bias)
        if self.cuts:
            self.cuts.begin_at(outputs)
        if self.fusion is not None and of_covariates is not None:
            self.fusion.weight.copy_(of_covariates)

    def frozen_layers(self) -> list[nn.Module]:
        """Layers that are not trained, looked up anew since several devices replace batch norms by synchronised ones.

        timm's freeze_batch_norm_2d would replace batch norms alone, and a checkpoint would lack some of their tensors.
        """
        if self._freeze == "backbone":
            last = {id(parameter) for parameter in self.classifier().parameters()}
            return [part for part in self.backbone.modules() if not any(id(p) in last for p in part.parameters())]
        return [layer for layer in self.backbone.modules() if is_norm(layer)] if self._freeze == "norms" else []

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What of the backbone is trained, by groups of layers as timm has them, the last first; no classifier's.

        Raises:
            UserError: the backbone does not say how its layers are grouped.
        """
        if not hasattr(self.backbone, "group_matcher"):
            raise UserError(
                f"model.backbone={self.name} has no groups of layers, unlike timm's own; train it all at once instead"
            )
        groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True), return_values=True)
        last = set(self.classifier().parameters())
        backwards = [group for _, group in sorted(groups.items(), reverse=True) if not last & set(group)]
        trained = [[parameter for parameter in group if parameter.requires_grad] for group in backwards]
        return [group for group in trained if group]

    def untrained(self, *, seed: int = 0) -> "Network":
        """The same network with new, untrained weights (Adebayo et al. 2018), where this one computes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = Network(self.name, image_size=self.image_size, channels=self.channels, **self._parts)  # type: ignore[arg-type]
        return fresh.to(self.device)

    def _to_outputs(self, output: Tensor) -> Tensor:
        return self._finish(output if self.head is None else self.head(output))

    def _finish(self, last: Tensor) -> Tensor:
        """The outputs from what the last layer gives, (B, K) or (B, 1)."""
        outputs: Tensor = self.cuts(last) if self.cuts else last
        return outputs.squeeze(1) if self.task.outputs == 1 else outputs


def logits_of(task: Task, head: str) -> int:
    """What the backbone's own classifier gives for a picture; none where a head stands in its place."""
    wanted = 1 if task.kind == "ordinal" else task.outputs
    return wanted if head == LINEAR else 0


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises features: what torch, timm and torchvision call a ...Norm..., and not its wrappers."""
    has_tensors = any(True for _ in chain(layer.parameters(recurse=False), layer.buffers(recurse=False)))
    return has_tensors and "Norm" in type(layer).__name__


def check_backbone(
    backbone: str, image_size: int, *, head: str = LINEAR, stages: bool = False, task: Task = BINARY
) -> int:
    """Builds the backbone without memory and shows it a picture without pixels, before anything slow starts.

    Returns:
        The number of pooled features that a head takes.

    Raises:
        UserError: a name is unknown, the backbone does not accept this size, or it does not keep its contract.
    """
    usual, wanted = usual_size(backbone), logits_of(task, head)
    check_head_name(head)
    try:
        # what a plugin brings may be another network next time
        shape = (_shadow_shape.__wrapped__ if parts.backbones else _shadow_shape)(backbone, image_size, wanted, stages)
    except MISFITS as error:
        fitting = _nearest_size(backbone, image_size, wanted, stages)
        hints = [f"the nearest size that fits is {fitting}"] if fitting else []
        hints += [f"its usual size is {usual}"] if usual else []
        raise UserError(
            f"data.image_size={image_size} does not fit model.backbone={backbone}"
            f" ({first_line(error, most=120)})" + "".join(f"; {hint}" for hint in hints)
        ) from error
    if len(shape) != 2 or (wanted and shape[1] != wanted):
        logits = "one logit" if wanted == 1 else f"{wanted} logits"
        raise UserError(f"model.backbone={backbone} gives {shape} for two pictures, not {logits} each")
    return shape[1]


@lru_cache(maxsize=256)
def _shadow_shape(backbone: str, image_size: int, logits: int, stages: bool) -> tuple[int, ...]:
    """The shape of what the backbone gives for two pictures, without memory."""
    with torch.device("meta"):
        shape = Shape(image_size, num_classes=logits, of_stages=stages)
        shadow: Any = create_backbone(backbone, shape)
        output: Tensor = shadow.eval()(torch.empty(2, 1, image_size, image_size))
    return tuple(output.shape)


def _nearest_size(backbone: str, image_size: int, logits: int, stages: bool) -> int | None:
    """The nearest of `SIZES` that a backbone accepts; None where there is none."""
    for side in sorted(SIZES, key=lambda size: abs(size - image_size)):
        with suppress(*MISFITS):
            _shadow_shape(backbone, side, logits, stages)
            return side
    return None


def check_single_pictures(network: Network) -> None:
    """Shows the network one picture as in training, without memory: some batch norms need more than one.

    Raises:
        UserError: this network has such a layer.
    """
    side = network.image_size
    try:
        deepcopy(network).to("meta").train()(torch.empty(1, 1, side, side, device="meta"))
    except ValueError as error:
        raise UserError(
            f"data.batch_size=1 is too small: model.backbone={network.name} has a batch norm that sees a single number"
            f" then at data.image_size={side}; use data.batch_size=2 or more"
        ) from error


def _standardised(width: int, outputs: int = 1) -> nn.Module:
    """A linear classifier of features with mean 0 and variance 1, as a linear probe needs it."""
    return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, outputs))


def _make_head(name: str, width: int, arguments: Mapping[str, Any], task: Task) -> nn.Module:
    wanted = logits_of(task, LINEAR)
    many = {} if wanted == 1 else {"outputs": wanted}
    try:
        head = (_standardised if name == STANDARDISED else parts.heads[name])(width, **many, **arguments)
        logits = head.eval()(torch.zeros(2, width))
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"model.head={name} with head_args={dict(arguments)}: {first_line(error)}") from error
    if tuple(logits.shape) != (2, wanted):
        raise UserError(f"model.head={name} gives {tuple(logits.shape)} for two pictures, not (2, {wanted})")
    return head.train()
