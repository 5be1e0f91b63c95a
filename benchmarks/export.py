"""An exported model asked through our wrapper beside plain onnxruntime and PyTorch, in float32 and in eight bits."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.noise import note
from osteo.inference.card import Card
from osteo.inference.export import (
    INPUT,
    OUTPUTS,
    check_pictures,
    milliseconds,
    open_exported,
    quantise,
    write_exported,
)
from osteo.inference.model import Model
from osteo.networks.network import Network

BACKBONES = ("resnet50", "densenet121")
SIDE, ROUNDS = 224, 6


def measure() -> list[dict]:
    """One row per backbone, batch and arithmetic; weights are random, since they do not change the time."""
    rows = []
    for backbone in BACKBONES:
        torch.manual_seed(0)
        card = Card(SIDE, "pad", ["normal", "osteoporosis"], 1.0, {}, "", "phantom", backbone, 0, None, "")
        model = Model(Path(backbone), Network(backbone, image_size=SIDE).eval(), card, None)
        pictures, _ = check_pictures(None, model)
        with tempfile.TemporaryDirectory() as folder:
            exact, small = Path(folder) / "exact.onnx", Path(folder) / "small.onnx"
            write_exported(model, exact)
            quantise(exact, small, pictures[:32])
            for batch in (1, 16):
                rows += _rows(model, {"float32": exact, "int8": small}, pictures[:batch])
    return rows


def _rows(model: Model, files: dict[str, Path], pictures: list[np.ndarray]) -> list[dict]:
    """All systems in turn, so that a change of the machine's speed meets each."""
    stacked, systems = np.stack(pictures), [model.logits]
    for path in files.values():
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        systems += [open_exported(path).logits, lambda _, session=session: session.run(OUTPUTS, {INPUT: stacked})]
    torch_times, *others = milliseconds(systems, pictures, rounds=ROUNDS)
    float32 = statistics.median(others[0])
    rows = []
    for arithmetic, wrapped, direct in zip(files, others[::2], others[1::2], strict=True):
        first, second = statistics.median(wrapped), statistics.median(direct)
        rows.append(
            {
                "backbone": model.card.backbone,
                "batch": len(pictures),
                "arithmetic": arithmetic,
                "osteo, ms a picture": round(first, 2),
                "onnxruntime, ms a picture": round(second, 2),
                "osteo / onnxruntime": round(first / second, 3),
                "osteo, pictures a second": round(1e3 / first, 1),
                "float32 / this": round(float32 / first, 2),
                "PyTorch float32, ms a picture": round(statistics.median(torch_times), 2),
                "noise": note(wrapped, direct),
            }
        )
        print(rows[-1], flush=True)
    return rows
