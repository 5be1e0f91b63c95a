"""The jobs of a sweep: what each is called, and how far the sweep has come."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from osteo.errors import counted
from osteo.files import display_path, name_of_file, portable
from osteo.records.content import DamagedError
from osteo.records.record import Job, Run
from osteo.records.sweep import BY_NAME, planned_jobs, seconds_left

log = logging.getLogger(__name__)
FIRST, LAST = "model.backbone", ("data.split.fold", "seed")
"""Keys whose values a name begins and ends with."""


def title_of(number: int, sweep: Path) -> str:
    """Which of a sweep's jobs one is, by its number from 0; of how many, where that is known."""
    planned = planned_jobs(sweep)
    return f"job {number + 1} of {planned}" if planned > number else f"job {number + 1}"


def telling(jobs: Sequence[Sequence[str]]) -> list[int]:
    """Which jobs of a sweep, in their order, show every value that its keys are given.

    Of the numbers of a key, the smallest and the largest tell, since what is allowed is a range.

    Args:
        jobs: the overrides of each.
    """
    values: dict[str, list[str]] = {}
    for key, _, value in (override.partition("=") for overrides in jobs for override in overrides):
        values.setdefault(key, []).append(value)
    unseen = {f"{key}={value}" for key, given in values.items() for value in _extremes(given)}
    chosen = []
    for number, overrides in enumerate(jobs):
        if not number or unseen & set(overrides):
            chosen.append(number)
            unseen -= set(overrides)
    return chosen


def _extremes(values: Sequence[str]) -> Sequence[str]:
    try:
        return min(values, key=float), max(values, key=float)
    except ValueError:
        return values


def begin(job: Job) -> None:
    """Gives a job its name in the sweep, where it is called by a number, and says that it begins and with what."""
    assert job.sweep is not None
    name = name_of(job.swept)
    if name and job.directory.resolve().parent == job.sweep.resolve() and job.directory.name.isdecimal():
        link(job.directory, job.sweep / BY_NAME, name)
    own = f"\n  {' '.join(job.swept)}" if job.swept else ""
    log.info("%s: %s%s%s", job.title, display_path(job.directory), in_words(seconds_left(job.sweep)), own)


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


def name_of(overrides: Sequence[str]) -> str:
    """What tells a job from the others of its sweep, as a file name: densenet121-lr0.001-fold0-seed1.

    Args:
        overrides: that the job has of its own.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {override.get_key_element().lstrip("+~"): override.value() for override in parsed}
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
