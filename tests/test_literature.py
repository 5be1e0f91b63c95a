"""The systems that the paper cites: their networks, their experiments, and their claims beside what is measured."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from osteo.app.hydra import CONF
from osteo.errors import UserError
from osteo.evaluation.bootstrap import Interval
from osteo.evaluation.gradcam import evidence, grad_cam
from osteo.evaluation.metrics import all_metrics, check_claim
from osteo.evaluation.systems import _names
from osteo.networks.backbones import create_backbone
from osteo.networks.composites import Fused, OfSequence
from osteo.networks.network import Network
from osteo.networks.torchvision import Shape
from osteo.report.rows import literature_table
from osteo.task import BINARY

SOURCES = sorted((CONF / "experiment" / "literature").glob("*.yaml"))
COMPOSITES = (
    "plain_cnn", "gru/test_resnet", "stacked/test_resnet", "gru/test_vit", "fused/test_resnet+test_vit",
    "attended/test_resnet+torchvision/resnet18",
)  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_answers_explains_and_is_exported(name: str) -> None:
    network = Network(name, image_size=64, task="three_class" if "fused" in name else "binary").eval()
    pictures = torch.rand(2, 1, 64, 64)
    outputs = network(pictures)
    assert outputs.shape == ((2, 3) if "fused" in name else (2,))
    assert bool(torch.isfinite(outputs).all())
    assert grad_cam(network, pictures).shape == (2, 64, 64)
    assert bool((evidence(network, pictures).abs().amax((1, 2)) > 0).all())
    pooled = network.eval().pooled(pictures)
    assert network(pooled).detach().numpy() == pytest.approx(outputs.detach().numpy(), abs=1e-5)
    loss = network.train()(pictures).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_unit_reads_places_row_by_row_and_its_last_state_counts() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("gru/test_resnet", Shape(64)).eval()
    assert isinstance(backbone, OfSequence)
    features = torch.rand(2, backbone.num_features, 2, 3)
    rows = [features[:, :, row, column] for row in range(2) for column in range(3)]
    state = torch.zeros(2, 256)
    cell = torch.nn.GRUCell(backbone.num_features, 256)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in backbone.gru.state_dict().items()})
    with torch.no_grad():
        for place in rows:
            state = cell(place, state)
        assert backbone.pool(features).numpy() == pytest.approx(state.numpy(), abs=1e-5)


def test_fused_maps_are_weighed_by_what_is_learnt() -> None:
    backbone = create_backbone("fused/test_resnet+torchvision/resnet18", Shape(64)).eval()
    assert isinstance(backbone, Fused)
    first, second = (int(base.num_features) for base in backbone.bases)  # type: ignore[arg-type]
    assert backbone.num_features == first + second
    with torch.no_grad():
        backbone.weights.copy_(torch.tensor([np.log(3.0), 0.0]))
        maps = [torch.ones(1, first, 4, 4), torch.ones(1, second, 2, 2)]
        joined = backbone.combine(maps)
    assert joined.shape == (1, first + second, 2, 2)
    assert joined[0, 0, 0, 0].item() == pytest.approx(1.5)
    assert joined[0, -1, 0, 0].item() == pytest.approx(0.5)


def test_a_file_of_weights_goes_to_the_part_that_it_fits(tmp_path: Path) -> None:
    donor = create_backbone("test_resnet", Shape(64))
    torch.save(donor.state_dict(), tmp_path / "resnet.pt")
    made: Any = create_backbone("fused/test_vit+test_resnet", Shape(64), weights_file=str(tmp_path / "resnet.pt"))
    first = next(iter(donor.state_dict()))
    assert torch.equal(made.bases[1].state_dict()[first], donor.state_dict()[first])
    torch.save(made.state_dict(), tmp_path / "both.pt")
    again: Any = create_backbone("fused/test_vit+test_resnet", Shape(64), weights_file=str(tmp_path / "both.pt"))
    kept = made.bases.state_dict(prefix="bases.")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in kept.items())
    with pytest.raises(UserError, match=r"model.weights_file=resnet.pt does not fit model.backbone=gru/test_vit"):
        create_backbone("gru/test_vit", Shape(64), weights_file=str(tmp_path / "resnet.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gru/resnut50", "model.backbone=gru/resnut50: backbone 'resnut50' is unknown"),
        ("fused/test_resnet", r"names too few backbones; as in model.backbone=fused/resnet50\+densenet121"),
        ("fused/test_resnet+nothing_at_all", "backbone 'nothing_at_all' is unknown"),
        ("gru/", "model.backbone=gru/ names too few backbones; as in model.backbone=gru/resnet50"),
        ("fused/test_resnet+", "names too few backbones"),
    ],
)
def test_a_composite_of_nothing_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Network(name, image_size=64)


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_every_source_has_a_claim_and_is_swept(path: Path) -> None:
    chosen = yaml.safe_load(path.read_text())
    claim = chosen["claim"]
    check_claim(claim)
    assert {"source", "doi", "read", "classes"} <= claim.keys()
    swept = yaml.safe_load((CONF / "experiment" / "literature.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert path.stem in swept["experiment/literature"].split(",")
    assert len(SOURCES) == len(swept["experiment/literature"].split(","))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"accurracy": 0.9}, "claim 'accurracy' is unknown"),
        ({"accuracy": 97.3}, "claim.accuracy=97.3 must be a number from 0 to 1"),
        ({"auroc": "0.9"}, "claim.auroc=0.9 must be a number from 0 to 1"),
    ],
)
def test_a_claim_that_cannot_be_is_one_line(claim: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_claim(claim)


def test_claims_stand_beside_what_is_measured() -> None:
    intervals = dict.fromkeys(all_metrics(), Interval(0.8, 0.7, 0.9))

    def result(claim: dict[str, Any]) -> SimpleNamespace:
        run = SimpleNamespace(read_settings=lambda: SimpleNamespace(claim=claim))
        system = SimpleNamespace(name=claim.get("source"), runs=[run], tested=40)
        return SimpleNamespace(system=system, intervals=intervals)

    claims = [
        {"source": "A", "classes": 2, "accuracy": 0.95, "test_pictures": 47, "read": "full text"},
        {"source": "B", "classes": 2, "accuracy": 0.85},
        {"source": "C", "classes": 3, "accuracy": 0.95},
        {"source": "D", "classes": 2, "read": "abstract"},
        {},
    ]
    results: Any = SimpleNamespace(models=list(map(result, claims)), experiment=SimpleNamespace(task=BINARY))
    table = literature_table(results)
    assert table["system"].tolist() == ["A", "B", "C", "D"]
    assert table["claimed"].tolist() == ["0.950", "0.850", "0.950 (3 classes)", "not stated"]
    assert table["claim vs. interval"].tolist() == ["above", "within", "-", "-"]
    assert table["test pictures"].tolist() == [47, *["not stated"] * 3]
    assert set(table["measured"]) == {"0.800 (0.700 to 0.900)"}
    assert table["read"].tolist() == ["full text", "not stated", "not stated", "abstract"]


def test_a_system_is_named_after_its_source_where_that_tells_it_from_the_others() -> None:
    runs = [
        {"model.backbone": "vgg19", "claim.source": "A", "optimizer.lr": 0.1, "data.split.fold": fold}
        for fold in range(2)
    ] + [{"model.backbone": "vgg19", "claim.source": "B", "optimizer.lr": 0.2, "data.split.fold": 0}]
    assert _names(runs) == ["A: vgg19", "A: vgg19", "B: vgg19"]
    runs.append({**runs[-1], "optimizer.lr": 0.3})
    assert _names(runs)[-1] == "vgg19 optimizer.lr=0.3"


def test_the_literature_is_trained_and_reported(osteo: Callable[..., Any], tmp_path: Path) -> None:
    words = ["data=mendeley", "data.name=phantom", "data.phantom.kaggle={normal: 8, osteoporosis: 8}",
             "data.phantom.mendeley={normal: 6, osteopenia: 0, osteoporosis: 6}", "data.split.fold=0",
             "data.split.folds=2", "model.pretrained=false", "data.image_size=32", "data.batch_size=4",
             "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu",
             "logger=null"]  # fmt: skip
    done = osteo("train", "-m", "experiment=literature", "experiment/literature=kumar2024,siddiqua2024", *words,
                 "model.backbone=gru/test_resnet", "output_dir=s")  # fmt: skip
    assert done.code == 0, done.err
    assert osteo("report", "s", "draws=100", "pictures=false").code == 0
    page = (tmp_path / "s/report.md").read_text()
    assert "What the sources claim, beside what is measured here" in page
    assert "| Athira and Kumar 2024: gru/test_resnet | accuracy | 0.953 | not stated |" in page
    assert (tmp_path / "s/tables/literature.tex").exists()
