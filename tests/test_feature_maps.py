"""Feature maps: of layers whose output is known, in every layout, and what `osteo explain` leaves of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from osteo import load
from osteo.command_settings import ExplainConfig
from osteo.commands import explain as command
from osteo.errors import UserError
from osteo.evaluation.gradcam import knee
from osteo.inference import explain
from osteo.inference.explain import Layer, LayerMaps, chosen_layers, describe_layers, feature_maps, layers_of
from osteo.networks.network import Network
from osteo.records.record import Job
from osteo.report import figures
from tests import dicom
from tests.conftest import Result


class Known(nn.Module):
    """Twice the picture and its negative; a ReLU in place; a mean of fours; a classifier."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 2, 1, bias=False)
        self.scale.weight.data = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(2, 1)
        self.gru = nn.GRU(2, 1)

    def forward_features(self, pictures: Tensor) -> Tensor:
        return self.pool(self.act(self.scale(pictures)))

    def forward(self, pictures: Tensor) -> Tensor:
        pooled = self.forward_features(pictures).mean((2, 3))
        self.gru(pooled)
        return self.fc(pooled)


@pytest.fixture
def known() -> Network:
    """Whose maps follow from a picture by hand."""
    network = Network("test_resnet", image_size=64)
    network.backbone, network.image_size = Known(), 4
    network.mean, network.std = torch.tensor(0.0), torch.tensor(1.0)
    return network


def test_maps_are_those_of_the_layer_though_the_next_works_in_place(known: Network) -> None:
    picture = torch.arange(16.0).view(1, 1, 4, 4) / 16
    maps = feature_maps(known, picture, ["scale", "act", "pool"])
    pixels = picture[0, 0].numpy()
    assert maps["scale"] == pytest.approx(np.stack([2 * pixels, -pixels]))
    assert maps["act"] == pytest.approx(np.stack([2 * pixels, 0 * pixels]))
    assert maps["pool"][0] == pytest.approx(2 * np.array([[2.5, 4.5], [10.5, 12.5]]) / 16)
    again = feature_maps(known, torch.zeros(1, 1, 4, 4), ["scale"])
    assert list(again) == ["scale"]
    assert (again["scale"] == 0).all()
    assert maps["scale"].max() > 0  # of the first picture, and not overwritten
    assert not any(layer._forward_hooks for layer in known.backbone.modules())
    assert {array.dtype for array in maps.values()} == {np.dtype("float32")}


def test_layers_are_listed_with_their_shapes(known: Network) -> None:
    layers = layers_of(known)
    assert layers == {
        "scale": Layer((2, 4, 4), (2, 4, 4)),
        "act": Layer((2, 4, 4), (2, 4, 4)),
        "pool": Layer((2, 2, 2), (2, 2, 2)),
        "fc": Layer((1,), None),
    }
    assert describe_layers(layers) == ["scale  2 x 4 x 4", "act    2 x 4 x 4", "pool   2 x 2 x 2", "fc     1  (no map)"]
    assert chosen_layers(known, None) == ["act", "pool"]  # the last on each grid
    assert chosen_layers(known, ["pool", "scale", "pool"]) == ["pool", "scale"]
    of_tokens = layers_of(Network("test_vit", image_size=160))["blocks.0"]
    assert of_tokens == Layer((101, 64), (64, 10, 10))
    assert describe_layers({"b": of_tokens}) == ["b  101 x 64  (64 channels on 10 x 10)"]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ("scal", "maps: layer 'scal' is unknown among 4 names; the nearest are: scale; maps=list lists them all"),
        (0, "maps: layer '0' is unknown among 4 names; maps=list lists them all"),
        (["act", "fc"], "maps: layer 'fc' gives 1 for a picture, which is not a map; maps=list lists them all"),
        ([], "maps=[] names no layer; name one, or leave it out for one per stage; maps=list lists them all"),
    ],
)
def test_a_layer_that_is_not_there_is_named(known: Network, maps: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        chosen_layers(known, maps)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("test_resnet", ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("plain_cnn", ["body.2", "body.6", "body.10", "body.14", "body"]),
        ("torchvision/resnet18", ["network.relu", *(f"network.layer{n}" for n in (1, 2, 3, 4))]),
        ("fused/test_resnet+test_convnext", [*(f"bases.0.{n}" for n in ("act1", "layer2", "layer4")),
                                             *(f"bases.1.stages.{n}" for n in (0, 2, 3))]),
        ("stacked/test_resnet", ["bases.0.act1", *(f"bases.0.layer{n}" for n in (1, 2, 3, 4)), "blocks"]),
    ],
)  # fmt: skip
def test_one_layer_of_each_stage_is_shown(backbone: str, stages: list[str]) -> None:
    assert chosen_layers(Network(backbone, image_size=64), None) == stages


