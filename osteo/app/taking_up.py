"""What to do with a run directory that holds something already: go on with it, begin it anew, or leave it alone."""

import logging
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from osteo import parts
from osteo.app.resume import EPOCHS, first_change
from osteo.command_settings import PretrainConfig
from osteo.config import Config
from osteo.errors import UserError
from osteo.files import display_path
from osteo.records.configuration import read_config
from osteo.records.record import CONFIG, LAST, STATES, STATUS, Job, Run

log = logging.getLogger(__name__)

WHOLE = {"seed", "data", "augment", "model", "optimizer", "trainer", "loss", "callbacks", "logger", "trial"}
"""Keys that every recorded configuration has; a file without them was cut, and defaults would take their place."""
CHANGED = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.max_epochs", "trainer.extended_from", "trial",
           "output_dir", "resume", "plugins")  # fmt: skip
"""Keys that may differ between a run and its job: by trainer.halve_batch, by more epochs, and by being taken up."""


def asks_for_epochs(config: Config) -> bool:
    """Whether `resume=RUN trainer.max_epochs=N` was typed; the jobs of a sweep have the number that was recorded."""
    return config.resume is not None and any(word.startswith(EPOCHS) for word in HydraConfig.get().overrides.task)


def state_of(record: Run) -> str | None:
    """The state of a run; None where it has no status.json.

    Raises:
        UserError: its status.json is damaged.
    """
    if not record.has_status:
        return "done" if record.has_best_alone else None
    try:
        if (state := record.state) in STATES:
            return state
    except (ValueError, LookupError, TypeError, AttributeError, UserError):
        pass
    raise UserError(
        f"{display_path(record.directory / STATUS)} is damaged; delete it, and resume continues the run after its"
        " last checkpoint"
    )


def check_same_command(record: Run, config: Config) -> None:
    """Refuses the run of a training where a pretraining is asked for, or the other way round.

    Raises:
        UserError: one line with the command that goes on with it.
    """
    verb, place = record.verb, display_path(record.directory)
    if record.has_config and (verb == "pretrain") != isinstance(config, PretrainConfig):
        raise UserError(f"{place} is of another command; go on with it: osteo {verb} resume={place}")


def check_same_job(record: Run, raw: DictConfig) -> None:
    """Refuses a directory that another job of the sweep has: `hydra.sweep.subdir` must tell all jobs apart.

    Raises:
        UserError: one line with the first override that differs.
    """
    if not record.has_config:
        return
    before, now = (
        OmegaConf.to_container(OmegaConf.create(text))
        for text in (_recorded(record), OmegaConf.to_yaml(raw, resolve=True))
    )
    for config in (before, now):
        for key in CHANGED:
            *groups, name = key.split(".")
            node: Any = config
            for group in groups:
                node = node[group]
            node.pop(name, None)
    if change := first_change(before, now):
        key, first, second = change
        raise UserError(
            f"{display_path(record.directory)} holds the run of another job, with {key}={first}, not {second}; give"
            " every job a directory of its own by hydra.sweep.subdir"
        )


def take_up(record: Run, config: Config, job: Job) -> tuple[Config, Job]:
    """The configuration and the job of a run that may have begun.

    Raises:
        UserError: another process works on it, its configuration is damaged, it needs plugins that are not named again,
            or it has as many epochs already.
    """
    if not record.has_config:
        if record.has_status:  # it failed before it began
            record.hold()
            record.clear()
        return config, job
    record.hold()
    if job.sweep is not None and state_of(record) == "failed":
        log.info("%s had failed (%s); it starts again", display_path(record.directory), record.status()["error"])
        record.clear()
        return config, job
    text = OmegaConf.to_yaml(_recorded(record))
    before, place = read_config(record.directory / CONFIG), display_path(record.directory)
    parts.check_named(before.plugins, place, f"osteo train resume={place}")
    before, job = _extended(record, config, before, replace(job, config_yaml=text, goes_on=True))
    if not record.has_status or record.status()["state"] == "running":
        record.set_status("interrupted", "interrupted")  # until it goes on
    return before, job


def _recorded(record: Run) -> DictConfig:
    """The recorded configuration.

    Raises:
        UserError: it is damaged.
    """
    path = record.directory / CONFIG
    read_config(path)
    found = OmegaConf.load(path)
    if not isinstance(found, DictConfig) or (missing := sorted(WHOLE - {str(key) for key in found})):
        raise UserError(
            f"{display_path(path)} is damaged (it has no {missing[0]}), and nothing says how the run was configured;"
            " put it back from a copy, or begin a new run"
        )
    return found


def _extended(record: Run, requested: Config, before: Config, job: Job) -> tuple[Config, Job]:
    """The run with as many epochs as the command line asks for, where it does.

    Raises:
        UserError: it has as many.
    """
    epochs, planned = requested.trainer.max_epochs, before.trainer.max_epochs
    if not asks_for_epochs(requested) or (epochs == planned and state_of(record) != "done"):
        return before, job
    if epochs <= planned:
        raise UserError(
            f"{display_path(record.directory)} was to have {planned} epochs; trainer.max_epochs={epochs} must be larger"
            " to give it more"
        )
    if record.has_best_alone:
        raise UserError(
            f"{display_path(record.directory)} cannot be given more epochs: when it was done, {LAST} was removed, which"
            " the next epoch starts from; train with keep=all what may be given more later"
        )
    changes: dict[str, Any] = {"max_epochs": epochs, "extended_from": [*before.trainer.extended_from, planned]}
    extended = replace(before, trial=None, trainer=replace(before.trainer, **changes))
    return extended, replace(job.changed(trainer=changes, trial=None), is_extended=True)
