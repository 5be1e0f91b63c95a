"""What the libraries that osteo takes parts from know by name, so that a wrong name is answered without loading them.

A library that is loaded already is asked; else a file of the cache is read, which is made where its version has none.
"""

import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from osteo.checks import TARGET
from osteo.config import Config
from osteo.errors import UserError, unknown
from osteo.files import cache_dir, write_text

log = logging.getLogger(__name__)

Names: TypeAlias = dict[str, list[str]]
"""Names, each with the arguments that it takes, as `parameters_of` gives them; none where nobody asks."""
ANY = "**"
"""Among the arguments of a function: it takes any other, too."""
TORCHVISION = "torchvision/"
"""What a name begins with that torchvision knows and timm may not, such as torchvision/alexnet."""
SEQUENTIAL = ("alexnet", "convnext", "efficientnet", "googlenet", "inception", "resne", "swin_", "swin_v2",
              "vgg", "wide_resnet")  # fmt: skip
"""Beginnings of torchvision's names whose networks are their parts one after the other, around a global pooling."""
BATCHWISE = ("same_on_batch", "p_batch", "keepdim")
"""Arguments of Kornia's operations that say what the pictures of a batch have in common."""
FETCHING = ("RandomDissolving",)
"""Operations that fetch a model from the internet."""
RESERVED_BY_OPTIMIZER = ("params", "lr", "weight_decay", "momentum", "fused")
RESERVED_BY_SCHEDULE = (
    "optimizer", "sched", "num_epochs", "step_on_epochs", "updates_per_epoch", "plateau_mode", "mode",
)  # fmt: skip
RESERVED_BY_TRAINER = (
    "max_epochs", "accelerator", "devices", "num_nodes", "strategy", "precision", "accumulate_grad_batches",
    "gradient_clip_val", "limit_train_batches", "callbacks", "logger", "enable_checkpointing", "default_root_dir",
    "use_distributed_sampler",
    "deterministic",
)  # fmt: skip
"""Arguments of Lightning's Trainer that have a key of their own, or that the run record takes care of."""
CALLBACKS, LOGGERS = "lightning.pytorch.callbacks", "lightning.pytorch.loggers"
"""Modules whose classes are known by name."""
OWN_SCHEDULES = ("one_cycle", "constant")
"""Schedules by step, without arguments; the others are those of `known("schedules")`."""


def known(kind: str) -> Names:
    """The names of one of the kinds in `LIBRARIES`."""
    package = next(name for name, kinds in LIBRARIES.items() if kind in kinds)
    if package in sys.modules:  # a plugin may have added to it
        return LIBRARIES[package][kind]()
    try:
        path = cache_dir(None) / "names" / f"{package}-{version(package)}.json"
        return (_read(path) or keep(package, path))[kind]
    except (OSError, UserError) as error:  # the run does without such a file, and says what is wrong where it does not
        log.debug("the names of %s are not kept (%s)", package, error)
        return LIBRARIES[package][kind]()


def _read(path: Path) -> dict[str, Names] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def keep(package: str, path: Path) -> dict[str, Names]:
    """Asks a library for all that it has, keeps it in a file, and returns it by kind."""
    found = {kind: ask() for kind, ask in LIBRARIES[package].items()}
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(found))
    return found


def _backbones() -> Names:
    import timm

    return {name: [] for name in timm.list_models()}


def _tagged_backbones() -> Names:
    import timm

    return {name: [] for name in timm.list_pretrained()}


def _torchvision() -> Names:
    from torchvision import models

    return {TORCHVISION + name: [] for name in models.list_models(module=models) if name.startswith(SEQUENTIAL)}


def _optimizers() -> Names:
    from timm.optim import get_optimizer_class, list_optimizers

    found: Names = {}
    for name in map(str, list_optimizers()):
        try:
            found[name] = parameters_of(get_optimizer_class(name, bind_defaults=False))
        except (AssertionError, ImportError):  # of apex and bitsandbytes, which say so where they are asked for
            found[name] = [ANY]
    return found


def _schedules() -> Names:
    from timm import scheduler
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    timms = ("cosine", "tanh", "step", "multistep", "poly", *(["wsd"] if hasattr(scheduler, "WSDLRScheduler") else []))
    arguments = parameters_of(scheduler.create_scheduler_v2)
    return {"plateau": parameters_of(ReduceLROnPlateau), **dict.fromkeys(timms, arguments)}


def _operations() -> Names:
    import kornia.augmentation as kornia

    found = {name: getattr(kornia, name) for name in kornia.__all__}
    base = kornia.AugmentationBase2D
    return {
        name: parameters_of(kind)
        for name, kind in found.items()
        if not name.endswith("Base2D") and name not in FETCHING and isinstance(kind, type) and issubclass(kind, base)
    }


def _other_operations() -> Names:
    import kornia.augmentation as kornia

    return {name: [] for name in kornia.__all__ if name not in known("operations")}


def _trainer() -> Names:
    from lightning.pytorch import Trainer

    return {"Trainer": parameters_of(Trainer)}


def _classes(module: str) -> Names:
    classes = {name: value for name, value in vars(import_module(module)).items() if inspect.isclass(value)}
    return {name: parameters_of(kind) for name, kind in classes.items() if not name.startswith("_")}


