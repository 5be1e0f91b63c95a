"""Augmentation: in range, in shape, drawn for each picture, and reproducible."""

from pathlib import Path

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import kstest

from osteo.config import PAPER_VARIANTS, AugmentConfig, Config
from osteo.data.phantom import draw
from osteo.errors import UserError
from osteo.libraries import known
from osteo.reading.framing import clahe, square
from osteo.training.augment import (
    Online,
    Operations,
    Paper,
    Parameters,
    _join,
    make_augmentation,
    make_cpu_twin,
    paper_twins,
    warp_and_expose,
)
from osteo.training.draws import _mix, hashed, hashed_uniform

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


FUSED = [
    {"RandomHorizontalFlip": {"p": 0.5}},
    {"RandomAffine": {"degrees": 10, "translate": [0.05, 0.05], "scale": [0.9, 1.1], "p": 1.0}},
    {"RandomBrightness": {"brightness": [0.8, 1.2], "p": 1.0}},
    {"RandomContrast": {"contrast": [0.8, 1.2], "p": 1.0}},
]
"""What the fused warp does, as a list of Kornia's operations."""


def parameters_of(flip: dict, affine: dict, brightness: dict, contrast: dict) -> Parameters:
    """Kornia's parameters of these four operations, as the fused warp takes them."""
    return Parameters(
        flip["batch_prob"].flatten().float(), affine["angle"], *affine["translations"].T, affine["scale"][:, 0],
        brightness["brightness_factor"], contrast["contrast_factor"],
    )  # fmt: skip


def drawn_by(augmentation: Operations, draw: torch.Tensor, side: int) -> Parameters:
    """What the fused warp would be given for these draws."""
    seeds = hashed(augmentation.seed, draw, len(augmentation.operations)).T.tolist()
    drawn = [operation.draw(chosen, side) for operation, chosen in zip(augmentation.operations, seeds, strict=True)]
    return parameters_of(*(_join(parameters) for parameters in drawn))


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
    by_kornia = chain(pictures)
    parameters = parameters_of(*(step.data for step in chain._params))
    assert 0 < float(parameters.flip.sum()) < 8
    assert float((warp_and_expose(pictures, parameters) - by_kornia).abs().max()) < 1e-4


@pytest.mark.parametrize("side", [32, 97, 224])
def test_one_warp_is_the_list_of_operations(side: int) -> None:
    pictures = torch.rand(8, 1, side, side, generator=torch.Generator().manual_seed(side))
    by_name, draw = Operations(FUSED, seed=3, side=side), torch.arange(8)
    changed = by_name(pictures, pictures, draw, draw)
    assert float((warp_and_expose(pictures, drawn_by(by_name, draw, side)) - changed).abs().max()) < 1e-4


def test_the_list_of_operations_draws_as_the_warp_does() -> None:
    draw = torch.arange(4000)
    by_name, fused = drawn_by(Operations(FUSED, seed=5), draw, 224), Online(AugmentConfig(), seed=5).drawn(draw, 224)
    assert float(by_name.flip.mean()) == pytest.approx(0.5, abs=0.04)
    for name in Parameters._fields[1:]:
        ours, reference = getattr(fused, name), getattr(by_name, name)
        assert kstest(reference.numpy(), ours.numpy()).pvalue > 0.001, name
        assert float(ours.max() - ours.min()) == pytest.approx(float(reference.max() - reference.min()), rel=0.01), name
    together = torch.corrcoef(torch.stack(by_name)) - torch.eye(7)
    assert float(together.abs().max()) < 0.08  # five standard errors


def test_parameters_fill_their_ranges() -> None:
    drawn = Online(AugmentConfig()).drawn(torch.arange(20_000), 224)
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
    assert isinstance(make_augmentation(AugmentConfig(ops=FUSED)), Operations)
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


