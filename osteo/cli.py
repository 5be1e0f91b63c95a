"""The console script: finds the verb and imports that command only."""

import atexit
import gc
import importlib
import os
import signal
import sys
from pathlib import Path

from osteo.app.imports import importing
from osteo.app.streams import finish_streams, keep_streams
from osteo.errors import printable, unknown

COMMANDS = {
    "prepare": "read the archives, decode every picture once, and show what is used",
    "audit": "what is wrong with the data: copies, contradictions, shortcuts, leaks",
    "pretrain": "learn from pictures without labels; its checkpoint is a model.weights_file of train",
    "train": "train one model, or sweep many with -m",
    "status": "how far the runs of a sweep are, and what failed",
    "rerun": "repeat a recorded run and compare the metrics",
    "evaluate": "what checkpoints reach on a data set or a split",
    "predict": "what checkpoints say of your own pictures",
    "serve": "the same on a page of this computer, for one picture after the other",
    "explain": "what a network sees of your own pictures: Grad-CAM and feature maps of its layers",
    "report": "figures and tables of a sweep, beside the paper's",
    "dashboard": "a report of a sweep on Weights & Biases: curves, parameters, confusion matrices, table of runs",
    "export": "a checkpoint as a file for onnxruntime, TorchScript or torch.export",
}

POSITIONAL = {
    "report": "runs",
    "dashboard": "runs",
    "status": "runs",
    "rerun": "run",
    "evaluate": "ckpt",
    "predict": "ckpt",
    "serve": "ckpt",
    "explain": "ckpt",
    "export": "ckpt",
}
"""The key that a command's first argument stands for where it has no key."""

BACKBONE = "model.backbone="
"""The key whose values are names of libraries, which are completed, too."""

USAGE = """osteo: experiments that detect osteoporosis in knee radiographs

usage: osteo COMMAND [key=value ...]

commands:
{commands}

  osteo COMMAND --help       what can be configured
  osteo COMMAND --cfg job    the configuration that a run would have
  eval "$(osteo -sc install=bash)"   shell completion (or install=zsh, install=fish)"""


def main() -> None:
    """Runs `osteo COMMAND ...`; every command is a Hydra application."""
    # two trainings side by side on a CPU: threads that spin while they wait keep the cores from each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.freeze)  # or the interpreter looks once more for garbage among a million objects
    keep_streams()
    try:
        _main(sys.argv[1:])
    finally:
        finish_streams()


def _main(arguments: list[str]) -> None:
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        _complete(arguments)
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:10} {meaning}" for name, meaning in COMMANDS.items())))
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
    if command in POSITIONAL and arguments and _is_path(command, arguments[0]):
        from osteo.app.words import quoted

        arguments = [f"{POSITIONAL[command]}={quoted(arguments[0])}", *arguments[1:]]
    sys.argv = [f"osteo {command}", *arguments]
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # Ctrl-C amid the imports ends the process, without their traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with importing():
        module = importlib.import_module(f"osteo.commands.{command}")
    signal.signal(signal.SIGINT, before)
    module.main()


def _is_path(command: str, argument: str) -> bool:
    """Whether an argument is no key=value, though a path may have an equals sign in it: `runs/lr=0.1`."""
    key, equals, _ = argument.partition("=")
    if not equals:
        return not argument.startswith(("-", "+", "~")) or argument.startswith("~/")
    if key.lstrip("+~").partition(".")[0] in _keys(command) or key.startswith("hydra"):
        return False
    return Path(argument).exists() or "/" in key


def _keys(command: str) -> list[str]:
    from dataclasses import fields

    from osteo import command_settings

    return [entry.name for entry in fields(getattr(command_settings, f"{command.capitalize()}Config"))]


def _complete(arguments: list[str]) -> None:
    """Hydra completes keys and values of the command on the line; the command itself and backbones, completed here."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if "query" in arguments[-1]:
        if len(words) < 2 or words[1] not in COMMANDS:
            print("\n".join(name for name in COMMANDS if name.startswith("".join(words[1:2]))))
            return
        if words[-1].startswith(BACKBONE) and not line[-1].isspace():
            print("\n".join(_backbones(words[-1].removeprefix(BACKBONE))))
            return
        shorter = line.replace(f"{words[1]} ", "", 1)
        os.environ["COMP_LINE"] = shorter
        os.environ["COMP_POINT"] = str(len(shorter))
    sys.argv = ["osteo", *arguments]
    importlib.import_module(f"osteo.commands.{words[1] if len(words) > 1 else 'train'}").main()


def _backbones(begun: str) -> list[str]:
    """What the last of several backbones, as in resnet18,dense, may become, as words of the command line."""
    from osteo.networks.names import known_backbones

    *before, last = begun.split(",")
    names = [name for name in known_backbones(last) if name.startswith(last)]
    return [BACKBONE + ",".join([*before, name]) for name in names]
