"""What is drawn for each picture from the seed, the epoch and the picture alone: numbers, and a partner for mixup."""

import torch
from scipy.stats import beta
from torch import Tensor

GRAIN = 2**14
"""Quantiles of the Beta distribution that a share is drawn from."""


class Mixup:
    """Draws for every picture another one and its own share in their mean (Zhang et al. 2018).

    The partner is any picture of the epoch and not one of the batch, so that what a picture gets follows from the seed,
    the epoch and the picture alone, however batches fall and however many processes share them. Kornia's and timm's
    mixup pair within a batch and draw from the process's random numbers, so a resumed run would be another one. Each
    picture is the larger part of its own mean: of two pictures and a share, the one is as likely as the other.

    Args:
        alpha: of the symmetric Beta distribution, above 0; the smaller, the nearer a share is to 1.
        seed: of all draws.
    """

    def __init__(self, alpha: float, seed: int = 0) -> None:
        self._seed = ~seed  # none that augmentation draws with
        upper = 0.5 + (torch.arange(GRAIN, dtype=torch.float64) + 0.5) / (2 * GRAIN)
        self._shares = torch.from_numpy(beta(alpha, alpha).ppf(upper.numpy())).clamp(0.5, 1.0).float()

    def __call__(self, draw: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Partners and shares.

        Args:
            draw: a number that no other picture or epoch has, int64 (B,).
            count: items of an epoch.

        Returns:
            The item of each partner, int64 (B,) from 0 to `count` - 1, and the share of the picture itself, float32
            (B,) in [0.5, 1]; the partner has the rest.
        """
        uniform = hashed_uniform(self._seed, draw, 2)
        self._shares = self._shares.to(draw.device)
        return (uniform[:, 0] * count).long(), self._shares[(uniform[:, 1] * GRAIN).long()]


def hashed_uniform(seed: int, draw: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 (B, count), from the upper bits of `hashed`."""
    return _shifted(hashed(seed, draw, count), 40).float() * 2.0**-24


def hashed(seed: int, draw: Tensor, count: int) -> Tensor:
    """Numbers of 64 bits by SplitMix64 (Steele, Lea and Flood 2014), int64 (B, count).

    Args:
        seed: of all draws.
        draw: the number of each draw, int64 (B,).
        count: numbers per draw.
    """
    golden = -7046029254386353131  # 2 ** 64 over the golden ratio, odd, as a signed integer
    start = _mix(torch.tensor(seed) + golden)  # on the CPU: a GPU takes it along without being waited for
    state = _mix(start + draw * golden)
    return _mix(state[:, None] + torch.arange(1, count + 1, device=draw.device) * golden)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right: torch's own copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)