ARGUMENTS = {  # of operations that need some, or that change nothing without, for pictures of 64 x 64
    "CenterCrop": {"size": [64, 64]},
    "ColorJiggle": {"brightness": 0.2, "contrast": 0.2},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2},
    "Denormalize": {"mean": 0.5, "std": 0.5},
    "LongestMaxSize": {"max_size": 64},
    "Normalize": {"mean": 0.5, "std": 0.5},
    "PadTo": {"size": [64, 64]},
    "RandomAffine": {"degrees": 10, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 5},
    "RandomBrightness": {"brightness": [0.8, 1.2]},
    "RandomClahe": {"clip_limit": [1.0, 4.0]},
    "RandomContrast": {"contrast": [0.8, 1.2]},
    "RandomCrop": {"size": [64, 64], "padding": 4},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.0]},
    "RandomGamma": {"gamma": [0.8, 1.2], "gain": [0.8, 1.2]},
    "RandomGaussianBlur": {"kernel_size": [3, 3], "sigma": [0.1, 2.0]},
    "RandomHue": {"hue": [-0.1, 0.1]},
    "RandomMotionBlur": {"kernel_size": [3, 7], "angle": 35.0, "direction": 0.5},
    "RandomResizedCrop": {"size": [64, 64]},
    "RandomRotation": {"degrees": 10},
    "RandomRotation90": {"times": [-3, 3]},
    "RandomSaturation": {"saturation": [0.8, 1.2]},
    "RandomShear": {"shear": 10},
    "RandomSnow": {"snow_coefficient": [0.3, 0.5], "brightness": [1.5, 2.0]},
    "RandomTranslate": {"translate_x": [-0.1, 0.1], "translate_y": [-0.1, 0.1]},
    "Resize": {"size": [64, 64]},
    "SmallestMaxSize": {"max_size": 64},
}
OF_COLOURS = {"RandomHue", "RandomJPEG", "RandomPlanckianJitter", "RandomRGBShift", "RandomSaturation", "RandomSnow"}
UNCHANGING = {  # of a grey picture of 64 x 64 with all intensities from 0 to 1
    "CenterCrop", "LongestMaxSize", "PadTo", "RandomChannelShuffle", "RandomGrayscale", "Resize", "SmallestMaxSize",
}  # fmt: skip
LARGE = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1)).clamp(0.001, 0.999)
LARGE[0] = 0.0


@pytest.mark.parametrize("name", sorted(set(known("operations")) - OF_COLOURS))
def test_every_operation_follows_seed_and_number_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    arguments = ARGUMENTS.get(name, {}) | ({} if name == "PadTo" or name.endswith("MaxSize") else {"p": 0.7})
    augmentation = make_augmentation(AugmentConfig(ops=[{name: arguments}]), seed=1, side=64)
    numbers = torch.tensor([5, 3, 900, 0, 7, 2])
    changed = augmentation(LARGE, LARGE, SAME, numbers)
    assert changed.shape == LARGE.shape
    assert 0.0 <= float(changed.min()) <= float(changed.max()) <= 1.0
    assert torch.equal(changed, LARGE) == (name in UNCHANGING)
    order = torch.tensor([4, 2, 0])
    torch.testing.assert_close(augmentation(LARGE[order], LARGE, SAME, numbers[order]), changed[order])
    again = make_augmentation(AugmentConfig(ops=[{name: arguments}]), seed=1, side=64)
    assert torch.equal(again(LARGE, LARGE, SAME, numbers), changed)
    assert torch.equal(torch.get_rng_state(), state)


def test_operations_draw_anew_for_every_epoch_place_and_seed() -> None:
    rotations = [{"RandomRotation": {"degrees": 90, "p": 1.0}}] * 2
    augmentation = Operations(rotations, seed=1, side=32)
    first, second = (operation.draw([11], 32)[0]["degrees"] for operation in augmentation.operations)
    assert torch.equal(first, second)  # a seed is all that counts, and each place has its own
    draw, other_epoch = torch.arange(6), torch.arange(6) + 100
    once = augmentation(PICTURES, PICTURES, SAME, draw)
    assert all(
        not torch.equal(a, b) for a, b in zip(once, augmentation(PICTURES, PICTURES, SAME, other_epoch), strict=True)
    )
    assert not torch.equal(once, Operations(rotations, seed=2, side=32)(PICTURES, PICTURES, SAME, draw))
    seeds = hashed(1, torch.arange(20_000), 2)
    assert len(set((seeds % 2**32).flatten().tolist())) > 39_990  # all that torch's generator makes of a seed


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_operations_are_applied_with_their_probability(probability: float) -> None:
    ops = [{"RandomInvert": {"p": probability}}, {"RandomVerticalFlip": {"p": 0.0}}]
    pictures = torch.zeros(2000, 1, 16, 16)
    changed = make_augmentation(AugmentConfig(ops=ops), side=16)(pictures, pictures, SAME, torch.arange(2000))
    assert set(changed.unique().tolist()) == {0.0: {0.0}, 0.25: {0.0, 1.0}, 1.0: {1.0}}[probability]
    assert float(changed.mean()) == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize("name", sorted(OF_COLOURS))
