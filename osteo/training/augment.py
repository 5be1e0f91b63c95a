"""What is done to a batch of pictures while training, on the device that holds it, before normalisation."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from osteo.config import CLAHE_CLIP_LIMIT, CLAHE_TILES, PAPER_VARIANTS, AugmentConfig
from osteo.errors import UserError, first_line
from osteo.libraries import check_operation, operation_of
from osteo.training.draws import hashed, hashed_uniform
from osteo.types import Transform

INPUT_SHAPE = "forward_input_shape"
"""The one parameter that Kornia keeps of a whole batch, whatever the operation: its shape."""


class Augmentation(nn.Module):
    """Base of all pipelines, and the one that changes nothing.

    `forward` takes pictures and their CLAHE twins, both float (B, 1, S, S) in [0, 1], the variant of each, int64 (B,),
    and a number that no other picture or epoch has, int64 (B,), and returns float (B, 1, S, S) in [0, 1].
    """

    variants = 1
    """How many fixed variants of each picture an epoch contains."""
    draws_on_cpu = False
    """Whether a batch waits for numbers from the CPU, so that no CUDA graph can hold it."""

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Returns the pictures as they are."""
        return pictures


class Parameters(NamedTuple):
    """What is done to each picture, float (B,); Kornia's names and meanings."""

    flip: Tensor
    """1 where mirrored"""
    angle: Tensor
    """degrees, clockwise as Kornia's RandomAffine has it"""
    translate_x: Tensor
    """pixels"""
    translate_y: Tensor
    scale: Tensor
    brightness: Tensor
    """less 1, added"""
    contrast: Tensor
    """multiplied"""


