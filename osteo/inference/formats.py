"""Formats that a checkpoint is exported to, and what is asked for in vain; no format's package is imported for it."""

from importlib.util import find_spec
from pathlib import Path

from osteo.command_settings import ExportConfig
from osteo.errors import UserError
from osteo.files import display_path

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts.pt", "torch_export": ".pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_choices(config: ExportConfig) -> None:
    """Refuses options that exclude each other, and a format whose packages are not installed.

    Raises:
        UserError: one line that says what to change.
    """
    if not config.ckpt:
        raise UserError("name a run or a checkpoint: osteo export RUN")
    if not isinstance(config.ckpt, str):
        raise UserError("an ensemble cannot be exported as one file: export each checkpoint, and average their answers")
    if config.int8 and config.format != "onnx":
        raise UserError(f"int8=true goes with format=onnx, not with format={config.format}")
    if config.format == "onnx" and not all(find_spec(package) for package in PACKAGES):
        raise UserError("format=onnx needs an extra that is not installed: pip install 'osteo[export]'")


def output_path(config: ExportConfig, checkpoint: Path) -> Path:
    """The file to write.

    Raises:
        UserError: it exists already, its folder does not, or its name does not fit the format.
    """
    suffix = SUFFIXES[config.format]
    beside = checkpoint.with_name(f"{checkpoint.stem}{'.int8' if config.int8 else ''}{suffix}")
    output = Path(config.output).expanduser() if config.output else beside
    if not output.name.endswith(suffix):
        raise UserError(f"output={config.output} must end in {suffix} for format={config.format}")
    if not output.parent.is_dir():
        raise UserError(
            f"output={config.output or display_path(output)}: there is no folder {display_path(output.parent)}"
        )
    if output.exists():
        raise UserError(f"{display_path(output)} exists already; remove it, or choose another: output=FILE{suffix}")
    return output


def kind_of(path: Path) -> str:
    """The format that a file's suffix stands for."""
    return next(kind for kind, suffix in SUFFIXES.items() if path.name.endswith(suffix))
