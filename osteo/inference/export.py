"""A trained network as a file that runs without osteo: ONNX, TorchScript or torch.export, the card inside.

What goes in is the prepared picture of training, uint8 (N, S, S), since OpenCV's resizing is no part of these formats;
scaling, channels, normalisation, network, temperature and sigmoid are inside, and N is free.
"""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from osteo.data.phantom import T_SCORES, draw
from osteo.data.sources import class_of, open_archive
from osteo.errors import UserError
from osteo.inference.card import KEY, Card
from osteo.inference.model import Model, in_batches
from osteo.reading.pictures import PICTURES, decode, describe_error
from osteo.task import CLASSES
from osteo.types import Floats, Grey

log = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts.pt", "torch_export": ".pt2"}
INPUT, OUTPUTS = "picture", ["logit", "probability"]
TOLERANCE = 1e-4
"""of a logit: float32 adds up in another order, and no more than that is allowed"""
BATCHES = (1, 7)
"""that a file is checked with: alone, and an odd size that no exporter was shown"""
MOST, PHANTOMS, CALIBRATION = 512, 64, 64  # pictures
QUANTISED = ["Conv", "Gemm", "MatMul"]  # where the time goes; eight bits of anything else lose more than they gain


class Answer(nn.Module):
    """Network and calibration as one."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Maps uint8 (N, S, S) to logits and calibrated probabilities of osteoporosis, both float32 (N,)."""
        logit = self.network(picture.unsqueeze(1).float().div(255.0))
        return logit, torch.sigmoid(logit / self.temperature)


@dataclass(frozen=True)
class Exported:
    """A file ready to be asked on the CPU."""

    facts: dict[str, Any]
    """the card, without what the guard needs"""
    run: Callable[[Grey], Sequence[Any]]
    """maps uint8 (N, S, S) to logits and probabilities, both float32 (N,)"""

    def logits(self, pictures: Sequence[Grey]) -> Floats:
        """The logits of prepared pictures, (N,), as `Model.logits`."""
        return np.asarray(self.run(np.stack(pictures))[0], np.float64)


def facts_of(card: Card) -> str:
    """What a file says of itself, as JSON."""
    return json.dumps({name: value for name, value in asdict(card).items() if name != "guard"})


def kind_of(path: Path) -> str:
    """The format that a file's name ends in."""
    return next(kind for kind, suffix in SUFFIXES.items() if path.name.endswith(suffix))


def write_exported(model: Model, path: Path) -> None:
    """Writes a model in the format that the path ends in.

    Raises:
        UserError: the exporter cannot follow this backbone.
    """
    answer = Answer(model.network, model.card.temperature).eval()
    side, facts, kind = model.card.image_size, facts_of(model.card), kind_of(path)
    example = (torch.zeros(2, side, side, dtype=torch.uint8),)
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet(), torch.no_grad():
            if kind == "onnx":
                made: Any = torch.onnx.export(
                    answer, example, dynamo=True, verbose=False, dynamic_shapes=shapes,
                    input_names=[INPUT], output_names=OUTPUTS,
                )  # fmt: skip
                made.model.metadata_props[KEY] = facts
                made.save(path, external_data=False)
            elif kind == "torch_export":
                program = torch.export.export(answer, example, dynamic_shapes=shapes)
                torch.export.save(program, path, extra_files={KEY: facts})
            else:
                traced = torch.jit.trace(answer, example, check_trace=False)
                torch.jit.save(traced, path, _extra_files={KEY: facts})
    except OSError:
        raise
    except Exception as error:  # what an exporter raises depends on where in the backbone it is lost
        raise UserError(
            f"model.backbone={model.card.backbone} cannot be exported to {kind}"
            f" ({_first_line(error)}); try another format"
        ) from error


def open_exported(path: Path) -> Exported:
    """Loads a file that `write_exported` or `quantise` wrote; anything else is an error of its library."""
    facts: dict[str, Any] = {KEY: ""}
    if kind_of(path) == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = session.get_modelmeta().custom_metadata_map[KEY]
        return Exported(json.loads(told), lambda pictures: session.run(OUTPUTS, {INPUT: pictures}))
    with _quiet():
        if kind_of(path) == "torch_export":
            network: Any = torch.export.load(path, extra_files=facts).module()
        else:
            network = torch.jit.load(path, map_location="cpu", _extra_files=facts)

    def run(pictures: Grey) -> Sequence[Any]:
        with torch.inference_mode():
            return [values.numpy() for values in network(torch.from_numpy(pictures))]

    return Exported(json.loads(facts[KEY]), run)


