"""A checkpoint as a file: it answers as PyTorch does, carries its card, and appears only where both hold."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")

from osteo.cli import main
from osteo.errors import UserError
from osteo.evaluation.calibration import calibrate
from osteo.inference import export as work
from osteo.inference.card import Card
from osteo.inference.formats import SUFFIXES
from osteo.inference.model import Model, load_model
from osteo.networks.network import Network

EXAMPLE = Path(__file__).resolve().parents[1] / "notebooks" / "onnx_example.py"


@pytest.fixture(scope="module")
def trained(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A best checkpoint."""
    run = tmp_path_factory.mktemp("trained") / "run"
    arguments = [
        "data=folder", f"data.root={archives / 'kaggle'}", "data.image_size=64", "data.batch_size=8",
        "model.backbone=test_resnet", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "optimizer.lr=0.02",
        "logger.wandb.mode=disabled", f"output_dir={run}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["osteo", "train", *arguments])
        with pytest.raises(SystemExit, match="0"):
            main()
    return (run / "checkpoints" / "best.ckpt").read_bytes()


@pytest.fixture
def ckpt(trained: bytes, tmp_path: Path) -> Path:
    """The same, alone in a folder."""
    path = tmp_path / "run" / "best.ckpt"
    path.parent.mkdir()
    path.write_bytes(trained)
    return path


def by_hand(backbone: str, side: int) -> Model:
    torch.manual_seed(0)
    network = Network(backbone, image_size=side).eval()
    card = Card(side, "pad", ["normal", "osteoporosis"], 1.5, {"0.5": 0.5}, "", "phantom", backbone, 0, None, "0")
    return Model(Path("by_hand.ckpt"), network, card, None)


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES.items())
def test_a_file_answers_as_pytorch_and_carries_the_card(
    osteo: Callable, ckpt: Path, archives: Path, kind: str, suffix: str
) -> None:
    done = osteo("export", str(ckpt), f"format={kind}", f"check={archives / 'kaggle'}")
    assert (done.code, done.err) == (0, ""), done.err
    assert done.out.startswith("largest difference of logit or probability from PyTorch's: ")
    assert "(28 pictures, batches of 1 and 7)" in done.out
    assert {path.name for path in ckpt.parent.iterdir()} == {"best.ckpt", f"best{suffix}", f"best{suffix}.sha256"}
    path = ckpt.with_name(f"best{suffix}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert ckpt.with_name(f"best{suffix}.sha256").read_text() == f"{digest}  best{suffix}\n"
    model, exported = load_model(ckpt), work.open_exported(ckpt.with_name(f"best{suffix}"))
    pictures, labels = work.check_pictures(None, model)
    assert (len(pictures), pictures[0].shape, sum(map(int, labels))) == (64, (64, 64), 32)
    for size in (1, 5, 64):
        wanted = model.logits(pictures[:size])
        logit, probability = exported.run(np.stack(pictures[:size]))
        assert (logit.dtype, logit.shape, probability.shape) == (np.float32, (size,), (size,))
        assert np.abs(logit - wanted).max() < 1e-4
        assert probability == pytest.approx(calibrate(wanted, model.card.temperature), abs=1e-4)
    card = asdict(model.card)
    del card["guard"], card["plugins"]
    assert exported.card == card
    assert exported.card["thresholds"]["0.5"] == 0.5
    changed = bytearray(path.read_bytes())
    changed[changed.index(model.network.std.numpy().tobytes())] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"best{suffix} is damaged"):
        work.open_exported(path)


