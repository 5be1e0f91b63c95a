"""What goes together in a configuration, and what does not: one line for the first mistake."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from osteo import parts
from osteo.command_settings import AuditConfig, EvaluateConfig, ExplainConfig, PredictConfig, PrepareConfig
from osteo.config import DATA_SETS, VIEWS, Config, DataConfig, ModelConfig, PhantomConfig, SplitConfig
from osteo.errors import UserError, counted, unknown
from osteo.files import check_against
from osteo.task import CLASSES, LAST_EPOCH, LOSSES, T_SCORE, TASKS

LABEL_COLUMNS = ("picture", "class", "split", T_SCORE)
"""What a column of data.labels may hold that data.columns names; data.patient names that of the patient."""
CHARACTERISTICS = (
    "age", "sex", "menopause_age", "height", "weight", "bmi", "smoker", "diabetic", "fracture", "family_history",
)  # fmt: skip
"""What a clinical sheet may say of a patient that can be a covariate."""
ANSWERS = ("t_score", "z_score", "diagnosis")
"""What it may say that is the answer itself."""
CLINICAL_COLUMNS = ("patient", "picture", *CHARACTERISTICS, *ANSWERS)
"""What a column of data.clinical may hold that data.clinical_columns names."""
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".ckpt")
"""Endings of files of weights."""
TARGET = "_target_"
AVERAGES = ("Averaging", "MovingAverage")
"""Ends of the names of callbacks that keep an average of the weights, Lightning's among them."""
"""The key of a part that names its class, as in Hydra."""


