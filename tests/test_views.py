"""Test-time augmentation and tiles: the same logit in training's test, evaluate, predict and an exported file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.inference.export import difference, open_exported, write_exported
from osteo.inference.model import load_model
from osteo.networks.network import Network
from osteo.networks.views import Views, cut, join, separate
from osteo.records.record import Run
from tests.conftest import Result


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def test_the_logit_is_the_mean_over_views_in_evaluation_alone() -> None:
    torch.manual_seed(0)
    network = Network("test_resnet", image_size=64, tta=["hflip", "rotate"])
    plain = Network("test_resnet", image_size=64)
    plain.load_state_dict(network.state_dict())  # views have no weights
    batch = pictures(3, 64)
    with torch.no_grad():
        shown = Views(["hflip", "rotate"], 64)(batch)
        assert [network.views.names, len(shown)] == [["plain", "hflip", "rotate", "rotate"], 4]
        assert torch.equal(shown[1], batch.flip(-1))
        expected = torch.stack([plain.eval()(view) for view in shown]).mean(0)
        assert torch.allclose(network.eval()(batch), expected, atol=1e-6)
        assert torch.allclose(network.train()(batch), plain.train()(batch), atol=1e-6)


def test_views_turn_and_enlarge_about_the_centre() -> None:
    line = torch.zeros(1, 1, 101, 101)
    line[..., 50, :] = 1.0  # across
    left, right = Views(["rotate"], 101)(line)[1:]
    rise = 40 * np.tan(np.deg2rad(5))  # of a line turned by 5 degrees, 40 pixels from the centre
    assert [int(view[0, 0, :, 90].argmax()) for view in (left, right)] == [round(50 - rise), round(50 + rise)]
    assert torch.allclose(left, right.flip(-1), atol=1e-5)
    dot = torch.zeros(1, 1, 101, 101)
    dot[..., 50, 90] = 1.0
    assert int(Views(["zoom"], 101)(dot)[1][0, 0, 50].argmax()) == 92  # 50 + 40 x 1.05


@pytest.mark.parametrize("shape", [(8, 6, 4, 4), (8, 4, 4, 6), (8, 5, 6)])
def test_features_of_tiles_are_joined_and_separated(shape: tuple[int, ...]) -> None:
    features = torch.arange(float(np.prod(shape))).reshape(shape)
    joined = join(features, 2, 6)
    assert joined.shape == {(4, 4): (2, 6, 8, 8), (4, 6): (2, 8, 8, 6)}.get(shape[2:], (2, 20, 6))
    assert torch.equal(separate(joined, 2, 6), features)
    batch = pictures(2, 8)
    assert torch.equal(join(cut(batch, 2), 2, 1), batch)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_logit_of_a_picture_is_the_mean_of_its_tiles(backbone: str) -> None:
    torch.manual_seed(0)
    side = 320 if backbone == "test_vit" else 128
    network = Network(backbone, image_size=side, patches=2).eval()
    half, batch = side // 2, pictures(2, side)
    tiles = [batch[..., top : top + half, left : left + half] for top in (0, half) for left in (0, half)]
    with torch.no_grad():
        each = torch.stack([network.backbone(network.normalise(tile)).squeeze(1) for tile in tiles])
        assert torch.allclose(network(batch), each.mean(0), atol=1e-6)
        assert torch.allclose(network.classify(network.features(batch)), each.mean(0), atol=1e-6)
        assert torch.allclose(network(network.pooled(batch)), each.mean(0), atol=1e-5)
    if backbone == "test_resnet":
        assert grad_cam(network, batch).shape == (2, side, side)


def test_what_changes_the_meaning_of_a_label_is_no_view() -> None:
    with pytest.raises(UserError, match="allowed are hflip, rotate, zoom"):
        Views(["invert"], 32)


def test_evaluate_predict_and_an_exported_file_share_views_and_tiles(
    osteo: Callable[..., Result], tiny: list[str], tmp_path: Path
) -> None:
    done = osteo("train", *tiny, "model.tta=[hflip,zoom]", "model.patches=2", "data.image_size=64", "output_dir=run")
    assert done.code == 0
    run = Run(tmp_path / "run")
    model = load_model(run.best_checkpoint)
    assert model.network.views.chosen == ["hflip", "zoom"]
    assert osteo("evaluate", "run", *[key for key in tiny if key.startswith("data")], "output_dir=again").code == 0
    first, again = (Run(tmp_path / name).read_predictions() for name in ("run", "again"))
    merged = first[first["split"] == "test"].merge(again, on="image_id")
    assert merged["logit_x"].to_numpy() == pytest.approx(merged["logit_y"].to_numpy(), abs=1e-4)
    write_exported(model, tmp_path / "model.onnx")
    drawn = [np.random.default_rng(n).integers(0, 256, (64, 64), np.uint8) for n in range(5)]
    assert difference(open_exported(tmp_path / "model.onnx"), model, drawn) < 1e-4
