"""The jobs of a sweep: what each is called, and how far the sweep has come."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from osteo.errors import counted
from osteo.files import display_path, name_of_file, portable
from osteo.records.configuration import read_yaml
from osteo.records.content import DamagedError
from osteo.records.record import Job, Run
from osteo.records.sweep import BY_NAME, SWEEP, planned_jobs, seconds_left

log = logging.getLogger(__name__)
FIRST, LAST = "model.backbone", ("data.split.fold", "seed")
"""Keys whose values a name begins and ends with."""


def title_of(number: int, sweep: Path) -> str:
    """Which of a sweep's jobs one is, by its number from 0; of how many, where that is known."""
    planned = planned_jobs(sweep)
    return f"job {number + 1} of {planned}" if planned > number else f"job {number + 1}"


def begin(job: Job, overrides: Sequence[str]) -> None:
    """Gives a job its name in the sweep, where it is called by a number, and says that it begins.

    Args:
        job: of a sweep.
        overrides: of this job, as Hydra has them.
    """
    assert job.sweep is not None
    name = name_of(overrides, swept_keys(job.sweep))
    if name and job.directory.resolve().parent == job.sweep.resolve() and job.directory.name.isdecimal():
        link(job.directory, job.sweep / BY_NAME, name)
    left = seconds_left(job.sweep)
    log.info("%s%s: %s%s", job.title, f", {name}" if name else "", display_path(job.directory), in_words(left))


def end(job: Job) -> None:
    """Says that a job of a sweep has ended well, what its model reached, and how long the rest will take."""
    assert job.sweep is not None
    try:
        metrics = Run(job.directory).read_metrics()
    except DamagedError:
        metrics = {}
    reached = [
        f"{metrics[key]:.3f} on {split}"
        for key, split in (("val/auroc", "validation"), ("test/auroc", "test"))
        if metrics.get(key) is not None
    ]
    scores = f": AUROC {', '.join(reached)}" if reached else ""
    log.info("%s is done%s%s", job.title, scores, in_words(seconds_left(job.sweep)))


def in_words(seconds: float | None) -> str:
    """The time that a sweep has left, as the end of a line; empty where it is not known, or there is none."""
    return f"; about {timedelta(seconds=round(seconds))} left" if seconds else ""


def log_ended(sweep: Path, ended: int, jobs: int) -> None:
    """Says how many of a sweep's jobs have ended, where they run on other machines."""
    log.info("%d of %s ended%s", ended, counted(jobs, "job"), in_words(seconds_left(sweep)))


def swept_keys(sweep: Path) -> list[str]:
    """The keys that have several values in a sweep; none where its multirun.yaml does not say so."""
    try:
        recorded = read_yaml(sweep / SWEEP)["hydra"]
        params = recorded["sweeper"].get("params") or {}
        given = [*(f"{key}={value}" for key, value in params.items()), *recorded["overrides"]["task"]]
    except (DamagedError, LookupError, TypeError, AttributeError):
        return []
    latest = {override.get_key_element().lstrip("+~"): override for override in map(_parsed, given) if override}
    return [key for key, override in latest.items() if override.is_sweep_override()]


def name_of(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """What tells a job from the others of its sweep, as a file name: densenet121-lr0.001-fold0-seed1.

    Args:
        overrides: of the job.
        keys: that have several values in the sweep.
    """
    values = {}
    for override in filter(None, map(_parsed, overrides)):
        key = override.get_key_element().lstrip("+~")
        if key in keys:
            values[key] = override.value()
    ordered = sorted(values, key=lambda key: (key in LAST and LAST.index(key) + 1, key != FIRST))
    words = [_word(key, values[key]) for key in ordered]
    return name_of_file(portable("-".join(words)), "") if words else ""


def _word(key: str, value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    text = re.sub(r"[^\w.+-]+", "-", text).strip("-")
    if key == FIRST or ("." not in key and isinstance(value, str)):  # the second: a choice of a group
        return text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{key.rpartition('.')[2]}{'' if is_number else '-'}{text}"


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def link(directory: Path, folder: Path, name: str) -> None:
    """Gives a run a second name in a folder, with its number where another run has it; none where links cannot be."""
    target = os.path.relpath(directory.resolve(), folder.resolve())
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for path in (folder / name, folder / f"{name}-{directory.name}"):
            if path.is_symlink() and str(path.readlink()) == target:
                return
            with suppress(FileExistsError):
                path.symlink_to(target, target_is_directory=True)
                return
    with suppress(OSError):
        folder.rmdir()  # it holds nothing
