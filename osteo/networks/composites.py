"""Networks that the literature builds around those of libraries: one as a sequence, one refined, two fused.

A name says what is built and of which backbones: gru/resnet50, stacked/vgg19, fused/resnet50+densenet121,
attended/densenet169+vit_small_patch16_224; and plain_cnn, which needs none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, dropout

from osteo.networks.torchvision import IMAGENET, Shape

WIDTHS = (32, 64, 128, 256)
"""Channels of the stages of `PlainCnn`, each of which halves the side."""
STATE = 256
"""Numbers that a GRU carries from place to place."""
BLOCKS, DENSE = 5, 128
"""Stacked blocks, and numbers that the dense layer after them gives."""


class Composite(nn.Module):
    """A `parts.Backbone` made of others; what it does with their feature maps is the subclass's.

    Args:
        bases: without classifiers.
        width: numbers per picture that the classifier is given.
        shape: what it is built for.
    """

    num_features: int

    def __init__(self, bases: Sequence[nn.Module], width: int, shape: Shape) -> None:
        super().__init__()
        self.bases = nn.ModuleList(bases)
        self.drop_rate = shape.drop_rate
        first: Any = bases[0] if bases else None
        usual = dict(first.pretrained_cfg) if bases else {**IMAGENET, "input_size": (3, 224, 224)}
        self.pretrained_cfg = usual | {"classifier": "classifier"}
        self.classifier = nn.Linear(width, shape.num_classes) if shape.num_classes else nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to logits (B, K), or to the features before the classifier where it has none."""
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to a map (B, F, H, W)."""
        maps = [as_map(base, base.forward_features(pictures)) for base in self.bases]  # type: ignore[operator]
        return self.combine(maps)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps that to logits, or to the features before the classifier."""
        pooled = dropout(self.pool(features), self.drop_rate, self.training)
        logits: Tensor = pooled if pre_logits else self.classifier(pooled)
        return logits

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def combine(self, maps: list[Tensor]) -> Tensor:
        """One map of those of the bases, each (B, F, H, W)."""
        return maps[0]

    def pool(self, features: Tensor) -> Tensor:
        """The numbers (B, width) of a map."""
        return features.mean((2, 3))


class PlainCnn(Composite):
    """Four stages of convolution, batch norm, ReLU and max pooling, and the mean of the last map."""

    def __init__(self, shape: Shape) -> None:
        super().__init__([], WIDTHS[-1], shape)
        self.num_features = WIDTHS[-1]
        stages: list[nn.Module] = []
        for before, after in zip((shape.channels, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            stages += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*stages)

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to a map (B, F, S / 16, S / 16)."""
        features: Tensor = self.body(pictures)
        return features


class OfSequence(Composite):
    """A map read place by place, row after row, by a gated recurrent unit, whose last state is classified."""

    def __init__(self, bases: Sequence[nn.Module], shape: Shape) -> None:
        super().__init__(bases, STATE, shape)
        self.num_features = _width(bases[0])
        self.gru = nn.GRU(self.num_features, STATE, batch_first=True)

    def pool(self, features: Tensor) -> Tensor:
        """The last state (B, STATE) of a map (B, F, H, W)."""
        places = features.flatten(2).transpose(1, 2)
        with torch.backends.cudnn.flags(enabled=self.training):  # cuDNN's has no gradient in evaluation: Grad-CAM
            _, state = self.gru(places)
        last: Tensor = state[-1]
        return last


class Stacked(Composite):
    """A map refined by five blocks of convolution, ReLU and max pooling that keep its size, then a dense layer."""

    def __init__(self, bases: Sequence[nn.Module], shape: Shape) -> None:
        super().__init__(bases, DENSE, shape)
        width = self.num_features = _width(bases[0])
        blocks: list[nn.Module] = []
        for _ in range(BLOCKS):
            blocks += [nn.Conv2d(width, STATE, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=1, padding=1)]
            width = STATE
        self.num_features = width
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Sequential(nn.Linear(width, DENSE), nn.ReLU())

    def combine(self, maps: list[Tensor]) -> Tensor:
        """The refined map."""
        features: Tensor = self.blocks(maps[0])
        return features

    def pool(self, features: Tensor) -> Tensor:
        """What the dense layer makes of the mean of a map."""
        dense: Tensor = self.dense(features.mean((2, 3)))
        return dense


class Fused(Composite):
    """Maps of several networks, each weighed by a number that is learnt, one after the other on the coarsest grid."""

    def __init__(self, bases: Sequence[nn.Module], shape: Shape) -> None:
        width = sum(map(_width, bases))
        super().__init__(bases, width, shape)
        self.num_features = width
        self.weights = nn.Parameter(torch.zeros(len(bases)))

    def combine(self, maps: list[Tensor]) -> Tensor:
        """The maps, concatenated."""
        rows, columns = min((features.shape[-2:] for features in maps), key=lambda shape: shape[0] * shape[1])
        shares = self.weights.softmax(0) * len(maps)
        on_grid = [adaptive_avg_pool2d(features, (rows, columns)) for features in maps]
        return torch.cat([share * features for share, features in zip(shares, on_grid, strict=True)], dim=1)


class Attended(Fused):
    """The same, followed by attention to channels and then to places (CBAM, Woo et al. 2018)."""

    def __init__(self, bases: Sequence[nn.Module], shape: Shape) -> None:
        super().__init__(bases, shape)
        self.attention = CbamModule(self.num_features)

    def combine(self, maps: list[Tensor]) -> Tensor:
        """The maps, concatenated and attended to."""
        attended: Tensor = self.attention(super().combine(maps))
        return attended


KINDS: dict[str, type[Composite]] = {
    "gru": OfSequence, "stacked": Stacked, "fused": Fused, "attended": Attended,
}  # fmt: skip
"""What a name begins with; see `osteo.networks.names`."""


def make_composite(name: str, bases: Sequence[nn.Module], shape: Shape) -> Composite:
    """The composite of this name."""
    return KINDS[name.partition("/")[0]](bases, shape)  # type: ignore[call-arg]


def _width(base: nn.Module) -> int:
    return int(base.num_features)  # type: ignore[arg-type]


def as_map(base: Any, features: Tensor) -> Tensor:
    """The last features of a backbone as a map (B, F, H, W); a transformer's tokens stand in their places again."""
    if features.ndim == 3:
        tokens = features[:, int(getattr(base, "num_prefix_tokens", 0)) :]
        side = int(tokens.shape[1] ** 0.5)
        placed: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
        return placed
    return features if features.shape[1] == _width(base) else features.permute(0, 3, 1, 2)
