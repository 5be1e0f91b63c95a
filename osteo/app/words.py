"""The words of a command line as Hydra reads them: what is a path or a name is quoted where Hydra could not read it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

GROUPS = ("experiment", "protocol", "debug")
"""Keys that choose a file of conf/, which Hydra wants without quotes."""


def quoted(text: str) -> str:
    """A text as a value of Hydra's that stands for itself, whatever is in it."""
    return QuotedString(text.replace("${", r"\${"), Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text that a value of Hydra's stands for; one that Hydra cannot read stands for itself."""
    override = _parsed(f"key={value}")
    text = override.value() if override is not None else value
    return text.replace(r"\${", "${") if isinstance(text, str) else value


def as_value(value: Any) -> str:
    """A plain value as it stands on the command line after its key and an equals sign, but for the shell's quotes."""
    if isinstance(value, str):
        return value if value and _reads_as(f"key={value}", value) else quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_within, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_within(item)}' for name, item in value.items())}}}"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _within(value: Any) -> str:
    """A value within a list or a mapping, where more characters have a meaning."""
    if not isinstance(value, str):
        return as_value(value)
    return value if value and _reads_as(f"key=[{value}]", [value]) else quoted(value)


def _reads_as(argument: str, value: Any) -> bool:
    override = _parsed(argument)
    return override is not None and not override.is_sweep_override() and override.value() == value


def readable(arguments: Sequence[str], schema: type[Any]) -> list[str]:
    """The command line with texts quoted that Hydra would not read as such: `output_dir=a[1]`, `output_dir=1e3`.

    Quotes, interpolations, null, and several values of a sweep stay what they are.
    """
    sweeps = bool({"-m", "--multirun"} & set(arguments))
    return [_readable(argument, schema, sweeps=sweeps) for argument in arguments]


def _readable(argument: str, schema: type[Any], *, sweeps: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or not value or not (holds := _type_of(schema, key)):
        return argument
    override = _parsed(argument)
    if override is None:
        is_text = value[0] not in "[{'\"" if holds is Any else not sweeps or "," not in value
        alone = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        return alone if is_text and _parsed(alone) is not None else argument
    if holds is Any or override.is_sweep_override() or override.value() is None or isinstance(override.value(), str):
        return argument
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _type_of(schema: type[Any], key: str) -> Any:
    """The type of a key: str where it holds a text, Any for one that holds a text or a list of them, else None."""
    node, name = schema, key
    while "." in name and is_dataclass(node):
        group, name = name.split(".", 1)
        node = next((entry.default_factory for entry in fields(node) if entry.name == group), None)  # type: ignore[assignment]
    if not is_dataclass(node) or name in GROUPS:
        return None
    kinds: dict[Any, Any] = {str: str, str | None: str, Any: Any}
    return next((kinds.get(entry.type) for entry in fields(node) if entry.name == name), None)
