"""One line of what Hydra and OmegaConf say of a mistake in the configuration, and log messages that can be printed."""

import logging
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import OverrideParseException

from osteo.config import WandbConfig
from osteo.errors import printable_lines, unknown

PACKAGE = Path(__file__).resolve().parents[1]
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
        for depth, part in enumerate(parts if parts[0] != "hydra" else ()):
            known = keys_of(schema, parts[:depth])
            if known and part not in known:
                return str(unknown("key", ".".join(parts[: depth + 1]), known))
        return f"{match[1]}: {_first_line(cause or error)}"
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, name = match[1].rpartition("/")
        return str(unknown(group, name, choices_of(group)))
    if match := re.match(r"Error merging override (\S+)", text):
        return f"{match[1]}: {_first_line(cause or error)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: {_first_line(error)}"
    return f"{_first_line(error)}: {_first_line(cause)}" if cause else _first_line(error)


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


def choices_of(group: str) -> list[str]:
    """The names that a group of the configuration offers: files of conf/ and choices of the code."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    known = ConfigStore.instance().repo.get(group, {})
    return sorted(files | {name.removesuffix(".yaml") for name in known})
