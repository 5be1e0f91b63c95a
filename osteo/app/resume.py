"""The command line that goes on with what was recorded."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osteo import parts
from osteo.app.plugins import named
from osteo.app.words import quoted, unquoted
from osteo.errors import UserError
from osteo.files import display_path
from osteo.records.content import read_json
from osteo.records.sweep import SWEEP
from osteo.training.ranks import launched

EPOCHS = "trainer.max_epochs="
"""The one override that a run may be given when it is taken up."""
_REPLAYED = re.compile(
    r"hydra(/(launcher|sweeper)=|\.(launcher|sweeper|sweep)\.|\.job\.(name|chdir|config\.override_dirname)\b|\.verbose=)"
)
"""Settings of Hydra that a sweep is resumed with; others, such as callbacks, could name any code."""
_TARGET = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?([^'\",}\s]*)")
_STRINGS = re.compile(r"\$\{(oc\.env:\w+(,[\w.]+)?|hydra\.[\w.]+)\}")
"""Interpolations that cannot bring a node with a `_target_`."""
SOURCES = "sources.json"
"""What a sweep leaves beside multirun.yaml: see `sources_of`."""
FREE = ("callbacks", "logger", "args", "head_args", "extra", "kaggle", "mendeley")
"""Keys below which any key may stand."""
_RESET = ("resume=", "hydra.mode=", "hydra.sweep.dir=")
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
    directory = Path(unquoted(given[-1].removeprefix("resume="))).expanduser()
    others, config_dir = _split_config_dir([a for a in arguments if a not in given and a not in ("-m", "--multirun")])
    plugins = [a for a in others if a.startswith("plugins=")]
    epochs = [a for a in others if a.startswith(EPOCHS)]
    if others := [a for a in others if a not in (*plugins, *epochs)]:
        raise UserError(f"resume goes on with what was recorded, so {others[0]} cannot be changed; leave it out")
    if (directory / SWEEP).exists():
        if epochs:
            raise UserError(f"{epochs[0]} is for one run at a time: osteo train resume={display_path(directory / '0')}")
        return _resumed_sweep(directory, named(plugins), config_dir)
    if (directory / "config.yaml").exists():
        return [*plugins, *epochs, f"hydra.run.dir={quoted(str(directory))}", f"resume={quoted(str(directory))}"]
    raise UserError(f"resume={directory} is neither a run (config.yaml) nor a sweep ({SWEEP})")


def _resumed_sweep(directory: Path, plugins: Sequence[str], config_dir: list[str]) -> list[str]:
    """The command line of a sweep, its overrides as they were typed: interpolations are resolved job by job."""
    recorded = recorded_sweep(directory)
    kept = _replayable(_overrides(recorded), directory)
    try:
        OverridesParser.create().parse_overrides(kept)
    except HydraException as error:
        raise _damaged(directory, str(error).splitlines()[0]) from error
    parts.check_named(named(kept), display_path(directory), f"osteo train resume={display_path(directory)}")
    kept = [override for override in kept if not override.startswith("plugins=")]
    made_again = [f"plugins=[{','.join(plugins)}]"] if plugins else []
    folder = config_dir or _recorded_config_dir(recorded, directory)
    return ["-m", *folder, *kept, *made_again, f"hydra.sweep.dir={quoted(str(directory))}"]


def recorded_sweep(directory: Path) -> DictConfig:
    """The configuration of a sweep, unresolved.

    Raises:
        UserError: it cannot be read.
    """
    try:
        recorded = OmegaConf.load(directory / SWEEP)
        if isinstance(recorded, DictConfig) and OmegaConf.select(recorded, "hydra.overrides.task") is not None:
            return recorded
        reason = "it holds no sweep"
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0]
    raise _damaged(directory, reason)


def _damaged(directory: Path, reason: str) -> UserError:
    return UserError(
        f"{display_path(directory / SWEEP)} is damaged ({reason}), so the jobs of the sweep are not known;"
        f" go on with its runs one by one (osteo train resume={display_path(directory)}/0), or begin a new sweep"
    )


def check_unchanged(directory: Path, composed: DictConfig) -> None:
    """Refuses to go on with a sweep whose jobs would be others now, since a file of its configuration has changed.

    Raises:
        UserError: one line with the first key that differs.
    """
    before = OmegaConf.to_container(recorded_sweep(directory))
    now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(composed)))
    for config in (before, now):
        assert isinstance(config, dict)
        for key in ("plugins", "output_dir", "resume"):
            config.pop(key, None)
        config["hydra"] = {"sweeper": config.get("hydra", {}).get("sweeper")}
    if change := first_change(before, now):
        key, first, second = change
        raise UserError(
            f"{display_path(directory)} was begun with {key}={first}, and a file of its configuration has {second} now;"
            " put it back, or begin a new sweep"
        )
    if (directory / SOURCES).exists() and (change := first_change(read_sources(directory), sources_of(composed))):
        raise UserError(
            f"{change[0]} is not what it was when {display_path(directory)} was begun; put it back, or begin a new"
            " sweep"
        )


def sources_of(composed: DictConfig) -> dict[str, str]:
    """What the jobs of a sweep are composed of beside its overrides, as SHA-256 of its value by name.

    These are the files of a --config-dir and the variables of the environment that the configuration names. What the
    sweep has not got any more is "".
    """
    folders = [
        Path(source.path) for source in composed.hydra.runtime.config_sources if source.provider == "command-line"
    ]
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for folder in folders for path in folder.rglob("*.yaml")
    }
    for name in re.findall(r"oc\.env:\s*(\w+)", OmegaConf.to_yaml(composed)):
        found[f"${name}"] = os.environ.get(name, "").encode()
    return {name: hashlib.sha256(value).hexdigest() for name, value in sorted(found.items())}


def read_sources(directory: Path) -> dict[str, Any]:
    """What `sources_of` said when the sweep was begun."""
    return read_json(directory / SOURCES, {})


def first_change(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key that both have and that differs: what another version of osteo adds is no change."""
    is_schema = isinstance(before, dict) and isinstance(now, dict) and key.rpartition(".")[2] not in FREE
    if not is_schema:
        return None if before == now else (key, before, now)
    changes = (first_change(before[name], now[name], f"{key}.{name}".lstrip(".")) for name in before if name in now)
    return next((change for change in changes if change), None)