def test_densenet_s_activation_in_place_does_not_reach_the_layer_before(pictures: Tensor) -> None:
    network = Network("densenet121", image_size=64).eval()
    maps = feature_maps(network, pictures[:1], ["features.norm0.drop", "features.norm0"])
    with torch.no_grad():
        norm = network.backbone.features.norm0
        expected = nn.BatchNorm2d.forward(norm, network.backbone.features.conv0(network.normalise(pictures[:1])))[0]
    assert maps["features.norm0.drop"] == pytest.approx(expected.numpy(), abs=1e-5)
    assert maps["features.norm0.drop"].min() < 0 == maps["features.norm0"].min()


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "side", "layer"),
    [
        ("test_vit", 160, "blocks.3"),
        ("swin_tiny_patch4_window7_224", 224, "layers.1"),
        ("test_convnext", 64, "stages.2"),
    ],
)
def test_maps_of_every_layout_are_timm_s(backbone: str, side: int, layer: str) -> None:
    network = Network(backbone, image_size=side).eval()
    picture = torch.rand(1, 1, side, side)
    with torch.no_grad():
        place = int(layer[-1])
        _, (expected,) = network.backbone.forward_intermediates(
            network.normalise(picture), indices=[place], output_fmt="NCHW"
        )
    assert feature_maps(network, picture, [layer])[layer] == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_a_map_as_wide_as_it_has_channels_is_read_as_its_network_has_it() -> None:
    output, backbone = torch.rand(1, 5, 5, 5), nn.Identity()
    assert torch.equal(explain.to_map(backbone, output, 1), output)
    backbone.output_fmt = "NHWC"
    assert torch.equal(explain.to_map(backbone, output, 1), output.permute(0, 3, 1, 2))
    assert explain.to_map(backbone, output, 4) is None  # windows of pictures, or the like
    assert explain.to_map(backbone, torch.rand(1, 17, 3), 1) is None  # 4 x 4 and a token that it does not have


def test_tiles_lie_beside_each_other(pictures: Tensor) -> None:
    torch.manual_seed(0)
    tiled = Network("test_resnet", image_size=64, patches=2).eval()
    single = Network("test_resnet", image_size=32)
    single.load_state_dict(tiled.state_dict())
    maps = feature_maps(tiled, pictures[:1], ["layer1"])["layer1"]
    assert layers_of(tiled)["layer1"].grid == (32, 8, 8)  # of a tile
    assert maps.shape == (32, 16, 16)
    upper_right = feature_maps(single, pictures[:1, :, :32, 32:], ["layer1"])["layer1"]
    assert maps[:, :8, 8:] == pytest.approx(upper_right, abs=1e-5)


def test_a_composite_has_the_maps_of_both_its_parts(pictures: Tensor) -> None:
    network = Network("fused/test_resnet+test_convnext", image_size=64).eval()
    maps = feature_maps(network, pictures[:1], ["bases.0.layer4", "bases.1.stages.3"])
    with torch.no_grad():
        seen = network.normalise(pictures[:1])
        parts = [base.forward_features(seen)[0] for base in network.backbone.bases]
    assert maps["bases.0.layer4"] == pytest.approx(parts[0].numpy(), abs=1e-5)
    assert maps["bases.1.stages.3"] == pytest.approx(parts[1].numpy(), abs=1e-5)


