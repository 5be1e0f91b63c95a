"""Makes a Hydra application of a command: typed configuration in, one line out for a user's mistake."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osteo.app import choices, configuration, help_page
from osteo.app.extras import check_extras
from osteo.app.jobs import (
    C,
    Check,
    FailFast,
    Task,
    UnrecordedError,
    check_jobs,
    jobs_of,
    remove_empty,
    run_job,
    sweep_words,
)
from osteo.app.messages import CONF, choices_of, describe_mistake
from osteo.app.plugins import load_named
from osteo.app.resume import SOURCES, check_processes, check_unchanged, resumed, sources_of
from osteo.app.words import GROUPS, HELP, flags_first, readable
from osteo.command_settings import COMMANDS
from osteo.config import Config
from osteo.errors import UserError, diagnose, printable, unknown
from osteo.files import display_path, write_json
from osteo.records.record import Run
from osteo.records.sweep import runs_of, taken
from osteo.training.ranks import follow, rank

log = logging.getLogger(__name__)

CLAIMED: list[Path] = []
"""Directories that this process has made to have them for itself."""


def claimed(given: str | None, default: str) -> str:
    """The directory that was given; else one by date and time, made here, that no run begun in the same second has."""
    if given:
        return given
    path, number = Path(default), 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                path = Path(f"{default}-{number}")
            else:
                CLAIMED.append(path)
                return str(path)
    except OSError:
        return default  # Hydra says what is wrong with it


# null stands for a directory by date and time, and a run's differs from a sweep's; here, so that a job that a launcher
# started in another process knows it too, and in its configuration's cache, so that a sweep has one for all jobs
OmegaConf.register_new_resolver("either", claimed, use_cache=True, replace=True)


class SweepStart(Callback):
    """Holds the directory of this process's sweep, and refuses one that holds another's."""

    begun: ClassVar[list[Path]] = []
    checks: ClassVar[tuple[type[Any], Check[Any] | None]] = (object, None)
    """the schema of the command, and what it refuses beside"""
    goes_on: ClassVar[bool] = False
    """whether the sweep is taken up; no override says so, since they name directories (hydra.job.override_dirname)"""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before the first job; it drops an exception of a callback, but not an exit."""
        directory, verb = Path(config.hydra.sweep.dir), config.hydra.job.name
        schema, check_request = SweepStart.checks
        try:
            jobs = jobs_of(config)
            if SweepStart.goes_on:
                check_unchanged(directory, config)
            else:
                check_jobs(config, jobs, schema, check_request)
                if runs_of(directory):
                    raise taken(directory, verb)
            directory.mkdir(parents=True, exist_ok=True)
            Run(directory).hold()
            if not SweepStart.goes_on:
                write_json(directory / SOURCES, sources_of(config))
        except OSError as error:
            fail(verb, UserError(f"output_dir {display_path(directory)} cannot be written: {error.strerror}"))
        except (HydraException, OmegaConfBaseException) as error:
            fail(verb, UserError(describe_mistake(error, schema)))
        except UserError as error:
            fail(verb, error)
        SweepStart.begun.append(directory)
        if jobs:
            SweepStart.show(config, len(jobs))

    @staticmethod
    def show(config: DictConfig, count: int) -> None:
        """Logs what the jobs of a sweep have in common; `count` is 0 where a search finds them."""
        if "print_config" in config:
            log.info("%s", configuration.describe_sweep(config, sweep_words(config), count))


@dataclass
class Application(Generic[C]):
    """What Hydra calls for every job, in this process or, as a copy, in one that a launcher has started."""

    task: Task[C]
    check_request: Check[C] | None = None
    """what the command refuses beside what its schema does"""
    directory: Path | None = None
    """of the last job in this process"""
    mistakes: list[UserError] = field(default_factory=list)
    outcomes: list[bool] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)
    """the one that has begun the sweep"""
    busy: bool = False
    """whether an error is a job's; else it is Hydra's, which makes the directories"""

    def __call__(self, raw: DictConfig) -> None:
        """Does one job; a user's mistake is kept for the end."""
        settings = HydraConfig.get()
        sweep = Path(settings.sweep.dir) if settings.mode == RunMode.MULTIRUN else None
        self.directory = Path(settings.runtime.output_dir)
        launcher = str(settings.launcher["_target_"]).rpartition(".")[2]
        if launcher == "ProcessesLauncher" and os.getpid() != self.process:
            follow(self.process)
        self.busy = True
        try:
            self.outcomes.append(run_job(raw, self.task, self.directory, sweep, self.check_request))
        except UserError as error:
            self.mistakes.append(error)
            if isinstance(error, UnrecordedError) and launcher != "BasicLauncher":
                raise  # this is a copy, whose mistakes nobody sees
        self.busy = False