@pytest.mark.parametrize(
    "backbone",
    [
        "test_vit",
        "test_convnext",
        "test_efficientnet",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_families_of_backbones(backbone: str, tmp_path: Path) -> None:
    model, path = by_hand(backbone, 96 if backbone.startswith("test") else 64), tmp_path / "model.onnx"
    work.write_exported(model, path)
    pictures = list(np.random.default_rng(0).integers(0, 256, (8, *[model.card.image_size] * 2), dtype=np.uint8))
    assert work.difference(work.open_exported(path), model, pictures) < 1e-4


def test_int8_says_what_it_costs(osteo: Callable, ckpt: Path) -> None:
    done = osteo("export", str(ckpt), "int8=true")
    assert done.code == 0, done.err
    assert "int8: calibrated on 64 of these pictures, without their labels" in done.out
    for words in ("at most", "AUROC", "(64 pictures with a label)", "(batch 1)", "(batch 16)", "VNNI"):
        assert words in done.out, words
    assert {path.name for path in ckpt.parent.iterdir()} == {"best.ckpt", "best.int8.onnx", "best.int8.onnx.sha256"}
    model, small = load_model(ckpt), work.open_exported(ckpt.with_name("best.int8.onnx"))
    pictures, _ = work.check_pictures(None, model)
    wanted, found = model.logits(pictures), small.logits(pictures)
    apart = np.abs(found - wanted)
    assert 1e-6 < apart.mean() < 0.5 * wanted.std()
    assert f"{apart.max():.2g}"[:3] in done.out
    assert small.card == json.loads(json.dumps(model.card.facts()))
    assert ckpt.with_name("best.int8.onnx").stat().st_size < 600_000  # float32: 1.5 MB


def test_the_loss_of_auroc_is_measured() -> None:
    pictures = [np.full((2, 2), level, np.uint8) for level in (10, 20, 30, 40)]
    exact = work.Exported({}, lambda batch: [batch[:, 0, 0].astype(np.float32)])
    small = work.Exported({}, lambda batch: [np.where(batch[:, 0, 0] == 30, 5.0, batch[:, 0, 0]).astype(np.float32)])
    lines = work.compare_int8(exact, small, pictures, [0, 0, 1, 1])
    assert lines[0] == "int8: logits differ by 25 at most, 6.25 on average"
    assert lines[1] == "int8: AUROC 1.0000 before, 0.5000 after (4 pictures with a label)"
    lines = work.compare_int8(exact, small, pictures, [0, 0, None, None])
    assert [line.startswith("int8: AUROC") for line in lines] == [False, False, False]


def test_a_file_that_differs_is_not_left(osteo: Callable, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = work.CalibratedNetwork.forward
    monkeypatch.setattr(work.CalibratedNetwork, "forward", lambda self, picture: forward(self, picture.flip(1)))
    done = osteo("export", str(ckpt), "format=torch_export")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("osteo export: outputs differ from PyTorch's by up to ")
    assert done.err.count("\n") == 1
    assert [path.name for path in ckpt.parent.iterdir()] == ["best.ckpt"]


def test_what_an_exporter_cannot_follow_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = by_hand("test_resnet", 64)
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda x: forward(x) if x.mean().item() > 0.5 else forward(-x))
    with pytest.raises(UserError, match=r"model.backbone=test_resnet cannot be exported to onnx \([^\n]*\); try") as e:
        work.write_exported(model, tmp_path / "model.onnx")
    assert "\n" not in str(e.value)
    fixed = work.Exported({}, lambda batch: [np.zeros(1 // (len(batch) == 1))])
    with pytest.raises(UserError, match="the file does not run"):
        work.difference(fixed, by_hand("test_resnet", 64), [np.zeros((64, 64), np.uint8)] * 7)


def test_nothing_is_overwritten(osteo: Callable, ckpt: Path) -> None:
    taken = ckpt.with_name("best.onnx")
    taken.write_text("kept")
    done = osteo("export", str(ckpt))
    assert done.code == 2
    assert done.err == "osteo export: run/best.onnx exists already; remove it, or choose another: output=FILE.onnx\n"
    assert taken.read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run or a checkpoint: osteo export RUN"),
        (["ckpt=[a.ckpt,b.ckpt]"], "an ensemble cannot be exported as one file"),
        (["run/best.ckpt", "format=tflite"], "format 'tflite' is unknown; choose one of: onnx, torchscript, torch_exp"),
        (["run/best.ckpt", "format=torchscript", "int8=true"], "int8=true goes with format=onnx"),
        (["run/best.ckpt", "output=best.pt"], "output=best.pt must end in .onnx for format=onnx"),
        (["run/best.ckpt", "output=text.ckpt/best.onnx"], "output=text.ckpt/best.onnx: there is no folder text.ckpt"),
        (["run/best.ckpt", "check=nowhere"], "check=nowhere: no such file or folder"),
        (["run/best.ckpt", "check=run"], "check=run holds no picture that can be read"),
        (["gone.ckpt"], "gone.ckpt: no such run, sweep or checkpoint"),
        (["text.ckpt"], "text.ckpt is not a checkpoint of osteo"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    osteo: Callable, ckpt: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    before = sorted(tmp_path.rglob("*"))
    done = osteo("export", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"osteo export: {message}")
    assert done.err.count("\n") == 1, done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_extra(osteo: Callable, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osteo.inference.formats.find_spec", lambda name: None)
    done = osteo("export", str(ckpt))
    assert done.code == 2
    assert done.err == "osteo export: format=onnx needs an extra that is not installed: pip install 'osteo[export]'\n"
    assert [path.name for path in ckpt.parent.iterdir()] == ["best.ckpt"]


def ask(path: Path, picture: Path, before: str = "", after: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs the example, with statements around it in the same process."""
    code = f"import runpy, sys; sys.argv = sys.argv[1:];{before} runpy.run_path(sys.argv[0]);{after}"
    command = [sys.executable, "-c", code, EXAMPLE, path, picture]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def example(trained: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A folder with an exported model, the same phantom as several files, and its probability."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "best.ckpt").write_bytes(trained)
    model, path = load_model(folder / "best.ckpt"), folder / "best.onnx"
    work.write_exported(model, path)
    raw = work._phantom(3, "osteoporosis")
    prepared = model.prepare(raw)
    np.save(folder / "prepared.npy", prepared)
    np.save(folder / "raw.npy", raw)
    (folder / "prepared.pgm").write_bytes(b"P5\n# by hand\n64 64\n255\n" + prepared.tobytes())
    Image.fromarray(prepared).save(folder / "prepared.png")
    Image.fromarray(raw).save(folder / "raw.png")
    Image.fromarray(np.stack([raw] * 3, axis=2)).save(folder / "colour.png")
    Image.fromarray(raw.astype(np.uint16) * 100).save(folder / "deep.png")
    Image.fromarray(raw).convert("RGBA").save(folder / "transparent.png")
    (folder / "broken.png").write_bytes((folder / "raw.png").read_bytes()[:500])
    return folder, path, calibrate(model.logits([prepared]), model.card.temperature)[0]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("prepared.npy", 1e-4), ("prepared.pgm", 1e-4), ("raw.npy", 1e-2), ("prepared.png", 1e-4), ("raw.png", 1e-2),
        ("colour.png", 1e-2), ("deep.png", 2e-2),
    ],
)  # fmt: skip
def test_the_example_answers_as_the_model_does(example: tuple[Path, Path, float], name: str, tolerance: float) -> None:
    folder, path, wanted = example
    unused = {"torch", "cv2", "osteo"} | ({"PIL"} if not name.endswith(".png") else set())
    done = ask(path, folder / name, after=f" assert not {unused} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("; ")[1] == "osteoporosis"
    assert float(done.stdout.split("; ")[0]) == pytest.approx(wanted, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "before", "message"),
    [
        ("raw.png", " sys.modules['PIL'] = None;", "is read by Pillow, which is not installed: pip install pillow"),
        ("transparent.png", "", "is neither grey nor RGB but RGBA"),
        ("broken.png", "", "cannot be read: "),
    ],
)
def test_the_example_says_in_one_line_what_it_cannot_read(
    example: tuple[Path, Path, float], name: str, before: str, message: str
) -> None:
    folder, path, _ = example
    done = ask(path, folder / name, before)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_example_does_not_guess_where_the_joint_is(example: tuple[Path, Path, float]) -> None:
    folder, _, _ = example
    model, path = by_hand("test_resnet", 64), folder / "crop.onnx"
    work.write_exported(replace(model, card=replace(model.card, fit="crop")), path)
    done = ask(path, folder / "raw.png")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "this model sees a part of the picture that osteo finds (fit=crop, enhance=none): give"
    )
    assert ask(path, folder / "prepared.png").returncode == 0
