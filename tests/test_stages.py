"""Features of all stages: one map that a linear head is exact on, whatever the backbone; and the last epoch kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osteo.errors import UserError
from osteo.evaluation.gradcam import grad_cam
from osteo.networks.network import Network
from osteo.records.record import Run
from osteo.training.checkpoints import read_checkpoint
from tests.conftest import Result


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit", "swin_tiny_patch4_window7_224"])
def test_every_stage_s_mean_reaches_the_head(backbone: str) -> None:
    torch.manual_seed(0)
    side = {"test_vit": 160, "swin_tiny_patch4_window7_224": 224}.get(backbone, 64)
    network = Network(backbone, image_size=side, stages=True).eval()
    pictures = torch.rand(2, 1, side, side)
    with torch.no_grad():
        _, maps = network.backbone.forward_intermediates(network.normalise(pictures), output_fmt="NCHW")
        pooled, logits = network.pooled(pictures), network(pictures)
        places = pooled.split([of_stage.shape[1] for of_stage in maps], dim=1)
        for place, of_stage in zip(places[:-1], maps[:-1], strict=True):
            assert torch.allclose(place, of_stage.mean((2, 3)), atol=1e-5)
        assert pooled.shape == (2, network.num_features)
        assert torch.allclose(network.classify(network.features(pictures)), logits, atol=1e-6)
        assert torch.allclose(network(pooled), logits, atol=1e-6)
    assert grad_cam(network, pictures).shape == (2, side, side)
    assert network.untrained().num_features == network.num_features


def test_weights_keep_their_names(osteo: Callable[..., Result], tiny: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Network("test_resnet", image_size=64).backbone.state_dict()
    save_file(whole, tmp_path / "weights.safetensors")
    staged = Network("test_resnet", image_size=64, stages=True, weights_file=str(tmp_path / "weights.safetensors"))
    assert all(
        torch.equal(tensor, whole[name]) for name, tensor in staged.backbone.state_dict().items() if name in whole
    )
    assert set(whole) - set(staged.backbone.state_dict()) == {"fc.weight", "fc.bias"}
    done = osteo("train", *tiny, "model.stages=true", "trainer.max_epochs=2", "output_dir=run")
    assert done.code == 0
    again = Network("test_resnet", image_size=64, stages=True, weights_file=str(tmp_path / "run"))
    kept = read_checkpoint(Run(tmp_path / "run").best_checkpoint)["state_dict"]
    assert torch.equal(again.backbone.layer1[0].conv1.weight, kept["network.backbone.layer1.0.conv1.weight"])
    with pytest.raises(UserError, match=r"^model\.stages=true: model\.backbone=torchvision/alexnet does not give its"):
        Network("torchvision/alexnet", image_size=64, stages=True)


def test_the_last_epoch_is_kept_where_it_is_asked_for(
    osteo: Callable[..., Result], tiny: list[str], tmp_path: Path
) -> None:
    asked = [*tiny, "trainer.monitor=epoch", "keep=all"]
    done = osteo("train", *asked, "optimizer.lr=0.3", "trainer.max_epochs=3", "output_dir=run")
    assert done.code == 0
    assert Run(tmp_path / "run").read_environment()["best_epoch"] == 2
    assert osteo("train", "resume=run", "trainer.max_epochs=4").code == 0
    assert Run(tmp_path / "run").read_environment()["best_epoch"] == 3
    for wrong, part in (("callbacks=early_stopping", "callbacks.early_stopping"), ("optimizer.schedule=plateau",) * 2):
        done = osteo("train", *asked, wrong)
        assert done.code == 2
        assert f"trainer.monitor=epoch cannot be waited for or chosen by, as {part} does; use val/loss" in done.err
