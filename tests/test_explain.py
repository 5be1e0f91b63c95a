"""Grad-CAM on known weights, its sanity check, and the share of it that misses the knee."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from osteo.config import DataConfig
from osteo.data.phantom import draw
from osteo.data.prepare import prepare
from osteo.errors import UserError
from osteo.evaluation import gradcam
from osteo.evaluation.gradcam import Sanity
from osteo.networks.network import Network
from osteo.reading.framing import square
from osteo.records.record import Run
from osteo.report.page import write_report
from osteo.report.radiographs import COMPARED, RANDOM_SEED, RANDOMISED, grad_cams


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


def labelled_phantoms(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 1, S, S) that differ strongly by label, and their labels (N,)."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 2
    drawn = [square(draw(rng, -2.0 if label else 2.0, height=300, width=240), side, "pad") for label in labels]
    return torch.from_numpy(np.stack(drawn)).float().div(255.0)[:, None], torch.from_numpy(labels).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "epochs", "outcome"),
    [
        ("test_convnext", 0, "passed"),
        ("test_convnext", 4, "passed"),
        ("test_efficientnet", 4, "passed"),
        ("test_resnet", 0, "failed"),
    ],
)
def test_other_randomised_networks_give_the_same_sentence(backbone: str, epochs: int, outcome: str) -> None:
    """Of random weights and of briefly trained ones; maps of a random test_resnet are much the same for all weights."""
    pictures, labels = labelled_phantoms(32, 160)
    torch.manual_seed(7)
    network = Network(backbone, image_size=160)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for start in [*range(0, len(labels), 8)] * epochs:
        logits = network.train()(pictures[start : start + 8])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[start : start + 8])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    for seed in (RANDOM_SEED, 2 * RANDOM_SEED):
        randomised = (network.untrained(seed=seed + n) for n in range(RANDOMISED))
        found.append(Sanity(tuple(gradcam.compare_randomised(network, randomised, pictures[:COMPARED])), COMPARED))
    first, second = found
    assert len(first.correlations) == len(second.correlations) == RANDOMISED
    assert first.correlations != second.correlations
    assert max(first.correlations) - min(first.correlations) > 0.3  # one network alone says little
    assert first.outcome == second.outcome == outcome
    assert first.sentence == second.sentence
    assert (first.sentence == "") == (outcome == "passed")


def test_the_same_network_fails_its_sanity_check_in_either_direction(pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    network, turned = (Network("test_convnext", image_size=96) for _ in range(2))
    turned.load_state_dict(network.state_dict())
    with torch.no_grad():
        turned.classifier()[0].weight.neg_()
    assert gradcam.compare_randomised(network, [network, turned], pictures) == pytest.approx([1.0, -1.0])
    for correlations in ([1.0] * 5, [-1.0] * 5, [-0.9, 0.9, -0.8, 0.8, 0.9], [-0.75, -0.8, -0.7, -0.9, -0.75]):
        sanity = Sanity(tuple(correlations), 12)
        assert sanity.outcome == "failed"
        assert not sanity.passed
        assert "failed their sanity check" in sanity.sentence
        assert sanity.describe().endswith("they hardly depend on what was learnt: do not read them.")


def test_the_sanity_rule_has_the_spread_in_it() -> None:
    """Strengths 0.1, 0.2, 0.3 have a mean of 0.2 and a standard error of 0.1 / sqrt(3); t of 2 degrees is 4.3027."""
    sanity = Sanity((0.1, -0.2, 0.3), 8)
    margin = 4.302653 * 0.1 / 3**0.5
    assert sanity.strength == pytest.approx((0.2, 0.2 - margin, 0.2 + margin), abs=1e-6)
    assert sanity.outcome == "passed"
    assert sanity.passed
    assert sanity.describe() == (
        "Sanity check: these maps were compared with those of 3 networks with random weights on 8 pictures."
        " Spearman's correlation is 0.07 on average, from -0.20 to 0.30 by network; its mean absolute value is 0.20"
        " (95 % interval -0.05 to 0.45; the limit is 0.5): they depend on what was learnt."
    )
    for correlations in ((-0.32, -0.75), (0.1, 0.9, -0.5), (0.1,), ()):
        unclear = Sanity(correlations, 8)
        assert (unclear.outcome, unclear.passed) == ("inconclusive", False)
        assert "inconclusive" in unclear.sentence
    assert Sanity((), 8).describe().startswith("The maps could not be compared")


def test_a_report_compares_its_maps_with_many_networks(run: Path, knees: Path) -> None:
    record = Run(run)
    manifest, store = prepare(DataConfig("folder", root=str(knees), image_size=64))
    sha256 = dict(zip(manifest["image_id"], manifest["sha256"], strict=True))
    maps, sanity = grad_cams([record], [], sha256, store)
    predictions = record.read_table("predictions.csv")
    assert sorted(maps) == sorted(predictions.loc[predictions["split"] == "test", "image_id"])
    assert isinstance(sanity, Sanity)
    assert len(sanity.correlations) == RANDOMISED
    assert sanity.pictures == min(COMPARED, len(maps))
    assert grad_cams([record], [], sha256, store)[1] == sanity
    shared = grad_cams([record, record], [], sha256, store)[1]  # the second has no picture left
    assert len(shared.correlations) == RANDOMISED / 2


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "said"), [(-0.9, True), (0.1, False)])
def test_the_verdict_says_that_maps_failed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correlation: float, said: bool
) -> None:
    monkeypatch.setattr(gradcam, "compare_randomised", lambda *_: [correlation] * RANDOMISED)
    report = write_report(shutil.copytree(run, tmp_path / "run"), draws=100)
    assert report.pictures.sanity == Sanity((correlation,) * RANDOMISED, COMPARED)
    assert any("failed their sanity check" in sentence for sentence in report.verdict) is said
    assert f"{correlation:.2f} on average" in (tmp_path / "run" / "report.html").read_text()


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


def test_a_share_of_few_pictures_has_no_interval() -> None:
    table = pd.DataFrame({"image_id": list("abcd"), "label": [0, 0, 1, 1], "group": list("abcd")})
    measured = {name: gradcam.Attention(0.6 + 0.02 * place, 0.2, 0.7) for place, name in enumerate("abcd")}
    (sentence,) = gradcam.findings(measured, table, None)
    assert "in 4 test pictures, 63% lies outside the knee" in sentence
    many = pd.DataFrame({"image_id": range(40), "label": [0, 1] * 20, "group": range(40)})
    shares = {number: gradcam.Attention(0.6 + 0.002 * number, 0.2, 0.7) for number in range(40)}
    (sentence,) = gradcam.findings(shares, many, None)  # type: ignore[arg-type]
    assert "in 40 test pictures, 64% (63% to 65%) lies outside the knee" in sentence
