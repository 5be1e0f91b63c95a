"""What a command's first argument names: runs or checkpoints, which are looked for and not loaded."""

from pathlib import Path
from typing import Any

from osteo.errors import UserError
from osteo.files import display_path
from osteo.records.sweep import best_of, is_run, runs_of

OF_TORCH = (b"PK", b"\x80")
"""How a file that torch has written begins: a zip, or a pickle of old."""
FINISHED = "finished run of training"


def directory_of(runs: str | None, command: str, wanted: str = "run") -> Path:
    """The directory of a sweep or a run.

    Raises:
        UserError: none is named, it is a file, or it holds no run.
    """
    if not runs:
        raise UserError(f"name a sweep or a run directory: osteo {command} DIRECTORY")
    directory = Path(runs).expanduser()
    if not directory.exists():
        raise UserError(f"{runs}: no such run or sweep; give its directory")
    if directory.is_file():
        raise UserError(f"{runs} is a file; give the directory of a sweep or a run")
    if not runs_of(directory):
        raise holds_none(runs, wanted)
    return directory


def holds_none(runs: str | None, wanted: str = FINISHED) -> UserError:
    """An error that names a directory without what a command reads."""
    return UserError(f"{runs} holds no {wanted}; give the directory of a sweep or a run")


def names_of(ckpt: Any) -> list[str]:
    """The checkpoints that the key `ckpt` names, one or several."""
    return [str(name) for name in (ckpt if isinstance(ckpt, list) else [ckpt] if ckpt else [])]


def checkpoint_of(name: str) -> Path:
    """The checkpoint that a user named; a run directory stands for its best one.

    Raises:
        UserError: it is the directory of a sweep.
    """
    path = Path(name).expanduser()
    return best_of(path) if path.is_dir() else path


def existing_checkpoints(ckpt: Any) -> list[str]:
    """The checkpoints that the key `ckpt` names, all of which are there.

    Raises:
        UserError: none is named, or one is not there or is no file of torch's.
    """
    if not (names := names_of(ckpt)):
        raise UserError("name a run or a checkpoint: ckpt=RUN, or several that answer together: ckpt=[RUN,RUN]")
    for name in names:
        given = Path(name).expanduser()
        if not given.exists():
            raise UserError(f"{name}: no such run, sweep or checkpoint")
        path = checkpoint_of(name)
        if not path.is_file():
            what = "has no checkpoint yet" if is_run(given) else "is neither a run, a sweep nor a checkpoint"
            raise UserError(f"{name} {what}; give a run that is done, or RUN/checkpoints/best.ckpt")
        with path.open("rb") as file:
            if (first := file.read(2)) and not first.startswith(OF_TORCH):
                is_other = path.suffix.lower() not in ("", ".ckpt")  # such as a picture in the place of its network
                hint = "give a run or its best.ckpt" if is_other else "take another copy of it, or train its run again"
                raise UserError(f"{display_path(path)} is not a checkpoint of osteo; {hint}")
    return names


def check_input(given: str | None) -> None:
    """Refuses pictures that are not there, before a checkpoint is opened.

    Raises:
        UserError: one line that names them.
    """
    if given and not Path(given).expanduser().exists():
        raise UserError(f"input={given}: no such file or folder")


def name_of(checkpoint: Path) -> str:
    """The name of a checkpoint's file, with that of its run."""
    return "/".join(checkpoint.parts[-3:] if checkpoint.parent.name == "checkpoints" else checkpoint.parts[-1:])
