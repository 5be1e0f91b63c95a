"""One job of a Hydra application: from its composed configuration to its end in the run record."""

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osteo import parts
from osteo.app import sweeps, taking_up
from osteo.app.configuration import defaults, without_hydra
from osteo.app.messages import describe_mistake
from osteo.app.resume import recorded_sweep
from osteo.app.words import is_sweep
from osteo.checks import check
from osteo.config import Config
from osteo.errors import LostDeviceError, MachineError, OutOfMemoryError, UserError, diagnose, let_go
from osteo.files import display_path
from osteo.records import outputs
from osteo.records.locks import LOCK
from osteo.records.record import Job, Run
from osteo.records.sweep import SWEEP
from osteo.training.ranks import rank, record_of

log = logging.getLogger(__name__)
C = TypeVar("C")
Task = Callable[[C, Job], bool]
"""Does the work of one job; returns whether what it was to check is as it should be."""
Check = Callable[[C], None]
"""Refuses, with a UserError, what a command cannot do, before anything slow begins."""


class FailFast(BaseException):
    """Ends a sweep before its end; Hydra lets it pass because it is no Exception."""


class UnrecordedError(UserError):
    """The mistake of a job that could leave no record of its own, so that the sweep itself must end with it."""


def run_job(
    raw: DictConfig, task: Task[Any], directory: Path, sweep: Path | None, check_request: Check[Any] | None = None
) -> bool:
    """Runs one job and leaves its end in the run record.

    A mistake in a single run, made before it began, leaves nothing behind. A job that fails within a sweep is logged
    and named in its record, and the sweep goes on.

    Raises:
        UserError: a mistake, which has been recorded.
        KeyboardInterrupt: the user's.
        Exception: anything else that ended a single run.
    """
    record = record_of(directory)
    is_foreign = record.has_begun  # an earlier run's, not ours to change
    config: Any = None
    try:
        config = OmegaConf.to_object(raw)
        parts.load(getattr(config, "plugins", []))  # a launcher's process has not seen the command line
        job = _job_of(raw, directory, sweep, shows_differences=isinstance(config, Config) and not config.print_config)
        # the second: the sweep is taken up, or the cluster has requeued the job
        if isinstance(config, Config) and (config.resume is not None or sweep is not None):
            state = taking_up.state_of(record)
            taking_up.check_same_command(record, config)
            if sweep is not None:
                taking_up.check_same_job(record, raw)
            if state == "done" and not taking_up.asks_for_epochs(config):
                if not record.has_status:  # it was lost
                    record.set_status("done")
                log.info("%s is done", display_path(directory))
                return True
            config, job = taking_up.take_up(record, config, job)
            is_foreign = False
        elif "output_dir" in vars(config) and not rank():
            outputs.claim(directory, config)
        is_of_sweep = isinstance(config, Config) and sweep is not None and not rank()
        if is_of_sweep:
            sweeps.begin(job)
        check(config)
        if check_request is not None:
            check_request(config)
        is_good = task(config, job)
        if is_of_sweep:
            sweeps.end(job)
        return is_good
    except BaseException as error:
        try:
            _end(error, record, config, sweep, is_foreign=is_foreign)
        finally:
            if sweep is not None:
                let_go(error)  # Hydra keeps it until the sweep has ended
        raise
    finally:
        record.release()
        if "torch" in sys.modules:
            from osteo.training.hardware import free_memory

            free_memory()  # what one job leaves behind, the next has not
            gc.freeze()  # what is left are modules, which the next search need not go through


def _job_of(raw: DictConfig, directory: Path, sweep: Path | None, *, shows_differences: bool) -> Job:
    settings = HydraConfig.get()
    launcher = str(settings.launcher["_target_"]).rpartition(".")[2]
    log_config: Any = OmegaConf.to_container(settings.job_logging, resolve=True)
    sharing = int(settings.launcher.get("jobs_per_gpu", 1))
    text = OmegaConf.to_yaml(raw, resolve=True)
    about: dict[str, Any] = {"usual": defaults(str(settings.job.name))} if shows_differences and not sweep else {}
    if sweep:
        about = {"swept": _swept(sweep), "title": sweeps.title_of(int(settings.job.num), sweep)}
    return Job(directory, sweep, text, launcher=launcher, jobs_per_gpu=sharing, log_config=log_config, **about)


def _swept(sweep: Path) -> tuple[str, ...]:
    """The overrides that this job has of its own."""
    if not (sweep / SWEEP).exists():
        return ()
    keys = {word.partition("=")[0] for word in sweep_words(recorded_sweep(sweep)) if is_sweep(word)}
    return tuple(word for word in HydraConfig.get().overrides.task if word.partition("=")[0] in keys)


def sweep_words(config: DictConfig) -> list[str]:
    """The overrides of a sweep: those of an experiment's file, then those of the command line."""
    params = (config.hydra.sweeper.get("params") or {}).items()
    return [*(f"{key}={value}" for key, value in params), *config.hydra.overrides.task]


