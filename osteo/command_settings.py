"""The commands, and what each but `osteo train` can be told: one dataclass a command, as in `osteo.config`."""

from dataclasses import dataclass, field
from typing import Any

from osteo.config import ACCELERATORS, TASK, AugmentConfig, Config, DataConfig, PluginsConfig, option
from osteo.task import BINARY, RULES, TASKS, YOUDEN

LIST = "list"
"""What explain takes for `maps`, where layers are to be listed."""


@dataclass
class PrepareConfig(PluginsConfig):
    """What `osteo prepare` takes."""

    verify: bool = option(
        False, "hash every file again, compare every stored picture with its checksum, and mend what is damaged"
    )
    export_augmented: str | None = option(None, "a new folder for the paper's six variants of every picture, as files")
    task: str = option(BINARY.name, TASK, choices=tuple(TASKS))
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


OF_LABELS = (
    "covariates", "claim", "trial", "debug", "experiment", "protocol", "loss.name", "loss.args", "loss.label_smoothing",
    "loss.class_weights", "data.missing_covariates", "model.head", "model.head_args", "model.fusion", "model.tta",
    "model.freeze", "augment.mixup", "augment.val", "optimizer.layer_decay",
)  # fmt: skip
"""Keys that say something of labels, or of the classifier, which `osteo pretrain` refuses."""


VARIANTS = "data.split.variants_first"
"""Goes with `osteo train` alone."""
FRAMING = ("data.task", "data.image_size", "data.fit", "data.enhance", VARIANTS)
"""Keys of the data that the checkpoint decides in `osteo evaluate`, not the command line."""


@dataclass
class PretrainConfig(Config):
    """What `osteo pretrain` takes: what `osteo train` does, as far as it asks for no label."""

    method: str = option(
        "simclr",
        "what a network learns by: two views of a picture are alike and unlike others (simclr), one view foretells the"
        " other (byol), or hidden parts of a picture follow from the rest (masked)",
        choices=("simclr", "byol", "masked"),
    )
    against: str | None = option(
        None, "a split file or a run directory whose validation and test pictures, and their copies, are left out"
    )
    temperature: float = option(0.1, "by which likeness is divided (method=simclr)", above=0.0, high=10.0)
    momentum: float = option(
        0.99, "share of the teacher that a step keeps at first; it rises to 1 (method=byol)", low=0.0, high=1.0
    )
    hidden: float = option(0.6, "share of a picture that is hidden (method=masked)", above=0.0, high=0.95)
    patch: int = option(32, "side of the squares that are hidden, in pixels (method=masked)", low=2, high=512)


@dataclass
class StatusConfig:
    """What `osteo status` takes."""

    runs: str | None = option(None, "a sweep or run directory; `osteo status DIRECTORY` is short for it")
    watch: bool = option(False, "redraw the table on a terminal until no run is running")


@dataclass
class RerunConfig(PluginsConfig):
    """What `osteo rerun` takes."""

    run: str | None = option(None, "a run directory; `osteo rerun DIRECTORY` is short for it")
    output_dir: str | None = option(None, "directory of the repetition; null for outputs/ by date and time")


@dataclass
class ExportConfig(PluginsConfig):
    """What `osteo export` takes."""

    ckpt: Any = option(None, "a checkpoint or a run directory; `osteo export CHECKPOINT` is short for it")
    format: str = option("onnx", "format of the file", choices=("onnx", "torchscript", "torch_export"))
    output: str | None = option(None, "the file; null for one beside the checkpoint")
    int8: bool = option(False, "eight-bit integers, calibrated on the pictures of `check` (format=onnx)")
    check: str | None = option(None, "a folder or zip of pictures to check the file with; null for phantoms")


@dataclass
class ReportConfig(PluginsConfig):
    """What `osteo report` takes."""

    runs: str | None = option(None, "a sweep or run directory; `osteo report DIRECTORY` is short for it")
    draws: int = option(2000, "draws of the bootstrap", low=100, high=100_000)
    seed: int = option(0, "seed of the draws", low=0, high=2**32 - 1)
    primary: str = option("auroc", "the metric that is the primary endpoint; everything else is exploratory")
    sensitivity: float = option(0.9, "sensitivity that a threshold is to keep on validation", above=0.0, high=1.0)
    prevalence: float | None = option(
        None, "share of the positive class among those examined; null for US adults of 50 or more", above=0, high=0.999
    )
    mistakes: int = option(8, "worst mistakes that are shown", low=0, high=100)
    accelerator: str = option("auto", "what computes Grad-CAM, in float32", choices=ACCELERATORS)
    pictures: bool = option(True, "show radiographs on the page; false where it will be shared")
    upload_pictures: bool = option(
        False, "send the figures to W&B too, radiographs among them unless pictures=false; else numbers and names alone"
    )