class Online(Augmentation):
    """Random flip, affine warp, brightness and contrast, drawn anew for every picture and epoch.

    It is what Kornia's RandomHorizontalFlip, RandomAffine, RandomBrightness and RandomContrast give in this order, in
    one warp and one pass. Parameters are a hash of the seed and the picture's number: the same on every device, in
    every order of the pictures, and after a run was taken up again.
    """

    def __init__(self, config: AugmentConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed = config, seed

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Augments every picture with its own parameters."""
        return warp_and_expose(pictures, self.drawn(draw.to(pictures.device), pictures.shape[-1]))

    def drawn(self, draw: Tensor, side: int) -> Parameters:
        """The parameters of these draws for pictures of this side, in pixels."""
        share = hashed_uniform(self.seed, draw, len(Parameters._fields))  # (B, 7) in [0, 1)
        around = share * 2.0 - 1.0
        config = self.config
        return Parameters(
            flip=(share[:, 0] < config.flip).float(),
            angle=around[:, 1] * config.rotate,
            translate_x=around[:, 2] * config.translate * side,
            translate_y=around[:, 3] * config.translate * side,
            scale=1.0 + around[:, 4] * config.scale,
            brightness=1.0 + around[:, 5] * config.brightness,
            contrast=1.0 + around[:, 6] * config.contrast,
        )


def warp_and_expose(pictures: Tensor, parameters: Parameters) -> Tensor:
    """Warps, then brightens and scales contrast, clamped to [0, 1] as Kornia does; arguments as of `warp`."""
    brightness, contrast = ((parameters.brightness - 1.0).view(-1, 1, 1, 1), parameters.contrast.view(-1, 1, 1, 1))
    return warp(pictures, parameters).add_(brightness).clamp_(0.0, 1.0).mul_(contrast).clamp_(0.0, 1.0)


def warp(pictures: Tensor, parameters: Parameters) -> Tensor:
    """Mirrors, then turns, scales and shifts (bilinear, zeros outside).

    Args:
        pictures: float (B, 1, S, S) in [0, 1].
        parameters: of each.
    """
    side = pictures.shape[-1]
    angle = torch.deg2rad(parameters.angle)
    cos, sin = torch.cos(angle) / parameters.scale, -torch.sin(angle) / parameters.scale
    mirror = 1.0 - 2.0 * parameters.flip
    # where each pixel comes from, in coordinates from -1 to 1 between the centres of the outermost pixels
    x, y = parameters.translate_x * 2.0 / (side - 1), parameters.translate_y * 2.0 / (side - 1)
    line = torch.linspace(-1.0, 1.0, side, device=pictures.device)
    coordinates = (
        (mirror * cos, -mirror * sin, -mirror * (cos * x - sin * y)),
        (sin, cos, -(sin * x + cos * y)),
    )
    grid = [  # by column and by row
        (across[:, None] * line)[:, None, :] + (down[:, None] * line + shift[:, None])[:, :, None]
        for across, down, shift in coordinates
    ]
    return grid_sample(pictures, torch.stack(grid, dim=-1), align_corners=True)


class Operations(Augmentation):
    """Operations of Kornia by name, in the order of a list, drawn anew for every picture and epoch.

    Kornia draws each picture's parameters by itself on the CPU, seeded by a hash of the seed, the picture's number and
    the place in the list: the same on every device, in every order and company of the pictures, and in a resumed run.
    Every operation's result is clamped to [0, 1].

    Args:
        entries: operations of the form {CLASS: {ARGUMENT: VALUE, ...}}, as `augment.ops` has them.
        seed: of all draws.
        side: of the pictures, in pixels.

    Raises:
        UserError: no such operation or argument, a value that Kornia refuses, or an operation that cannot work on grey
            pictures, changes their size, or draws random numbers while it is applied.
    """

    draws_on_cpu = True

    def __init__(self, entries: Sequence[Any], seed: int = 0, side: int = 224) -> None:
        super().__init__()
        # no submodules: Kornia draws on the device that an operation was moved to, and a GPU draws other numbers
        self.operations = [Operation(entry, f"augment.ops[{place}]", side) for place, entry in enumerate(entries)]
        self.seed = seed

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Applies every operation, each picture with the parameters of its draw."""
        seeds = hashed(self.seed, draw.cpu(), len(self.operations)).T.tolist()
        for operation, chosen in zip(self.operations, seeds, strict=True):
            pictures = operation.apply(pictures, operation.draw(chosen, pictures.shape[-1])).clamp(0.0, 1.0)
        return pictures


class Operation:
    """One operation of Kornia, which changes a picture in the same way in every batch; see `Operations`."""

    def __init__(self, entry: Any, key: str, side: int) -> None:
        name, arguments, self._key = operation_of(entry, key)
        self._module = _make_module(name, arguments, self._key)
        try:
            with torch.random.fork_rng(devices=[]):
                self._joins = self._probe(side)
        except UserError:
            raise
        except Exception as error:  # Kornia, torch and Python raise many kinds
            raise UserError(f"{self._key} cannot change {side} x {side} grey pixels: {first_line(error)}") from error

    def draw(self, seeds: Sequence[int], side: int) -> list[dict[str, Any]]:
        """Parameters of single pictures (1, 1, S, S) as Kornia draws them, one picture per seed."""
        drawn = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.default_generator.manual_seed(seed)
                drawn.append(self._module.forward_parameters((1, 1, side, side)))
        return drawn

    def apply(self, pictures: Tensor, drawn: Sequence[dict[str, Any]]) -> Tensor:
        """Changes pictures (B, 1, S, S), each with its parameters; at once where they can be joined."""
        if self._joins and all(_shapes(parameters) == _shapes(drawn[0]) for parameters in drawn):
            return torch.as_tensor(self._module(pictures, params=_join(drawn)))
        return self._one_by_one(pictures, drawn)

    def _one_by_one(self, pictures: Tensor, drawn: Sequence[dict[str, Any]]) -> Tensor:
        pairs = zip(pictures.split(1), drawn, strict=True)
        return torch.cat([self._module(picture, params=dict(parameters)) for picture, parameters in pairs])

    def _probe(self, side: int) -> bool:
        """Whether a batch can be changed at once, tried on a few pictures."""
        pictures = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
        drawn = [{**parameters, "batch_prob": torch.ones(1)} for parameters in self.draw(range(3), side)]
        before = torch.get_rng_state()
        changed = self._one_by_one(pictures, drawn)
        if not torch.equal(before, torch.get_rng_state()):
            raise UserError(
                f"{self._key} draws random numbers while it is applied, so a picture's change could not be repeated"
            )
        if changed.shape != pictures.shape:
            shape = " x ".join(map(str, changed.shape[-2:]))
            raise UserError(f"{self._key} makes {shape} pixels of {side} x {side}; pictures must keep their size")
        if not changed.isfinite().all():
            raise UserError(f"{self._key} makes intensities that are not finite; choose other arguments")
        # what is drawn for a batch as a whole, such as the order of steps, must not become that of its first picture
        batches = {count: _shapes(self._module.forward_parameters((count, 1, side, side))) for count in (2, 3)}
        if any(shape[:1] != (count,) for count, shapes in batches.items() for shape in shapes.values()):
            return False
        self._joins = True
        return torch.allclose(self.apply(pictures, drawn), changed, atol=1e-4)


def _make_module(name: str, arguments: Mapping[str, Any], key: str) -> Any:
    check_operation(name, arguments, key)
    import kornia.augmentation

    kind = getattr(kornia.augmentation, name)
    signature = inspect.signature(kind)
    try:
        signature.bind(**arguments)
        return kind(**{n: _typed(value, signature.parameters[n].annotation) for n, value in arguments.items()})
    except Exception as error:  # Kornia, torch and Python raise many kinds
        raise UserError(f"{key} cannot be made of {dict(arguments)}: {first_line(error)}") from error


def _typed(value: Any, annotation: Any) -> Any:
    """A plain value as Kornia wants it: a tensor where it takes nothing else, and a tuple for a list."""
    if not isinstance(value, list):
        return value
    is_tensor = "Tensor" in str(annotation) and not any(word in str(annotation) for word in ("uple", "float", "int"))
    return torch.tensor(value) if is_tensor else tuple(_typed(item, None) for item in value)


def _shapes(parameters: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of drawn parameters, by name; empty for what is no tensor."""
    varying = {name: value for name, value in parameters.items() if name != INPUT_SHAPE}
    return {name: tuple(value.shape) if isinstance(value, Tensor) else () for name, value in varying.items()}


def _join(drawn: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Parameters of single pictures as those of one batch."""
    joined = {name: torch.cat([parameters[name] for parameters in drawn]) for name in drawn[0] if name != INPUT_SHAPE}
    return joined | {INPUT_SHAPE: torch.tensor([len(drawn), *drawn[0][INPUT_SHAPE][1:].tolist()])}


class Mirrored(Augmentation):
    """Of the kept features (B, V, F) of each picture, those of its mirror image or those of the picture as it is.

    Args:
        flip: probability of the mirror image.
        mirror: its place among the views.
        seed: of all draws, which are those of `Online`.
    """

    def __init__(self, flip: float, mirror: int, seed: int = 0) -> None:
        super().__init__()
        self.flip, self.mirror, self.seed = flip, mirror, seed

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Features of one view, (B, F)."""
        is_mirrored = hashed_uniform(self.seed, draw, len(Parameters._fields))[:, 0] < self.flip
        return pictures[torch.arange(len(pictures), device=pictures.device), is_mirrored * self.mirror]


class Paper(Augmentation):
    """The paper's six variants beside the original, chosen by index: nothing here is random.

    The paper names brightness and contrast, not their amount: `contrast` scales every intensity by 1 + contrast, and
    `brightness` is added to it.
    """

    variants = len(PAPER_VARIANTS)

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.brightness, self.contrast = config.brightness, config.contrast

    def forward(self, pictures: Tensor, twins: Tensor, variant: Tensor, draw: Tensor) -> Tensor:
        """Returns of every picture the variant asked for, in the order of `PAPER_VARIANTS`.

        All are made of all pictures: which are asked for is known on the device, which is not waited for.
        """
        nothing = torch.zeros(len(pictures), device=pictures.device)
        turned = Parameters(nothing, nothing - 45.0, nothing, nothing, nothing + 1.0, nothing + 1.0, nothing + 1.0)
        changed = (
            pictures.flip(-1),
            pictures.flip(-2),
            (pictures * (1.0 + self.contrast)).clamp_(0.0, 1.0).add_(self.brightness).clamp_(0.0, 1.0),
            twins,
            pictures.rot90(1, (-2, -1)),  # Kornia would interpolate
            warp(pictures, turned),
        )
        made, number = pictures, variant.view(-1, 1, 1, 1)
        for place, other in enumerate(changed, start=1):
            made = torch.where(number == place, other, made)
        return made


def make_augmentation(config: AugmentConfig, seed: int = 0, side: int = 224) -> Augmentation:
    """The pipeline that runs on the batch's device; albumentations runs before it, in the workers.

    Args:
        config: which, and how far it goes.
        seed: of all draws.
        side: of the pictures, in pixels.

    Raises:
        UserError: `ops` with another pipeline than online, or an operation that cannot be used.
    """
    if config.ops and config.name != "online":
        raise UserError(f"augment.ops goes with augment=online, not with augment={config.name}")
    if config.ops:
        return Operations(config.ops, seed, side)
    if config.name == "online":
        return Online(config, seed)
    return Paper(config) if config.name == "paper" else Augmentation()


def paper_twins(config: AugmentConfig) -> dict[str, Transform]:
    """The six variants of `Paper` by albumentations, for one uint8 picture (H, W), by their names."""
    albumentations = _albumentations()
    limits = (config.brightness, config.brightness), (config.contrast, config.contrast)
    steps: dict[str, list[Any]] = {
        "horizontal flip": [albumentations.HorizontalFlip(p=1.0)],
        "vertical flip": [albumentations.VerticalFlip(p=1.0)],
        "brightness and contrast": [albumentations.RandomBrightnessContrast(*limits, p=1.0)],
        "CLAHE": [albumentations.CLAHE((CLAHE_CLIP_LIMIT, CLAHE_CLIP_LIMIT), CLAHE_TILES, p=1.0)],
        "rotation by 90 degrees": [albumentations.Transpose(p=1.0), albumentations.VerticalFlip(p=1.0)],
        "rotation by 45 degrees": [albumentations.Rotate((45, 45), p=1.0)],
    }
    return {name: _as_function(albumentations.Compose(made)) for name, made in steps.items()}


def _as_function(pipeline: Any) -> Transform:
    return lambda picture: np.asarray(pipeline(image=picture)["image"], np.uint8)


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version at import
    import albumentations

    return albumentations


def make_cpu_twin(config: AugmentConfig) -> Transform:
    """The transforms of `Online` by albumentations, for one uint8 picture (H, W) on the CPU, for comparison."""
    albumentations = _albumentations()
    pipeline: Any = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=config.flip),
            albumentations.Affine(
                rotate=(-config.rotate, config.rotate),
                translate_percent=dict.fromkeys("xy", (-config.translate, config.translate)),
                scale=(1.0 - config.scale, 1.0 + config.scale),
                p=1.0,
            ),
            albumentations.RandomBrightnessContrast(config.brightness, config.contrast, p=1.0),
        ],
        seed=int(torch.initial_seed() % 2**32),
    )
    return _as_function(pipeline)
