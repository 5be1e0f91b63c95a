"""Starts osteo by a fork of a process that has its libraries in memory: their imports take six seconds.

What such a process does is what a cold one does: it has a process id, a directory, an environment and streams of its
own, is killed as one, and imports osteo itself. Only what others have written is there already. A command is started
cold where its environment is another in what imports look at, and where it is `[sys.executable, OSTEO, ...]`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing import process
from pathlib import Path
from typing import Any

OSTEO = str(Path(sys.executable).with_name("osteo"))
LIBRARIES = (
    "lightning.pytorch", "torchmetrics.classification", "timm", "kornia.augmentation", "pandas", "sklearn.metrics",
    "sklearn.model_selection", "scipy.stats", "cv2", "PIL.Image", "openpyxl", "hydra", "jinja2",
    "wandb.sdk.launch",
)  # fmt: skip
AT_IMPORT = ("PYTHON", "OMP_", "MKL_", "LD_PRELOAD", "CUDA_VISIBLE", "MPL", "HF_", "LANG", "LC_", "HOME")
"""How the names of variables begin that a library may read when it is imported."""


def at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(AT_IMPORT)}


class Server:
    """The process with the libraries, started when it is first needed, with the environment of this moment."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._environment = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None

    def takes(self, command: object, environment: Mapping[str, str]) -> list[str] | None:
        """The arguments of an osteo that can be started warm."""
        for start in ([OSTEO], [sys.executable, "-m", "osteo"]):
            if isinstance(command, list) and command[: len(start)] == start:
                return command[len(start) :] if at_import(environment) == at_import(self._environment) else None
        return None

    def start(
        self, arguments: list[str], folder: str, environment: Mapping[str, str], streams: list[int]
    ) -> socket.socket:
        """What comes back on the socket are two lines: the process id and, when it has ended, its wait status."""
        address = f"{self._folder.name}/orders"
        if self._process is None:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen()
                self._process = subprocess.Popen(
                    [sys.executable, __file__, str(listener.fileno())], stdin=subprocess.PIPE,
                    pass_fds=[listener.fileno()], env=self._environment,
                )  # fmt: skip
        order = socket.socket(socket.AF_UNIX)
        order.connect(address)
        socket.send_fds(order, [b"\n"], streams)
        order.sendall(json.dumps([arguments, folder, dict(environment)]).encode() + b"\n")
        return order

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # an end of its stdin ends it
        self._folder.cleanup()


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen, with osteo started warm where it can be."""

    server: Server
    _order: Any = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, *more: Any) -> None:  # fmt: skip
        environment = os.environ if env is None else env
        arguments = self.server.takes(args, environment)
        if arguments is None or shell or pass_fds or preexec_fn:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *more
            )
            return
        pipes = more[:6]
        streams = [number if given == -1 else given for number, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        order = self.server.start(arguments, os.fspath(cwd or Path.cwd()), environment, streams)
        self._order = order.makefile("rb", buffering=0)
        order.close()
        self.pid = int(self._order.readline())
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._order is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        with selectors.DefaultSelector() as selector:
            selector.register(self._order, selectors.EVENT_READ)
            if wait_flags & os.WNOHANG and not selector.select(0):
                return 0, 0
        return self.pid, int(self._order.readline())

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._order is None:
            return super()._internal_poll(*given, **named)  # type: ignore[misc, no-any-return]
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def serve(listener: socket.socket, folders: list[tempfile.TemporaryDirectory[str]]) -> None:
    """Takes orders until stdin ends; returns in each forked child, as the process that was ordered."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for what in (listener, woken, 0):
        selector.register(what, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if 0 in ready:
            for folder_of_import in folders:
                folder_of_import.cleanup()
            os._exit(0)
        if woken in ready:
            woken.recv(4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with running.pop(ended[0]) as order:
                    order.sendall(f"{ended[1]}\n".encode())
        if listener in ready:
            order, _ = listener.accept()
            _, streams, _, _ = socket.recv_fds(order, 1, 3)
            with order.makefile("r") as lines:
                arguments, folder, environment = json.loads(lines.readline())
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for opened in (listener, woken, wakes, order, *running.values()):
                    opened.close()
                become(arguments, folder, environment, streams)
                for folder_of_import in folders:  # W&B's: the first child to end would delete them for all
                    folder_of_import._finalizer.detach()  # type: ignore[attr-defined]
                    folder_of_import.__init__()  # type: ignore[misc]
                return
            for stream in streams:
                os.close(stream)
            running[pid] = order
            order.sendall(f"{pid}\n".encode())


def become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Makes this process what a new one would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    process.ORIGINAL_DIR = folder
    tempfile.tempdir = None
    sys.argv = [OSTEO, *arguments]
    sys.path[0] = str(Path(OSTEO).parent)


def end_as(code: object) -> None:
    """Ends as an interpreter does, except that it does not take every library apart, which takes two seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(code, int):
        os._exit(code)
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    made = [thing for thing in gc.get_objects() if type(thing) is tempfile.TemporaryDirectory]
    gc.freeze()  # what is there stays, and is not looked through in every child
    serve(socket.socket(fileno=int(sys.argv[1])), made)
    code: Any = 0
    try:
        runpy.run_path(OSTEO, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    end_as(code)