@dataclass
class AuditConfig(PluginsConfig):
    """What `osteo audit` takes."""

    seed: int = option(0, "seed of folds and forests", low=0, high=2**32 - 1)
    output_dir: str | None = option(None, "where the audit is written; null for outputs/ by date and time")
    against: str | None = option(None, "a split file or a run directory to search for leaks, instead of data.split")
    task: str = option(BINARY.name, TASK, choices=tuple(TASKS))
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class EvaluateConfig(PluginsConfig):
    """What `osteo evaluate` takes; size and fit of a picture are the checkpoint's business."""

    ckpt: Any = option(None, "a checkpoint or run directory, or a list of them, which answer together")
    accelerator: str = option("auto", "what computes the answers, in float32", choices=ACCELERATORS)
    split: str = option(
        "test", "pictures that are asked about; all of them test", choices=("test", "val", "train", "all")
    )
    output_dir: str | None = option(None, "directory of the record; null for outputs/ by date and time")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class PredictConfig(PluginsConfig):
    """What `osteo predict` takes; how a picture is prepared is the checkpoint's business."""

    ckpt: Any = option(None, "a checkpoint or run directory, or a list of them, which answer together")
    accelerator: str = option("auto", "what computes the answers, in float32", choices=ACCELERATORS)
    input: str | None = option(None, "a picture (PNG, JPEG, TIFF, DICOM, ...), a folder or a zip")
    output_dir: str | None = option(None, "where the answers are written; null for outputs/ by date and time")
    clinical: str | None = option(None, "CSV or Excel file with the covariates of a model that takes any")
    clinical_columns: list[str] = option([], "what its columns hold, as in [Alter:age,Bild:picture]")
    rule: str = option(YOUDEN, "how the threshold was chosen on validation", choices=tuple(RULES))
    interval: bool = option(True, "range over models and harmless changes of the picture, for eight times the time")
    overlay: bool = option(True, "a picture with its Grad-CAM beside every answer, and a sheet with all of them")


@dataclass
class ExplainConfig(PluginsConfig):
    """What `osteo explain` takes; how a picture is prepared is the checkpoint's business."""

    ckpt: Any = option(None, "a checkpoint or a run directory; `osteo explain CHECKPOINT` is short for it")
    accelerator: str = option("auto", "what computes the answers, in float32", choices=ACCELERATORS)
    input: str | None = option(None, "a picture (PNG, JPEG, TIFF, DICOM, ...), a folder or a zip")
    maps: Any = option(
        None, "the layer whose feature maps are shown, or a list of them; null for one of each stage; list prints all"
    )
    channels: int = option(16, "channels of a layer that are shown, the most active ones", low=1, high=4096)
    output_dir: str | None = option(None, "where figures and numbers are written; null for outputs/ by date and time")
    clinical: str | None = option(None, "CSV or Excel file with the covariates of a model that takes any")
    clinical_columns: list[str] = option([], "what its columns hold, as in [Alter:age,Bild:picture]")
    rule: str = option(YOUDEN, "how the threshold was chosen on validation", choices=tuple(RULES))


@dataclass
class ServeConfig(PluginsConfig):
    """What `osteo serve` takes; how a picture is prepared is the checkpoint's business."""

    ckpt: Any = option(None, "a checkpoint or run directory, or a list of them, which answer together")
    accelerator: str = option("auto", "what computes the answers, in float32", choices=ACCELERATORS)
    host: str = option("127.0.0.1", "address to listen on; any but a loopback address lets others in, without a login")
    port: int = option(8000, "port to listen on; 0 for any that is free", low=0, high=65535)
    rule: str = option(YOUDEN, "how the threshold was chosen on validation", choices=tuple(RULES))
    interval: bool = option(True, "range over models and harmless changes of the picture, for eight times the time")
    overlay: bool = option(True, "the picture with its Grad-CAM beside it")
    most_mib: int = option(32, "largest file that is taken, in MiB", low=1, high=512)
    a_minute: int | None = option(30, "pictures in a minute, whoever asks; null for no limit", low=1)


@dataclass(frozen=True)
class Command:
    """A verb of the command line."""

    name: str
    schema: type[Any]
    """of its configuration"""
    purpose: str
    positional: tuple[str, ...] = ()
    """the keys that its first arguments stand for where these have no key"""
    refused: tuple[str, ...] = ()
    """keys of its schema that say nothing to it"""

    @property
    def usage(self) -> str:
        """How it is called, in one line."""
        flag = ["[-m]"] if issubclass(self.schema, Config) else []
        given = map(str.upper, self.positional)
        return " ".join(["osteo", self.name, *flag, *given, "[key=value ...]"])


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "prepare",
            PrepareConfig,
            "read the archives, decode every picture once, show what is used",
            (),
            (VARIANTS,),
        ),
        Command(
            "audit",
            AuditConfig,
            "find what is wrong with the data: copies, contradictions, shortcuts",
            (),
            (VARIANTS,),
        ),
        Command(
            "pretrain", PretrainConfig, "learn from unlabelled pictures; train starts from the result", (), OF_LABELS
        ),
        Command("train", Config, "train one model, or sweep many with -m"),
        Command("status", StatusConfig, "show how far the runs of a sweep are, and what failed", ("runs",)),
        Command("rerun", RerunConfig, "repeat a recorded run and compare the metrics", ("run",)),
        Command("evaluate", EvaluateConfig, "measure checkpoints on a data set or a split", ("ckpt",), FRAMING),
        Command("predict", PredictConfig, "answer for your own pictures", ("ckpt", "input")),
        Command("serve", ServeConfig, "answer on a web page of this computer, one picture at a time", ("ckpt",)),
        Command("explain", ExplainConfig, "show what a network looks at: Grad-CAM and feature maps", ("ckpt", "input")),
        Command("report", ReportConfig, "write the figures and tables of a sweep as one page", ("runs",)),
        Command("export", ExportConfig, "save a checkpoint for ONNX Runtime, TorchScript or torch.export", ("ckpt",)),
    )
}
"""Every verb, in the order of the work."""