def jobs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them; none where another one does."""
    if not config.hydra.sweeper["_target_"].endswith(BasicSweeper.__name__):
        return []
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return BasicSweeper.split_arguments(parser.parse_overrides(sweep_words(config)), None)[0]


def check_jobs(
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    schema: type[Any],
    check_request: Check[Any] | None,
    *,
    is_search: bool = False,
) -> None:
    """Refuses a sweep of which any job is known to fail, before the first begins.

    Args:
        config: of the sweep, as Hydra has composed it.
        jobs: the overrides of each.
        schema: of the command.
        check_request: the command's own.
        is_search: whether they are what its trials may be, and have no numbers.

    Raises:
        UserError: the first mistake, with the job that makes it unless all do.
    """
    loader, mistakes = GlobalHydra.instance().config_loader(), dict[int, str]()
    tried = sweeps.telling(jobs)
    for number in tried:
        try:
            job: Any = OmegaConf.to_object(without_hydra(loader.load_sweep_config(config, list(jobs[number]))))
            check(job)
            if check_request is not None:
                check_request(job)
        except (HydraException, OmegaConfBaseException) as error:
            mistakes[number] = describe_mistake(error, schema)
        except UserError as error:
            mistakes[number] = str(error)
    if mistakes:
        number, mistake = next(iter(mistakes.items()))
        own = " ".join(word for word in jobs[number] if any(word not in others for others in jobs))
        which = "a trial" if is_search else f"job {number + 1} of {len(jobs)}"
        raise UserError(f"{which} ({own}): {mistake}" if len(mistakes) < len(tried) else mistake)


def _end(error: BaseException, record: Run, config: Any, sweep: Path | None, *, is_foreign: bool) -> None:
    """Notes how a job ended, and raises what its user or its sweep needs to know.

    Raises:
        UserError: one line, where that is all there is to say.
        KeyboardInterrupt: the user's.
        FailFast: the sweep ends with it.
    """
    trouble = diagnose(error)
    if isinstance(trouble, OutOfMemoryError) and (hint := _memory_hint(config)):
        trouble = UserError(f"memory ran out ({trouble}); {hint}")
    reason, state = _describe(trouble)
    has_begun = not is_foreign and record.has_status
    if has_begun and (stands := record.status()["state"]) in ("done", "interrupted"):
        state = stands  # it was taken up, and this came before it went on: nothing of it is lost
    if (has_begun or (sweep is not None and not is_foreign)) and state != "done":
        _note_failure(record, state, reason)
    elif not is_foreign:
        _forget(record)
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
        raise KeyboardInterrupt from error
    is_expected = isinstance(trouble, UserError)
    if sweep is not None:
        title = sweeps.title_of(int(HydraConfig.get().job.num), sweep)
        place = display_path(record.directory)
        log.error("%s failed (%s): %s", title, place, reason, exc_info=None if is_expected else error)
        launcher = str(HydraConfig.get().launcher["_target_"])
        if isinstance(trouble, LostDeviceError) and launcher.endswith("BasicLauncher"):
            raise FailFast(f"{trouble}; this process cannot run another job") from error
        if isinstance(config, Config) and config.fail_fast:
            raise FailFast(f"{title} failed, so the sweep ends (fail_fast=true)") from error
    if has_begun and isinstance(trouble, MachineError):
        place = display_path(record.directory)
        reason = f"interrupted: {reason}; go on with it: osteo {record.verb} resume={place}"
    if is_expected or sweep is not None:
        raise (UnrecordedError if sweep is not None and is_foreign else UserError)(reason) from error


def _memory_hint(config: Any) -> str:
    """What to do where memory ran out, beside `launch`, which knows the batch of a training; empty where unknown."""
    if isinstance(config, Config):
        return f"use a smaller data.batch_size than {config.data.batch_size}"
    return "use accelerator=cpu, or stop what else uses the device" if hasattr(config, "accelerator") else ""


def _note_failure(record: Run, state: str, reason: str) -> None:
    try:
        record.set_status(state, reason)
    except OSError as error:  # it stands as running, though nobody works on it: that is interrupted
        log.error("%s: the end of the run could not be noted (%s)", display_path(record.directory), error.strerror)


def _describe(error: BaseException) -> tuple[str, str]:
    """What ended a job, in one line, and the state that it leaves."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted", "interrupted"
    if isinstance(error, MachineError):
        return str(error), "interrupted"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}", "failed"


def _forget(record: Run) -> None:
    """Removes the run directory and the folders of its date, as far as they hold nothing else and nobody uses them."""
    directory = record.directory
    if rank() or directory == Path.cwd():
        return
    try:
        record.hold()
    except UserError:
        return
    logging.shutdown()
    if all(path.name.endswith(".log") or path.name == LOCK for path in directory.iterdir()):
        for path in directory.glob("*.log"):
            path.unlink()
        record.release()  # Windows removes no file that is open
        remove_empty(directory)


def remove_empty(directory: Path) -> None:
    """Removes a directory and the folders of its date, as far as they are empty."""
    for folder in (directory, *list(directory.parents)[:2]):
        if folder.name and folder != Path.cwd():
            with suppress(OSError):  # it holds something, or something is mounted there
                folder.rmdir()
