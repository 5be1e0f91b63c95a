"""Augmentation: in range, in shape, drawn a picture, and reproducible."""

import numpy as np
import pytest
import torch

from osteo.augment import PAPER_VARIANTS, Online, Paper, make_augmentation, make_cpu_twin, paper_twins
from osteo.config import AugmentConfig
from osteo.data.phantom import draw
from osteo.data.store import clahe, square

PICTURES = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
SAME = torch.zeros(6, dtype=torch.int64)


def test_online_stays_in_range_and_differs_by_picture() -> None:
    torch.manual_seed(0)
    one = PICTURES[:1].expand(6, -1, -1, -1)
    augmented = Online(AugmentConfig())(one, one, SAME)
    assert augmented.shape == PICTURES.shape
    assert 0.0 <= float(augmented.min()) <= float(augmented.max()) <= 1.0
    assert all(not torch.equal(augmented[0], other) for other in augmented[1:])


def test_online_follows_the_seed() -> None:
    pipeline = Online(AugmentConfig())
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pipeline(PICTURES, PICTURES, SAME))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_online_with_no_range_changes_nothing() -> None:
    still = AugmentConfig(flip=0.0, rotate=0.0, translate=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    assert torch.allclose(Online(still)(PICTURES, PICTURES, SAME), PICTURES, atol=1e-5)


def test_flips_only_flip() -> None:
    always = AugmentConfig(flip=1.0, rotate=0.0, translate=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    assert torch.allclose(Online(always)(PICTURES, PICTURES, SAME), PICTURES.flip(-1), atol=1e-5)


def test_paper_variants_are_exact_and_chosen_by_index() -> None:
    picture = PICTURES[:1].expand(7, -1, -1, -1)
    twin = 1.0 - picture
    made = Paper(AugmentConfig(brightness=0.05, contrast=0.1))(picture, twin, torch.arange(7))
    assert len(PAPER_VARIANTS) == Paper.variants == 7
    assert torch.equal(made[0], picture[0])
    assert torch.equal(made[1], picture[0].flip(-1))
    assert torch.equal(made[2], picture[0].flip(-2))
    assert torch.allclose(made[3], (1.1 * picture[0]).clamp(0, 1).add(0.05).clamp(0, 1), atol=1e-6)
    assert torch.equal(made[4], twin[0])
    assert torch.equal(made[5], picture[0].rot90(1, (-2, -1)))
    assert float(made[6, 0, 0, 0]) == 0.0  # a corner that turned in from outside
    assert torch.equal(Paper(AugmentConfig(brightness=0.05, contrast=0.1))(picture, twin, torch.arange(7)), made)


def test_names_choose_pipelines() -> None:
    chosen = {name: type(make_augmentation(AugmentConfig(name=name))).__name__ for name in ("online", "paper", "none")}
    assert chosen == {"online": "Online", "paper": "Paper", "none": "Augmentation"}
    nothing = make_augmentation(AugmentConfig(name="none"))
    assert torch.equal(nothing(PICTURES, PICTURES, SAME), PICTURES)


def test_the_cpu_twin_flips_as_kornia_does() -> None:
    always = AugmentConfig(flip=1.0, rotate=0.0, translate=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    grey = (PICTURES[0, 0] * 255).round().to(torch.uint8)
    made = torch.from_numpy(make_cpu_twin(always)(grey.numpy()).copy())
    assert torch.equal(made, grey.flip(-1))


TOLERANCE = {  # mean and largest difference in grey levels between Kornia's float and albumentations' eight bits
    "horizontal flip": (0.0, 0.0),
    "vertical flip": (0.0, 0.0),
    "brightness and contrast": (0.6, 1.01),
    "CLAHE": (0.0, 0.0),
    "rotation by 90 degrees": (0.0, 0.0),
    "rotation by 45 degrees": (1.0, 40.0),  # at the rim of the turned picture, one interpolates and the other does not
}


@pytest.mark.parametrize("number", range(4))
def test_kornia_s_variants_are_albumentations_ones(number: int) -> None:
    rng = np.random.default_rng([3, number])
    knee = square(draw(rng, rng.uniform(-4.0, 1.0), height=500, width=int(rng.integers(250, 500))), 224, "resize")
    ranges = AugmentConfig(name="paper", brightness=0.05, contrast=0.1)
    picture, twin = (torch.from_numpy(grey)[None, None].float() / 255 for grey in (knee, clahe(knee)))
    made = Paper(ranges)(picture.expand(7, -1, -1, -1), twin.expand(7, -1, -1, -1), torch.arange(7))
    others = paper_twins(ranges)
    assert list(others) == list(PAPER_VARIANTS[1:]) == list(TOLERANCE)
    for place, (name, change) in enumerate(others.items(), start=1):
        difference = (made[place, 0] * 255 - torch.from_numpy(change(knee).copy()).float()).abs()
        mean, largest = TOLERANCE[name]
        assert float(difference.mean()) <= mean + 1e-4, name
        assert float(difference.max()) <= largest + 1e-3, name
