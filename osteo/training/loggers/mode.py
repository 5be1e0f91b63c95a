"""Whether W&B is online, and of which commit it is told; W&B itself is imported where it is asked."""

import os
import subprocess
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit

from osteo.errors import UserError
from osteo.records.tracked import MODES, mode_of_environment, netrc_file

SECONDS_TO_ASK = 10  # one request, of those that W&B waits for while a run goes on


def choose_mode(mode: str) -> str:
    """Online, offline or disabled: as configured, or where that is "auto" as the environment or W&B's own settings say.

    Where these say nothing it is online if a key of W&B is found, else offline; nobody is asked for one.

    Raises:
        UserError: a variable of W&B's has a value that W&B does not know.
    """
    # both before W&B reads its environment, which it does once
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports on the machine, and logs where it cannot
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(SECONDS_TO_ASK))  # a table is asked for before it is logged
    given = mode_of_environment()
    os.environ.pop("WANDB_MODE", None)  # W&B refuses an empty one, and one in capitals
    if given:
        os.environ["WANDB_MODE"] = given
    import wandb

    try:
        settings = wandb.setup().settings
    except ValueError as error:  # pydantic's, of several lines
        name, reason = [*str(error).splitlines()[1:3], "", ""][:2]
        raise UserError(f"W&B refuses WANDB_{name.upper()}: {reason.partition(' [')[0].strip()}") from error
    if mode != "auto":
        return mode
    if given or settings.mode != "online":  # the second: `wandb offline` writes it into a file
        return given or MODES[settings.mode]
    return "online" if has_key() else "offline"


def check_environment(mode: str) -> None:
    """Refuses a variable of W&B's that has a value that W&B does not know; W&B is not asked where none is set.

    Raises:
        UserError: one line with the variable.
    """
    if any(name.startswith("WANDB_") and name not in ("WANDB_MODE", "WANDB_DISABLED") for name in os.environ):
        choose_mode(mode)


def has_key() -> bool:
    """Whether W&B would find a key without asking for one."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        known = netrc(netrc_file()).hosts
    except (OSError, NetrcParseError):
        return False
    hosts = {urlsplit(settings.base_url).hostname, "api.wandb.ai"}  # the second: what the hosted service was called
    return bool(hosts & known.keys())


def git_commit() -> str | None:
    """The commit of the repository that the working directory lies in; None where it lies in none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
