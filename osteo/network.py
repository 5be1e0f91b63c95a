"""A timm backbone that takes grey pictures in [0, 1] and returns one logit each. Knows nothing of training."""

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, load_state_dict
from torch import Tensor, nn

from osteo.errors import UserError, unknown

log = logging.getLogger(__name__)


class Network(nn.Module):
    """Normalisation, backbone, one logit.

    Args:
        backbone: any name that timm knows.
        image_size: side of the pictures, in pixels; backbones of a fixed input size are built for it.
        pretrained: start from timm's weights.
        weights_file: start from a local file of weights instead, .safetensors or .pth.
        channels: 1, or 3 to show the backbone the grey picture three times.
        drop_rate: dropout before the classifier.

    Raises:
        UserError: the name is unknown, the size does not fit, or weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        pretrained: bool = False,
        weights_file: str | None = None,
        channels: int = 1,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_backbone(backbone, image_size)
        shape = {"in_chans": channels, "drop_rate": drop_rate}
        self.name, self.image_size, self.channels = backbone, image_size, channels
        self.backbone = _create(backbone, image_size, shape, pretrained=pretrained, weights_file=weights_file)
        # One grey channel stands for three equal ones: timm sums the kernels, we average what they subtract.
        usual = usual_input(backbone)
        for name, values in (("mean", torch.tensor(usual.mean)), ("std", torch.tensor(usual.std))):
            self.register_buffer(name, values.mean() if channels == 1 else values.view(3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps float (B, 1, S, S) in [0, 1] to logits (B,); positive means osteoporosis."""
        logits: Tensor = self.backbone(self.normalise(pictures))
        return logits.squeeze(1)

    def normalise(self, pictures: Tensor) -> Tensor:
        """What the backbone sees of float (B, 1, S, S) in [0, 1]: (B, channels, S, S)."""
        return (pictures.expand(-1, self.channels, -1, -1) - self.mean) / self.std


def usual_input(backbone: str) -> PretrainedCfg:
    """What timm says of a backbone's usual input: mean, standard deviation, size.

    Raises:
        UserError: timm does not know the name.
    """
    known = timm.list_pretrained() if "." in backbone else timm.list_models()  # with a tag of weights, or without
    usual = timm.get_pretrained_cfg(backbone) if backbone in known else None
    if usual is None:
        raise unknown("model.backbone", backbone, known)
    return usual


def check_backbone(backbone: str, image_size: int) -> None:
    """Builds the backbone without memory and shows it a picture without pixels, before anything slow starts.

    Raises:
        UserError: timm does not know the name, or the backbone does not accept this size.
    """
    usual = usual_input(backbone)
    try:
        with torch.device("meta"):
            shadow = _create(backbone, image_size, {"in_chans": 1})
            shadow.eval()(torch.empty(2, 1, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"data.image_size={image_size} does not fit model.backbone={backbone}"
            f" ({str(error).splitlines()[0].rstrip('.')[:120]}); its usual size is {usual.input_size[-1]}"
        ) from error


def _create(
    backbone: str,
    image_size: int,
    shape: dict[str, Any],
    *,
    pretrained: bool = False,
    weights_file: str | None = None,
) -> nn.Module:
    shape = {"num_classes": 1, **shape}
    if usual_input(backbone).fixed_input_size:
        shape["img_size"] = image_size
    if weights_file:
        weights = _read_weights(Path(weights_file).expanduser())
        try:
            network = timm.create_model(
                backbone, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(weights)}, **shape
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise _misfit(weights_file, backbone, str(error).strip().splitlines()[-1].strip()[:160]) from error
        wanted = network.state_dict().keys()
        if (known := len(wanted & weights.keys())) < len(wanted) / 2:  # timm passes over what it does not find
            raise _misfit(weights_file, backbone, f"it holds {known} of its {len(wanted)} tensors")
        return network
    if pretrained:
        log.info("fetching the weights of %s from the model hub, unless they are here already", backbone)
    try:
        return timm.create_model(backbone, pretrained=pretrained, **shape)
    except Exception as error:
        if pretrained:  # the hub's client raises errors of a dozen libraries
            raise _out_of_reach(backbone, error) from error
        raise


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights_file={path}: no such file")
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"model.weights_file={path.name} must end in .safetensors or .pth")
    try:
        weights: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # what a broken or hostile file raises depends on where it is broken
        raise UserError(
            f"model.weights_file={path.name} cannot be read safely as a file of weights"
            f" ({type(error).__name__}); save a state_dict with torch.save or safetensors"
        ) from error
    return weights


def _misfit(weights_file: str, backbone: str, reason: str) -> UserError:
    return UserError(f"model.weights_file={Path(weights_file).name} does not fit model.backbone={backbone}: {reason}")


def _out_of_reach(backbone: str, error: Exception) -> UserError:
    if "No pretrained weights exist" in str(error):
        return UserError(
            f"timm has no pretrained weights for {backbone}; set model.pretrained=false, or model.weights_file=FILE"
        )
    return UserError(
        f"the pretrained weights of {backbone} could not be fetched from the model hub ({type(error).__name__});"
        " either go online once, they are kept for later, or give a local file: model.weights_file=FILE.safetensors"
    )
