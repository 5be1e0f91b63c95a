"""The command line that goes on with what was recorded."""

import re
from pathlib import Path

from omegaconf import OmegaConf

from osteo.errors import UserError
from osteo.files import display_path
from osteo.training.ranks import launched


def resumed(arguments: list[str]) -> list[str]:
    """The command line that goes on with a run or a sweep, where `resume=DIRECTORY` asks for it.

    Raises:
        UserError: there is no such run or sweep, or something else is asked for too.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given:
        return arguments
    directory = Path(given[-1].removeprefix("resume=").strip("'\"")).expanduser()
    if others := [a for a in arguments if a not in given and a not in ("-m", "--multirun")]:
        raise UserError(f"resume goes on with what was recorded, so {others[0]} cannot be changed; leave it out")
    quoted = "'" + str(directory).replace("\\", "\\\\").replace("'", "\\'") + "'"
    if (directory / "multirun.yaml").exists():
        hydra_settings = OmegaConf.load(directory / "multirun.yaml").hydra
        recorded = [*hydra_settings.overrides.task, *hydra_settings.overrides.hydra]
        kept = [
            o
            for o in recorded
            if not o.lstrip("+~").startswith(("output_dir=", "resume=", "hydra.mode=", "hydra.sweep.dir="))
        ]
        for override in kept:  # a directory from elsewhere may hold what no sweep of ours has recorded
            if "_target_" in override or (override.lstrip("+~").startswith("hydra") and not _REPLAYED.match(override)):
                raise UserError(
                    f"{display_path(directory)} records {override}, which names code to run; begin a new sweep"
                )
        return ["-m", *kept, f"hydra.sweep.dir={quoted}", f"resume={quoted}"]
    if (directory / "config.yaml").exists():
        return [f"hydra.run.dir={quoted}", f"resume={quoted}"]
    raise UserError(f"resume={directory} is neither a run (config.yaml) nor a sweep (multirun.yaml)")


_REPLAYED = re.compile(r"hydra[./](launcher|sweeper|sweep|job\.name)\b")
"""Settings of Hydra that a sweep is resumed with; others, such as callbacks, could name any code."""


def check_processes(arguments: list[str]) -> None:
    """Refuses what several processes, started by torchrun or srun, cannot do together.

    Raises:
        UserError: a sweep, or a run whose directory each of them would name by its own time.
    """
    if launched() is None:
        return
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("a sweep starts the processes of its jobs itself: leave torchrun or srun out")
    if not any(argument.startswith(("output_dir=", "resume=")) for argument in arguments):
        raise UserError("several processes need one directory: give output_dir=DIR")
