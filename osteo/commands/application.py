"""Makes a Hydra application of a command: typed configuration in, one line out for a user's mistake."""

import gc
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osteo.commands.explain import CONF, explain
from osteo.commands.launchers import check_extras
from osteo.config import Config, check
from osteo.errors import UserError
from osteo.ranks import launched, rank
from osteo.runs import LOCK, Run, record_of, runs_of, shown
from osteo.trouble import LostDeviceError, MachineError, told

log = logging.getLogger(__name__)
C = TypeVar("C")
Task = Callable[[C, "Job"], bool]
"""Does the work of one job; returns whether what it was to check is as it should be."""

# null stands for a directory by date and time, and a run's differs from a sweep's; here, so that a job that a launcher
# started in another process knows it too
OmegaConf.register_new_resolver("either", lambda given, default: given or default, replace=True)


_REPLAYED = re.compile(r"hydra[./](launcher|sweeper|sweep|job\.name)\b")
"""Settings of Hydra that a sweep is resumed with; others, such as callbacks, could name any code."""


@dataclass(frozen=True)
class Job:
    """Where a run stands: alone, or as one of a sweep."""

    directory: Path
    sweep: Path | None
    config_yaml: str
    goes_on: bool = False
    """whether the directory holds the beginning of the run"""


class FailFast(BaseException):
    """Ends a sweep before its end; Hydra lets it pass because it is no Exception."""


class SweepStart(Callback):
    """Holds the directory of this process's sweep, and refuses one that holds another's."""

    begun: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before the first job; it drops an exception of a callback, but not an exit."""
        directory = Path(config.hydra.sweep.dir)
        if runs_of(directory) and not config.get("resume"):
            hint = f"choose another output_dir, or go on with it: osteo train resume={shown(directory)}"
            fail(config.hydra.job.name, UserError(f"{shown(directory)} holds runs already; {hint}"))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            Run(directory).hold()
        except OSError as error:
            fail(config.hydra.job.name, UserError(f"output_dir {shown(directory)} cannot be written: {error.strerror}"))
        except UserError as error:
            fail(config.hydra.job.name, error)
        SweepStart.begun.append(directory)


@dataclass
class Application(Generic[C]):
    """What Hydra calls for every job, in this process or, as a copy, in one that a launcher has started."""

    task: Task[C]
    directory: Path | None = None
    """of the last job in this process"""
    mistakes: list[UserError] = field(default_factory=list)
    sound: list[bool] = field(default_factory=list)
    busy: bool = False
    """whether an error is a job's; else it is Hydra's, which makes the directories"""

    def __call__(self, raw: DictConfig) -> None:
        """Does one job; a user's mistake is kept for the end."""
        settings = HydraConfig.get()
        sweep = Path(settings.sweep.dir) if settings.mode == RunMode.MULTIRUN else None
        self.directory = Path(settings.runtime.output_dir)
        self.busy = True
        try:
            self.sound.append(_run_job(raw, self.task, self.directory, sweep))
        except UserError as error:
            self.mistakes.append(error)
        self.busy = False


def run(command: str, schema: type[C], task: Task[C], *, finish: Callable[[Path], bool] | None = None) -> None:
    """Composes the configuration, checks it and runs the task; exits non-zero after a failure.

    Args:
        command: name of the command and of its file under conf/.
        schema: the dataclass of its configuration.
        task: does the work of one job; a function of a module, since launchers send it to other processes.
        finish: shows what a directory of runs holds, at the end, also after a failure; returns whether all went well.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to here, where errors are made readable
    logging.raiseExceptions = False  # a log on a full disk: what is logged is in the terminal, too
    ConfigStore.instance().store(name="schema", node=schema)
    SweepStart.begun.clear()
    application = Application(task)
    code = 0
    try:
        sys.argv[1:] = resumed(sys.argv[1:])
        _check_processes(sys.argv[1:])
        check_extras(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(application)()
    except UserError as error:
        fail(command, error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(command, UserError(explain(error, schema)))
    except FailFast as error:
        print(f"osteo {command}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"osteo {command}: interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        if application.busy:
            raise
        name = f"{Path(error.filename).name}: " if error.filename else ""
        hint = f"; go on with it: osteo train resume={shown(SweepStart.begun[-1])}" if application.directory else ""
        fail(command, UserError(f"output_dir cannot be written: {name}{error.strerror}{hint}"))
    finally:
        for held in SweepStart.begun:
            Run(held).release()
            _remove_empty(held)
    if rank():
        sys.exit(code or int(bool(application.mistakes)))
    sweep = SweepStart.begun[-1] if SweepStart.begun else None
    directory = sweep or application.directory
    if directory is None:
        sys.exit(code)
    if application.mistakes and not (sweep and runs_of(sweep)):
        fail(command, application.mistakes[0])
    if sweep and not runs_of(sweep):
        code = code or 1
    if finish is not None and runs_of(directory):
        try:
            application.sound.append(finish(directory))
        except OSError as error:
            fail(command, UserError(str(told(error))))
    sys.exit(code or int(not all(application.sound)))


def resumed(arguments: list[str]) -> list[str]:
    """The command line that goes on with a run or a sweep, where `resume=DIRECTORY` asks for it.

    Raises:
        UserError: there is no such run or sweep, or something else is asked for too.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given:
        return arguments
    directory = Path(given[-1].removeprefix("resume=").strip("'\"")).expanduser()
    if others := [a for a in arguments if a not in given and a not in ("-m", "--multirun")]:
        raise UserError(f"resume goes on with what was recorded, so {others[0]} cannot be changed; leave it out")
    quoted = "'" + str(directory).replace("\\", "\\\\").replace("'", "\\'") + "'"
    if (directory / "multirun.yaml").exists():
        hydra_settings = OmegaConf.load(directory / "multirun.yaml").hydra
        theirs = [*hydra_settings.overrides.task, *hydra_settings.overrides.hydra]
        kept = [
            o
            for o in theirs
            if not o.lstrip("+~").startswith(("output_dir=", "resume=", "hydra.mode=", "hydra.sweep.dir="))
        ]
        for override in kept:  # a directory from elsewhere may hold what no sweep of ours has recorded
            if "_target_" in override or (override.lstrip("+~").startswith("hydra") and not _REPLAYED.match(override)):
                raise UserError(f"{shown(directory)} records {override}, which names code to run; begin a new sweep")
        return ["-m", *kept, f"hydra.sweep.dir={quoted}", f"resume={quoted}"]
    if (directory / "config.yaml").exists():
        return [f"hydra.run.dir={quoted}", f"resume={quoted}"]
    raise UserError(f"resume={directory} is neither a run (config.yaml) nor a sweep (multirun.yaml)")


