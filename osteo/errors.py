"""The one exception that a user's mistake raises, and how a wrong name is answered."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend: one line that says what was wrong, what is allowed and what to do."""


def unknown(kind: str, name: object, choices: Iterable[str], *, most: int = 20) -> UserError:
    """An error that names the bad value and the good ones, the nearest first where there are many."""
    known = list(choices)
    near = get_close_matches(str(name).lower(), known, n=5, cutoff=0.5)
    if len(known) <= most:
        return UserError(f"{kind} '{name}' is unknown; choose one of: {', '.join(known)}")
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    return UserError(f"{kind} '{name}' is unknown among {len(known)} names{hint}")
