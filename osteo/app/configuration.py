"""What is shown of a configuration when a run begins: what differs from the defaults, or all of it as a tree."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from osteo.app.words import as_value, is_sweep
from osteo.checks import TARGET
from osteo.config import Config, WandbConfig
from osteo.errors import counted
from osteo.files import public
from osteo.records.record import Job

WIDTH, UNBROKEN = 80, "\0"
ALWAYS = ("output_dir", "print_config", "resume")
"""Keys that say where a run is, and not what it is."""
NOTES = "claim."
"""What keys begin with that are notes on a source; only what it is called is shown."""


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed configuration as a job has it."""
    copy = config.copy()
    with read_write(copy), open_dict(copy):
        del copy["hydra"]
    return copy


def plain(config: DictConfig) -> dict[str, Any]:
    """The values of a composed configuration, without Hydra's own."""
    found: Any = OmegaConf.to_container(without_hydra(config), resolve=True)
    return dict(found)


def defaults(command: str) -> dict[str, Any]:
    """What the command that runs composes where nothing is asked for."""
    return plain(GlobalHydra.instance().config_loader().load_configuration(command, [], RunMode.RUN))


def describe(config: Config, job: Job) -> str:
    """What is asked for, without paths: as a tree if `config.print_config` is set, else what differs, in few lines."""
    if config.print_config:
        return as_tree(asdict(config))
    # a repetition has the defaults of its own command, which say nothing of a training
    schema = {**asdict(type(config)()), "logger": {"wandb": asdict(WandbConfig())}}
    return differences(asdict(config), {**schema, **job.usual}, "all of it: print_config=true")


def describe_sweep(config: DictConfig, words: Sequence[str], count: int) -> str:
    """What the jobs of a sweep have in common, and what each has of its own.

    Args:
        config: of the sweep, Hydra's part too.
        words: its overrides, those of several values among them.
        count: of its jobs; 0 where a search finds them.
    """
    values = plain(config)
    swept = " ".join(word for word in words if is_sweep(word))
    first = f"sweep of {counted(count, 'job')}: {swept}" if count else f"search: {swept}"
    if values["print_config"]:
        return f"{first}\n{as_tree(values)}"
    shared = differences(values, defaults(config.hydra.job.name), "of all jobs; all of it: print_config=true")
    return f"{first}\n{shared}"


def differences(values: Mapping[str, Any], usual: Mapping[str, Any], remark: str) -> str:
    """The keys whose values are not the usual ones, in lines of 80 columns.

    Args:
        values: by key.
        usual: the same keys.
        remark: what is said of them.
    """
    changed = {key: value for key, value in _changes(public(values), public(usual)) if not _is_unspoken(key)}
    words = [f"{key}={value}".replace(" ", UNBROKEN) for key, value in changed.items()]
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    lines = wrapper.wrap(" ".join(words)) or ["  the defaults"]
    return "\n".join([f"configuration ({remark})", *lines]).replace(UNBROKEN, " ")


def _is_unspoken(key: str) -> bool:
    return key in ALWAYS or (key.startswith(NOTES) and key != f"{NOTES}source")


def _changes(values: Mapping[str, Any], usual: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values that differ, as on the command line; a part of Lightning's stands as its class with arguments."""
    for name, value in values.items():
        before, whole = usual.get(name), f"{key}.{name}".lstrip(".")
        if value == before:
            continue
        if isinstance(value, Mapping) and TARGET in value and not before:
            arguments = ", ".join(f"{name}={as_value(item)}" for name, item in value.items() if name != TARGET)
            yield whole, f"{str(value[TARGET]).rpartition('.')[2]}({arguments})"
        elif isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _changes(value, before, whole)
        else:
            yield whole, as_value(value)
    yield from ((f"{key}.{name}", "null") for name in usual if name not in values and key)


def as_tree(values: Mapping[str, Any]) -> str:
    """All of a configuration, without paths, as a tree."""
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree("configuration")
    _grow(tree, public(values))
    console = Console(width=WIDTH, color_system=None, emoji=False, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(tree)
    return captured.get().rstrip()


def _grow(tree: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            _grow(tree.add(name), value)
        else:
            tree.add(f"{name}={as_value(value)}")