def test_the_most_active_channels_come_first_with_their_numbers() -> None:
    maps = np.zeros((4, 2, 2), np.float32)
    maps[1], maps[2] = -3.0, [[1.0, 2.0], [3.0, 4.0]]
    found = explain.most_active("a", maps, 3)
    assert (found.channels, found.of) == ([1, 2, 0], 4)
    assert (found.maps == maps[[1, 2, 0]]).all()
    picture = np.zeros((32, 32), np.uint8)
    picture[8:16, 8:24] = 200  # within the upper half
    area = float(knee(picture).mean())
    table = explain.to_table("p.png", picture, [found]).set_index("channel")
    assert list(table.index) == [1, 2, 0]
    assert table.loc[1, ["activity", "mean", "smallest", "largest"]].tolist() == [3.0, -3.0, -3.0, -3.0]
    assert table.loc[2, ["activity", "mean", "smallest", "largest"]].tolist() == [2.5, 2.5, 1.0, 4.0]
    assert table["knee_area"].tolist() == pytest.approx([area] * 3)
    assert table.loc[1, "in_knee"] == pytest.approx(area)  # the same all over: no better than no aim
    upper, lower = knee(picture)[:16].mean(), knee(picture)[16:].mean()
    assert upper > 3 * lower
    assert table.loc[2, "in_knee"] == pytest.approx((upper * 3 + lower * 7) / 10, rel=1e-3)
    assert np.isnan(table.loc[0, "in_knee"])


def test_a_figure_says_which_channels_it_shows() -> None:
    layers = [LayerMaps("a_$b", np.ones((3, 2, 2), np.float32), [7, 1, 4], 64)]
    figure = figures.explained(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32), ["$x_{"], layers)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "a_$b: 3 of 64 channels, each 2 x 2" in texts
    assert "channel 7\n1 to 1" in texts
    assert "$x_{" in texts
    assert any(text == "Grad-CAM: no colour" for text in texts)
    figure.draw_without_rendering()
    assert explain.RULE in figure.texts[0].get_text()


PLANTED = {"PatientName": "Zweigelt^Roswitha", "PatientID": "ID-4711-0815", "InstitutionName": "Spital Hinterbruehl"}


@pytest.fixture
def given(knees: Path, tmp_path: Path) -> Path:
    """A knee in a folder, one as DICOM, and a file that is cut short."""
    knee_of = cv2.imread(str(min((knees / "normal").iterdir())), 0)
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    cv2.imwrite(str(folder / "deep/knee.png"), knee_of)
    (folder / "good.dcm").write_bytes(dicom.file(knee_of, 8, **PLANTED))
    (folder / "cut.png").write_bytes((folder / "deep/knee.png").read_bytes()[:200])
    return folder


