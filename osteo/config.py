"""What can be configured: one dataclass a group, each option with its meaning, its range and its default.

The YAML files under conf/ choose values; these classes say which keys exist, of which type and in which range.
Importing this module costs nothing: no torch, no Hydra.
"""

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from osteo.task import BINARY, LAST_EPOCH, TASKS

DATA_SETS: dict[str, tuple[str, ...]] = {
    "phantom": (),
    "paper": ("kaggle", "mendeley"),
    "clean": ("kaggle", "mendeley"),
    "kaggle": ("kaggle",),
    "mendeley": ("mendeley",),
    "folder": ("root",),
}
"""Values of data.name, beside the sources that plugins register, and the keys of the archives that each reads."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
"""What computes; auto is CUDA or MPS where the machine has it, else the CPU, and gpu is either of the first two."""
VIEWS = ("hflip", "rotate", "zoom")
"""Of test-time augmentation: changes that leave a knee a knee, and its class what it is."""
TASK = (
    "what a picture is asked: osteoporosis against normal (binary), one of three classes (three_class, or ordinal,"
    " which knows their order), osteopenia_or_worse against normal, or the T-score (t_score)"
)
PAPER_VARIANTS = (
    "original",
    "horizontal flip",
    "vertical flip",
    "brightness and contrast",
    "CLAHE",
    "rotation by 90 degrees",
    "rotation by 45 degrees",
)
"""What augment=paper makes of every picture, in this order."""
CLAHE_CLIP_LIMIT, CLAHE_TILES = 2.0, (8, 8)  # OpenCV's names; the usual choice for radiographs


def option(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str | bool] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A field with its meaning and what is allowed: one of `choices`, or `low` <= value <= `high`, value > `above`."""
    allowed = {"meaning": meaning, "choices": tuple(choices), "low": low, "high": high, "above": above}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=allowed)
    return field(default=default, metadata=allowed)


def field_of(schema: Any, key: str) -> Field[Any] | None:
    """The field of a key such as data.split.fold, with what `option` has said of it; None where there is none."""
    *groups, name = key.split(".")
    for group in groups:
        schema = next((entry.default_factory for entry in fields(schema) if entry.name == group), None)
        if not is_dataclass(schema):
            return None
    return next((entry for entry in fields(schema) if entry.name == name), None)


@dataclass
class PhantomConfig:
    """The synthetic radiographs of data=phantom, in the numbers of the two real archives."""

    seed: int = option(0, "seed of the pictures", low=0)
    kaggle: dict[str, int] = option({"normal": 186, "osteoporosis": 186}, "pictures by class in the Kaggle layout")
    mendeley: dict[str, int] = option(
        {"normal": 36, "osteopenia": 154, "osteoporosis": 49}, "pictures by class in the Mendeley layout"
    )
    age_slope: float = option(-9.0, "years of age by the T-score in the sheet; 0: age says nothing", low=-30, high=30)


@dataclass
class SplitConfig:
    """Who trains, who validates, who tests."""

    seed: int = option(0, "seed of the split", low=0)
    fold: int | None = option(
        None,
        "test fold, from 0 to folds - 1; null for one hold-out split; beside test_source it only numbers the repeat",
        low=0,
    )
    folds: int = option(5, "number of folds", low=2)
    grouped: bool = option(True, "keep a patient's pictures, and copies of one picture, on one side")
    train: float = option(0.7, "share of the pictures that train", above=0.0, high=1.0)
    val: float = option(0.2, "share of the pictures that validate; the rest tests", above=0.0, high=1.0)
    stratify: list[str] = option(["label", "source"], "manifest columns whose mix every split repeats")
    file: str | None = option(None, "a CSV file with the columns image_id and split, instead of drawing one")
    test_source: str | None = option(None, "leave-one-source-out: every picture of this source tests")
    ready_made: bool = option(
        False, "take the split of folders named train, val and test; without val, it is drawn from train"
    )
    variants_first: bool = option(
        False,
        "make the variants of augment=paper before the split, which then cuts through pictures: a mistake that inflates"
        " results, to measure by how much",
    )