def run(
    command: str,
    schema: type[C],
    task: Task[C],
    *,
    check: Check[C] | None = None,
    finish: Callable[[Path], bool] | None = None,
) -> None:
    """Composes the configuration, checks it and runs the task; exits non-zero after a failure.

    Args:
        command: name of the command and of its file under conf/.
        schema: the dataclass of its configuration.
        task: does the work of one job; a function of a module, since launchers send it to other processes.
        check: refuses what the command cannot do, beside what its schema does, before anything slow begins.
        finish: shows what a directory of runs holds, at the end, also after a failure; returns whether all went well.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to here, where errors are made readable
    logging.raiseExceptions = False  # a log on a full disk: what is logged is in the terminal, too
    SweepStart.begun.clear()
    SweepStart.checks = (schema, check)
    application = Application(task, check)
    code = 0
    try:
        sys.argv[1:] = _in_words_of_hydra(command, schema, sys.argv[1:])
        if set(HELP) & set(sys.argv[1:]):
            help_page.show(command, sys.argv[1:])
            return
        SweepStart.goes_on = any(argument.startswith("resume=") for argument in sys.argv[1:])
        sys.argv[1:] = resumed(sys.argv[1:])
        check_processes(sys.argv[1:])
        check_extras(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(application)()
    except UserError as error:
        fail(command, error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(command, UserError(describe_mistake(error, schema)))
    except ValueError as error:  # of Hydra's own flags
        if application.directory:
            raise
        fail(command, UserError(str(error).splitlines()[0]))
    except FailFast as error:
        print(f"osteo {command}: {printable(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"osteo {command}: {describe_interruption(schema, application)}", file=sys.stderr)
        code = 130
    except OSError as error:
        if application.busy:
            raise
        fail(command, _cannot_write(error, application))
    finally:
        for held in SweepStart.begun:
            Run(held).release()
            if [path.name for path in held.iterdir()] == [SOURCES]:  # no job has begun
                (held / SOURCES).unlink()
        for made in (*SweepStart.begun, *CLAIMED):
            remove_empty(made)
        CLAIMED.clear()
    _exit(command, application, code, finish)


def _in_words_of_hydra(command: str, schema: type[Any], arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra reads it; plugins that it names are loaded, and choices known, from here on."""
    given = [argument.removeprefix(f"{command}.") for argument in arguments]
    words = flags_first(given, schema, COMMANDS[command].usage)
    load_named(words)
    choices.register(schema)
    return readable(without_null_groups(words, schema), schema)


def without_null_groups(arguments: list[str], schema: type[Any]) -> list[str]:
    """The command line in Hydra's own words: it knows no GROUP=null, which is what people type for none of them.

    Raises:
        UserError: the command has no such group, or needs one of its choices.
    """
    keys = [entry.name for entry in fields(schema)]
    kept = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        if value != "null" or not (offered := choices_of(group)):
            kept.append(argument)
        elif group.startswith("hydra/"):
            raise unknown(group, value, offered)
        elif group not in keys:
            raise unknown("key", group, keys)
        elif group == "logger":
            kept.append("~logger")
        elif group not in (*GROUPS, "callbacks"):
            raise unknown(group, value, offered)
    return kept


def describe_interruption(schema: type[Any], application: Application[Any]) -> str:
    """What is left where the user has ended a command, and how it goes on."""
    if not issubclass(schema, Config):
        return "interrupted"
    directory = SweepStart.begun[-1] if SweepStart.begun else application.directory
    runs = runs_of(directory) if directory else []
    if not directory or not runs:
        return "interrupted before training began, so nothing is kept; type the same again"
    hint = f"osteo {runs[0].verb} resume={display_path(directory)}"
    if any(any(run.checkpoints.glob("*.ckpt")) for run in runs):
        return f"interrupted; every epoch that had ended is kept; go on: {hint}"
    return f"interrupted before the first epoch had ended, so nothing has been learnt yet; begin again: {hint}"


def _cannot_write(error: OSError, application: Application[Any]) -> UserError:
    name = f"{display_path(Path(error.filename))}: " if error.filename else ""
    hint = ""
    if application.directory and SweepStart.begun:
        hint = f"; go on with it: osteo train resume={display_path(SweepStart.begun[-1])}"
    return UserError(f"output_dir cannot be written: {name}{error.strerror}{hint}")


def _exit(command: str, application: Application[Any], code: int, finish: Callable[[Path], bool] | None) -> NoReturn:
    """Shows what the runs reached and exits: 0 where every job went well, else the code, 1 or 2."""
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
            application.outcomes.append(finish(directory))
        except OSError as error:
            fail(command, UserError(str(diagnose(error))))
    sys.exit(code or int(bool(application.mistakes) or not all(application.outcomes)))


def fail(command: str, error: UserError) -> NoReturn:
    """Prints one line and exits with 2."""
    print(f"osteo {command}: {printable(error)}", file=sys.stderr)
    sys.exit(2)