def _overrides(recorded: DictConfig) -> list[str]:
    """The overrides of a sweep as they were typed, first those of its jobs, then those of Hydra."""
    found = []
    for kind in ("task", "hydra"):
        node = OmegaConf.select(recorded, f"hydra.overrides.{kind}")
        words = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_list(node) else []
        assert isinstance(words, list)
        found += [str(word) for word in words]
    return found


def _replayable(overrides: Sequence[str], directory: Path) -> list[str]:
    """The recorded overrides that a sweep goes on with.

    Raises:
        UserError: one names code, which no sweep of ours has recorded: the directory may come from elsewhere.
    """
    kept = [override for override in overrides if not override.lstrip("+~").startswith(_RESET)]
    for override in kept:
        if _names_code(override.lstrip("+~")):
            raise UserError(f"{display_path(directory)} records {override}, which names code to run; begin a new sweep")
    return kept


def _names_code(override: str) -> bool:
    """Whether an override could make Hydra call something that is not ours.

    What callbacks and loggers name is looked at again when a job is composed; what Hydra itself builds, here alone.
    """
    roots, (key, _, value) = parts.trusted_roots(), override.partition("=")
    if any(path.partition(".")[0] not in roots for path in _TARGET.findall(override)) or "@hydra" in key:
        return True
    if not key.startswith("hydra"):
        return False
    hidden = key.startswith(("hydra.launcher", "hydra.sweeper")) and "${" in _STRINGS.sub("", value)
    if key.startswith("hydra.sweeper.params"):  # strings, which become overrides of jobs
        hidden = (hidden and key == "hydra.sweeper.params") or "hydra" in override[len("hydra") :]
    return "_target_" in override or not _REPLAYED.match(override) or hidden


def _split_config_dir(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without --config-dir, and --config-dir with its folder."""
    for place, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd") and place + 1 < len(arguments):
            return arguments[:place] + arguments[place + 2 :], [argument, arguments[place + 1]]
        if argument.startswith("--config-dir="):
            return arguments[:place] + arguments[place + 1 :], [argument]
    return arguments, []


def _recorded_config_dir(recorded: DictConfig, directory: Path) -> list[str]:
    """The folder of YAML files that a sweep was begun with, where it had one.

    Raises:
        UserError: it is gone, or it came with the sweep, so that it may name code.
    """
    sources = OmegaConf.select(recorded, "hydra.runtime.config_sources") or []
    folders = [Path(source["path"]) for source in sources if source["provider"] == "command-line"]
    if not folders:
        return []
    again = f"osteo train resume={display_path(directory)} --config-dir FOLDER"
    if not folders[0].is_dir():
        raise UserError(
            f"{display_path(directory)} was begun with --config-dir {folders[0].name}, which is gone; give it again:"
            f" {again}"
        )
    if not folders[0].is_absolute() or folders[0].resolve().is_relative_to(directory.resolve()):
        raise UserError(f"{display_path(directory)} was begun with a --config-dir of its own; name it again: {again}")
    return ["--config-dir", str(folders[0])]


def check_processes(arguments: list[str]) -> None:
    """Refuses what several processes, started by torchrun or srun, cannot do together.

    Raises:
        UserError: a sweep, or a run whose directory each of them would name by its own time.
    """
    if launched() is None:
        return
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("a sweep starts the processes of its jobs itself: do not start it by torchrun or srun")
    if not any(argument.startswith(("output_dir=", "resume=")) for argument in arguments):
        raise UserError("several processes need one directory: give output_dir=DIR")
