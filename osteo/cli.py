"""The console script: finds the verb and imports that command only."""

import atexit
import gc
import importlib
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from osteo.app.extras import importing
from osteo.app.streams import finish_streams, keep_streams
from osteo.command_settings import COMMANDS
from osteo.config import field_of
from osteo.errors import printable, unknown

USAGE = """osteo: experiments that detect osteoporosis in knee radiographs

usage: osteo COMMAND [key=value ...]

commands:
{commands}

examples:
  osteo train -m experiment=quickstart      three networks on built-in phantoms
  osteo report multirun/DATE/TIME           what they reached, as one page

more:
  osteo help train              every key of train, and its experiments
  osteo help train optimizer    one group of keys, or one key
  osteo train --cfg job         the configuration that a run would have
  osteo --version
  eval "$(osteo -sc install=bash)"    completion (or install=zsh, install=fish)"""


def main() -> None:
    """Runs `osteo COMMAND ...`; every command is a Hydra application."""
    # two trainings side by side on a CPU: threads that spin while they wait keep the cores from each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.unfreeze)  # what `importing` has frozen: a library may count what is left of it in the end
    keep_streams()
    try:
        _main(sys.argv[1:])
    finally:
        finish_streams()


def _main(arguments: list[str]) -> None:
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        _complete(arguments)
        return
    if arguments[:1] == ["help"] and len(arguments) > 1:  # osteo help train is osteo train --help
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:10} {each.purpose}" for name, each in COMMANDS.items())))
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"osteo {version('osteo')}")
        return
    if arguments[0] not in COMMANDS:
        print(f"osteo: {printable(unknown('command', arguments[0], COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> None:
    sys.argv = [f"osteo {command}", *_with_keys(command, arguments)]
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # Ctrl-C amid the imports ends the process, without their traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with importing():
        module = importlib.import_module(f"osteo.commands.{command}")
    signal.signal(signal.SIGINT, _interrupt_once if before is signal.default_int_handler else before)
    try:
        module.main()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_once(*_: object) -> NoReturn:
    """Ctrl-C ends a command in good order; a second one ends the process at once, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _with_keys(command: str, arguments: list[str]) -> list[str]:
    """The arguments, the first of which get the keys that they stand for."""
    keyed: list[str] = []
    if {"--help", "-h"} & set(arguments):
        return arguments
    for key, argument in zip(COMMANDS[command].positional, arguments, strict=False):
        if not _is_path(command, argument):
            break
        from osteo.app.words import quoted

        keyed.append(f"{key}={quoted(argument)}")
    return [*keyed, *arguments[len(keyed) :]]


def _is_path(command: str, argument: str) -> bool:
    """Whether an argument is no key=value, though a path may have an equals sign in it: `runs/lr=0.1`."""
    key, equals, _ = argument.partition("=")
    if not equals:
        return not argument.startswith(("-", "+", "~")) or argument.startswith("~/")
    if key.lstrip("+~").partition(".")[0] in _keys(command) or key.startswith("hydra"):
        return False
    return Path(argument).exists() or "/" in key


def _keys(command: str) -> list[str]:
    return [entry.name for entry in fields(COMMANDS[command].schema)]


def _complete(arguments: list[str]) -> None:
    """Hydra completes keys and groups of the command on the line; the command itself and values, completed here."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if "query" in arguments[-1]:
        if words[1:2] == ["help"]:
            del words[1]
        if len(words) < 2 or words[1] not in COMMANDS:
            print("\n".join(name for name in COMMANDS if name.startswith("".join(words[1:2]))))
            return
        if not line[-1].isspace() and (values := _values(words[1], *words[-1].partition("=")[::2])):
            print("\n".join(values))
            return
        shorter = line.replace(f"{words[1]} ", "", 1)
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(len(shorter))
    sys.argv = ["osteo", *arguments]
    importlib.import_module(f"osteo.commands.{words[1] if len(words) > 1 else 'train'}").main()


def _values(command: str, key: str, begun: str) -> list[str]:
    """What the last of several values of a key, as in resnet18,dense, may become, as words of the command line."""
    *before, last = begun.split(",")
    return [f"{key}=" + ",".join([*before, name]) for name in _names(command, key, last) if name.startswith(last)]


def _names(command: str, key: str, begun: str) -> list[str]:
    """The values that a key may have, where they are known: those of its schema, or what a library knows by name."""
    found = field_of(COMMANDS[command].schema, key.lstrip("+"))
    if found is None:
        return []
    if key in ("model.backbone", "optimizer.name", "optimizer.schedule"):
        from osteo import libraries
        from osteo.networks.names import known_backbones

        if key == "model.backbone":
            return known_backbones(begun)
        return [*libraries.known("optimizers")] if key == "optimizer.name" else libraries.all_schedules()
    choices = found.metadata.get("choices") or ((True, False) if found.type is bool else ())
    return [str(choice).lower() if isinstance(choice, bool) else choice for choice in choices]
