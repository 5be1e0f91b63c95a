"""Makes a Hydra application of a command: typed configuration in, one line out for a user's mistake."""

import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osteo.config import Config, check
from osteo.errors import UserError, unknown
from osteo.runs import Run, runs_of, shown

log = logging.getLogger(__name__)
C = TypeVar("C")
Task = Callable[[C, "Job"], bool]
"""Does the work of one job; returns whether what it was to check is as it should be."""

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}


@dataclass(frozen=True)
class Job:
    """Where a run stands: alone, or as one of a sweep."""

    directory: Path
    sweep: Path | None
    config_yaml: str


class SweepStart(Callback):
    """Refuses a sweep directory that holds a sweep already, before the first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra, which drops an exception of a callback, but not an exit."""
        directory = Path(config.hydra.sweep.dir)
        if runs_of(directory):
            fail(config.hydra.job.name, UserError(f"{shown(directory)} holds runs already; choose another output_dir"))


def run(command: str, schema: type[C], task: Task[C], *, finish: Callable[[Path], bool] | None = None) -> None:
    """Composes the configuration, checks it and runs the task; exits non-zero after a failure.

    Args:
        command: name of the command and of its file under conf/.
        schema: the dataclass of its configuration.
        task: does the work of one job.
        finish: shows what a directory of runs holds, at the end, also after a failure; returns whether all went well.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to here, where errors are made readable
    ConfigStore.instance().store(name="schema", node=schema)
    # null stands for a directory by date and time, and a run's differs from a sweep's
    OmegaConf.register_new_resolver("either", lambda given, default: given or default, replace=True)
    ran: list[tuple[Path, bool]] = []
    mistakes: list[UserError] = []
    sound: list[bool] = []

    def job(raw: DictConfig) -> None:
        settings = HydraConfig.get()
        sweep = Path(settings.sweep.dir) if settings.mode == RunMode.MULTIRUN else None
        directory = Path(settings.runtime.output_dir)
        ran.append((sweep or directory, sweep is not None))
        try:
            sound.append(_run_job(raw, task, directory, sweep))
        except UserError as error:
            mistakes.append(error)

    code = 0
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(command, UserError(explain(error, schema)))
    except KeyboardInterrupt:
        print(f"osteo {command}: interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        if ran:
            raise
        fail(command, UserError(f"output_dir cannot be written: {error.filename}: {error.strerror}"))
    if not ran:
        sys.exit(code)
    directory, is_sweep = ran[0]
    if mistakes and not (is_sweep and runs_of(directory)):
        fail(command, mistakes[0])
    if finish is not None and runs_of(directory):
        sound.append(finish(directory))
    sys.exit(code or int(not all(sound)))


def read_config(path: Path) -> Config:
    """The configuration that a run has recorded."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
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
    record = Run(directory)
    theirs = (directory / "status.json").exists()  # an earlier run's, not ours to change
    try:
        config = OmegaConf.to_object(raw)
        check(config)
        return task(config, Job(directory, sweep, OmegaConf.to_yaml(raw, resolve=True)))
    except BaseException as error:
        reason = _describe(error)
        begun = not theirs and (directory / "status.json").exists()
        if begun or sweep is not None:
            record.set_status("failed", reason)
        elif not theirs:
            _forget(directory)
        if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the first into the second
            raise KeyboardInterrupt from error
        expected = isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in DISK)
        if sweep is not None:
            log.error("job %s failed: %s", directory.name, reason, exc_info=None if expected else error)
        if expected or sweep is not None:
            raise UserError(reason) from error
        raise


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{Path(error.filename).name if error.filename else 'a file'} cannot be written: {DISK[error.errno]}"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _forget(directory: Path) -> None:
    """Removes the run directory and the folders of its date, as far as they hold nothing else."""
    logging.shutdown()
    names = {path.name for path in directory.iterdir()}
    if directory != Path.cwd() and all(name.endswith(".log") for name in names):
        shutil.rmtree(directory)
        for parent in list(directory.parents)[:2]:
            if parent.name and not any(parent.iterdir()) and parent != Path.cwd():
                parent.rmdir()


def explain(error: Exception, schema: type[Any]) -> str:
    """One line of an error in the configuration: what was wrong and what is allowed."""
    text, cause = str(error), error.__cause__
    if match := re.match(r"Could not override '([^']+)'", text):
        parts = match[1].lstrip("+~").split(".")
        for depth, part in enumerate(parts):
            known = keys_of(schema, parts[:depth])
            if part not in known:
                return str(unknown("key", ".".join(parts[: depth + 1]), known))
        return f"{match[1]}: {_first_line(cause or error)}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, name = match[1].rpartition("/")
        return str(unknown(group, name, sorted(path.stem for path in (CONF / group).glob("*.yaml"))))
    if match := re.match(r"Error merging override (\S+)", text):
        return f"{match[1]}: {_first_line(cause or error)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: {_first_line(error)}"
    return f"{_first_line(error)}: {_first_line(cause)}" if cause else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def keys_of(schema: type[Any], parts: Sequence[str]) -> list[str]:
    """The keys of a group of the configuration, such as ["data", "split"]; of the whole where no part is given."""
    node: Any = schema()
    for part in parts:
        node = getattr(node, part, None)
    return [entry.name for entry in fields(node)] if is_dataclass(node) else []