def difference(exported: Exported, model: Model, pictures: Sequence[Grey]) -> float:
    """The largest absolute difference of a logit from PyTorch's, in batches of each of `BATCHES`.

    Raises:
        UserError: the file does not take batches of these sizes.
    """
    wanted = in_batches(model.logits, pictures, 16)
    try:
        found = [in_batches(exported.logits, pictures, size) for size in BATCHES]
    except Exception as error:  # of onnxruntime or of torch
        raise UserError(
            f"model.backbone={model.card.backbone} was exported, but the file does not run ({_first_line(error)})"
        ) from error
    return max(float(np.abs(logits - wanted).max()) for logits in found)


def quantise(source: Path, target: Path, pictures: Sequence[Grey]) -> None:
    """Writes an ONNX file in eight-bit integers: static, QDQ, a scale a channel, ranges from these pictures."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        batches = iter([{INPUT: np.stack(pictures[start : start + 8])} for start in range(0, len(pictures), 8)])

        def get_next(self) -> dict[str, Grey] | None:
            return next(self.batches, None)

    with _quiet():
        quant_pre_process(source, target, skip_symbolic_shape=True)
        quantize_static(target, target, Pictures(), per_channel=True, op_types_to_quantize=QUANTISED)


def milliseconds(
    systems: Sequence[Callable[[Sequence[Grey]], Any]], pictures: Sequence[Grey], *, rounds: int = 20
) -> list[list[float]]:
    """Milliseconds a picture of each system on one batch, measured in turn, after two more rounds to warm up."""
    taken: list[list[float]] = [[] for _ in systems]
    for turn in range(rounds + 2):
        for system, times in zip(systems, taken, strict=True):
            start = time.perf_counter()
            system(pictures)
            if turn > 1:
                times.append((time.perf_counter() - start) * 1e3 / len(pictures))
    return taken


def losses(exact: Exported, small: Exported, pictures: Sequence[Grey], labels: Sequence[int | None]) -> list[str]:
    """What eight bits cost and gain, in words.

    Args:
        exact: in float32.
        small: in eight bits.
        pictures: prepared, uint8 (S, S).
        labels: theirs, 1 for osteoporosis, None where unknown.
    """
    from sklearn.metrics import roc_auc_score

    before, after = (in_batches(exported.logits, pictures, 16) for exported in (exact, small))
    apart = np.abs(after - before)
    lines = [f"int8: logits differ by {apart.max():.3g} at most, {apart.mean():.3g} on average"]
    known = [index for index, label in enumerate(labels) if label is not None]
    truth = [labels[index] for index in known]
    if len(set(truth)) == 2:
        first, second = (roc_auc_score(truth, logits[known]) for logits in (before, after))
        lines.append(f"int8: AUROC {first:.4f} before, {second:.4f} after ({len(known)} pictures with a label)")
    for size in (1, 16):
        batch = [pictures[index % len(pictures)] for index in range(size)]
        first, second = (statistics.median(times) for times in milliseconds((exact.logits, small.logits), batch))
        gain = f"{first / second:.2f} times as fast"
        lines.append(f"int8: {first:.3g} ms a picture before, {second:.3g} after, {gain} (batch {size})")
    return lines


def check_pictures(root: str | None, model: Model) -> tuple[list[Grey], list[int | None]]:
    """Prepared pictures and their labels, None where no class folder tells: of a folder or zip, or else phantoms.

    Of more than `MOST` pictures, as many are taken, evenly over their names.

    Raises:
        UserError: there is no picture that can be read.
    """
    if root is None:
        names = [("normal", "osteoporosis")[number % 2] for number in range(PHANTOMS)]
        drawn = [_phantom(number, name) for number, name in enumerate(names)]
        return [model.prepare(picture) for picture in drawn], [CLASSES[name] for name in names]
    archive = open_archive(root, "check")
    names = [e.name for e in archive.entries() if PurePosixPath(e.name).suffix.lower() in PICTURES and not e.refused]
    pictures: list[Grey] = []
    labels: list[int | None] = []
    for name in names[:: -(-len(names) // MOST) or 1]:
        try:
            pictures.append(model.prepare(decode(archive.read(name), model.card.image_size)))
        except (OSError, ValueError, RuntimeError, SyntaxError, cv2.error) as error:
            log.warning("check: %s is left out: %s", name, describe_error(error))
            continue
        labels.append(CLASSES.get(class_of(name) or ""))
    if not pictures:
        raise UserError(f"check={root} holds no picture that can be read")
    return pictures, labels


def _phantom(number: int, class_name: str) -> Grey:
    rng = np.random.default_rng([number, 20])
    return draw(rng, float(rng.uniform(*T_SCORES[class_name])), height=480, width=int(rng.integers(240, 480)))


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error  # torch.onnx wraps in pages of advice what went wrong
    lines = [line.strip().rstrip(".") for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:160]}" if lines else type(cause).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the chatter of exporters: advice, progress, and that TorchScript is deprecated."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
