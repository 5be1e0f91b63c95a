"""A backbone of timm's whose features are those of all its stages: the fine grain of early ones beside the last."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, dropout

from osteo.errors import UserError


class _OfStages:
    """The methods of `parts.Backbone` that differ; see `use_stages`."""

    num_features: int
    drop_rate: float
    training: bool
    stage_classifier: nn.Module
    forward_intermediates: Any

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to logits (B, 1), or to pooled features where there is no classifier."""
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Maps normalised (B, C, S, S) to (B, F, H, W), the maps of all stages on the grid of the last."""
        last, maps = self.forward_intermediates(pictures, output_fmt="NCHW")
        if last.ndim == 4:  # of a transformer, the last features are tokens, and a map stands among the others
            last = last.permute(0, 3, 1, 2) if last.shape[1:3] == maps[-1].shape[2:] else last
            is_same = last.shape == maps[-1].shape  # but for a norm
            maps = [*(maps[:-1] if is_same else maps), last]
        grid = maps[-1].shape[-2:]
        return torch.cat([adaptive_avg_pool2d(of_stage, grid) for of_stage in maps], dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps these to logits, or to the features before the classifier."""
        pooled = dropout(features.mean((2, 3)), self.drop_rate, self.training)
        return pooled if pre_logits else self.stage_classifier(pooled)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.stage_classifier


def use_stages(network: nn.Module, name: str, side: int, *, channels: int, classes: int, drop_rate: float) -> nn.Module:
    """Has a backbone without a classifier give the mean of every stage's map, with its tensors named as before.

    Early stages see edges and texture, the last one sees objects: what a radiograph shows of bone is texture. All are
    linear in their means, so that Grad-CAM of a linear head covers every stage.

    Args:
        network: of timm's, built without a classifier.
        name: of it, for errors.
        side: of the pictures, in pixels.
        channels: of the pictures.
        classes: 1 logit, or 0 for no classifier.
        drop_rate: dropout before the classifier.

    Raises:
        UserError: the backbone does not give the features of its stages.
    """
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"model.stages=true: model.backbone={name} does not give its stages; take one of timm's")
    base = type(network)
    network.__class__ = type(f"{base.__name__}OfStages", (_OfStages, base), {})
    staged: Any = network
    staged.drop_rate = drop_rate
    shadow = deepcopy(staged).to("meta").eval()  # a shape alone is computed without memory
    staged.num_features = shadow.forward_features(torch.empty(2, channels, side, side, device="meta")).shape[1]
    staged.stage_classifier = nn.Linear(staged.num_features, classes) if classes else nn.Identity()
    return network
