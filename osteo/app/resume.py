"""The command line that goes on with what was recorded."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osteo import parts
from osteo.app.plugins import named
from osteo.errors import UserError
from osteo.files import display_path
from osteo.records.content import damaged
from osteo.records.record import read_yaml
from osteo.training.ranks import launched

_REPLAYED = re.compile(r"hydra[./](launcher|sweeper|sweep|job\.name)\b")
"""Settings of Hydra that a sweep is resumed with; others, such as callbacks, could name any code."""
_TARGET = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?([\w.]+)")
_OURS = ("output_dir=", "resume=", "hydra.mode=", "hydra.sweep.dir=")
"""Overrides that resuming sets anew."""


def resumed(arguments: list[str]) -> list[str]:
    """The command line that goes on with a run or a sweep, where `resume=DIRECTORY` asks for it.

    Raises:
        UserError: there is no such run or sweep, something else is asked for too, or it was made with plugins that are
            not named again.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given:
        return arguments
    directory = Path(given[-1].removeprefix("resume=").strip("'\"")).expanduser()
    others, config_dir = _split_config_dir([a for a in arguments if a not in given and a not in ("-m", "--multirun")])
    plugins = [a for a in others if a.startswith("plugins=")]
    if others := [a for a in others if a not in plugins]:
        raise UserError(f"resume goes on with what was recorded, so {others[0]} cannot be changed; leave it out")
    quoted = "'" + str(directory).replace("\\", "\\\\").replace("'", "\\'") + "'"
    if (directory / "multirun.yaml").exists():
        recorded = _recorded_sweep(directory / "multirun.yaml")
        kept = _replayable([*recorded.overrides.task, *recorded.overrides.hydra], directory)
        parts.check_named(named(kept), display_path(directory), f"osteo train resume={display_path(directory)}")
        kept = [override for override in kept if not override.startswith("plugins=")]
        made_again = [f"plugins=[{','.join(named(plugins))}]"] if plugins else []
        folder = config_dir or _recorded_config_dir(recorded, directory)
        return ["-m", *folder, *kept, *made_again, f"hydra.sweep.dir={quoted}", f"resume={quoted}"]
    if (directory / "config.yaml").exists():
        return [*plugins, f"hydra.run.dir={quoted}", f"resume={quoted}"]
    raise UserError(f"resume={directory} is neither a run (config.yaml) nor a sweep (multirun.yaml)")


def _recorded_sweep(path: Path) -> Any:
    """What Hydra has recorded of itself in multirun.yaml.

    Raises:
        UserError: the file is damaged.
    """
    recorded = OmegaConf.create(read_yaml(path))
    try:
        OverridesParser.create().parse_overrides([*recorded.hydra.overrides.task, *recorded.hydra.overrides.hydra])
    except (OmegaConfBaseException, HydraException, AttributeError, TypeError) as error:
        raise damaged(path, "is damaged: hydra.overrides are none") from error
    return recorded.hydra


def _replayable(overrides: Sequence[str], directory: Path) -> list[str]:
    """The recorded overrides that a sweep goes on with.

    Raises:
        UserError: one names code, which no sweep of ours has recorded: the directory may come from elsewhere.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_OURS)]
    for override in kept:
        foreign = [path for path in _TARGET.findall(override) if path.partition(".")[0] not in parts.trusted_roots()]
        is_hydra = override.lstrip("+~").startswith("hydra")
        if foreign or (is_hydra and ("_target_" in override or not _REPLAYED.match(override))):
            raise UserError(f"{display_path(directory)} records {override}, which names code to run; begin a new sweep")
    return kept


def _split_config_dir(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without --config-dir, and --config-dir with its folder."""
    for place, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd") and place + 1 < len(arguments):
            return arguments[:place] + arguments[place + 2 :], [argument, arguments[place + 1]]
        if argument.startswith("--config-dir="):
            return arguments[:place] + arguments[place + 1 :], [argument]
    return arguments, []


def _recorded_config_dir(recorded: Any, directory: Path) -> list[str]:
    """The folder of YAML files that a sweep was begun with, where it had one.

    Raises:
        UserError: it is gone.
    """
    sources = OmegaConf.select(recorded, "runtime.config_sources") or []
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    if folders and not Path(folders[0]).is_dir():
        raise UserError(
            f"{display_path(directory)} was begun with --config-dir {Path(folders[0]).name}, which is gone; give it"
            f" again: osteo train resume={display_path(directory)} --config-dir FOLDER"
        )
    return ["--config-dir", folders[0]] if folders else []


def check_processes(arguments: list[str]) -> None:
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
