"""One picture has one logit: answers are computed in float32, whatever a training computes in, and on any device."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from osteo import load
from osteo.errors import UserError, diagnose
from osteo.evaluation.gradcam import grad_cam
from osteo.inference.answer import heat_map
from osteo.inference.explain import feature_maps
from osteo.networks.network import Network
from osteo.networks.precision import ieee_float32
from osteo.records.record import Run
from osteo.training import hardware
from osteo.training.module import Classifier

if TYPE_CHECKING:
    from osteo.inference.model import Model

CONV = torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """They are of the process, and other tests have their own."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def test_logits_of_a_training_in_mixed_precision_are_those_of_evaluate(
    osteo: Callable, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    predict_step = Classifier.predict_step

    def spied(self: Classifier, *arguments: object) -> object:
        found.append((torch.is_deterministic_algorithms_warn_only_enabled(), CONV.fp32_precision))
        return predict_step(self, *arguments)

    monkeypatch.setattr(Classifier, "predict_step", spied)
    words = [*tiny, "trainer.precision=bf16-mixed", "trainer.max_epochs=2", "optimizer.lr=0.05"]
    trained = osteo("train", *words, "trainer.deterministic=warn", "logger.wandb.mode=disabled", "output_dir=run")
    assert trained.code == 0, trained.err
    assert set(found) == {(True, "ieee")}
    record = Run(tmp_path / "run")
    assert record.read_environment()["precision"] == "bf16-mixed"
    data = [word for word in tiny if word.startswith("data") and "size" not in word]
    of_training = record.read_predictions()
    for split in ("val", "test"):
        asked = osteo("evaluate", "run", *data, f"split={split}", f"output_dir={split}")
        assert asked.code == 0, asked.err
        table = of_training[of_training["split"] == split].merge(
            Run(tmp_path / split).read_predictions(), on="image_id", suffixes=("", "_again"), validate="1:1"
        )
        assert len(table) == (of_training["split"] == split).sum() > 3
        assert table["logit"].to_numpy() == pytest.approx(table["logit_again"].to_numpy(), abs=1e-5)
        assert table["logit"].nunique() > 3


def precisions() -> list[str]:
    backends = torch.backends
    return [
        *(backends.cuda.matmul.fp32_precision, CONV.fp32_precision, backends.cudnn.rnn.fp32_precision),
        *(backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision),
    ]


def readable() -> tuple[str, bool, bool]:
    """Settings of older versions, which torch refuses to read where they do not agree with the newer ones."""
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
@pytest.mark.parametrize("allowed", [True, False])
def test_what_was_set_before_holds_again_afterwards(chosen: str, allowed: bool) -> None:
    torch.set_float32_matmul_precision(chosen)
    torch.backends.cudnn.allow_tf32 = allowed
    before, older = precisions(), readable()
    assert older == (chosen, chosen != "highest", allowed)
    with suppress(ZeroDivisionError), ieee_float32():
        with ieee_float32():
            assert precisions() == ["ieee"] * 5
            with torch.backends.cudnn.flags(enabled=False):
                pass
        assert readable() == ("highest", False, False)
        _ = 1 / 0
    assert precisions() == before
    assert readable() == older


def test_settings_that_disagree_are_left_as_they_were() -> None:
    CONV.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = precisions()
    with ieee_float32():
        assert precisions() == ["ieee"] * 5
    assert precisions() == before


def test_answers_maps_and_grad_cam_are_in_float32(
    models: "list[Model]", picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    normalise = Network.normalise

    def spied(self: Network, pictures: torch.Tensor) -> torch.Tensor:
        found.append(precisions())
        return normalise(self, pictures)

    monkeypatch.setattr(Network, "normalise", spied)
    model = models[0]
    prepared = model.prepare(picture)
    model.logits([prepared])
    heat_map(models, picture)
    feature_maps(model.network, torch.zeros(1, 1, 64, 64), ["layer1"])
    assert found == [["ieee"] * 5] * 3


def test_everything_that_answers_lies_on_the_device_of_the_network(
    models: "list[Model]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that have a device and no content, an operation on two devices raises.

    Only the gradient needs a real device.
    """
    monkeypatch.setattr(torch.autograd, "grad", lambda _, features: (torch.zeros_like(features),))
    mode = FakeTensorMode()
    with mode, torch.device("cuda"):
        network = Network("test_resnet", image_size=64, tta=["hflip"]).eval()
    assert network.device.type == "cuda"
    with mode:
        on_gpu = replace(models[0], network=network)
        pictures = [np.zeros((64, 64), np.uint8)] * 3
        outputs = on_gpu.outputs(pictures)
        cam = grad_cam(network, torch.zeros(3, 1, 64, 64))
    assert [(found.device.type, tuple(found.shape)) for found in (outputs, cam)] == [
        ("cpu", (3,)), ("cpu", (3, 64, 64)),
    ]  # fmt: skip
    assert Network("test_resnet", image_size=64).to("meta").untrained().device.type == "meta"


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("command", ["evaluate", "predict", "explain", "serve", "report"])
def test_an_accelerator_that_is_not_there_is_one_line(
    command: str, osteo: Callable, run: Path, knees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    words = {
        "evaluate": ["data=folder", f"data.root={knees}"], "predict": [f"input={knees}"], "explain": [f"input={knees}"],
    }.get(command, [])  # fmt: skip
    asked = osteo(command, str(run), *words, "accelerator=cuda")
    assert asked.code == 2
    assert asked.err.strip().splitlines()[-1] == (
        f"osteo {command}: accelerator=cuda, but this machine shows no CUDA device; use accelerator=cpu or auto"
    )
    asked = osteo(command, str(run), *words, "accelerator=tpu")
    assert "accelerator 'tpu' is unknown; choose one of: auto, cpu, gpu, cuda, mps" in asked.err


def test_load_takes_the_accelerator(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    for word in ("cpu", "auto"):
        assert load(run, accelerator=word).models[0].network.device.type == "cpu"
    with pytest.raises(UserError, match="accelerator=mps, but this machine shows no MPS device"):
        load(run, accelerator="mps")
    with pytest.raises(UserError, match="accelerator 'fpga' is unknown"):
        load(run, accelerator="fpga")


def test_an_accelerator_is_named_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    assert hardware.present_accelerator("auto") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [hardware.present_accelerator(word) for word in ("auto", "gpu", "mps")] == ["mps"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [hardware.present_accelerator(word) for word in ("auto", "gpu", "cuda")] == ["cuda"] * 3


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trainer.deterministic=1", "trainer.deterministic=1 is not allowed; give true, false or warn"),
        ("trainer.deterministic=yes!", "trainer.deterministic=yes! is not allowed; give true, false or warn"),
        ("+trainer.extra.deterministic=true", "trainer.extra.deterministic has a key of its own"),
    ],
)
def test_deterministic_is_a_key_with_three_values(
    osteo: Callable, tiny: list[str], tmp_path: Path, word: str, expected: str
) -> None:
    refused = osteo("train", *tiny, word, "output_dir=run")
    assert (refused.code, expected in refused.err) == (2, True), refused.err
    assert not (tmp_path / "run").exists()


def test_an_operation_that_cannot_be_deterministic_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    trouble = diagnose(raised.value)
    assert isinstance(trouble, UserError)
    assert str(trouble) == "put_ has no deterministic implementation on this device; use trainer.deterministic=warn"
