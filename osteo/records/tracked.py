"""What is configured of Weights & Biases, and where a run stands there; neither it nor Lightning is needed for it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from osteo.config import Config, WandbConfig
from osteo.errors import unknown
from osteo.records.record import Job

MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline",
         "disabled": "disabled"}  # fmt: skip
"""What WANDB_MODE may say, and what that comes to."""


@dataclass(frozen=True)
class Place:
    """Where a run stands among others."""

    folder: Path
    """holds the wandb folder: the sweep directory, or the run's own"""
    group: str
    name: str
    job_type: str
    tags: list[str]


def group_of(settings: WandbConfig, folder: Path) -> str:
    """The group of a sweep's runs: as configured, else its folder, with the date where it is named by the time.

    A folder further up is never used, since it may name a person.
    """
    by_date = re.fullmatch(r"\d{4}-\d{2}-\d{2}", folder.parent.name)
    return settings.group or ("-".join(folder.parts[-2:]) if by_date else folder.name)


def is_wanted(settings: WandbConfig) -> bool:
    """Whether W&B gets anything at all, as far as configuration and environment say; W&B need not be imported for it.

    Raises:
        UserError: WANDB_MODE is none that W&B knows.
    """
    return (mode_of_environment() if settings.mode == "auto" else settings.mode) != "disabled"


def mode_of_environment() -> str | None:
    """What WANDB_MODE and WANDB_DISABLED say: online, offline, disabled, or None where they are not set."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    given = os.environ.get("WANDB_MODE", "").strip().lower()
    if given and given not in MODES:
        raise unknown("WANDB_MODE", given, ("online", "offline", "disabled"))
    return MODES[given] if given else None


def may_be_online(mode: str) -> bool:
    """Whether a run may be online, as far as can be said without W&B."""
    given = mode_of_environment() if mode == "auto" else mode
    keys = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    return given == "online" or (given is None and (keys or netrc_file().is_file()))


def netrc_file() -> Path:
    """Where the keys of servers are kept, W&B's among them."""
    return Path(os.environ.get("NETRC", "~/.netrc")).expanduser()


def unsent(folder: Path) -> list[Path]:
    """The runs below the wandb folder of a sweep or run that were kept offline and are not uploaded yet."""
    logs = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    return [log.parent for log in logs if not log.with_name(f"{log.name}.synced").exists()]


def wandb_settings(config: Config) -> WandbConfig:
    """What was configured of W&B; disabled where it is none of the loggers."""
    found = config.logger.get("wandb")
    return found if isinstance(found, WandbConfig) else WandbConfig(mode="disabled")


def place_of(config: Config, job: Job) -> Place:
    """Where the run stands in W&B: the sweep's group, named by backbone and seed."""
    settings, folder = wandb_settings(config), job.sweep or job.directory
    fold = config.data.split.fold
    return Place(
        folder=folder,
        group=group_of(settings, folder),
        name="-".join([config.model.backbone, *([f"fold{fold}"] if fold is not None else []), f"seed{config.seed}"]),
        job_type="train",
        tags=[config.experiment or "train", config.model.backbone, config.data.name, *settings.tags],
    )
