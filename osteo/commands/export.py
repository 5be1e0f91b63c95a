"""osteo export: a checkpoint as a file that runs without osteo, checked against PyTorch before it appears."""

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from osteo.app import hydra as application
from osteo.app.extras import importing
from osteo.command_settings import ExportConfig
from osteo.errors import counted, printable
from osteo.inference.formats import SUFFIXES, check_choices, output_path
from osteo.records.named import checkpoint_of, existing_checkpoints
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("export", ExportConfig, export)


def export(config: ExportConfig, job: Job) -> bool:
    """Writes the file; returns whether it answers as PyTorch does, and leaves none where it does not."""
    check_choices(config)
    checkpoint = checkpoint_of(*existing_checkpoints(config.ckpt))
    output = output_path(config, checkpoint)

    with importing():
        from osteo.files import whole
        from osteo.inference import export as formats
        from osteo.inference.model import load_model
        from osteo.reading.covariates import described

    model = load_model(checkpoint)
    outputs = formats.outputs_of(model.network.task)
    pictures, labels = formats.check_pictures(config.check, model)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"exact{SUFFIXES[config.format]}"
        formats.write_exported(model, made)
        exact = formats.open_exported(made)
        largest = formats.difference(exact, model, pictures)
        batches = " and ".join(map(str, formats.BATCHES))
        measured = f"{largest:.2g} ({counted(len(pictures), 'picture')}, batches of {batches})"
        if not largest <= formats.TOLERANCE:
            print(f"osteo export: outputs differ from PyTorch's by up to {measured}; no file was kept", file=sys.stderr)
            return False
        print(f"largest difference of {' or '.join(outputs)} from PyTorch's: {measured}")
        if config.int8:
            exact_file, made = made, Path(folder) / "small.onnx"
            calibration = pictures[:: -(-len(pictures) // formats.CALIBRATION)]
            formats.quantise(exact_file, made, calibration, model.covariates)
            print(f"int8: calibrated on {len(calibration)} of these pictures, without their labels")
            print("\n".join(formats.compare_int8(exact, formats.open_exported(made), pictures, labels)))
            log.warning("int8 is fast on CPUs with VNNI or the like; on others it may be slower than float32")
        with whole(output) as aside:
            shutil.copyfile(made, aside)
        checksum = formats.write_checksum(output)
    taken = [f"uint8 (N, {model.card.image_size}, {model.card.image_size})"]
    if model.covariates is not None:
        names = [f"{name} {described(name)}" for name in model.covariates.names]
        taken.append(f"float32 (N, {len(names)}), NaN where not known: {', '.join(names)};")
    size = output.stat().st_size / 1e6
    print(f"{printable(output)}: {' and '.join(taken)} to {', '.join(outputs)}, {size:.1f} MB")
    print(f"{printable(checksum)}: its checksum, for sha256sum -c")
    return True
