"""`osteo COMMAND --help`, `osteo help COMMAND` and `osteo help COMMAND KEY`: what can be configured, in 80 columns."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osteo.app.reference import Key, Section, composed, sections
from osteo.app.words import is_sweep
from osteo.command_settings import COMMANDS
from osteo.errors import unknown

WIDTH, INDENT, UNBROKEN = 80, 30, "\0"
MORE = """flags
  -m, --multirun    a sweep: every combination of values, as in seed=0,1,2
  --cfg job         show the configuration that a run would have, and end
  --config-dir DIR  a folder of your own YAML files, laid out as conf/ is
"""


def show(command: str, arguments: Sequence[str]) -> None:
    """Prints what `command` can be told; values that are given stand as defaults.

    Args:
        command: one of `COMMANDS`.
        arguments: of the command line; those that are no key=value name the groups and keys that are shown alone.

    Raises:
        UserError: there is no such group or key.
    """
    words, folders = _without_flags(arguments)
    overrides = [word for word in words if "=" in word and not is_sweep(word)]
    found = sections(command, composed(command, [*folders, *overrides]))
    asked = [word for word in words if "=" not in word]
    print("\n".join(_page(command, found) if not asked else _lines(_selected(found, asked))))


def _without_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the command line, and --config-dir as an override."""
    words, folders, waiting = [], [], False
    for argument in arguments:
        flag, _, value = argument.partition("=")
        is_folder = waiting or (flag in ("--config-dir", "-cd") and value)
        if is_folder:
            folders.append(f"hydra.searchpath=[file://{Path(argument if waiting else value).resolve()}]")
        elif not argument.startswith("-"):
            words.append(argument)
        waiting = not waiting and argument in ("--config-dir", "-cd")
    return words, folders


def _selected(found: Sequence[Section], asked: Sequence[str]) -> list[Section]:
    """The groups and keys of these names, and what lies below them."""
    selected, known = [], [s.name for s in found if s.name] + [key.name for s in found for key in s.keys]
    for name in asked:
        below = [section for section in found if f"{section.name}.".startswith(f"{name.rstrip('.')}.")]
        alone = [replace(s, keys=[key]) for s in found for key in s.keys if key.name == name]
        alone = [replace(section, choices=None) for section in alone]
        if not below and not alone:
            raise unknown("key", name, known, meant=[whole for whole in known if name in whole.split(".")])
        selected += below or alone
    return selected


def _page(command: str, found: Sequence[Section]) -> list[str]:
    about = COMMANDS[command]
    lines = [f"osteo {command}: {about.purpose}", "", f"usage: {about.usage}", ""]
    return [*lines, *_lines(found), *MORE.splitlines()]


def _lines(found: Sequence[Section]) -> list[str]:
    lines = []
    for section in found:
        lines += [_bold(section.name or "keys"), *_wrapped(section.meaning, 2)]
        if section.choices is not None and any(section.choices.values()):
            lines += ["", f"  {section.name}=NAME"]
            lines += (line for name, purpose in section.choices.items() for line in _entry(f"    {name}", purpose))
        elif section.choices is not None:
            lines += ["", *_wrapped(f"{section.name}={', '.join(section.choices)}", 2)]
        lines += ["", *(line for key in section.keys for line in _of_key(key)), *[""] * bool(section.keys)]
    return lines


def _of_key(key: Key) -> list[str]:
    allowed = key.allowed or (key.kind if key.kind == "true or false" else "")
    if len(allowed) < WIDTH - INDENT:
        allowed = allowed.replace(" ", UNBROKEN)
    return _entry(f"  {key.name}={key.default}", key.meaning + (f" [{allowed}]" if allowed else ""))


def _entry(name: str, text: str) -> list[str]:
    """A name, and beside or below it what it means."""
    lines = _wrapped(text, INDENT)
    if len(name) + 2 > INDENT:
        return [name, *lines]
    return [name.ljust(INDENT) + lines[0].lstrip(), *lines[1:]]


def _wrapped(text: str, indent: int) -> list[str]:
    width = max(INDENT + 20, min(WIDTH, shutil.get_terminal_size().columns))
    margin = " " * indent
    options = {"initial_indent": margin, "subsequent_indent": margin, "break_on_hyphens": False}
    lines = textwrap.wrap(text, width, **options) or [margin]  # type: ignore[arg-type]
    return [line.replace(UNBROKEN, " ") for line in lines]


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text
