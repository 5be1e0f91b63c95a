"""Weights are whole, finite and of the right network, or they are refused in one line that names the file."""

import argparse
import logging
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from osteo.errors import UserError
from osteo.inference.model import load_model, load_models
from osteo.networks.network import Network
from osteo.training.checkpoints import build_module, newest, read_checkpoint
from osteo.training.module import Classifier
from osteo.training.ranks import quieten

REAL = Path(__file__).resolve().parents[2] / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"


def content(backbone: str = "test_resnet", **network: Any) -> dict[str, Any]:
    """What a checkpoint of osteo holds, without a training."""
    torch.manual_seed(1)
    module = Classifier({"backbone": backbone, "image_size": 64, **network})
    kept = {"epoch": 2, "hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    history = {"rows": [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]}
    return kept | {
        "global_step": 12, "pytorch-lightning_version": "2.6.0", "loops": {"fit_loop": {}}, "lr_schedulers": [],
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "callbacks": {"History": history, "Checkpoints": {"best": 0.5, "monitor": "val/loss"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    torch.save(content(), path)
    return path


def flip(path: Path, target: Path, place: int, bit: int = 3) -> Path:
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1 << bit
    target.write_bytes(changed)
    return target


def tensor_bytes(path: Path) -> list[range]:
    """Where the numbers of tensors lie in a checkpoint."""
    content = path.read_bytes()
    found = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/data/" in entry.filename and entry.file_size:
                name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
                start = entry.header_offset + 30 + name + extra
                found.append(range(start, start + entry.file_size))
    return found


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_tensor_is_always_found(checkpoint: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    places = [chance.choice(numbers) for numbers in tensor_bytes(checkpoint)]
    assert len(places) > 60
    for place in places:
        with pytest.raises(UserError, match=r"bad.ckpt is damaged \(the checksum of data/\d+ is wrong\)"):
            read_checkpoint(flip(checkpoint, tmp_path / "bad.ckpt", place, chance.randrange(8)))


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    chance, size, found = random.Random(1), checkpoint.stat().st_size, list[str]()
    original = read_checkpoint(checkpoint)
    headers = [*range(0, 200, 5), *range(size - 600, size, 6)]
    for place in [*headers, *(chance.randrange(size) for _ in range(60))]:
        try:
            kept = read_checkpoint(flip(checkpoint, tmp_path / "bad.ckpt", place, chance.randrange(8)))
        except UserError as error:
            found.append(str(error))
            continue
        assert kept.keys() == original.keys()
        assert kept["hyper_parameters"] == original["hyper_parameters"]
        assert all(torch.equal(value, kept["state_dict"][name]) for name, value in original["state_dict"].items())
    assert len(found) > 100
    assert all("bad.ckpt is " in line and "\n" not in line for line in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("load", [read_checkpoint, load_model])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, load: Callable[[Path], Any]) -> None:
    kept = content()
    kept["state_dict"]["network.backbone.layer3.0.conv2.weight"][0, 0, 0, 0] = value
    torch.save(kept, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad.ckpt holds weights that are not finite, .*layer3.0.conv2.weight first"):
        load(tmp_path / "bad.ckpt")


def int64(tensor: Tensor) -> Tensor:
    return (tensor * 100).long()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (int64, "no floating-point numbers"),
        (lambda tensor: tensor.cfloat(), "no floating-point numbers"),
        (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "not finite"),
        (lambda tensor: tensor.to_sparse(), "sparse or quantised"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "sparse or quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, of what it converts
def test_weights_of_another_kind_are_refused(tmp_path: Path, change: Callable[[Tensor], Tensor], reason: str) -> None:
    key = "network.backbone.layer3.0.conv2.weight"
    kept = content()
    kept["state_dict"][key] = change(kept["state_dict"][key])
    torch.save(kept, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=rf"bad.ckpt holds weights that are {reason}, (state_dict.)?{key} first; use"):
        build_module(read_checkpoint(tmp_path / "bad.ckpt"), tmp_path / "bad.ckpt")


def test_half_precision_and_counters_are_weights_as_before(tmp_path: Path) -> None:
    kept = content()
    kept["state_dict"] = {k: t.half() if t.is_floating_point() else t for k, t in kept["state_dict"].items()}
    torch.save(kept, tmp_path / "half.ckpt")
    assert (
        next(build_module(read_checkpoint(tmp_path / "half.ckpt"), tmp_path / "half.ckpt").parameters()).dtype
        == torch.float32
    )


@pytest.mark.parametrize("rate", [float("nan"), 2.0, "much"])
def test_a_checkpoint_of_an_impossible_dropout_is_refused(tmp_path: Path, rate: object) -> None:
    kept = content()
    kept["hyper_parameters"]["network"] = {**kept["hyper_parameters"]["network"], "drop_rate": rate}
    torch.save(kept, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad.ckpt is not a checkpoint of osteo \((Value|Type)Error\)"):
        build_module(read_checkpoint(tmp_path / "bad.ckpt"), tmp_path / "bad.ckpt")


def test_an_empty_checkpoint_is_named_with_its_run(tmp_path: Path) -> None:
    path = tmp_path / "r0/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path} is not a checkpoint of osteo (EOFError); take another copy of it, or train its run again"
    )


def test_a_sweep_is_no_checkpoint_and_one_of_its_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep/3").mkdir(parents=True)
    (tmp_path / "sweep/3/status.json").write_text("{}")
    wanted = r"sweep is a sweep; give one of its runs, such as .*sweep/3$"
    with pytest.raises(UserError, match=wanted):
        Network("test_resnet", image_size=64, weights_file=str(tmp_path / "sweep"))
    with pytest.raises(UserError, match=wanted):
        load_models([str(tmp_path / "sweep")])


def test_a_run_goes_on_from_a_checkpoint_that_is_not_damaged(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = build_module(read_checkpoint(checkpoint), checkpoint)
    assert newest(tmp_path, module) is None
    place = tensor_bytes(checkpoint)[5][0]
    last, previous, best = (tmp_path / f"{name}.ckpt" for name in ("last", "previous", "best"))
    flip(checkpoint, last, place)
    with pytest.raises(
        UserError, match=r"^no checkpoint can be resumed from: .*last.ckpt is damaged .*; begin a new run"
    ):
        newest(tmp_path, module)
    best.write_bytes(checkpoint.read_bytes())
    assert newest(tmp_path, module) == best
    assert caplog.messages[-1].startswith(f"{last} is damaged (the checksum of data/")
    assert caplog.messages[-1].endswith(": resuming from best.ckpt")
    previous.write_bytes(checkpoint.read_bytes())
    assert newest(tmp_path, module) == previous
    caplog.clear()
    last.write_bytes(checkpoint.read_bytes())
    assert newest(tmp_path, module) == last
    assert not caplog.messages


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda kept: kept.pop(key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *((without(key), rf"is damaged \(it has no {key}\)") for key in ("callbacks", "optimizer_states", "loops")),
        (lambda kept: kept.update(state_dict=content("test_convnext")["state_dict"]), "is of another network"),
        (lambda kept: kept.update(state_dict=7), "is of another network"),
        (lambda kept: kept["callbacks"]["History"]["rows"].clear(), "is damaged .its history"),
        (lambda kept: kept["callbacks"].clear(), "is damaged .its history"),
        (lambda kept: kept["loops"].clear(), "is damaged .its history"),
        (lambda kept: kept["optimizer_states"].clear(), "is damaged .its history"),
        (lambda kept: kept.update(epoch="two"), "is damaged .its history"),
    ],
)
def test_a_run_goes_on_from_no_checkpoint_that_lacks_what_the_next_epoch_needs(
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
    reason: str,
) -> None:
    kept, module = content(), build_module(read_checkpoint(checkpoint), checkpoint)
    change(kept)
    torch.save(kept, tmp_path / "last.ckpt")
    with pytest.raises(
        UserError, match=rf"^no checkpoint can be resumed from: \S*last.ckpt {reason}.*begin a new run$"
    ):
        newest(tmp_path, module)
    (tmp_path / "previous.ckpt").write_bytes(checkpoint.read_bytes())
    assert newest(tmp_path, module) == tmp_path / "previous.ckpt"
    assert caplog.messages[-1].endswith(": resuming from previous.ckpt")


def test_no_library_logs_where_a_file_of_weights_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quieten()
    caplog.set_level(logging.INFO)
    torch.save(donor("test_resnet"), tmp_path / "weights.pth")
    Network("test_resnet", image_size=64, weights_file=str(tmp_path / "weights.pth"))
    assert str(tmp_path) not in caplog.text


# --- files of weights ------------------------------------------------------------------------------------------------


def donor(backbone: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state: dict[str, Tensor] = timm.create_model(backbone, num_classes=1000).state_dict()
    return state


def refusal(path: Path, backbone: str) -> str:
    with pytest.raises(UserError) as caught:
        Network(backbone, image_size=64, weights_file=str(path))
    return str(caught.value)


def test_a_smaller_or_larger_network_and_a_part_are_refused_with_numbers(tmp_path: Path) -> None:
    for name, state in (("r18", donor("resnet18")), ("r34", donor("resnet34"))):
        torch.save(state, tmp_path / f"{name}.pth")
    assert refusal(tmp_path / "r18.pth", "resnet34") == (
        "model.weights_file=r18.pth does not fit model.backbone=resnet34: 80 of 180 tensors are missing or have"
        " another shape, layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias first"
    )
    assert "it holds 96 tensors of layers that this backbone does not have, layer1.2.conv1.weight first" in refusal(
        tmp_path / "r34.pth", "resnet18"
    )
    state = donor("test_resnet")
    torch.save({key: state[key] for key in list(state)[: int(0.6 * len(state))]}, tmp_path / "part.pth")
    assert "29 of 75 tensors are missing" in refusal(tmp_path / "part.pth", "test_resnet")


def test_files_that_are_not_finite_or_damaged_are_refused(tmp_path: Path) -> None:
    state = donor("test_resnet")
    torch.save(state, tmp_path / "good.pth")
    place = tensor_bytes(tmp_path / "good.pth")[3][0]
    assert "bad.pth is damaged (the checksum of data/" in refusal(
        flip(tmp_path / "good.pth", tmp_path / "bad.pth", place), "test_resnet"
    )
    state["layer1.0.bn1.running_var"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    assert refusal(tmp_path / "nan.pth", "test_resnet").endswith(
        "nan.pth holds weights that are not finite, layer1.0.bn1.running_var first"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: (t * 100).to(torch.uint8), r"conv1.0.weight is not a tensor of floating-point numbers"),
        (lambda t: t.to(torch.complex64), r"conv1.0.weight is not a tensor of floating-point numbers"),
        (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), r"not finite, conv1.0.weight first"),
        (lambda t: t.to_sparse(), r"conv1.0.weight, which is sparse or quantised; save dense tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_files_of_another_kind_of_number_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    state = donor("test_resnet")
    torch.save(state | {"conv1.0.weight": change(state["conv1.0.weight"])}, tmp_path / "odd.pth")
    assert refusal(tmp_path / "odd.pth", "test_resnet").endswith(reason)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pth.tar", ".ckpt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "module", "without counters"],
)
def test_usual_files_of_weights_are_read(tmp_path: Path, ending: str, wrap: Callable[[Any], Any]) -> None:
    state = donor("test_resnet")
    torch.save(wrap(state), tmp_path / f"weights{ending}")
    network = Network("test_resnet", image_size=64, weights_file=str(tmp_path / f"weights{ending}"))
    assert torch.equal(network.backbone.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])
    assert torch.equal(network.backbone.conv1[0].weight, state["conv1.0.weight"].sum(1, keepdim=True))


def test_a_convnext_as_its_authors_name_it(tmp_path: Path) -> None:
    state = donor("test_convnext")
    renamed = [
        ("stem.", "downsample_layers.0."), (".downsample.", ".D."), (".blocks.", "."), ("conv_dw", "dwconv"),
        ("mlp.fc", "pwconv"), ("head.norm.", "norm."), ("head.fc.", "head."),
    ]  # fmt: skip
    theirs = {}
    for key, value in state.items():
        for ours, other in renamed:
            key = key.replace(ours, other)
        if ".D." in key:  # stages.1.downsample.0 is downsample_layers.1.0
            key = "downsample_layers." + key.removeprefix("stages.").replace(".D.", ".")
        theirs[key] = value
    torch.save({"model": theirs}, tmp_path / "facebook.pth")
    network = Network("test_convnext", image_size=64, weights_file=str(tmp_path / "facebook.pth"))
    loaded = network.backbone.state_dict()
    same = [key for key in state if key in loaded and state[key].shape == loaded[key].shape]
    assert len(same) == len(state) - 3  # the first kernel and the classifier differ
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    torch.save({"model": {k: v for k, v in theirs.items() if not k.startswith("stages.3")}}, tmp_path / "part.pth")
    assert "tensors are missing or have another shape, stages.3" in refusal(tmp_path / "part.pth", "test_convnext")


@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision/resnet18"])
def test_a_run_is_the_start_of_another(tmp_path: Path, backbone: str) -> None:
    first = content(backbone)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    torch.save(first, tmp_path / "run/checkpoints/best.ckpt")
    for start in (tmp_path / "run", tmp_path / "run/checkpoints/best.ckpt"):
        grey = Network(backbone, image_size=64, weights_file=str(start))
        tensors = {key: value for key, value in first["state_dict"].items() if key.startswith("network.backbone.")}
        last = {f"network.backbone.{k}" for k, v in grey.backbone.named_parameters() if v.shape[0] == 1}
        body = [key for key in tensors if key not in last and not key.endswith("num_batches_tracked")]
        assert len(body) > 60
        assert all(torch.equal(tensors[key], grey.state_dict()[key.removeprefix("network.")]) for key in body)
    colour = Network(backbone, image_size=64, channels=3, weights_file=str(tmp_path / "run"))
    thick, thin = (next(p for p in n.parameters() if p.ndim == 4) for n in (colour, grey))
    assert torch.allclose(thick.sum(1, keepdim=True), thin, atol=1e-6)
    with pytest.raises(UserError, match=r"weights_file=.*best.ckpt: no such file"):
        Network(backbone, image_size=64, weights_file=str(tmp_path))


@pytest.mark.skipif(not REAL.exists(), reason="needs the shared weights")
def test_real_weights_are_all_loaded() -> None:
    from safetensors.torch import load_file

    state = load_file(REAL)
    loaded = Network("tf_efficientnet_lite0", image_size=64, weights_file=str(REAL)).backbone.state_dict()
    same = [key for key in state if state[key].shape == loaded[key].shape and "num_batches" not in key]
    assert len(same) == len([key for key in state if "num_batches" not in key]) - 3
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    assert "does not fit model.backbone=test_resnet" in refusal(REAL, "test_resnet")
