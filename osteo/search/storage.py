"""Where a study lies: in a file, or on a server, which may be away for a while."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any, TypeVar

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from osteo.errors import UserError, first_line
from osteo.files import display_path

log = logging.getLogger(__name__)
T = TypeVar("T")

STORAGE = "OSTEO_STORAGE"
"""The environment variable with a storage's URL that no file may hold, since it has a password."""
BUSY = 60
"""Seconds that a process waits for another one to leave an SQLite file."""
CONNECT = 10
"""Seconds that a server has to answer."""
PATIENCE = 300.0
"""Seconds for which a server that has been reached may be away, as while it is restarted."""


def url_of(storage: str | None, sweep: Path) -> URL:
    """Where the study lies: where configured, else at $OSTEO_STORAGE, else in the sweep's own study.db.

    Raises:
        UserError: it is no URL, or has a password and was not given in the environment.
    """
    try:
        url = make_url(storage or environ.get(STORAGE) or f"sqlite:///{sweep / 'study.db'}")
    except SQLAlchemyError:
        name = "hydra.sweeper.storage" if storage else f"${STORAGE}"
        raise UserError(f"{name} is not a URL such as postgresql://host/database or sqlite:///study.db") from None
    if storage and (url.password or any("pass" in key for key in url.query)):
        raise UserError(f"hydra.sweeper.storage would record the password; set ${STORAGE} to the URL instead")
    return url


def called(url: URL) -> str:
    """The storage in a message, without user and password."""
    if url.database and url.get_backend_name() == "sqlite":
        return display_path(Path(url.database))
    return f"{url.get_backend_name()}://{url.host or ''}/{url.database}"


@contextmanager
def reachable(url: URL, *others: type[Exception]) -> Iterator[None]:
    """Makes one line of what a database answers, without its URL.

    Raises:
        UserError: that line.
    """
    expected: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.StorageInternalError, *others)
    try:
        yield
    except expected as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"the study's storage {called(url)} cannot be used: {reason}") from None


def _is_away(url: URL, error: Exception) -> bool:
    """Whether a server does not answer, or has ended a connection; a file is always there."""
    gone = (OperationalError, InterfaceError)  # as SQLAlchemy raises them, or as Optuna passes them on
    return url.get_backend_name() != "sqlite" and (isinstance(error, gone) or isinstance(error.__cause__, gone))


def outlast(url: URL, action: Callable[[], T]) -> T:
    """What `action` returns, once the server answers.

    Args:
        url: of a server that has been reached before.
        action: may be repeated even where the server did what was asked and was lost before it could say so.

    Raises:
        Exception: that of `action`, where the server stays away.
    """
    deadline, is_told = time.monotonic() + PATIENCE, False
    while True:
        try:
            return action()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if not _is_away(url, error) or time.monotonic() > deadline:
                raise
            if not is_told:
                log.warning(
                    "the study's storage %s cannot be reached (%s); trying again for %d s",
                    called(url), first_line(error.__cause__ or error), PATIENCE,
                )  # fmt: skip
            is_told = True
        time.sleep(1)


def open_storage(url: URL) -> optuna.storages.RDBStorage:
    """The storage, with tables for studies in it.

    Raises:
        Exception: it cannot be used; see `reachable`.
    """
    settings: dict[str, Any] = {"connect_args": {"timeout": BUSY}}
    if url.get_backend_name() != "sqlite":
        settings = {"pool_pre_ping": True}  # a connection may have ended since it was used
    if url.get_driver_name().startswith("psycopg"):
        settings["connect_args"] = {"connect_timeout": url.query.get("connect_timeout", CONNECT)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for pause in (1, 1, None):
        try:
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=settings)
        except SQLAlchemyError as error:  # where processes meet an empty database, all make its tables and one succeeds
            if pause is None or _is_away(url, error):
                raise
            time.sleep(pause)
    raise AssertionError
