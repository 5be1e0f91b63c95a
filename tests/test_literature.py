"""The systems that the paper cites: their networks, their experiments, and their claims beside what is measured."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from benchmarks.literature_page import PAGE, page
from osteo.app.hydra import CONF
from osteo.errors import UserError
from osteo.evaluation.bootstrap import Interval
from osteo.evaluation.gradcam import evidence, grad_cam
from osteo.evaluation.metrics import all_metrics, check_claim
from osteo.evaluation.outcomes import model_names
from osteo.evaluation.systems import System, ensembles
from osteo.networks.backbones import create_backbone
from osteo.networks.composites import Fused, OfSequence
from osteo.networks.network import Network
from osteo.networks.torchvision import Shape
from osteo.report.paper import costs
from osteo.report.rows import claim_of, literature_table
from osteo.task import BINARY, RULES

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
def test_every_source_has_a_claim_and_is_swept_unless_it_says_why_not(path: Path) -> None:
    chosen = yaml.safe_load(path.read_text())
    claim = chosen["claim"]
    check_claim(claim)
    is_ours = path.stem.startswith("osteo_")
    assert ({"source", "averaged"} if is_ours else {"source", "doi", "read", "classes", "left_open"}) <= claim.keys()
    swept = yaml.safe_load((CONF / "experiment" / "literature.yaml").read_text())["hydra"]["sweeper"]["params"]
    names = swept["experiment/literature"].split(",")
    assert (path.stem in names) != ("It is not swept by experiment=literature" in path.read_text())
    assert set(names) <= {source.stem for source in SOURCES}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"accurracy": 0.9}, "claim 'accurracy' is unknown"),
        ({"accuracy": 97.3}, "claim.accuracy=97.3 must be a number from 0 to 1"),
        ({"auroc": "0.9"}, "claim.auroc=0.9 must be a number from 0 to 1"),
        ({"three_class": {"accuracy": 98.2}}, "claim.accuracy=98.2 must be a number from 0 to 1"),
    ],
)
def test_a_claim_that_cannot_be_is_one_line(claim: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_claim(claim)


def test_claims_stand_beside_what_is_measured() -> None:
    intervals = dict.fromkeys(all_metrics(), Interval(0.8, 0.7, 0.9))

    def result(claim: dict[str, Any], kind: str = "model") -> SimpleNamespace:
        setting = SimpleNamespace(claim=claim, task="binary")
        run = SimpleNamespace(read_settings=lambda: setting, read_environment=lambda: {"parameters": 3_371_713})
        runs, source = ([run], "") if kind == "model" else ([], claim.get("source", ""))
        system = SimpleNamespace(name=claim.get("source", "size"), runs=runs, tested=40, kind=kind, source=source)
        return SimpleNamespace(system=system, intervals=intervals)

    claims = [
        {"source": "A", "classes": 2, "accuracy": 0.95, "test_pictures": 47, "read": "full text", "parameters": 4e6},
        {"source": "B", "classes": 2, "accuracy": 0.85, "read": "abstract", "three_class": {"accuracy": 0.99}},
        {"source": "C", "classes": 3, "accuracy": 0.95, "read": "abstract"},
        {"source": "D", "classes": 2, "read": "abstract"},
        {"source": "ours", "averaged": True},
        {},
    ]
    models, shortcut = list(map(result, claims)), result({}, "shortcut")
    better, worse = (SimpleNamespace(difference=Interval(value, -1, 1)) for value in (0.2, -0.2))
    pairs = {name: SimpleNamespace(first=name, second="size") for name in "AC"}
    family = [
        SimpleNamespace(pair=pairs["A"], p=0.03, comparison=better),
        SimpleNamespace(pair=pairs["C"], p=0.0001, comparison=worse),
    ]
    results: Any = SimpleNamespace(
        models=models, ranked=[*models, result({"source": "mean of ours"}, "ensemble"), shortcut], shortcut=shortcut,
        family=family, primary="auroc", experiment=SimpleNamespace(task=BINARY),
    )  # fmt: skip
    table = literature_table(results, Interval(0.97, 0.9, 0.99))
    assert table["system"].tolist() == ["A", "B", "C", "D", "ours", "mean of ours", "size", "age alone"]
    nothing = ["-"] * 4
    assert table["claimed"].tolist() == ["0.950", "0.850", "0.950 (3 classes)", "not stated", *nothing]
    assert table["claim vs. interval"].tolist() == ["above", "within", "-", "-", *nothing]
    assert table["test pictures"].tolist() == [47, *["not stated"] * 3, *nothing]
    assert table["measured"].tolist() == [*["0.800 (0.700 to 0.900)"] * 7, "0.970 (0.900 to 0.990)"]
    assert table["AUROC, measured"].tolist()[-2:] == ["0.800 (0.700 to 0.900)", "0.970 (0.900 to 0.990)"]
    assert table["parameters (M)"].tolist() == ["3.4 (4.0 stated)", *["3.4"] * 4, "-", "-", "-"]
    assert table["p against width and height"].tolist() == ["0.030", "-", "< 0.001 (worse)", *["-"] * 5]
    assert table["read"].tolist() == ["full text", *["abstract"] * 3, *nothing]


def test_a_claim_of_another_task_stands_in_the_place_of_the_first() -> None:
    claim = {"source": "B", "classes": 2, "accuracy": 0.85, "auroc": 0.9, "three_class": {"accuracy": 0.99}}
    of_three: Any = SimpleNamespace(claim=claim, task="three_class")
    assert claim_of(of_three) == {"source": "B", "classes": 3, "accuracy": 0.99}
    of_two: Any = SimpleNamespace(claim=claim, task="binary")
    assert claim_of(of_two) == {"source": "B", "classes": 2, "accuracy": 0.85, "auroc": 0.9}


def test_networks_of_a_source_that_answer_together_are_one_system_more() -> None:
    def model(name: str, probability: float, claim: dict[str, Any]) -> System:
        run: Any = SimpleNamespace(read_settings=lambda: SimpleNamespace(claim=claim))
        scores = np.full((1, 3), probability)
        return System(name, "model", scores, scores, dict.fromkeys(RULES, scores), np.ones((1, 3)),
                      np.zeros((1, 3), int), runs=[run])  # fmt: skip

    ours = {"source": "ours", "averaged": True}
    models = [model("a", 0.2, ours), model("b", 0.6, ours), model("c", 0.9, {"source": "theirs"})]
    together = [system for system in ensembles(models) if system.source]
    assert [system.name for system in together] == ["ours: mean of 2 models"]
    assert together[0].probabilities.tolist() == [pytest.approx([0.4, 0.4, 0.4])]
    assert not [system for system in ensembles(models[:2]) if system.source]


def test_the_page_on_the_literature_is_what_its_sources_make_of_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m benchmarks.literature_page"


def test_a_system_is_named_after_its_source_where_that_tells_it_from_the_others() -> None:
    runs = [
        {"model.backbone": "vgg19", "claim.source": "A", "optimizer.lr": 0.1, "data.split.fold": fold}
        for fold in range(2)
    ] + [{"model.backbone": "vgg19", "claim.source": "B", "optimizer.lr": 0.2, "data.split.fold": 0}]
    assert model_names(runs) == ["A: vgg19", "A: vgg19", "B: vgg19"]
    runs.append({**runs[-1], "optimizer.lr": 0.3})
    assert model_names(runs)[-1] == "vgg19 optimizer.lr=0.3"


@pytest.mark.slow
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


def test_costs_are_those_of_a_system_not_of_its_backbone() -> None:
    def result(name: str, runs: list[str]) -> SimpleNamespace:
        return SimpleNamespace(system=SimpleNamespace(name=name, runs=[SimpleNamespace(name=run) for run in runs]))

    board = pd.DataFrame(
        {"run": ["0", "1", "2"], "backbone": "vgg16", "parameters": 134_000_000, "seconds": [60.0, 120.0, 45.0],
         "seconds_per_epoch": [6.0, 8.0, 4.0], "pictures_per_second": 20.0, "peak_memory_mib": 900}
    )  # fmt: skip
    models: Any = [result("vgg16 model.channels=1", ["2"]), result("vgg16 model.channels=3", ["0", "1"])]
    table = costs(board, models).set_index("system")
    assert table.astype(str).loc["vgg16 model.channels=3"].tolist() == ["134.0", "1.50", "7.00", "20", "900"]
    assert table.astype(str).loc["vgg16 model.channels=1"].tolist() == ["134.0", "0.75", "4.00", "20", "900"]
