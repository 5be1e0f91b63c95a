"""One line of what Hydra and OmegaConf say of a mistake in the configuration, and log messages that can be printed."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.core.config_store import ConfigStore
from hydra.errors import OverrideParseException

from osteo.config import WandbConfig, field_of
from osteo.errors import printable_lines, unknown
from osteo.search.settings import SearchSettings

PACKAGE = Path(__file__).resolve().parents[1]
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", list: "list", dict: "mapping"}
EXAMPLES = {"list": ", as in [one,two]", "mapping": ", as in {one: 1, two: 2}"}
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())


class Printable(logging.Formatter):
    """Log messages without what would move the cursor of a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of a record, before any traceback."""
        record.message = printable_lines(record.message)
        return super().formatMessage(record)


def describe_mistake(error: Exception, schema: type[Any]) -> str:
    """One line of an error in the configuration: what was wrong and what is allowed."""
    text, cause = str(error), error.__cause__
    if match := re.match(r"Could not override '([^']+)'", text):
        parts = match[1].lstrip("+~").split(".")
        if parts[:2] in (["hydra", "launcher"], ["hydra", "sweeper"]):
            return _describe_setting(parts[1], parts[2], _first_line(cause or error))
        for depth, part in enumerate(parts if parts[0] != "hydra" else ()):
            known = keys_of(schema, parts[:depth])
            if known and part not in known:
                return str(unknown("key", ".".join(parts[: depth + 1]), known, meant=keys_like(parts[-1], schema)))
        return f"{match[1]}: {_first_line(cause or error)}"
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, name = match[1].rpartition("/")
        return str(unknown(group, name, choices_of(group)))
    if match := re.match(r"Error merging override (.+)", text):
        return f"{match[1]}: {_kind_wanted(match[1], schema) or _first_line(cause or error)}"
    if isinstance(error, OverrideParseException):
        reason = _first_line(error).partition(f": {error.override}")[0]
        if reason.startswith("Lexer"):
            reason = "it has a character that needs quotes"
        return f"cannot read '{error.override}' as key=value: {reason}{_how_to_quote(error.override)}"
    if text.startswith("Ambiguous value"):
        key, _, value = text.split("'")[1].partition("=")
        return f"{_first_line(error)}; for one text with a comma type '{key}=\"{value}\"', for a sweep -m"
    return f"{_first_line(error)}: {_first_line(cause)}" if cause else _first_line(error)


def kind_of(annotation: Any) -> str:
    """The values that a type stands for, such as "number or null"; empty where anything goes."""
    options = [kind for kind in get_args(annotation) or [annotation] if get_origin(annotation) not in (list, dict)]
    kinds = [KINDS.get(get_origin(kind) or kind, "") for kind in options or [annotation] if kind is not type(None)]
    return " or ".join([*filter(None, kinds), *["null"] * (type(None) in options)]) if any(kinds) else ""


def _kind_wanted(override: str, schema: type[Any]) -> str:
    """What the value of a key has to be; empty where its type does not say."""
    key = override.partition("=")[0].lstrip("+~")
    found = field_of(schema, key)
    if found and is_dataclass(found.type):
        return f"holds keys, and no value of its own: {', '.join(f'{key}.{name}' for name in keys_of(schema, [key]))}"
    kind = kind_of(found.type) if found else ""
    return f"must be {kind if kind.startswith('true') else f'a {kind}'}{EXAMPLES.get(kind, '')}" if kind else ""


def _describe_setting(kind: str, name: str, reason: str) -> str:
    """One line for a setting of a launcher or a sweeper that the chosen one does not have."""
    offered = {path.stem: _top_keys(path) for path in (CONF / "hydra" / kind).glob("*.yaml")}
    if kind == "sweeper":
        offered["search"] = [entry.name for entry in fields(SearchSettings) if not entry.name.startswith("_")]
    key, owners = f"hydra.{kind}.{name}", sorted(choice for choice, keys in offered.items() if name in keys)
    if "Basic" in reason:  # Hydra's own, which runs one job after the other
        return f"{key} goes with {' or '.join(f'hydra/{kind}={choice}' for choice in owners or sorted(offered))}"
    if "SearchSettings" in reason:
        return str(unknown("key", key, offered["search"]))
    return f"{key}: {reason}"


def _top_keys(path: Path) -> list[str]:
    return re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)


def _how_to_quote(override: str | None) -> str:
    key, _, value = (override or "").partition("=")
    example = {"[": '["...","..."]', "{": '{name: "..."}'}.get(value[:1])
    if example and not {"'", '"'} & set(value):
        return f"; quote the texts within, and all of it for the shell: '{key}={example}'"
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def keys_of(schema: type[Any], parts: Sequence[str]) -> list[str]:
    """The keys of a group of the configuration, such as ["data", "split"]; of the whole where no part is given.

    A dictionary that takes any key has none.
    """
    node: Any = schema()
    for part in parts:
        node = WandbConfig() if (node == {} and part == "wandb") else getattr(node, part, None)
    return [entry.name for entry in fields(node)] if is_dataclass(node) else []


def keys_like(name: str, schema: type[Any]) -> list[str]:
    """The keys anywhere in a configuration whose last part is a name, or that with more before or after it."""
    found = list(_all_keys(schema()))
    same = [key for key in found if key.rpartition(".")[2] == name]
    return same or [key for key in found if name in key.rpartition(".")[2].split("_")]


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(node):
        value = getattr(node, entry.name)
        if is_dataclass(value):
            yield from _all_keys(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def choices_of(group: str) -> list[str]:
    """The names that a group of the configuration offers: files of conf/ and choices of the code."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    known = ConfigStore.instance().repo.get(group, {})
    return sorted(files | {name.removesuffix(".yaml") for name in known})