def test_explain_leaves_figures_and_numbers(osteo: Callable[..., Result], run: Path, given: Path) -> None:
    """A damaged file is named, the others go on; the maps are the network's; nothing of a patient or a machine."""
    done = osteo("explain", str(run), f"input={given}", "maps=[layer1,layer4]", "channels=5", "output_dir=e")
    assert done.code == 1, done.err
    assert "cut.png: " in done.out
    assert "2 figures of 2 layers: layer1, layer4" in done.out
    assert sorted(path.name for path in Path("e").iterdir()) == ["explain.csv", "explain.json", "index.html", "maps"]
    html = Path("e/index.html").read_text()
    assert "<h1>What test_resnet sees in 3 pictures (in): osteoporosis against normal</h1>" in html
    assert re.search(
        "<li>3 pictures: (2 answered|1 answered, 1 withheld|0 answered, 2 withheld), 1 unusable.</li>", html
    )
    assert re.findall('<a href="([^"#]+)">', html) == ["maps/deep/knee.png.png", "maps/good.dcm.png"]
    assert html.count("The heat map is withheld, as the answer is.") == html.count("<strong>No answer</strong>")
    table = pd.read_csv("e/explain.csv")
    assert list(table.columns) == list(explain.COLUMNS)
    assert table.groupby(["image", "layer"]).size().to_dict() == {
        (image, layer): 5 for image in ("deep/knee.png", "good.dcm") for layer in ("layer1", "layer4")
    }
    maps = load(run).explain(given / "deep/knee.png", maps=["layer4"])
    assert list(maps) == ["layer4"]
    strongest = table[(table["image"] == "deep/knee.png") & (table["layer"] == "layer4")].iloc[0]
    means = np.abs(maps["layer4"]).mean((1, 2))
    assert strongest["channel"] == means.argmax()
    assert strongest["activity"] == pytest.approx(means.max(), rel=1e-4)
    written = json.loads(Path("e/explain.json").read_text())
    assert written["maps"] == ["deep/knee.png.png", "good.dcm.png"]
    assert all((Path("e/maps") / name).stat().st_size for name in written["maps"])
    assert [picture["file"] for picture in written["pictures"] if picture["error"]] == ["cut.png"]
    output = b"".join(path.read_bytes() for path in Path("e").rglob("*") if path.is_file()) + done.out.encode()
    words = [part for value in PLANTED.values() for part in value.replace("^", " ").split()]
    for word in (*words, str(run.parent), str(given)):
        assert word.encode() not in output, word
    first = osteo("explain", str(run), f"input={given / 'deep/knee.png'}", "channels=1", "output_dir=e")
    assert first.code == 0
    assert [path.name for path in Path("e/maps").rglob("*")] == ["knee.png.png"]  # in place of the earlier ones
    assert sorted(set(pd.read_csv("e/explain.csv")["layer"])) == ["act1", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{run}", "input=in", "maps=layer9"],
            "maps: layer 'layer9' is unknown among 70 names; the nearest are: layer",
        ),
        (["{run}"], "name the pictures: osteo explain RUN PICTURE, or a folder or zip of them; maps=list needs none"),
        (["ckpt=[{run},{run}]", "input=in"], "ckpt names 2 checkpoints; layers belong to one network: name one"),
        (["input=in"], "name a run or a checkpoint"),
        (
            ["{run}", "input=in", "output_dir=in/o"],
            "in/o lies within input=in, so that maps would be taken for pictures",
        ),
    ],
)
def test_mistakes_are_one_line(
    osteo: Callable[..., Result], run: Path, given: Path, arguments: list[str], message: str
) -> None:
    before = sorted(given.parent.rglob("*"))
    done = osteo("explain", *(argument.format(run=run) for argument in arguments))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"osteo explain: {message}")
    assert sorted(given.parent.rglob("*")) == before


def test_the_layers_are_listed_and_nothing_is_left(
    osteo: Callable[..., Result], run: Path, tmp_path: Path, models: list
) -> None:
    done = osteo("explain", str(run), "maps=list")
    assert done.code == 0, done.err
    assert done.out.splitlines() == describe_layers(layers_of(models[0].network))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_what_was_there(
    run: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "e"
    earlier.mkdir()
    (earlier / "explain.csv").write_text("earlier")
    calls = []

    def interrupted(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return feature_maps(*arguments)

    monkeypatch.setattr(explain, "feature_maps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.explain(ExplainConfig(ckpt=str(run), input=str(given), channels=1), Job(earlier, None, ""))
    assert {path.name: path.read_text() for path in earlier.iterdir()} == {"explain.csv": "earlier"}


def test_maps_for_python(run: Path, knees: Path, picture: np.ndarray, models: list) -> None:
    maps = load(run).explain(picture)
    assert {name: array.shape for name, array in maps.items()} == {
        "act1": (32, 32, 32), "layer1": (32, 16, 16), "layer2": (48, 8, 8), "layer3": (192, 4, 4), "layer4": (96, 2, 2),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^there are 40 pictures; give one to explain$"):
        load(run).explain(knees / "normal")
    with pytest.raises(UserError, match=r"^maps: layer 'x' is unknown"):
        load(run).explain(picture, maps="x")


def test_a_network_without_a_map_for_grad_cam_says_so_once(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Path
) -> None:
    """And the figures have the maps of its tokens all the same."""
    monkeypatch.setattr("osteo.inference.predictions.heat_map", _no_heat)
    (tmp_path / "e").mkdir()
    config = ExplainConfig(ckpt=str(run), input=str(given), channels=1, maps="layer4")
    with caplog.at_level("WARNING"):
        assert not command.explain(config, Job(tmp_path / "e", None, ""))
    assert [record.getMessage() for record in caplog.records] == ["no overlays: it has none"]
    assert len(list((tmp_path / "e/maps").rglob("*.png"))) == 2


def _no_heat(*_: Any) -> None:
    raise UserError("it has none")
