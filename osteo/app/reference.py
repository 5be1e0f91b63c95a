"""What a command can be told, for help and documentation: the keys of its schema and the choices of conf/."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from osteo.app import choices
from osteo.app.messages import CONF, choices_of, kind_of
from osteo.app.words import as_value
from osteo.command_settings import COMMANDS
from osteo.config import Config
from osteo.search.settings import SearchSettings

SWEEPER = "hydra.sweeper"


@dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    """whole, as on the command line: data.split.seed"""
    kind: str
    """of its values, such as "number or null"; empty where several are possible"""
    default: str
    """as on the command line"""
    meaning: str
    allowed: str
    """its choices or its range, such as "pad, crop" or "from 1"; empty where the kind alone counts"""


@dataclass(frozen=True)
class Section:
    """Keys that belong together, and what can be chosen for all of them by one name."""

    name: str
    """what its keys begin with, or the group that is chosen from; empty for the keys that stand alone"""
    meaning: str
    keys: Sequence[Key] = ()
    choices: Mapping[str, str] | None = None
    """what each name of the group is for; None where no group has this name"""

    def without(self, names: Sequence[str]) -> "Section":
        """The same without keys that a command refuses."""
        return replace(self, keys=[key for key in self.keys if key.name not in names])


def composed(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a command, Hydra's own part too; the defaults where nothing is overridden."""
    choices.register(COMMANDS[command].schema)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=command):
        return compose(command, list(overrides), return_hydra_config=True)


def sections(command: str, config: DictConfig) -> list[Section]:
    """All that `command` can be told.

    Args:
        command: one of `COMMANDS`.
        config: what it has composed; its values are the defaults.
    """
    schema = COMMANDS[command].schema
    groups = [str(group) for group in config.hydra.runtime.choices if not str(group).startswith("hydra/")]
    # an overlay, by its name
    alone = [entry.name for entry in fields(schema) if entry.name in groups and entry.type == str | None]
    found = [_overlay(group, schema) for group in alone]
    found += [
        Section(f"{group}/{folder.name}", f"part of {group}={folder.name}", choices=dict.fromkeys(_names(folder), ""))
        for group in alone
        for folder in sorted((CONF / group).iterdir())
        if folder.is_dir()
    ]
    found += (section.without(COMMANDS[command].refused) for section in _walk("", schema, config, groups))
    if issubclass(schema, Config):
        found.append(Section("hydra/launcher", "what runs the jobs of a sweep", choices=purposes("hydra/launcher")))
        searcher = {"search": first_sentence(SearchSettings.__doc__)}
        found.append(Section("hydra/sweeper", "what chooses the jobs of a sweep", choices=searcher))
        found += _walk(SWEEPER, SearchSettings, OmegaConf.structured(SearchSettings), ())
    return found


def _overlay(group: str, schema: type[Any]) -> Section:
    meaning = next(entry.metadata["meaning"] for entry in fields(schema) if entry.name == group)
    return Section(group, meaning, choices=purposes(group))


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _walk(name: str, schema: type[Any], config: DictConfig, groups: Sequence[str]) -> Iterator[Section]:
    """The section of one dataclass, then those of the dataclasses and groups within it."""
    keys: list[Key] = []
    inner: list[Section] = []
    for entry in fields(schema):
        whole, value = f"{name}.{entry.name}".lstrip("."), config[entry.name]
        holds = OmegaConf.get_type(value)
        if isinstance(value, DictConfig) and holds is not None and is_dataclass(holds):
            inner += _walk(whole, holds, value, groups)
        elif isinstance(value, DictConfig) and whole in groups:  # parts by any name, some with a schema
            inner.append(Section(whole, entry.metadata["meaning"], choices=purposes(whole)))
            for part, node in value.items():
                if (holds := OmegaConf.get_type(node)) is not None and is_dataclass(holds):
                    inner += _walk(f"{whole}.{part!s}", holds, node, groups)
        elif not entry.name.startswith("_") and whole not in groups:
            keys.append(_key(whole, entry.type, value, entry.metadata))
    if keys:
        yield Section(name, first_sentence(schema.__doc__), keys, purposes(name) if name in groups else None)
    yield from inner


def _key(name: str, annotation: Any, value: Any, allowed: Mapping[str, Any]) -> Key:
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return Key(name, kind_of(annotation), as_value(plain), allowed["meaning"], allowed_of(allowed))


def allowed_of(allowed: Mapping[str, Any]) -> str:
    """The choices or the range of an option, in words; empty where any value of its type will do."""
    if allowed["choices"]:
        return ", ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in allowed["choices"])
    low, high, above = (allowed[name] for name in ("low", "high", "above"))
    if above is not None:
        return f"above {above:,g}" + (f", up to {high:,g}" if high is not None else "")
    if low is not None:
        return f"{low:,g} to {int(high) if high == int(high) else high}" if high is not None else f"from {low:,g}"
    return f"up to {high:,g}" if high is not None else ""


def purposes(group: str) -> dict[str, str]:
    """What each name that a group offers is for: what its file begins with, or what stands beside it in the code."""
    named = choices.CHOICES.get(group, {})
    found = {}
    for name in choices_of(group):
        path = CONF / group / f"{name}.yaml"
        found[name] = _purpose_of(path) if path.exists() else named.get(name, "of a plugin")
    return found


def _purpose_of(path: Path) -> str:
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comments.append(line.lstrip("# "))
    return first_sentence(" ".join(comments))


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring or a comment, without its full stop."""
    return re.split(r"\.(?=\s|$)", " ".join((text or "").split()))[0]


def as_markdown(command: str) -> str:
    """The configuration reference of a command, as a page of Markdown with a heading of the first level.

    Args:
        command: one of `osteo.command_settings.COMMANDS`.
    """
    about = COMMANDS[command]
    lines = [f"# osteo {command}", "", f"{_sentence(about.purpose)}", "", "```text", about.usage, "```"]
    for section in sections(command, composed(command)):
        lines += ["", f"## {f'`{section.name}`' if section.name else 'Keys'}", "", _literal(_sentence(section.meaning))]
        if section.choices is not None:
            lines += ["", f"`{section.name}=NAME` chooses:", ""]
            lines += [f"- `{name}`" + f": {_literal(why)}" * bool(why) for name, why in section.choices.items()]
        if section.keys:
            lines += ["", _row(("Key", "Default", "Allowed", "Meaning")), _row(["---"] * 4)]
            lines += map(_row_of, section.keys)
    return "\n".join(lines) + "\n"


def _row_of(key: Key) -> str:
    return _row((f"`{key.name}`", f"`{key.default}`", _literal(key.allowed or key.kind), _literal(key.meaning)))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _literal(text: str) -> str:
    """Text for Markdown in which nothing but what stands in backticks is markup."""
    parts = text.split("`")
    escaped = [re.sub(r"([\\*_\[\]<>|])", r"\\\1", part) for part in parts]
    return "`".join(part if place % 2 else escaped[place] for place, part in enumerate(parts))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
