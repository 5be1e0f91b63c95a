"""osteo export: a checkpoint as a file that runs without osteo, checked against PyTorch before it appears."""

import logging
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from osteo.app import hydra as application
from osteo.config import ExportConfig
from osteo.errors import UserError
from osteo.records.record import Job

log = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def main() -> None:
    """Entry point."""
    application.run("export", ExportConfig, export)


def export(config: ExportConfig, job: Job) -> bool:
    """Writes the file; returns whether it answers as PyTorch does, and leaves none where it does not."""
    check_choices(config)
    from osteo.files import whole
    from osteo.inference import export as work
    from osteo.inference.model import checkpoint_of, load_model

    checkpoint = checkpoint_of(str(config.ckpt))
    output = output_of(config, checkpoint, work.SUFFIXES[config.format])
    model = load_model(checkpoint)
    pictures, labels = work.check_pictures(config.check, model)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"exact{work.SUFFIXES[config.format]}"
        work.write_exported(model, made)
        exact = work.open_exported(made)
        largest = work.difference(exact, model, pictures)
        batches = " and ".join(map(str, work.BATCHES))
        facts = f"{largest:.2g} ({len(pictures)} pictures, batches of {batches})"
        if not largest <= work.TOLERANCE:
            print(f"osteo export: logits differ from PyTorch's by up to {facts}; no file is left", file=sys.stderr)
            return False
        print(f"largest difference of a logit from PyTorch's: {facts}")
        if config.int8:
            exact_file, made = made, Path(folder) / "small.onnx"
            calibration = pictures[:: -(-len(pictures) // work.CALIBRATION)]
            work.quantise(exact_file, made, calibration)
            print(f"int8: calibrated on {len(calibration)} of these pictures, without their labels")
            print("\n".join(work.losses(exact, work.open_exported(made), pictures, labels)))
            log.warning("int8 is fast on CPUs with VNNI or the like; on others it may be slower than float32")
        with whole(output) as aside:
            shutil.copyfile(made, aside)
    side = model.card.image_size
    print(f"{output}: uint8 (N, {side}, {side}) to logit and probability, {output.stat().st_size / 1e6:.1f} MB")
    return True


def check_choices(config: ExportConfig) -> None:
    """Refuses what does not go together, and a format whose packages are not installed.

    Raises:
        UserError: one line that says what to change.
    """
    if not config.ckpt:
        raise UserError("name a checkpoint: osteo export RUN/checkpoints/best.ckpt")
    if not isinstance(config.ckpt, str):
        raise UserError("an ensemble cannot be exported as one file: export each checkpoint and average what they say")
    if config.int8 and config.format != "onnx":
        raise UserError(f"int8=true goes with format=onnx, not with format={config.format}")
    if config.format == "onnx" and not all(find_spec(package) for package in PACKAGES):
        raise UserError("format=onnx needs an extra that is not installed: pip install 'osteo[export]'")


def output_of(config: ExportConfig, checkpoint: Path, suffix: str) -> Path:
    """The file to write.

    Raises:
        UserError: it is there already, its folder is not, or its name does not fit the format.
    """
    beside = checkpoint.with_name(f"{checkpoint.stem}{'.int8' if config.int8 else ''}{suffix}")
    output = Path(config.output).expanduser() if config.output else beside
    if not output.name.endswith(suffix):
        raise UserError(f"output={output.name} must end in {suffix} for format={config.format}")
    if not output.parent.is_dir():
        raise UserError(f"output={output}: there is no folder {output.parent}")
    if output.exists():
        raise UserError(f"{output.name} is there already; remove it, or choose another: output=FILE{suffix}")
    return output