def _check_processes(arguments: list[str]) -> None:
    """Refuses what several processes, started by torchrun or srun, cannot do together.

    Raises:
        UserError: a sweep, or a run whose directory each of them would name by its own time.
    """
    if launched() is None:
        return
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("a sweep starts the processes of its jobs itself: leave torchrun or srun out")
    if not any(argument.startswith(("output_dir=", "resume=")) for argument in arguments):
        raise UserError("several processes need one directory: give output_dir=DIR")


def read_config(path: Path) -> Config:
    """The configuration that a run has recorded.

    Raises:
        UserError: it is none of ours.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{shown(path)} is no configuration of osteo train ({reason})") from error
    assert isinstance(config, Config)
    return config


def fail(command: str, error: UserError) -> None:
    """Prints one line and exits with 2."""
    print(f"osteo {command}: {error}", file=sys.stderr)
    sys.exit(2)


def _run_job(raw: DictConfig, task: Task[Any], directory: Path, sweep: Path | None) -> bool:
    """Runs one job and leaves its end in the run record.

    A mistake in a single run, made before it began, leaves nothing behind. A job that fails within a sweep is logged
    and named in its record, and the sweep goes on.

    Raises:
        UserError: a mistake, which has been recorded.
        KeyboardInterrupt: the user's.
        Exception: anything else that ended a single run.
    """
    record = record_of(directory)
    theirs = (directory / "status.json").exists()  # an earlier run's, not ours to change
    wishes: Config | None = None
    try:
        config = OmegaConf.to_object(raw)
        job = Job(directory, sweep, OmegaConf.to_yaml(raw, resolve=True))
        if isinstance(config, Config):
            wishes = config
            if config.resume is not None or sweep is not None:  # the second: the cluster may have requeued the job
                if theirs and record.state == "done":
                    log.info("%s is done", shown(directory))
                    return True
                config, job = _take_up(record, config, job)
                theirs = False
        check(config)
        return task(config, job)
    except BaseException as error:
        trouble = told(error)
        reason = _describe(trouble)
        begun = not theirs and (directory / "status.json").exists()
        if begun or (sweep is not None and not theirs):
            _note_failure(record, reason)
        elif not theirs:
            _forget(record)
        if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
            raise KeyboardInterrupt from error
        expected = isinstance(trouble, UserError)
        if sweep is not None:
            log.error("job %s failed: %s", directory.name, reason, exc_info=None if expected else error)
            if isinstance(trouble, LostDeviceError) and launcher() == "BasicLauncher":
                raise FailFast(f"{trouble}; this process can go on with no job") from error
            if wishes is not None and wishes.fail_fast:
                raise FailFast(f"ended with the failure of job {directory.name}, since fail_fast=true") from error
        if begun and isinstance(trouble, MachineError):
            reason += f"; go on with it: osteo train resume={shown(directory)}"
        if expected or sweep is not None:
            raise UserError(reason) from error
        raise
    finally:
        record.release()
        gc.collect()  # what one job leaves behind, the next has not


def _note_failure(record: Run, reason: str) -> None:
    try:
        record.set_status("failed", reason)
    except OSError as error:  # it stands as running, though nobody works on it: that is interrupted
        log.error("%s: the end of the run could not be noted (%s)", shown(record.directory), error.strerror)


def launcher() -> str:
    """The class of what starts the jobs of this sweep: BasicLauncher, JoblibLauncher or SlurmLauncher."""
    return str(HydraConfig.get().launcher["_target_"]).rpartition(".")[2]


def _take_up(record: Run, config: Config, job: Job) -> tuple[Config, Job]:
    """What to do with a job of a run or sweep that is taken up: go on with it, or begin it anew."""
    if not (record.directory / "status.json").exists():
        return config, job  # it had not begun
    record.hold()
    if not (record.directory / "config.yaml").exists():  # it failed before it began
        record.clear()
        return config, job
    if record.state not in ("interrupted", "running") and job.sweep is not None:
        log.info("%s had failed (%s); it begins anew", shown(record.directory), record.status()["error"])
        record.clear()
        return config, job
    recorded = (record.directory / "config.yaml").read_text(encoding="utf-8")
    return read_config(record.directory / "config.yaml"), replace(job, config_yaml=recorded, goes_on=True)


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(error, MachineError):
        return f"interrupted: {error}"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


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
        for path in directory.iterdir():
            path.unlink()
        _remove_empty(directory)


def _remove_empty(directory: Path) -> None:
    """Removes a directory and the folders of its date, as far as they are empty."""
    for folder in (directory, *list(directory.parents)[:2]):
        if folder.name and folder != Path.cwd():
            with suppress(OSError):  # it holds something, or something is mounted there
                folder.rmdir()