@dataclass
class DataConfig:
    """Pictures, how they are decoded, and in which portions they come."""

    name: str = option("phantom", "phantom, paper, clean, kaggle, mendeley, folder, or what a plugin has registered")
    kaggle: str | None = option(None, "the Kaggle archive, a folder or a zip (data=paper, clean or kaggle)")
    mendeley: str | None = option(None, "the Mendeley archive, a folder or a zip (data=paper, clean or mendeley)")
    root: str | None = option(
        None, "a folder or zip with class folders, or with pictures that data.labels names (data=folder, or a plugin's)"
    )
    classes: list[str] = option(
        [], "what other names of folders or words of data.labels stand for, as in [ill:osteoporosis] (data=folder)"
    )
    labels: str | None = option(None, "a CSV or .xlsx file with each picture's class, not class folders (data=folder)")
    columns: list[str] = option(
        [], "what columns of other names hold, as in [Datei:picture,Befund:class,T-Wert:t_score] (data.labels)"
    )
    patient: str | None = option(
        None,
        "whose picture it is: a column of data.labels, or a pattern with one group that is searched in the path,"
        " as in '([^/_]+)_[^/]*$' (data=folder)",
    )
    task: str | None = option(
        BINARY.name, "what a picture is asked; `task` sets it, and in evaluate the checkpoint", choices=tuple(TASKS)
    )
    clinical: str | None = option(None, "a CSV or .xlsx file that says of each patient, or picture, age, sex and more")
    clinical_columns: list[str] = option([], "what its columns hold, as in [Alter:age,Geschlecht:sex,Nr:patient]")
    covariates: list[str] = option([], "what of it the network is given; in training, the key `covariates` sets this")
    missing_covariates: str = option(
        "impute", "where a covariate is unknown: fill it in, or leave the picture out", choices=("impute", "exclude")
    )
    clean: bool = option(False, "set contradictory copies aside and count every other picture once")
    download: bool = option(False, "fetch the archives that are not given (data=paper, clean, kaggle or mendeley)")
    strict: bool = option(False, "a file that cannot be used is an error, not a row set aside")
    image_size: int = option(224, "side of the square picture that the network sees, in pixels", low=16, high=2048)
    fit: str = option(
        "pad",
        "how a picture is made square: padded, stretched (resize), a square about the joint at one scale (crop), tiles"
        " of bone above and below the joint (bone), or a square about the joint by clusters and edges (clusters)",
        choices=("pad", "resize", "crop", "bone", "clusters"),
    )
    enhance: str = option(
        "none",
        "what is done to it then: nothing; or mean filter, histogram equalisation and mean filter again (equalise)",
        choices=("none", "equalise"),
    )
    batch_size: int = option(16, "pictures per training step, on all devices together", low=1)
    cache: str | None = option(None, "where decoded pictures are kept; default $OSTEO_CACHE, else ~/.cache/osteo")
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass
class AugmentConfig:
    """What is done to a training picture; intensities are in [0, 1] here, before normalisation."""

    name: str = option("online", "one of the pipelines above", choices=("online", "paper", "albumentations", "none"))
    flip: float = option(0.5, "probability of a horizontal flip", low=0.0, high=1.0)
    rotate: float = option(10.0, "largest rotation, in degrees", low=0.0, high=180.0)
    translate: float = option(0.05, "largest shift, as a share of the side", low=0.0, high=0.5)
    scale: float = option(0.1, "largest relative change of size", low=0.0, high=0.5)
    brightness: float = option(0.2, "largest additive change of intensity", low=0.0, high=1.0)
    contrast: float = option(0.2, "largest relative change of contrast", low=0.0, high=1.0)
    ops: list[Any] = option(
        [], "operations of kornia.augmentation in place of all of these, as in [{RandomAffine: {degrees: 10}}]"
    )
    mixup: float = option(
        0.0, "alpha of the Beta distribution by which two training pictures are mixed; 0 for none", low=0.0, high=10.0
    )
    val: bool = option(False, "augment validation too, as the paper does (augment=paper)")


