"""A trained network as a file that runs without osteo: ONNX, TorchScript or torch.export, the card inside.

Its input is prepared pictures, uint8 (N, S, S) for any N, since none of these formats has OpenCV's resizing; scaling,
channels, normalisation, network, temperature and sigmoid are inside.
"""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from osteo.data.archives import open_archive
from osteo.data.phantom import T_SCORES, draw
from osteo.data.sources import class_of, is_picture
from osteo.errors import UserError, counted
from osteo.evaluation.calibration import calibrate
from osteo.evaluation.ties import join_ties
from osteo.files import check_checksums, display_path, sha256_of, write_text
from osteo.inference.card import KEY
from osteo.inference.formats import kind_of
from osteo.inference.model import Features, Model, size_to_read
from osteo.networks.fusion import Scaling
from osteo.networks.network import Network
from osteo.networks.outputs import details_of, log_probabilities, positive_logit
from osteo.reading.covariates import NUMBERS, WORDS, Covariates, as_numbers
from osteo.reading.pictures import describe_error
from osteo.reading.reader import read_picture
from osteo.task import CLASS_NAMES, CLASSES, Task
from osteo.types import Floats, Grey

log = logging.getLogger(__name__)

INPUT, COVARIATES, OUTPUTS = "picture", "covariates", ["logit", "probability"]
TOLERANCE = 1e-4
"""of a logit: room for float32 sums in another order, and for nothing else"""
BATCHES = (1, 7)
"""sizes that a file is checked with: one picture, and an odd number that no exporter was given"""
MAX_PICTURES, PHANTOMS, CALIBRATION = 512, 64, 64
QUANTISED = ["Conv", "Gemm", "MatMul"]  # where the time goes; quantising anything else costs more than it gains
CHECKSUM = ".sha256"
"""What the file with a checksum ends in."""


class CalibratedNetwork(nn.Module):
    """Network and calibration as one, and what makes features of covariates where it takes any."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature, self.kind = network, temperature, network.task.kind
        self.scaling = None if network.fusion is None else Scaling(network.fusion.covariates)

    def forward(self, picture: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, ...]:
        """Maps uint8 (N, S, S) to what `outputs_of` its task names, float32.

        First the logits and calibrated probabilities of the positive class, both (N,).

        Args:
            picture: prepared.
            covariates: of a network that takes them, float32 (N, C), as `osteo.reading.covariates.as_numbers` has them.
        """
        features = self.scaling(covariates) if self.scaling else None
        outputs = self.network(picture.unsqueeze(1).float().div(255.0), features)
        logit = positive_logit(self.kind, outputs)
        found = logit, torch.sigmoid(logit / self.temperature)
        if self.kind == "regression":
            return *found, outputs
        return found if self.kind == "binary" else (*found, log_probabilities(self.kind, outputs).exp())


def outputs_of(task: Task) -> list[str]:
    """The names of a file's outputs; after two the T-score (N,), or the probabilities of all classes (N, C)."""
    further = {"regression": ["t_score"], "binary": []}
    return [*OUTPUTS, *further.get(task.kind, ["class_probabilities"])]


@dataclass(frozen=True)
class Exported:
    """An exported file, ready to answer on the CPU."""

    card: dict[str, Any]
    """the facts of the model's card"""
    run: Callable[..., Sequence[Any]]
    """maps uint8 (N, S, S) to logits and probabilities of the positive class, both float32 (N,); see `outputs_of`

    Where the card has covariates it takes them as a second array, float32 (N, C), NaN where one is not known.
    """

    def logits(self, pictures: Sequence[Grey], values: Floats | None = None) -> Floats:
        """The logits of prepared pictures, (N,), as `Model.logits`; arguments as of `outputs`."""
        return np.asarray(self.outputs(pictures, values)[:, 0])

    def outputs(self, pictures: Sequence[Grey], values: Floats | None = None) -> Floats:
        """Everything that it gives for prepared pictures, (N, K): the columns of `outputs_of`, one after the other.

        Args:
            pictures: uint8 (S, S).
            values: of the covariates, (N, C), of a file that takes them; None where nothing is known of any patient.
        """
        covariates = []
        if names := self.card.get(COVARIATES, {}).get("names"):
            values = np.full((len(pictures), len(names)), np.nan) if values is None else values
            covariates.append(np.asarray(values, np.float32))
        found = self.run(np.stack(pictures), *covariates)
        return np.column_stack([np.asarray(output, np.float64) for output in found])


