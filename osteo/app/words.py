"""The words of a command line as Hydra reads them: what is a path or a name is quoted where Hydra could not read it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from osteo.app.messages import keys_like
from osteo.config import field_of
from osteo.errors import UserError, unknown

GROUPS = ("experiment", "protocol", "debug")
"""Keys that choose a file of conf/, which Hydra wants without quotes."""


FLAGS = {
    "--help": 0, "-h": 0, "--hydra-help": 0, "--version": 0, "--cfg": 1, "-c": 1, "--resolve": 0, "--package": 1,
    "-p": 1, "--run": 0, "-r": 0, "--multirun": 0, "-m": 0, "--shell-completion": 0, "-sc": 0, "--config-path": 1,
    "-cp": 1, "--config-name": 1, "-cn": 1, "--config-dir": 1, "-cd": 1, "--experimental-rerun": 1, "--info": 0,
    "-i": 0,
}  # fmt: skip
"""Hydra's flags, and how many values follow each."""
CFG, HELP = ("--cfg", "-c"), ("--help", "-h")


def flags_first(arguments: Sequence[str], schema: type[Any], usage: str) -> list[str]:
    """The command line with its flags in front, since Hydra does not read `seed=0,1 -m data=clean`.

    Args:
        arguments: as they were typed, but for a command's first words, which have been given their keys.
        schema: of the command.
        usage: of the command, in one line.

    Raises:
        UserError: there is no such flag, or a word has no key and asks for no help.
    """
    flags: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            words.append(argument)
        elif name not in FLAGS:
            key = name.lstrip("-").replace("-", "_")
            example = next(iter(keys_like(key, schema)), "KEY")
            raise UserError(f"{name} is no flag; what is configured is given as {example}=VALUE, without dashes")
        else:
            flags.append(argument)
            if FLAGS[name] and not equals:
                flags.append(value := next(rest, ""))
            if FLAGS[name] and not value:
                raise UserError(f"{name} needs a value, as in {name} {'job' if name in CFG else 'NAME'}")
            if name in CFG and value not in (shown := ("job", "hydra", "all")):
                raise unknown(name, value, shown)
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if bare and not set(HELP) & set(flags):
        raise UserError(f"'{bare[0]}' has no key; usage: {usage}")
    return [*flags, *words]


def quoted(text: str) -> str:
    """A text as a value of Hydra's that stands for itself, whatever is in it."""
    return QuotedString(text.replace("${", r"\${"), Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text that a value of Hydra's stands for; one that Hydra cannot read stands for itself."""
    override = _parsed(f"key={value}")
    text = override.value() if override is not None else value
    return text.replace(r"\${", "${") if isinstance(text, str) else value


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The words of a command line without the quotes that `readable` and positional arguments have been given."""
    return [
        f"{key}={unquoted(value)}" if value.startswith("'") and value.endswith("'") else f"{key}{equals}{value}"
        for key, equals, value in (argument.partition("=") for argument in arguments)
    ]


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


def is_sweep(argument: str) -> bool:
    """Whether a key is given several values, as a sweep has it: seed=0,1."""
    override = _parsed(argument)
    return override is not None and override.is_sweep_override()


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
    if override is None and holds is list:
        items = [quoted(item.strip()) for item in value[1:-1].split(",")]
        whole = f"{key}=[{','.join(items)}]"
        is_list = value.startswith("[") and value.endswith("]") and not set("[]{}'\"") & set(value[1:-1])
        return whole if is_list and _parsed(whole) is not None else argument
    if override is None:
        is_text = value[0] not in "[{'\"" if holds is Any else not sweeps or "," not in value
        alone = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        return alone if is_text and _parsed(alone) is not None else argument
    if (
        holds is Any
        or holds is list
        or override.is_sweep_override()
        or override.value() is None
        or isinstance(override.value(), str)
    ):
        return argument
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _type_of(schema: type[Any], key: str) -> Any:
    """The type of a key: str for a text, list for a list of them, Any for one that holds either, else None."""
    found = field_of(schema, key)
    if found is None or found.name in GROUPS:
        return None
    kinds: dict[Any, Any] = {str: str, str | None: str, Any: Any, list[str]: list}
    return kinds.get(found.type)