@dataclass
class ModelConfig:
    """A backbone and a head."""

    backbone: str = option("resnet18", "any name that timm knows, torchvision/NAME, or what a plugin has registered")
    pretrained: bool = option(False, "start from the library's weights, fetched from its hub once")
    weights_file: str | None = option(None, "start from a local file of weights, or from another run")
    channels: int = option(1, "1: one grey channel; 3: the grey picture thrice, as RGB", low=1, high=3)
    drop_rate: float = option(0.0, "dropout before the classifier", low=0.0, high=0.99)
    freeze: str = option(
        "none",
        "what keeps the weights that it starts from: nothing, the norm layers, or all of the backbone, whose features"
        " are then computed once and kept",
        choices=("none", "norms", "backbone"),
    )
    stages: bool = option(
        False, "give the head the mean of every stage's feature map, fine texture too, not of the last map alone"
    )
    patches: int = option(
        1, "tiles on each side into which the network cuts a picture; its logit is their mean", low=1, high=16
    )
    tta: list[str] = option([], f"test-time augmentation: views whose logits are averaged, of {', '.join(VIEWS)}")
    head: str = option(
        "linear",
        "what makes a logit of pooled features: linear; standardised, linear on features of mean 0 and variance 1; or"
        " what a plugin has registered",
    )
    head_args: dict[str, Any] = option({}, "arguments of a registered head")
    fusion: str = option(
        "none", "late: the classifier is given the covariates beside the picture's features", choices=("none", "late")
    )


@dataclass
class OptimizerConfig:
    """Optimiser and learning-rate schedule."""

    name: str = option("adamw", "any optimiser that timm.optim lists")
    lr: float = option(1e-3, "learning rate, at its peak", above=0.0)
    weight_decay: float = option(0.05, "weight decay; biases and norms are not decayed", low=0.0)
    momentum: float = option(0.9, "momentum, where the optimiser has one", low=0.0, high=0.999)
    args: dict[str, Any] = option({}, "further arguments of the optimiser, such as {betas: [0.9, 0.95]}")
    layer_decay: float | None = option(
        None, "learning rate of each layer as a share of the next one's; null for the same in all", above=0.0, high=1.0
    )
    schedule: str = option("one_cycle", "one_cycle or constant, by step; or one of timm.scheduler, such as cosine")
    schedule_args: dict[str, Any] = option({}, "arguments of a schedule of timm's, such as {warmup_epochs: 5}")
    warmup: float = option(0.25, "share of the steps in which the rate rises (one_cycle)", above=0.0, high=0.99)


@dataclass
class LossConfig:
    """What training makes small."""

    name: str = option(
        "bce",
        "of two classes bce (binary cross-entropy) or focal, of three cross_entropy, of T-scores huber or"
        " squared_error; or what a plugin has registered",
    )
    args: dict[str, Any] = option({}, "arguments of the loss, such as {gamma: 2.0} of focal")
    label_smoothing: float = option(
        0.0, "share by which a training label is moved towards all classes alike", low=0.0, high=0.99
    )
    class_weights: str = option(
        "none", "balanced: all classes weigh the same, however many pictures each has", choices=("none", "balanced")
    )