def write_exported(model: Model, path: Path) -> None:
    """Writes a model in the format that the suffix of the path stands for.

    Raises:
        UserError: the exporter cannot follow this backbone.
    """
    calibrated = CalibratedNetwork(model.network, model.card.temperature).eval()
    side, facts, kind = model.card.image_size, model.card.facts(), kind_of(path)
    example: tuple[Tensor, ...] = (torch.zeros(2, side, side, dtype=torch.uint8),)
    if model.covariates is not None:
        facts |= {COVARIATES: model.covariates.to_dict()}
        example += (torch.zeros(2, len(model.covariates.names)),)
    inputs, card = [INPUT, COVARIATES][: len(example)], json.dumps(facts)
    shapes = tuple({0: torch.export.Dim("batch")} for _ in example)
    try:
        with _silence_exporters(), torch.no_grad():
            if kind == "onnx":
                made: Any = torch.onnx.export(
                    calibrated, example, dynamo=True, verbose=False, dynamic_shapes=shapes,
                    input_names=inputs, output_names=outputs_of(model.network.task),
                )  # fmt: skip
                made.model.metadata_props[KEY] = card
                made.save(path, external_data=False)
            elif kind == "torch_export":
                program = torch.export.export(calibrated, example, dynamic_shapes=shapes)
                torch.export.save(program, path, extra_files={KEY: card})
            else:
                traced = torch.jit.trace(calibrated, example, check_trace=False)
                torch.jit.save(traced, path, _extra_files={KEY: card})
    except OSError:
        raise
    except Exception as error:  # which kind depends on the part of the backbone that the exporter cannot follow
        raise UserError(
            f"model.backbone={model.card.backbone} cannot be exported to {kind}"
            f" ({_first_line(error)}); try another format"
        ) from error


def write_checksum(path: Path) -> Path:
    """Writes the SHA-256 of a file beside it, as `sha256sum -c` reads it: an ONNX file has no checksum inside."""
    beside = path.with_name(f"{path.name}{CHECKSUM}")
    write_text(beside, f"{sha256_of(path)}  {path.name}\n")
    return beside


def open_exported(path: Path) -> Exported:
    """Loads a file that `write_exported` or `quantise` wrote; for anything else its library raises an error.

    Raises:
        UserError: the file is not what its checksum says, be it inside or beside it.
    """
    check_checksums(path)
    beside = path.with_name(f"{path.name}{CHECKSUM}")
    if beside.exists() and beside.read_text(encoding="utf-8").split()[:1] != [sha256_of(path)]:
        raise UserError(f"{display_path(path)} is damaged (it is not what {beside.name} says); export it again")
    card: dict[str, Any] = {KEY: ""}
    if kind_of(path) == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        names = [value.name for value in session.get_inputs()]

        def answered(*inputs: npt.NDArray[Any]) -> Sequence[Any]:
            found: Sequence[Any] = session.run(None, dict(zip(names, inputs, strict=True)))
            return found

        return Exported(json.loads(metadata[KEY]), answered)
    with _silence_exporters():
        if kind_of(path) == "torch_export":
            network: Any = torch.export.load(path, extra_files=card).module()
        else:
            network = torch.jit.load(path, map_location="cpu", _extra_files=card)

    def run(*inputs: npt.NDArray[Any]) -> Sequence[Any]:
        with torch.inference_mode():
            return [values.numpy() for values in network(*map(torch.from_numpy, inputs))]

    return Exported(json.loads(card[KEY]), run)


def difference(exported: Exported, model: Model, pictures: Sequence[Grey]) -> float:
    """The largest absolute difference of an output from PyTorch's, in batches of each of `BATCHES`.

    That is of a logit, a probability or a T-score; of covariates that the network takes, half are known.

    Raises:
        UserError: the file does not take batches of these sizes.
    """
    values, features = _made_up(model.covariates, len(pictures)) if model.covariates else (None, None)
    outputs = model.outputs(pictures, features)
    logits, details = model.positive(outputs), details_of(model.network.task, outputs)
    wanted = np.column_stack([logits, calibrate(logits, model.card.temperature), *details.values()])
    try:
        found = [in_batches(exported.outputs, pictures, size, values) for size in BATCHES]
    except Exception as error:  # of onnxruntime or of torch
        raise UserError(
            f"model.backbone={model.card.backbone} was exported, but the file does not run ({_first_line(error)})"
        ) from error
    return max(float(np.abs(outputs - wanted).max()) for outputs in found)


def in_batches(ask: Callable[..., Floats], pictures: Sequence[Grey], size: int, values: Floats | None = None) -> Floats:
    """What is answered of many pictures, `size` at a time, with their patients' covariates; the last may be smaller."""
    parts = [slice(start, start + size) for start in range(0, len(pictures), size)]
    return np.concatenate([ask(pictures[part], None if values is None else values[part]) for part in parts])


