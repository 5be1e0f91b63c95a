"""A frozen backbone: its features are computed once, kept, and give the logits that pictures give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from osteo.config import AugmentConfig
from osteo.data.store import Store
from osteo.errors import UserError
from osteo.inference.model import load_model
from osteo.networks.features import keep_features
from osteo.networks.network import Network
from osteo.records.record import Run
from osteo.training.augment import Mirrored, Online
from osteo.training.checkpoints import read_checkpoint
from tests.conftest import Result


@pytest.fixture
def probe(tiny: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a training of the classifier alone."""
    torch.manual_seed(0)
    weights = Network("test_resnet", image_size=64).backbone.state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    return [*tiny, "experiment=probe", "model.weights_file=weights.safetensors", f"data.cache={tmp_path / 'cache'}"]


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "features").glob("*.pt"))


def test_kept_features_give_the_logits_of_the_whole_network(
    osteo: Callable[..., Result], probe: list[str], tmp_path: Path
) -> None:
    done = osteo("train", *probe, "trainer.max_epochs=3", "output_dir=run")
    assert done.code == 0
    assert done.out.count("computing the features of") == 2  # as they are, and mirrored
    run = Run(tmp_path / "run")
    model = load_model(run.best_checkpoint)
    start = Network("test_resnet", image_size=64, weights_file="weights.safetensors").backbone.state_dict()
    learnt = model.network.backbone.state_dict()
    assert [name for name, tensor in learnt.items() if not torch.equal(start[name], tensor)] == []
    assert osteo("evaluate", "run", *[key for key in probe if key.startswith("data")], "output_dir=again").code == 0
    first, again = (Run(tmp_path / name).read_predictions() for name in ("run", "again"))
    norm = read_checkpoint(run.best_checkpoint)["state_dict"]
    assert int(norm["network.head.0.num_batches_tracked"]) > 0  # the head is trained in training mode
    merged = first[first["split"] == "test"].merge(again, on="image_id")
    assert len(merged) > 2
    assert merged["logit_x"].std() > 1e-3
    assert merged["logit_x"].to_numpy() == pytest.approx(merged["logit_y"].to_numpy(), abs=1e-5)

    done = osteo("train", *probe, "seed=5", "output_dir=second")
    assert done.code == 0
    assert "computing the features" not in done.out  # of the same pictures and weights
    plain, mirrored = kept(tmp_path)
    content = bytearray(plain.read_bytes())
    content[len(content) // 2] ^= 1
    plain.write_bytes(content)
    torch.save(torch.zeros(3, 7), mirrored)
    done = osteo("train", *probe, "seed=6", "output_dir=third")
    assert done.code == 0
    assert done.out.count("kept features are damaged on the disk: they are computed again") == 2
    assert done.out.count("computing the features of") == 2


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_damaged_features_are_computed_again(tmp_path: Path, content: bytes | None) -> None:
    store = Store(np.zeros((1, 2, 64, 64), np.uint8), {"a": 0, "b": 1}, {})
    network = Network("test_resnet", image_size=64, freeze="backbone").train()
    found = keep_features(network, store, tmp_path, flips=False)
    assert network.training
    [place] = (tmp_path / "features").glob("*.pt")
    place.unlink()
    place.mkdir() if content is None else place.write_bytes(content)
    assert torch.equal(keep_features(network, store, tmp_path, flips=False), found)
    assert place.is_file()


def test_features_belong_to_their_pictures_weights_and_views(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (1, 5, 64, 64), np.uint8)
    store, other = (Store(content, {str(n): n for n in range(5)}, {}) for content in (pictures, pictures // 2))
    torch.manual_seed(0)
    network, second = (Network("test_resnet", image_size=64, freeze="backbone", tta=["zoom"]) for _ in range(2))
    found = keep_features(network, store, tmp_path, flips=True)
    assert found.shape[:2] == (5, 3)
    batch = torch.from_numpy(pictures[0]).unsqueeze(1).float() / 255
    with torch.no_grad():
        assert torch.allclose(found[:, 0], network.pooled(batch), atol=1e-5)
        assert torch.allclose(found[:, 2], network.pooled(batch.flip(-1)), atol=1e-5)
        assert torch.allclose(network.eval()(found), network(batch), atol=1e-5)  # of the views alone
    assert len(list((tmp_path / "features").glob("*.pt"))) == 3
    assert not torch.allclose(keep_features(network, other, tmp_path, flips=True), found)
    assert not torch.allclose(keep_features(second, store, tmp_path, flips=True), found)
    assert len(list((tmp_path / "features").glob("*.pt"))) == 9
    assert torch.equal(keep_features(network, store, tmp_path, flips=False), found[:, :2])


def test_mirror_images_are_drawn_as_those_of_pictures_are() -> None:
    draw, features = torch.arange(200), torch.tensor([[0.0], [1.0]]).expand(200, 2, 1)
    chosen = Mirrored(0.5, 1, seed=3)(features, features, draw, draw)
    assert torch.equal(chosen[:, 0], Online(AugmentConfig(), seed=3).drawn(draw, 64).flip)
    assert 80 < int(chosen.sum()) < 120
    assert not Mirrored(0.0, 2, seed=3)(features, features, draw, draw).any()


def test_a_frozen_backbone_is_refused_where_it_makes_no_sense(osteo: Callable[..., Result], probe: list[str]) -> None:
    for asked, line in (
        ("model.weights_file=null", "model.freeze=backbone: freezing needs weights: set model.pretrained=true or"),
        (
            "callbacks=unfreeze",
            "callbacks.unfreeze unfreezes what model.freeze=backbone keeps frozen",
        ),
        ("augment.rotate=5", "would change: set augment=flip, or augment=none"),
        ("augment.ops=[{RandomAffine: {degrees: 10}}]", "would change: set augment=flip, or augment=none"),
    ):
        done = osteo("train", *probe, asked, "model.pretrained=false")
        assert done.code == 2
        assert line in done.err
    store = Store(np.zeros((1, 1, 32, 32), np.uint8), {"a": 0}, {})
    distilled = Network("deit_tiny_distilled_patch16_224", image_size=32)
    with pytest.raises(UserError, match=r"classifier of model\.backbone=deit_tiny_\w+ takes more than one row"):
        keep_features(distilled, store, Path(), flips=False)
