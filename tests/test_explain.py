"""Grad-CAM on known weights, its sanity check, and the share of it that misses the knee."""

import numpy as np
import pytest
import torch

from osteo.data.phantom import draw
from osteo.data.store import square
from osteo.errors import UserError
from osteo.evaluation import gradcam
from osteo.training.network import Network


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "backbone", ["resnet18", "densenet121", "test_convnext", "mobilenetv3_small_050", "regnetx_002"]
)
def test_grad_cam_of_backbones_with_a_feature_map(backbone: str, pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = Network(backbone, image_size=96)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    maps = gradcam.grad_cam(network, pictures)
    assert maps.shape == (2, 96, 96)
    assert maps.min() >= 0.0
    assert all(float(top) in (0.0, pytest.approx(1.0)) for top in maps.amax((1, 2)))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_grad_cam_is_the_class_activation_map_of_a_linear_head(pictures: torch.Tensor) -> None:
    """After global average pooling the gradient is the head's weight, so the map is known."""
    torch.manual_seed(1)
    network = Network("densenet121", image_size=96).eval()
    with torch.no_grad():
        features = network.backbone.forward_features(network.normalise(pictures))
        cam = torch.einsum("c,bchw->bhw", network.backbone.classifier.weight[0], features).clamp(min=0.0)
    ours = gradcam.grad_cam(network, pictures)
    expected = torch.nn.functional.interpolate(cam[:, None], (96, 96), mode="bilinear")[:, 0]
    for one, other in zip(ours, expected, strict=True):
        if other.max() > 0:
            assert one.numpy() == pytest.approx((other / other.max()).numpy(), abs=1e-4)


def test_channels_last_feature_maps_are_read_as_such() -> None:
    network = Network("swin_tiny_patch4_window7_224", image_size=224)
    features = network.backbone.forward_features(network.normalise(torch.rand(1, 1, 224, 224)))
    assert gradcam.channel_axis(network, features) == 3
    assert gradcam.grad_cam(network, torch.rand(1, 1, 224, 224)).shape == (1, 224, 224)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 160), ("levit_128s", 224)])
def test_backbones_without_a_feature_map_are_refused_by_name(backbone: str, size: int) -> None:
    with pytest.raises(UserError, match=f"Grad-CAM needs a spatial feature map, and {backbone} has none"):
        gradcam.grad_cam(Network(backbone, image_size=size), torch.rand(1, 1, size, size))


def test_the_map_follows_what_the_network_was_made_to_see() -> None:
    """A head that reads one channel, and a picture whose bright half is all that moves it."""
    torch.manual_seed(0)
    network = Network("test_resnet", image_size=96)
    dark = torch.zeros(1, 1, 96, 96)
    half = dark.clone()
    half[..., 48:] = torch.rand(48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.eval().backbone.forward_features(network.normalise(half))[0]
        empty = network.backbone.forward_features(network.normalise(dark))[0]
        moved = (features - empty)[..., features.shape[-1] // 2 + 1 :].mean((1, 2))
        head = network.backbone.get_classifier()
        head.weight.zero_()
        head.weight[0, int(moved.argmax())] = 1.0
    cam = gradcam.grad_cam(network, half)[0]
    assert float(cam[:, 60:].mean()) > float(cam[:, :36].mean())


def test_new_weights_give_another_map(pictures: torch.Tensor) -> None:
    network = Network("resnet18", image_size=96)
    state = torch.random.get_rng_state()
    fresh = network.untrained()
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(next(fresh.parameters()), next(network.parameters()))
    maps = gradcam.grad_cam(network, pictures)
    assert gradcam.agreement(maps, maps) == pytest.approx([1.0] * len(gradcam.agreement(maps, maps)))
    assert gradcam.agreement(torch.zeros(1, 4, 4), torch.rand(1, 4, 4)) == []


def test_the_knee_of_a_phantom_is_found_and_its_marker_is_not() -> None:
    rng = np.random.default_rng(5)
    picture = square(draw(rng, -1.0, height=480, width=300), 224, "pad")
    picture[150:175, 28:44] = 255  # a marker on the padding
    knee = gradcam.knee(picture)
    assert knee[100:124, 104:120].mean() > 0.95  # the joint
    assert not knee[150:175, 28:44].any()
    assert not knee[:, :20].any()
    assert not (knee & gradcam.border(224)).any()
    assert 0.1 < knee.mean() < 0.6


def test_attention_counts_what_misses_the_knee() -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[8:56, 24:40] = 200
    cam = np.zeros((64, 64))
    cam[20:30, 28:36] = 1.0  # on the knee
    cam[30:40, 8:16] = 1.0  # on the padding
    cam[0:2, 0:40] = 1.0  # on the border
    found = gradcam.attention(picture, cam)
    assert found.outside == pytest.approx(160 / 240)
    assert found.border == pytest.approx(80 / 240)
    assert found.area == pytest.approx(1.0 - gradcam.knee(picture).mean())
    assert gradcam.attention(picture, np.zeros((64, 64))) is None


def test_an_overlay_keeps_the_picture_where_the_map_is_empty() -> None:
    picture = np.full((8, 8), 100, np.uint8)
    cam = np.zeros((8, 8))
    cam[:4] = 1.0
    heated = gradcam.overlay(picture, cam)
    assert (heated[4:] == 100).all()
    assert not (heated[:4] == 100).all()