def _made_up(covariates: Covariates, count: int) -> tuple[Floats, Features]:
    """Covariates of patients that there are not, (N, C), half of them not known, and their features, (N, F)."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            name: rng.normal(covariates.means[name], covariates.deviations[name], count)
            if name in NUMBERS
            else rng.choice(list(WORDS[name]), count)
            for name in covariates.names
        }
    )
    table = table.astype(object).mask(rng.random(table.shape) < 0.5, None)
    return as_numbers(covariates.names, table), covariates.features(table)


def quantise(source: Path, target: Path, pictures: Sequence[Grey], covariates: Covariates | None = None) -> None:
    """Writes an ONNX file in eight-bit integers: static, QDQ, one scale per channel, ranges from these pictures."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    values = None if covariates is None else _made_up(covariates, len(pictures))[0].astype(np.float32)

    def batch(start: int) -> dict[str, Any]:
        chosen = slice(start, start + 8)
        of_patients = {} if values is None else {COVARIATES: values[chosen]}
        return {INPUT: np.stack(pictures[chosen]), **of_patients}

    class Pictures(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        batches = map(batch, range(0, len(pictures), 8))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with _silence_exporters():
        quant_pre_process(source, target, skip_symbolic_shape=True)
        quantize_static(target, target, Pictures(), per_channel=True, op_types_to_quantize=QUANTISED)


def milliseconds(
    systems: Sequence[Callable[[Sequence[Grey]], Any]], pictures: Sequence[Grey], *, rounds: int = 20
) -> list[list[float]]:
    """Milliseconds per picture of each system on one batch, measured in turn, after two rounds to warm up."""
    taken: list[list[float]] = [[] for _ in systems]
    for turn in range(rounds + 2):
        for system, times in zip(systems, taken, strict=True):
            start = time.perf_counter()
            system(pictures)
            if turn > 1:
                times.append((time.perf_counter() - start) * 1e3 / len(pictures))
    return taken


def compare_int8(exact: Exported, small: Exported, pictures: Sequence[Grey], labels: Sequence[int | None]) -> list[str]:
    """What eight bits cost and what they gain, in words.

    Args:
        exact: in float32.
        small: in eight bits.
        pictures: prepared, uint8 (S, S).
        labels: of the pictures, 1 for osteoporosis, None where unknown.
    """
    from sklearn.metrics import roc_auc_score

    before, after = (in_batches(exported.logits, pictures, 16) for exported in (exact, small))
    differences = np.abs(after - before)
    lines = [f"int8: logits differ by {differences.max():.3g} at most, {differences.mean():.3g} on average"]
    known = [index for index, label in enumerate(labels) if label is not None]
    truth = [labels[index] for index in known]
    if len(set(truth)) == 2:
        first, second = (roc_auc_score(truth, join_ties(logits[known])) for logits in (before, after))
        lines.append(
            f"int8: AUROC {first:.4f} before, {second:.4f} after ({counted(len(known), 'picture')} with a label)"
        )
    for size in (1, 16):
        batch = [pictures[index % len(pictures)] for index in range(size)]
        first, second = (statistics.median(times) for times in milliseconds((exact.logits, small.logits), batch))
        gain = f"{first / second:.2f} times as fast"
        lines.append(f"int8: {first:.3g} ms per picture before, {second:.3g} after, {gain} (batch {size})")
    return lines


def check_pictures(root: str | None, model: Model) -> tuple[list[Grey], list[int | None]]:
    """Prepared pictures of a folder or zip, else phantoms, and their labels, None where no class folder gives one.

    At most `MAX_PICTURES` are taken, spread evenly over their names.

    Raises:
        UserError: there is no picture that can be read.
    """
    if root is None:
        class_names = [CLASS_NAMES[number % 2] for number in range(PHANTOMS)]
        drawn = [_phantom(number, name) for number, name in enumerate(class_names)]
        return [model.prepare(picture) for picture in drawn], [CLASSES[name] for name in class_names]
    archive = open_archive(root, "check")
    names = [entry.name for entry in archive.entries() if not entry.refused and is_picture(archive, entry)]
    pictures: list[Grey] = []
    labels: list[int | None] = []
    for name in names[:: -(-len(names) // MAX_PICTURES) or 1]:
        try:
            pictures.append(model.prepare(read_picture(archive.read(name), size_to_read([model]))))
        except (OSError, ValueError, RuntimeError, SyntaxError, cv2.error) as error:
            log.warning("check: skipped %s: %s", name, describe_error(error))
            continue
        label = model.network.task.labels.get(class_of(name) or "")
        labels.append(None if label is None else int(label == model.network.task.positive))
    if not pictures:
        raise UserError(f"check={root} holds no picture that can be read")
    return pictures, labels


def _phantom(number: int, class_name: str) -> Grey:
    rng = np.random.default_rng([number, 20])
    return draw(rng, float(rng.uniform(*T_SCORES[class_name])), height=480, width=int(rng.integers(240, 480)))


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error  # torch.onnx wraps the cause in pages of advice
    lines = [line.strip().rstrip(".") for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:160]}" if lines else type(cause).__name__


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppresses what exporters print: advice, progress, and that TorchScript is deprecated."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
