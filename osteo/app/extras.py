"""What a command needs installed, and how large libraries are imported in a shorter time."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from osteo.errors import UserError

MANY = 500
"""So many new modules are large libraries, whose objects stay."""
EXTRAS = {
    "hydra/launcher=processes": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra/launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
"""The package that a choice needs and the extra that installs it."""


def check_extras(arguments: Sequence[str]) -> None:
    """Refuses a launcher or sweeper whose packages are not installed.

    Raises:
        UserError: one line that says what to install.
    """
    for argument in arguments:
        package, extra = EXTRAS.get(argument, ("", ""))
        if package:
            needs(argument, extra, package)


def needs(what: str, extra: str, *packages: str) -> None:
    """Refuses what cannot be done without the packages of an extra.

    Raises:
        UserError: one line that says what to install.
    """
    if not all(_is_installed(package) for package in packages):
        raise UserError(f"{what} needs an extra that is not installed: pip install 'osteo[{extra}]'")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of its parent
        return False


@contextmanager
def importing() -> Iterator[None]:
    """Looks for no garbage meanwhile, nor later among what large libraries have made: a million objects that stay."""
    was_enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before > MANY:
            gc.freeze()
        if was_enabled:
            gc.enable()
