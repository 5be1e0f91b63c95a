"""Any timm backbone on grey pictures; weights from files; errors that name what is allowed."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from osteo import parts
from osteo.config import OptimizerConfig
from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.networks.network import Network, check_backbone
from osteo.networks.torchvision import Shape, TorchvisionBackbone
from osteo.training.optim import make_optimizer, make_schedule

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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pth", "no such file"),
        ("x.txt", "must end in one of .safetensors"),
        ("x.pth", "x.pth is not a file of weights; save a state_dict"),
        ("x.safetensors", "x.safetensors is not a file of weights; save a state_dict"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, name: str, message: str) -> None:
    for ending in ("txt", "pth", "safetensors"):
        (tmp_path / f"x.{ending}").write_text("version https://git-lfs.github.com/spec/v1\n")
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
    assert "model.pretrained=false" in str(caught.value)
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


FAMILIES = ["alexnet", "vgg11", "resnet18", "googlenet", "inception_v3", "efficientnet_b0", "convnext_tiny", "swin_t"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_backbone_of_torchvision_is_its_network_in_two_halves(name: str) -> None:
    side = 96 if name != "inception_v3" else 128
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(f"torchvision/{name}", Shape(side, channels=3)).eval()
    pictures = torch.rand(2, 3, side, side)
    with torch.no_grad():
        features = backbone.forward_features(pictures)
        assert torch.equal(backbone(pictures), backbone.network(pictures))
        assert torch.equal(backbone.forward_head(features), backbone.network(pictures))
        pooled = backbone.forward_head(features, pre_logits=True)
        assert torch.allclose(backbone.get_classifier()(pooled), backbone.network(pictures), atol=1e-6)
    assert features.shape[:2] == (2, backbone.num_features)
    grey = Network(f"torchvision/{name}", image_size=side).eval()
    cam = grad_cam(grey, torch.rand(2, 1, side, side))
    assert cam.shape == (2, side, side)
    assert 0.0 <= float(cam.min()) <= float(cam.max()) <= 1.0


def test_weights_of_torchvision_are_loaded_and_their_classifier_is_not(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    donor = resnet18(weights=None)
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    network = Network("torchvision/resnet18", image_size=64, weights_file=str(tmp_path / "donor.pth"))
    inner = network.backbone.network
    assert torch.allclose(inner.conv1.weight, donor.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(inner.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
    assert inner.fc.weight.shape == (1, 512)
    short = {name: value for name, value in donor.state_dict().items() if not name.startswith("layer4")}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"short.pth does not fit .*: 25 of 100 tensors are missing"):
        Network("torchvision/resnet18", image_size=64, weights_file=str(tmp_path / "short.pth"))


def test_what_torchvision_does_not_have_or_cannot_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.backbone 'torchvision/vit_b_16' is unknown among \d+ names"):
        check_backbone("torchvision/vit_b_16", 224)
    with pytest.raises(UserError, match=r"the nearest are: torchvision/alexnet"):
        check_backbone("torchvision/alexnt", 224)


def test_layers_of_torchvision_get_rates_that_fall_towards_the_input() -> None:
    network = Network("torchvision/resnet18", image_size=64)
    settings = {**asdict(OptimizerConfig()), "layer_decay": 0.5, "schedule": "constant"}
    optimizer = make_optimizer(network, settings, fused=False)
    make_schedule(optimizer, settings, steps=1, epochs=1, mode="min")
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    inner = network.backbone.network
    assert rate[id(inner.fc.weight)] == pytest.approx(1e-3)
    assert rate[id(inner.conv1.weight)] < rate[id(inner.layer4[1].conv2.weight)] < 1e-3


@pytest.fixture
def head() -> Iterator[str]:
    @parts.heads.register("squashed")
    def squashed(features: int, hidden: int = 4) -> nn.Module:
        return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    yield "squashed"
    del parts.heads._parts["squashed"], parts.heads._origins["squashed"]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "torchvision/alexnet"])
def test_a_head_of_one_s_own_takes_the_pooled_features(head: str, backbone: str) -> None:
    side = 160 if backbone == "test_vit" else 64
    network = Network(backbone, image_size=side, head=head, head_args={"hidden": 3}).eval()
    pictures = torch.rand(2, 1, side, side)
    with torch.no_grad():
        expected = network.head(network.backbone(network.normalise(pictures))).squeeze(1)
        assert torch.equal(network(pictures), expected)
        assert torch.allclose(network.classify(network.features(pictures)), expected, atol=1e-6)
    assert network.head[0].out_features == 3
    assert list(network.classifier()) == [network.head]
    hidden = network.head[0].weight.clone()
    network.begin_at([0.5])
    assert torch.equal(network.head[0].weight, hidden)  # only the last layer makes logits
    assert network(pictures).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"hiden": 3}, r"model.head=squashed with head_args={'hiden': 3}: .*unexpected keyword argument 'hiden'"),
     ({"hidden": -1}, r"model.head=squashed with head_args={'hidden': -1}: ")],
)  # fmt: skip
def test_a_head_with_wrong_arguments_is_one_line(head: str, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Network("test_resnet", image_size=64, head=head, head_args=arguments)
