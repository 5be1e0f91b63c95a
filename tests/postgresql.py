"""A real PostgreSQL server, started for a test and ended with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.slurm import free_port

PASSWORD = "hunter2"
_PATH = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
"""Debian keeps the server's commands out of PATH."""


def why_not() -> str | None:
    """Why PostgreSQL cannot be started here, or None where it can."""
    if missing := [name for name in ("initdb", "pg_ctl", "postgres") if shutil.which(name, path=_PATH) is None]:
        return f"PostgreSQL is not installed: {', '.join(missing)} missing"
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL is not started by root, and there is no user postgres"
    return None


class Server:
    """A server of this machine, which asks for a password.

    Args:
        folder: its own, of the user who starts it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(secret, "postgres")
        self._call("initdb", "--auth=scram-sha-256", "--username=ann", f"--pwfile={secret}", "--no-sync", "data")

    @property
    def url(self) -> str:
        """Of its database, with the password."""
        return f"postgresql://ann:{PASSWORD}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Returns once it answers."""
        listens = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -c fsync=off"
        self._call("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", listens)

    def stop(self) -> None:
        """Ends it at once, as a crash does: whatever was not committed is lost."""
        self._call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", "data")

    def _call(self, command: str, *arguments: str) -> None:
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        program = shutil.which(command, path=_PATH)
        assert program is not None
        with (self._folder / "said").open("ab") as said:  # a pipe would stay open for as long as the server runs
            done = subprocess.run([program, *arguments], cwd=self._folder, stdout=said, stderr=said, **as_user)  # type: ignore[call-overload]
        assert done.returncode == 0, (self._folder / "said").read_text()


@contextmanager
def running() -> Iterator[Server]:
    """Yields a server that answers."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:  # a path short enough for its socket
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
