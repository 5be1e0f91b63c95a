"""Imports of large libraries in a shorter time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 500
"""So many new modules are large libraries, whose objects stay."""


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
