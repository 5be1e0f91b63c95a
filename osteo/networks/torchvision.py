"""torchvision's networks in the form of timm's."""

import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import dropout

from osteo.libraries import TORCHVISION

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Shape(NamedTuple):
    """What a backbone is built for."""

    image_size: int
    """side of a picture, in pixels"""
    channels: int = 1
    num_classes: int = 1
    """outputs, or 0 for no classifier at all"""
    drop_rate: float = 0.0
    of_stages: bool = False
    """whether the features are those of all stages"""


def usual_side(name: str) -> int:
    """The side of the pictures that a network was made for."""
    return 299 if "inception" in name else 224


class TorchvisionBackbone(nn.Module):
    """A classification network of torchvision with timm's interface.

    Args:
        name: with its prefix, such as torchvision/alexnet.
        shape: what it is built for.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        from torchvision import models

        bare, side = name.removeprefix(TORCHVISION), usual_side(name)
        options = {"aux_logits": False, "init_weights": True} if bare in ("googlenet", "inception_v3") else {}
        self.network: nn.Module = models.get_model(bare, weights=None, num_classes=max(1, shape.num_classes), **options)
        self.drop_rate = shape.drop_rate
        self.pretrained_cfg: dict[str, Any] = {**IMAGENET, "input_size": (3, side, side)}
        order = [key for key, child in self.network.named_children() if child is not None]
        place = order.index("avgpool")
        self._body, self._tail = order[:place], order[place + 1 :]
        pooled = getattr(self.network.avgpool, "output_size", 1)
        linears = [layer for layer in self._layers_of_tail() if isinstance(layer, nn.Linear)]
        self.num_features = linears[0].in_features // math.prod(pooled if isinstance(pooled, tuple) else (pooled,) * 2)
        last = next(name for name, layer in self.network.named_modules() if layer is linears[-1])
        self.pretrained_cfg["classifier"] = f"network.{last}"  # where timm's layer-wise decay ends
        if not shape.num_classes:
            _replace(self.network, linears[-1], nn.Identity())
        first = next(layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d))
        if shape.channels != first.in_channels:
            _replace(self.network, first, _same_but(first, shape.channels))

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to logits (B, 1), or to pooled features where it was built without classes."""
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to the last feature map, (B, F, H, W)."""
        for key in self._body:
            pictures = self.network.get_submodule(key)(pictures)
        return pictures

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps a feature map to logits (B, 1), or to the features before the classifier."""
        features = self.network.get_submodule("avgpool")(features)
        *before, last = self._layers_of_tail()
        for layer in before:
            features = layer(features.flatten(1) if isinstance(layer, nn.Linear) else features)
        features = dropout(features.flatten(1), self.drop_rate, self.training)
        return features if pre_logits else last(features)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self._layers_of_tail()[-1]

    def _layers_of_tail(self) -> list[nn.Module]:
        tail = [self.network.get_submodule(key) for key in self._tail]
        return [layer for part in tail for layer in part.modules() if not list(layer.children())]


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, layer in network.named_modules() if layer is old)
    network.set_submodule(name, new)


def _same_but(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A new convolution like this one, for another number of input channels."""
    return nn.Conv2d(
        channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )  # fmt: skip
