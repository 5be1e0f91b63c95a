"""Any timm backbone on grey pictures; weights from files; errors that name what is allowed."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from osteo.errors import UserError
from osteo.training.network import Network, check_backbone

GREY = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["densenet201", "resnet50", "densenet121", "test_vit", "test_convnext"])
def test_one_logit_a_picture(backbone: str) -> None:
    network = Network(backbone, image_size=64).eval()
    with torch.no_grad():
        assert network(GREY).shape == (2,)


def test_normalisation_is_the_mean_over_the_channels() -> None:
    network = Network("resnet18", image_size=64)
    assert float(network.mean) == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert float(network.std) == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    assert {"mean", "std"} <= set(network.state_dict())


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_local_weights_of_three_channels_are_summed_into_one(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(1)
    donor = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / f"weights{ending}"
    if ending == ".pth":
        torch.save(donor.state_dict(), path)
    else:
        save_file(donor.state_dict(), str(path))
    network = Network("test_resnet", image_size=64, weights_file=str(path))
    first = next(name for name, p in donor.named_parameters() if p.ndim == 4)
    loaded, given = network.backbone.state_dict(), donor.state_dict()
    assert torch.allclose(loaded[first], given[first].sum(1, keepdim=True), atol=1e-6)
    rest = [name for name, p in given.items() if p.shape == loaded.get(name, torch.empty(0)).shape and p.ndim > 1]
    assert len(rest) > 5
    assert all(torch.equal(loaded[name], given[name]) for name in rest)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"some.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"model.weights_file=other.pth does not fit model.backbone=test_resnet"):
        Network("test_resnet", image_size=64, weights_file=str(path))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('boom')",))


def test_a_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(UserError, match=r"bomb.pth cannot be read safely as a file of weights"):
        Network("test_resnet", image_size=64, weights_file=str(path))


@pytest.mark.parametrize(("name", "message"), [("nowhere.pth", "no such file"), ("x.txt", "must end in .safetensors")])
def test_no_file_and_wrong_ending(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match=message):
        Network("test_resnet", image_size=64, weights_file=str(tmp_path / name))


def test_unknown_backbones_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="the nearest are: densenet121, densenet201"):
        check_backbone("densenet12", 64)
    with pytest.raises(UserError, match=r"model.backbone 'resnet50.a9_in1k' is unknown .* resnet50.a1_in1k"):
        check_backbone("resnet50.a9_in1k", 64)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_built() -> None:
    with pytest.raises(
        UserError, match=r"data.image_size=16 does not fit model.backbone=densenet121 .* usual size is 224"
    ):
        check_backbone("densenet121", 16)


def test_an_unreachable_hub_is_one_line_with_both_ways_out() -> None:
    with pytest.raises(UserError) as caught:
        Network("resnet18", image_size=64, pretrained=True)  # HF_HUB_OFFLINE is set for all tests
    assert "could not be fetched from the model hub" in str(caught.value)
    assert "go online once" in str(caught.value)
    assert "model.weights_file=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_pretrained_weights_says_so() -> None:
    with pytest.raises(UserError, match="timm has no pretrained weights for convnext_atto_rms"):
        Network("convnext_atto_rms", image_size=64, pretrained=True)


def test_a_grey_picture_as_rgb_gives_what_one_summed_channel_gives() -> None:
    torch.manual_seed(2)
    colour = Network("test_resnet", image_size=64, channels=3).eval()
    torch.manual_seed(2)
    grey = Network("test_resnet", image_size=64).eval()
    state = colour.state_dict()
    first = next(name for name, weights in state.items() if weights.ndim == 4)
    assert state[first].shape[1] == 3
    state[first] = state[first].sum(1, keepdim=True)
    mean = colour.mean.mean(), colour.std.mean()
    colour.mean, colour.std = mean[0].expand(3, 1, 1), mean[1].expand(3, 1, 1)
    state["mean"], state["std"] = mean
    grey.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(colour(GREY), grey(GREY), atol=1e-5)