@dataclass
class TrainerConfig:
    """Lightning's own names, and what decides the best epoch."""

    max_epochs: int = option(20, "epochs to train", low=1)
    extended_from: list[int] = option(
        [], "epochs that the run was to have before `resume=RUN trainer.max_epochs=N` gave it more, which sets this"
    )
    accelerator: str = option(
        "auto", "what computes; auto takes CUDA or MPS where the machine has it", choices=ACCELERATORS
    )
    devices: Any = option(1, "how many devices, or which, such as [0,2]; auto for all GPUs of the machine")
    num_nodes: int = option(1, "machines that train together, each with `devices`", low=1)
    precision: str = option(
        "auto",
        "arithmetic; auto is bf16-mixed where the hardware computes bf16 faster",
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
    )
    fast: bool = option(
        True, "channels_last, fused optimiser, and bf16 where precision is auto; false for none of them"
    )
    graph: Any = option(
        "auto",
        "one CUDA graph for a step, where one is possible and gives the same; true: or it is an error",
        choices=("auto", True, False),
    )
    deterministic: Any = option(
        False,
        "the same result bit for bit on a GPU too, slower; warn where an operation cannot be, instead of failing",
        choices=(True, False, "warn"),
    )
    accumulate_grad_batches: int = option(1, "batches per optimiser step", low=1)
    halve_batch: bool = option(
        False, "where memory runs out, begin anew with half the batch and twice as many per step"
    )
    gradient_clip_val: float | None = option(None, "largest norm of the gradient", above=0.0)
    limit_train_batches: int | None = option(None, "batches per epoch at most, to try something out", low=1)
    monitor: str = option(
        "val/loss",
        "what the best epoch is best at; epoch keeps the last one, where validation is too small to choose by",
        choices=("val/loss", "val/auroc", "val/accuracy", LAST_EPOCH),
    )
    extra: dict[str, Any] = option({}, "further arguments of Lightning's Trainer, such as {profiler: simple}")


@dataclass
class WandbConfig:
    """Weights & Biases, as `logger.wandb`."""

    _target_: str = "osteo.training.tracking.WandbLogger"
    mode: str = option(
        "auto",
        "auto is what WANDB_MODE says, else online when logged in, else offline",
        choices=("auto", "online", "offline", "disabled"),
    )
    upload_pictures: bool = option(False, "send what may show a picture, such as a callback's log_image, too")
    project: str = option("osteo", "project of the run")
    entity: str | None = option(None, "team or user; null for your default")
    group: str | None = option(None, "group of the run; null for the sweep's name")
    tags: list[str] = option([], "tags of the run")


@dataclass
class PluginsConfig:
    """Modules that bring parts of the user's own; every command takes them."""

    plugins: list[str] = option([], "modules that register parts (see osteo.parts), such as [my_package.parts]")


@dataclass
class Config(PluginsConfig):
    """Everything that `osteo train` takes."""

    seed: int = option(0, "seed of initial weights, order and augmentation", low=0, high=2**32 - 1)
    output_dir: str | None = option(None, "run or sweep directory; null for outputs/ or multirun/ by date and time")
    experiment: str | None = option(None, "a ready-made experiment, by its name in conf/experiment")
    protocol: str | None = option(None, "how pictures are cleaned, split and varied, by a name in conf/protocol")
    task: str = option(BINARY.name, TASK, choices=tuple(TASKS))
    covariates: list[str] = option([], "what is known of a patient beside the picture, as in [age,sex,bmi]")
    claim: dict[str, Any] = option(
        {}, "what the source of a system claims: source, doi, read, metrics by name, and more"
    )
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    callbacks: dict[str, Any] = option(
        {}, "Lightning's callbacks: one of these, several as in [ema,lr_monitor], or your own by `_target_`"
    )
    logger: dict[str, Any] = option(
        {}, "Lightning's loggers: one of these, several as in [wandb,csv], your own by `_target_`, or null"
    )
    debug: str | None = option(None, "settings to find a fault with, by their name in conf/debug")
    print_config: bool = option(
        False, "show the whole configuration as a tree, not only what differs from the defaults"
    )
    resume: str | None = option(None, "a run or sweep directory to go on with, as it was configured")
    fail_fast: bool = option(False, "end a sweep with its first failure, instead of at its end")
    trial: int | None = option(None, "number of the trial that this run is; hydra/sweeper=search sets it", low=0)