def check(config: Any, prefix: str = "") -> None:
    """Refuses the first value outside what its option allows.

    Raises:
        UserError: one line that names the key, the value and what is allowed.
    """
    names = [entry.name for entry in fields(config)]
    if extra := [name for name in vars(config) if name not in names]:  # Hydra's +key=value adds keys
        raise unknown("key", f"{prefix}{extra[0]}", names)
    for entry in fields(config):
        value, key = getattr(config, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            check(value, f"{key}.")
        elif isinstance(value, dict):
            for name, item in value.items():
                if is_dataclass(item):
                    check(item, f"{key}.{name}.")
        elif value is not None and entry.metadata:
            _check_value(key, value, entry.metadata)
    if isinstance(config, Config | PrepareConfig | AuditConfig | EvaluateConfig):
        check_data(config.data)
    if isinstance(config, AuditConfig):
        check_against(config.against)
    if isinstance(config, PrepareConfig | AuditConfig | EvaluateConfig) and config.data.split.variants_first:
        raise UserError("data.split.variants_first=true works with osteo train only; leave it out")
    if isinstance(config, PredictConfig | ExplainConfig):
        _check_sheet(config.clinical, config.clinical_columns, "clinical")
    if isinstance(config, Config | PrepareConfig | AuditConfig) and config.data.task != config.task:
        raise UserError(f"data.task={config.data.task} follows task={config.task}; leave it out, and set task alone")
    if isinstance(config, Config) and config.data.covariates != config.covariates:
        raise UserError("data.covariates follows covariates=[...]; leave it out, and set covariates alone")
    if isinstance(config, Config):
        _check_task(config)
        _check_model(config.model, config.data.image_size)
        if config.model.fusion == "late" and not config.covariates:
            raise UserError("model.fusion=late needs covariates to fuse, as in covariates=[age,sex,bmi]")
        _check_training(config)


def _check_value(key: str, value: Any, allowed: Any) -> None:
    low, high, above = allowed["low"], allowed["high"], allowed["above"]
    choices = [str(choice).lower() if isinstance(choice, bool) else choice for choice in allowed["choices"]]
    if choices and (str(value).lower() if isinstance(value, bool) else value) not in choices:
        raise unknown(key, value, choices)
    if low is not None and not value >= low:
        raise UserError(f"{key}={value} is too small; the smallest allowed is {low}")
    if high is not None and not value <= high:
        raise UserError(f"{key}={value} is too large; the largest allowed is {high}")
    if above is not None and not value > above:
        raise UserError(f"{key}={value} is too small; it must be above {above}")


def check_data(data: DataConfig) -> None:
    """Refuses what does not go together in the data, and archives that are not there.

    Raises:
        UserError: one line that says what to change.
    """
    if data.name not in DATA_SETS and data.name not in parts.sources:
        raise unknown("data.name", data.name, [*DATA_SETS, *parts.sources])
    if data.name in DATA_SETS:  # a registered source checks for itself what it reads
        _check_archives(data)
    _check_clinical(data)
    _check_split(data.split)


def _check_clinical(data: DataConfig) -> None:
    allowed = f"choose from: {', '.join(CHARACTERISTICS)}"
    for place, name in enumerate(data.covariates):
        if name in ANSWERS:
            raise UserError(f"covariates: {name} is the answer that a picture is asked for, not a covariate; {allowed}")
        if name not in CHARACTERISTICS:
            raise unknown("covariate", name, CHARACTERISTICS)
        if name in data.covariates[:place]:
            raise UserError(f"covariates names {name} twice; name each once")
    _check_sheet(data.clinical, data.clinical_columns, "data.clinical")


def _check_sheet(clinical: str | None, columns: Sequence[str], key: str) -> None:
    named_pairs(columns, f"{key}_columns", "COLUMN:MEANING with a meaning", CLINICAL_COLUMNS)
    if columns and not clinical:
        raise UserError(f"{key}_columns goes with {key}=FILE")
    if clinical and not Path(clinical).expanduser().is_file():
        raise UserError(f"{key}={clinical}: no such file")


def _check_archives(data: DataConfig) -> None:
    used = DATA_SETS[data.name]
    for key in ("kaggle", "mendeley", "root"):
        if getattr(data, key) and key not in used:
            readers = [f"data={name}" for name, keys in DATA_SETS.items() if key in keys]
            raise UserError(f"data.{key} is not read by data={data.name}; it goes with {' or '.join(readers)}")
    if data.name == "phantom":
        _check_counts(data.phantom)
    for key in used:
        place = getattr(data, key)
        if not place and not (data.download and key != "root"):
            hint = "" if key == "root" else ", or data.download=true"
            raise UserError(f"data={data.name} needs data.{key}=PATH, a folder or a zip{hint}")
        if place and not Path(place).expanduser().exists():
            raise UserError(f"data.{key}={place}: no such file or folder")
    if data.download and not {"kaggle", "mendeley"} & set(used):
        raise UserError(f"data.download=true goes with the two archives, not with data={data.name}")
    if data.split.test_source and len(used) == 1:
        what_for = "train" if data.split.test_source == data.name else "test"
        raise UserError(
            f"data.split.test_source={data.split.test_source} leaves nothing to {what_for} on:"
            f" data={data.name} is a single source"
        )
    if data.name != "folder":
        for key in ("classes", "labels", "columns", "patient"):
            if getattr(data, key):
                raise UserError(f"data.{key} goes with data=folder, not with data={data.name}")
    _check_labels(data)


def _check_counts(phantom: PhantomConfig) -> None:
    for key in ("kaggle", "mendeley"):
        for name, count in getattr(phantom, key).items():
            if name not in CLASSES:
                raise unknown(f"data.phantom.{key}", name, CLASSES)
            if count < 0:
                raise UserError(f"data.phantom.{key}.{name}={count} is too small; the smallest allowed is 0")
    if not any((*phantom.kaggle.values(), *phantom.mendeley.values())):
        raise UserError(
            "data.phantom.kaggle and data.phantom.mendeley ask for no pictures; give at least one of them some"
        )


def _check_labels(data: DataConfig) -> None:
    named_pairs(data.classes, "data.classes", "FOLDER:CLASS with a class", CLASSES)
    named_pairs(data.columns, "data.columns", "COLUMN:MEANING with a meaning", LABEL_COLUMNS)
    if data.columns and not data.labels:
        raise UserError("data.columns goes with data.labels=FILE")
    if data.labels and not Path(data.labels).expanduser().is_file():
        raise UserError(f"data.labels={data.labels}: no such file")
    if data.patient and not data.labels:  # else it may be a column, which the file decides
        patient_pattern(data.patient)


def patient_pattern(given: str) -> re.Pattern[str]:
    """The pattern that finds a patient in the path of a picture.

    Raises:
        UserError: it is none, or does not have exactly one group.
    """
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise UserError(f"data.patient={given} is not a regular expression: {error}") from error
    if pattern.groups != 1:
        raise UserError(
            f"data.patient={given} has {counted(pattern.groups, 'group')}; the one that holds the patient is needed,"
            " as in '([^/_]+)_[^/]*$' for P12_left.png"
        )
    return pattern


def named_pairs(given: Sequence[str], key: str, form: str, allowed: Iterable[str]) -> dict[str, str]:
    """What names stand for, from pairs such as healthy:normal; names in lower case, since case is no difference.

    Args:
        given: the pairs.
        key: of the configuration that gave them, for errors.
        form: of a pair, in words, for errors.
        allowed: what a name may stand for.

    Raises:
        UserError: one is no such pair, or two contradict each other.
    """
    found: dict[str, str] = {}
    for pair in given:
        name, colon, meaning = (part.strip().casefold() for part in pair.rpartition(":"))
        if not colon or not name or meaning not in allowed:
            raise UserError(f"{key}: '{pair}' is not a {form} of {', '.join(allowed)}")
        if found.setdefault(name, meaning) != meaning:
            raise UserError(f"{key}: '{name}' stands for {found[name]} and for {meaning}")
    return found


def _check_split(split: SplitConfig) -> None:
    if split.file and not Path(split.file).expanduser().is_file():
        raise UserError(f"data.split.file={split.file}: no such file")
    if split.fold is not None and split.fold >= split.folds:
        raise UserError(
            f"data.split.fold={split.fold} is outside its range, 0 to {split.folds - 1}"
            f" for data.split.folds={split.folds}"
        )
    numbers_repeat = split.fold is not None and split.test_source is not None
    given = (split.file is not None, split.fold is not None, split.test_source is not None, split.ready_made)
    if sum(given) - numbers_repeat > 1:
        names = "data.split.file, data.split.fold, data.split.test_source and data.split.ready_made"
        raise UserError(f"give only one of {names}; with a test_source, the fold is the number of the repeat")
    if split.variants_first and (split.grouped or split.file or split.test_source or split.ready_made):
        raise UserError(
            "data.split.variants_first=true splits the variants of a picture separately: it goes with"
            " data.split.grouped=false, and not with a given split"
        )
    if split.train + split.val >= 1.0:
        raise UserError(f"data.split.train={split.train} and data.split.val={split.val} must add up to less than 1")
    if wrong_columns := sorted(set(split.stratify) - {"label", "source", "patient", "format", "mode"}):
        raise unknown("data.split.stratify", wrong_columns[0], ("label", "source", "format", "mode"))


def _check_task(config: Config) -> None:
    task = TASKS[config.task]
    if config.loss.name not in (known := dict.fromkeys(chain(parts.losses, *LOSSES.values()))):
        raise unknown("loss.name", config.loss.name, known)
    others = {name: kind for kind, names in LOSSES.items() for name in names if kind != task.kind}
    if config.loss.name in others and config.loss.name not in LOSSES[task.kind]:
        raise UserError(
            f"loss={config.loss.name} does not go with task={task.name}, which takes {' or '.join(LOSSES[task.kind])}"
        )
    if config.augment.mixup and task.kind != "binary":
        raise UserError(f"augment.mixup goes with two classes, not with task={task.name}; leave it out")
    if task.kind == "regression" and (config.loss.label_smoothing or config.loss.class_weights != "none"):
        raise UserError(
            "loss.label_smoothing and loss.class_weights go with classes, not with task=t_score; leave them out"
        )


def _check_model(model: ModelConfig, image_size: int) -> None:
    if model.pretrained and model.weights_file:
        raise UserError("model.pretrained=true and model.weights_file exclude each other: give one of them")
    if model.freeze != "none" and not (model.pretrained or model.weights_file):
        raise UserError(
            f"model.freeze={model.freeze}: freezing needs weights: set model.pretrained=true or model.weights_file=FILE"
        )
    if model.channels == 2:
        raise UserError("model.channels=2 is not allowed; 1 is one grey channel, 3 the grey picture thrice")
    if model.weights_file:
        check_weights_file(Path(model.weights_file).expanduser())
    check_views(model.tta)
    check_tiles(image_size, model.patches)


def check_weights_file(path: Path) -> None:
    """Refuses what is neither a file of weights, as its ending and first bytes tell, nor a folder, as a run is.

    Raises:
        UserError: one line that names the file.
    """
    if path.is_dir():
        return
    if not path.is_file():
        raise UserError(f"model.weights_file={path}: no such file")
    if not path.name.endswith(WEIGHTS):
        raise UserError(f"model.weights_file={path.name} must end in one of {', '.join(WEIGHTS)}")
    try:
        with path.open("rb") as file:
            first = file.read(9)
    except OSError as error:
        raise UserError(f"model.weights_file={path.name} cannot be read: {error.strerror}") from error
    of_torch = first.startswith((b"PK", b"\x80"))  # a zip, or a pickle
    if not (first[8:] == b"{" if path.suffix == ".safetensors" else of_torch):
        raise UserError(
            f"model.weights_file={path.name} is not a file of weights; save a state_dict with torch.save or safetensors"
        )


def check_views(names: Sequence[str]) -> None:
    """Refuses a view of test-time augmentation that does not exist, or is named twice.

    Raises:
        UserError: one line that names the view.
    """
    if unwanted := [name for name in names if name not in VIEWS]:
        raise UserError(
            f"model.tta: '{unwanted[0]}' is not a view that keeps the label; allowed are {', '.join(VIEWS)}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"model.tta={list(names)} names a view twice")


def check_tiles(image_size: int, patches: int) -> None:
    """Refuses a side that no whole number of equal tiles makes.

    Raises:
        UserError: one line with both numbers.
    """
    if image_size % patches:
        raise UserError(f"data.image_size={image_size} cannot be cut into model.patches={patches} equal tiles a side")


def check_devices(devices: Any) -> None:
    """Refuses what is neither a number of devices nor a list of them.

    Raises:
        UserError: one line with what is allowed.
    """
    numbers = devices if isinstance(devices, list) else [devices]
    if devices != "auto" and not (numbers and all(isinstance(n, int) and n >= 0 for n in numbers) and devices != 0):
        allowed = "auto, a number from 1, or a list such as [0,1]"
        raise UserError(f"trainer.devices={devices} is not allowed; give {allowed}")


def _check_training(config: Config) -> None:
    check_devices(config.trainer.devices)
    changes = ("rotate", "translate", "scale", "brightness", "contrast", "ops", "val")
    plain = config.augment.name == "none" or (
        config.augment.name == "online" and not any(getattr(config.augment, change) for change in changes)
    )
    if config.model.freeze == "backbone" and not plain:
        raise UserError(
            "model.freeze=backbone keeps the features of a picture and of its mirror image alone, which any other"
            " augmentation would change: set augment=flip, or augment=none"
        )
    for name, part in config.callbacks.items() if config.model.freeze == "backbone" else ():
        if isinstance(part, dict) and str(part.get(TARGET)).endswith(("Unfreezing", "BackboneFinetuning")):
            raise UserError(f"callbacks.{name} unfreezes what model.freeze=backbone keeps frozen: drop one of them")
    averages = [
        f"callbacks.{name}"
        for name, part in config.callbacks.items()
        if isinstance(part, dict) and str(part.get(TARGET)).endswith(AVERAGES)
    ]
    if len(averages) > 1:
        raise UserError(f"{' and '.join(averages)} each put an average of the weights into checkpoints: leave one out")
    if config.data.split.variants_first and (config.augment.name != "paper" or config.augment.val or config.covariates):
        raise UserError(
            "data.split.variants_first=true makes the variants of augment=paper rows of their own: it needs"
            " augment=paper, and goes neither with augment.val=true nor with covariates"
        )
    if config.augment.val and config.augment.name != "paper":
        raise UserError("augment.val=true goes with augment=paper: only its variants are fixed")
    if config.trainer.monitor == LAST_EPOCH:
        parts_by_name = {name: part for name, part in config.callbacks.items() if isinstance(part, dict)}
        followers = [f"callbacks.{name}" for name, part in parts_by_name.items() if part.get("monitor") == LAST_EPOCH]
        followers += ["optimizer.schedule=plateau"] * (config.optimizer.schedule == "plateau")
        followers += ["hydra/sweeper=search"] * (config.trial is not None)
        if followers:
            raise UserError(
                f"trainer.monitor=epoch cannot be waited for or chosen by, as {followers[0]} does; use val/loss"
            )
    for key in ("callbacks", "logger"):
        for name, part in getattr(config, key).items():
            if part is not None and not is_dataclass(part) and not (isinstance(part, dict) and TARGET in part):
                raise UserError(f"{key}.{name}={part} is not a part: it needs a {TARGET}, the path of its class")
        check_targets(getattr(config, key), key)
    check_targets(config.trainer.extra, "trainer.extra")


def check_targets(node: Any, key: str) -> None:
    """Refuses a part that lies outside the libraries and plugins whose parts a configuration may name.

    Nothing is imported: what a record or an overlay holds never runs code.

    Raises:
        UserError: one line that names the part.
    """
    if isinstance(node, list | tuple):
        for place, item in enumerate(node):
            check_targets(item, f"{key}[{place}]")
    if not isinstance(node, dict):
        return
    if TARGET in node:
        path, roots = node[TARGET], parts.trusted_roots()
        if not isinstance(path, str) or path.partition(".")[0] not in roots:
            raise UserError(
                f"{key}.{TARGET}={path} is none of {', '.join(roots)}; name the module that brings it:"
                f" plugins=[{str(path).rpartition('.')[0] or 'my_package.parts'}]"
            )
    for name, item in node.items():
        check_targets(item, f"{key}.{name}")
