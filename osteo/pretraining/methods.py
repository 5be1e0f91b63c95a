"""How a network learns without labels: SimCLR, BYOL and masked reconstruction, each with the layers that it needs."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle

from osteo.command_settings import PretrainConfig
from osteo.errors import UserError
from osteo.networks.composites import as_map
from osteo.networks.network import Network

WIDTH = 128
"""Numbers by which two views are compared."""
HIDDEN = 512
"""Numbers of the layer before them."""


class Method(nn.Module):
    """What a network learns by; its layers are left behind when the network is used."""

    def forward(self, network: Network, shown: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            network: that learns.
            shown: what `views_of` gives, float (B, 2, S, S).
        """
        raise NotImplementedError

    def follow(self, network: Network, progress: float) -> None:
        """Called after every step of the optimiser, with the share of all steps that are done."""


class SimClr(Method):
    """Each view is more like the other view of its picture than like any other picture (Chen et al. 2020)."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        width = _pooled_width(network)
        self.projection = SimCLRProjectionHead(width, HIDDEN, WIDTH)
        self.loss = NTXentLoss(temperature=temperature)

    def forward(self, network: Network, shown: Tensor) -> Tensor:
        """The cross-entropy of finding the other view among all others of the batch."""
        first, second = self.projection(network.pooled(_both(shown))).float().chunk(2)
        loss: Tensor = self.loss(first, second)
        return loss


class Byol(Method):
    """What a slowly following teacher makes of one view is foretold from the other view (Grill et al. 2020)."""

    def __init__(self, network: Network, momentum: float) -> None:
        super().__init__()
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        width = _pooled_width(network)
        self.momentum = momentum
        self.projection = BYOLProjectionHead(width, HIDDEN, WIDTH)
        self.prediction = BYOLPredictionHead(WIDTH, HIDDEN, WIDTH)
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.teacher_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.loss = NegativeCosineSimilarity()

    def forward(self, network: Network, shown: Tensor) -> Tensor:
        """The mean over both views of the negative cosine between what is foretold and what the teacher says."""
        views = _both(shown)
        foretold = self.prediction(self.projection(network.pooled(views))).float().chunk(2)
        with torch.no_grad():
            taught = self.teacher_projection(self.teacher.pooled(views)).float().chunk(2)
        loss: Tensor = (self.loss(foretold[0], taught[1]) + self.loss(foretold[1], taught[0])) / 2.0
        return loss

    @torch.no_grad()
    def follow(self, network: Network, progress: float) -> None:
        """Moves the teacher towards the network, less and less: its share rises to 1 along a cosine."""
        momentum = 1.0 - (1.0 - self.momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0
        for teacher, student in ((self.teacher, network), (self.teacher_projection, self.projection)):
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - momentum)


class Masked(Method):
    """Hidden parts of a picture follow from the rest (SimMIM, Xie et al. 2022).

    One layer turns each place of the last feature map into the pixels that it stands for; the loss is the mean absolute
    difference where they were hidden. Pixels are hidden behind what stands for the mean brightness, 0 after
    normalisation, so that any backbone can be used and none is changed.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        shape = _tried(network, self._map).shape
        self.stride = -(-network.image_size // min(shape[2:]))
        self.decoder = nn.Conv2d(shape[1], self.stride**2, 1)

    def _map(self, network: Network, pictures: Tensor) -> Tensor:
        features = network.features(pictures)
        try:
            found = as_map(network.backbone, features)
        except RuntimeError:
            found = features
        if found.ndim != 4:
            raise UserError(
                f"method=masked needs a feature map, which model.backbone={network.name} does not have;"
                f" use method=simclr or"
                " byol"
            )
        return found

    def forward(self, network: Network, shown: Tensor) -> Tensor:
        """The mean absolute difference of hidden pixels, in standard deviations of what the network was made for."""
        pictures, hidden = shown[:, :1], shown[:, 1:]
        middle = network.mean.mean().expand_as(pictures)
        seen = torch.where(hidden > 0.5, middle, pictures)
        drawn = pixel_shuffle(self.decoder(self._map(network, seen)), self.stride).float()
        if drawn.shape != pictures.shape:
            drawn = interpolate(drawn, pictures.shape[-2:], mode="bilinear", align_corners=False)
        wanted = (pictures - middle) / network.std.mean()
        return ((drawn - wanted).abs() * hidden).sum() / hidden.sum()


def make_method(config: PretrainConfig, network: Network) -> Method:
    """The method of a configuration, for a network.

    Raises:
        UserError: the network cannot learn by it.
    """
    if config.method == "masked":
        return Masked(network)
    return SimClr(network, config.temperature) if config.method == "simclr" else Byol(network, config.momentum)


def _both(shown: Tensor) -> Tensor:
    """First views, then second ones: float (2 B, 1, S, S)."""
    return torch.cat([shown[:, :1], shown[:, 1:]])


def _pooled_width(network: Network) -> int:
    """How many numbers a classifier is given of a picture."""
    return _tried(network, lambda shadow, pictures: shadow.pooled(pictures)).shape[1]


@torch.no_grad()
def _tried(network: Network, function: Callable[[Network, Tensor], Tensor]) -> Tensor:
    """What a function of a network and pictures gives for a black one; the network stays as it is."""
    is_training = network.training
    found = function(network.eval(), torch.zeros(1, 1, network.image_size, network.image_size))
    network.train(is_training)
    return found
