"""What a network is shown of a picture while it learns without labels, drawn anew for every picture and epoch."""

import torch
from torch import Tensor

from osteo.training.augment import Augmentation
from osteo.training.draws import hashed_uniform


class TwoViews(Augmentation):
    """Two views of every picture.

    Args:
        view: what makes one of a picture.
    """

    def __init__(self, view: Augmentation) -> None:
        super().__init__()
        self.view = view

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Both views, float (B, 2, S, S) in [0, 1], each of a draw of its own."""
        return torch.cat([self.view(pictures, twins, variant, 2 * draw + number) for number in range(2)], dim=1)


class HiddenParts(Augmentation):
    """A view of every picture, and which of its pixels are hidden.

    Args:
        view: what makes it of a picture.
        share: of the squares of a picture that are hidden.
        patch: side of these squares, in pixels; those at the right and at the bottom may be cut off.
        seed: of all draws.
    """

    def __init__(self, view: Augmentation, share: float, patch: int, seed: int = 0) -> None:
        super().__init__()
        self.view, self.share, self.patch = view, share, patch
        self.seed = ~seed  # none that a view draws with

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """The view and 1 where it is hidden, float (B, 2, S, S); of every picture equally many squares are."""
        view = self.view(pictures, twins, variant, draw)
        side = view.shape[-1]
        squares = -(-side // self.patch)
        count = max(1, round(self.share * squares**2))
        drawn = hashed_uniform(self.seed, draw.to(view.device), squares**2)
        hidden = (drawn.argsort(1).argsort(1) < count).float().view(-1, 1, squares, squares)
        by_pixel = hidden.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)[..., :side, :side]
        return torch.cat([view, by_pixel], dim=1)
