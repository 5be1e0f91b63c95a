"""Augmentation: in range, in shape, drawn a picture, and reproducible."""

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from scipy.stats import kstest

from osteo.config import AugmentConfig
from osteo.data.phantom import draw
from osteo.data.store import clahe, square
from osteo.training.augment import (
    PAPER_VARIANTS,
    Online,
    Paper,
    Parameters,
    _mix,
    hashed_uniform,
    make_augmentation,
    make_cpu_twin,
    paper_twins,
    warp_and_expose,
)

PICTURES = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
SAME = torch.zeros(6, dtype=torch.int64)


def test_online_stays_in_range_and_differs_by_picture() -> None:
    one = PICTURES[:1].expand(6, -1, -1, -1)
    augmented = Online(AugmentConfig())(one, one, SAME, torch.arange(6))
    assert augmented.shape == PICTURES.shape
    assert 0.0 <= float(augmented.min()) <= float(augmented.max()) <= 1.0
    assert all(not torch.equal(augmented[0], other) for other in augmented[1:])


def test_online_follows_seed_and_number_and_nothing_else() -> None:
    numbers = torch.tensor([5, 3, 900, 0, 7, 2])
    first = Online(AugmentConfig(), seed=1)(PICTURES, PICTURES, SAME, numbers)
    torch.manual_seed(99)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    again = Online(AugmentConfig(), seed=1)(PICTURES[order], PICTURES, SAME, numbers[order])
    assert torch.equal(again, first[order])
    assert not torch.equal(Online(AugmentConfig(), seed=2)(PICTURES, PICTURES, SAME, numbers), first)
    assert not torch.equal(Online(AugmentConfig(), seed=1)(PICTURES, PICTURES, SAME, numbers + 1), first)


def test_hashed_numbers_are_those_of_splitmix64() -> None:
    """The first numbers of the generator with the seed 1234567, as its authors' reference prints them."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    golden = -7046029254386353131
    signed = [number - 2**64 if number >= 2**63 else number for number in reference]
    assert _mix(torch.tensor(1234567) + torch.arange(1, 5) * golden).tolist() == signed


def test_hashed_numbers_are_uniform_and_independent() -> None:
    numbers = hashed_uniform(0, torch.arange(40_000), 7)
    assert numbers.dtype == torch.float32
    assert 0.0 <= float(numbers.min()) <= float(numbers.max()) < 1.0
    for column in numbers.T:
        assert kstest(column.numpy(), "uniform").pvalue > 0.001
    together = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], dim=1).T) - torch.eye(14)
    assert float(together.abs().max()) < 0.025  # five standard errors
    assert torch.equal(hashed_uniform(0, torch.tensor([39_999]), 7)[0], numbers[-1])


@pytest.mark.parametrize("side", [32, 97, 224])
def test_one_warp_is_kornia_s_own_chain(side: int) -> None:
    torch.manual_seed(side)
    pictures = torch.rand(8, 1, side, side)
    chain = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(10.0, translate=(0.05, 0.05), scale=(0.9, 1.1), p=1.0),
        K.RandomBrightness((0.8, 1.2), p=1.0),
        K.RandomContrast((0.8, 1.2), p=1.0),
        data_keys=["input"],
    )
    theirs = chain(pictures)
    flip, affine, brightness, contrast = (step.data for step in chain._params)
    ours = warp_and_expose(
        pictures,
        Parameters(
            flip["batch_prob"].flatten().float(), affine["angle"], *affine["translations"].T, affine["scale"][:, 0],
            brightness["brightness_factor"], contrast["contrast_factor"],
        ),
    )  # fmt: skip
    assert 0 < float(flip["batch_prob"].sum()) < 8
    assert float((ours - theirs).abs().max()) < 1e-4


def test_parameters_fill_their_ranges() -> None:
    ranges = AugmentConfig()
    drawn = Online(ranges).drawn(torch.arange(20_000), 224)
    assert float(drawn.flip.mean()) == pytest.approx(0.5, abs=0.02)
    for values, low, high in (
        (drawn.angle, -10.0, 10.0), (drawn.translate_x, -11.2, 11.2), (drawn.translate_y, -11.2, 11.2),
        (drawn.scale, 0.9, 1.1), (drawn.brightness, 0.8, 1.2), (drawn.contrast, 0.8, 1.2),
    ):  # fmt: skip
        assert low <= float(values.min()) < low + (high - low) / 100
        assert high - (high - low) / 100 < float(values.max()) <= high


def test_online_with_no_range_changes_nothing() -> None:
    still = AugmentConfig(flip=0.0, rotate=0.0, translate=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    assert torch.allclose(Online(still)(PICTURES, PICTURES, SAME, SAME), PICTURES, atol=1e-5)


def test_flips_only_flip() -> None:
    always = AugmentConfig(flip=1.0, rotate=0.0, translate=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    assert torch.allclose(Online(always)(PICTURES, PICTURES, SAME, SAME), PICTURES.flip(-1), atol=1e-5)


def test_paper_variants_are_exact_and_chosen_by_index() -> None:
    picture = PICTURES[:1].expand(7, -1, -1, -1)
    twin = 1.0 - picture
    made = Paper(AugmentConfig(brightness=0.05, contrast=0.1))(picture, twin, torch.arange(7), SAME)
    assert len(PAPER_VARIANTS) == Paper.variants == 7
    assert torch.equal(made[0], picture[0])
    assert torch.equal(made[1], picture[0].flip(-1))
    assert torch.equal(made[2], picture[0].flip(-2))
    assert torch.allclose(made[3], (1.1 * picture[0]).clamp(0, 1).add(0.05).clamp(0, 1), atol=1e-6)
    assert torch.equal(made[4], twin[0])
    assert torch.equal(made[5], picture[0].rot90(1, (-2, -1)))
    assert float(made[6, 0, 0, 0]) == 0.0  # a corner that turned in from outside
    assert torch.equal(Paper(AugmentConfig(brightness=0.05, contrast=0.1))(picture, twin, torch.arange(7), SAME), made)


def test_names_choose_pipelines() -> None:
    chosen = {name: type(make_augmentation(AugmentConfig(name=name))).__name__ for name in ("online", "paper", "none")}
    assert chosen == {"online": "Online", "paper": "Paper", "none": "Augmentation"}
    nothing = make_augmentation(AugmentConfig(name="none"))
    assert torch.equal(nothing(PICTURES, PICTURES, SAME, SAME), PICTURES)


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
    made = Paper(ranges)(picture.expand(7, -1, -1, -1), twin.expand(7, -1, -1, -1), torch.arange(7), SAME)
    others = paper_twins(ranges)
    assert list(others) == list(PAPER_VARIANTS[1:]) == list(TOLERANCE)
    for place, (name, change) in enumerate(others.items(), start=1):
        difference = (made[place, 0] * 255 - torch.from_numpy(change(knee).copy()).float()).abs()
        mean, largest = TOLERANCE[name]
        assert float(difference.mean()) <= mean + 1e-4, name
        assert float(difference.max()) <= largest + 1e-3, name