LIBRARIES: Mapping[str, Mapping[str, Callable[[], Names]]] = {
    "timm": {
        "backbones": _backbones, "tagged_backbones": _tagged_backbones, "optimizers": _optimizers,
        "schedules": _schedules,
    },
    "torchvision": {"torchvision": _torchvision},
    "kornia": {"operations": _operations, "other_operations": _other_operations},
    "lightning": {"trainer": _trainer, CALLBACKS: partial(_classes, CALLBACKS), LOGGERS: partial(_classes, LOGGERS)},
}  # fmt: skip
"""What is known by name, by the package that knows it, and how that is asked."""


def check_names(config: Config) -> None:
    """Refuses names and arguments that the libraries do not have, but for those of backbones.

    Raises:
        UserError: one line with the nearest names.
    """
    check_optimizer(vars(config.optimizer))
    for place, entry in enumerate(config.augment.ops):
        check_operation(*operation_of(entry, f"augment.ops[{place}]"))
    if config.trainer.extra:
        check_arguments(known("trainer")["Trainer"], config.trainer.extra, "trainer.extra", RESERVED_BY_TRAINER)
    for key in ("callbacks", "logger"):
        for name, node in getattr(config, key).items():
            if isinstance(node, dict):
                _check_part(node, f"{key}.{name}")


def all_schedules() -> list[str]:
    """The names of learning-rate schedules, osteo's own first."""
    return [*OWN_SCHEDULES, *known("schedules")]


def check_optimizer(settings: Mapping[str, Any]) -> None:
    """Refuses an optimiser, a schedule or an argument that does not exist.

    Args:
        settings: the fields of `OptimizerConfig`.

    Raises:
        UserError: one line with the nearest names.
    """
    optimizers, schedules = known("optimizers"), known("schedules")
    name, schedule = settings["name"], settings["schedule"]
    if name not in optimizers:
        raise unknown("optimizer.name", name, optimizers)
    check_arguments(optimizers[name], settings.get("args") or {}, "optimizer.args", RESERVED_BY_OPTIMIZER)
    if schedule not in (every := all_schedules()):
        raise unknown("optimizer.schedule", schedule, every)
    arguments = settings.get("schedule_args") or {}
    if arguments and schedule in OWN_SCHEDULES:
        raise UserError(
            f"optimizer.schedule_args goes with one of {', '.join(schedules)}, not with optimizer.schedule={schedule}"
        )
    if arguments:
        check_arguments(schedules[schedule], arguments, "optimizer.schedule_args", RESERVED_BY_SCHEDULE)


def operation_of(entry: Any, key: str) -> tuple[str, Mapping[str, Any], str]:
    """The name and the arguments of one of `augment.ops`, and its key.

    Raises:
        UserError: it is none.
    """
    name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (None, None)
    if not (isinstance(name, str) and isinstance(arguments, dict | None)):
        raise UserError(
            f"{key}={entry} is not an operation with its arguments, such as {{RandomAffine: {{degrees: 10}}}}"
        )
    return name, arguments or {}, f"{key}.{name}"


def check_operation(name: str, arguments: Mapping[str, Any], key: str) -> None:
    """Refuses an operation that Kornia has not, that does not change one picture by itself, or wrong arguments of it.

    Raises:
        UserError: one line with the nearest names.
    """
    operations = known("operations")
    if name not in operations and name in known("other_operations"):
        raise UserError(f"{key} does not work on single 2-D pictures; choose one that does, such as RandomAffine")
    if name not in operations:
        raise unknown(key.rpartition(".")[0], name, operations)
    if batchwise := [argument for argument in arguments if argument in BATCHWISE]:
        raise UserError(f"{key}.{batchwise[0]} is not possible: every picture is augmented on its own; leave it out")
    check_arguments(operations[name], arguments, key, BATCHWISE)
    probability = arguments.get("p", 0.5)
    if not isinstance(probability, int | float) or not 0.0 <= probability <= 1.0:
        raise UserError(f"{key}.p={probability} is not a probability; give a number from 0 to 1")


def _check_part(node: Mapping[str, Any], key: str) -> None:
    """Refuses a part of Lightning's that does not exist; one of another library is looked at when it is loaded."""
    module, _, name = str(node[TARGET]).rpartition(".")
    if module not in (CALLBACKS, LOGGERS):
        return
    classes = known(module)
    if name not in classes:
        raise unknown(f"{key}.{TARGET}: class of {module}", name, classes)
    check_arguments(classes[name], {name: value for name, value in node.items() if name != TARGET}, key)


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function or class takes by name, and `ANY` where it takes any other, too."""
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named + [ANY] * any(p.kind == p.VAR_KEYWORD for p in parameters)


def check_arguments(
    parameters: Sequence[str], given: Mapping[str, Any], key: str, reserved: Sequence[str] = ()
) -> None:
    """Refuses arguments that a function or class of a library does not have.

    Args:
        parameters: what it takes, see `parameters_of`.
        given: by name.
        key: of the configuration that gave them, for the error.
        reserved: arguments that have a key of their own.

    Raises:
        UserError: one line that lists the allowed ones.
    """
    allowed = [name for name in parameters if name not in (*reserved, "self", ANY)]
    for name in given:
        if name in reserved:
            raise UserError(f"{key}.{name} has a key of its own or is set by osteo; leave it out here")
        if name not in allowed and ANY not in parameters:
            raise unknown(key, name, allowed, most=40)