def test_operations_on_colours_are_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"augment.ops\[0\].{name} cannot change 64 x 64 grey pixels: .*(3|color)"
    ) as caught:
        make_augmentation(AugmentConfig(ops=[{name: ARGUMENTS.get(name, {})}]), side=64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("RandomAffine", "augment.ops[0]=RandomAffine is not an operation with its arguments, such as {RandomAffine: "),
        ({"RandomAffine": 3}, "augment.ops[0]={'RandomAffine': 3} is not an operation with its arguments"),
        ({"RandomInvert": {}, "RandomEqualize": {}}, "is not an operation with its arguments"),
        ({"RandomAfine": {}}, "augment.ops[0] 'RandomAfine' is unknown among 55 names; the nearest are: RandomAffine"),
        ({"RandomAffine": {"degree": 10}}, "augment.ops[0].RandomAffine 'degree' is unknown; choose one of: degrees, "),
        ({"RandomAffine": {}}, "cannot be made of {}: missing a required argument: 'degrees'"),
        ({"RandomAffine": {"degrees": "ten"}}, "RandomAffine cannot be made of {'degrees': 'ten'}: "),
        ({"RandomGaussianBlur": {"kernel_size": [4, 4], "sigma": [0.1, 2.0]}}, "Kernel size must be an odd integer"),
        ({"RandomInvert": {"p": 7}}, "augment.ops[0].RandomInvert.p=7 is not a probability"),
        ({"RandomInvert": {"p": "often"}}, "augment.ops[0].RandomInvert.p=often is not a probability"),
        (
            {"RandomInvert": {"same_on_batch": True}},
            "same_on_batch is not possible: every picture is augmented on its own",
        ),
        ({"Resize": {"size": [32, 48]}}, "makes 32 x 48 pixels of 64 x 64; pictures must keep their size"),
        ({"Normalize": {"mean": 0.5, "std": 0.0}}, "makes intensities that are not finite"),
        ({"RandomMixUpV2": {}}, "augment.ops[0].RandomMixUpV2 does not work on single 2-D pictures"),
        ({"RandomAffine3D": {}}, "augment.ops[0].RandomAffine3D does not work on single 2-D pictures"),
        ({"RandomDissolving": {}}, "augment.ops[0].RandomDissolving does not work on single 2-D pictures"),
    ],
)
def test_a_wrong_operation_is_one_line(entry: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_augmentation(AugmentConfig(ops=[entry]), side=64)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["paper", "albumentations", "none"])
def test_operations_go_with_the_online_pipeline_alone(name: str) -> None:
    with pytest.raises(UserError, match=f"augment.ops goes with augment=online, not with augment={name}"):
        make_augmentation(AugmentConfig(name=name, ops=FUSED))


def test_what_draws_while_it_is_applied_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: object, pictures: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return pictures + torch.rand_like(pictures)

    monkeypatch.setattr(K.RandomInvert, "apply_transform", apply)
    with pytest.raises(UserError, match="draws random numbers while it is applied"):
        make_augmentation(AugmentConfig(ops=[{"RandomInvert": {}}]), side=32)


def test_operations_are_plain_values_in_a_record(tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.structured(Config(augment=AugmentConfig(ops=FUSED))), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "!!" not in text
    read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(tmp_path / "config.yaml")))
    assert isinstance(read, Config)
    assert read.augment.ops == FUSED
