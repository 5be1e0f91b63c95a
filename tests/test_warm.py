"""osteo that tests start warm is osteo as a user starts it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.conftest import Result


def outcome(folder: Path, *command: str) -> Result:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", [["--version"], ["train", "nonsense=3"], ["frain"], ["train", "--cfg", "job"]])
def test_it_says_and_ends_the_same(tmp_path: Path, words: list[str]) -> None:
    assert outcome(tmp_path, warm.OSTEO, *words) == outcome(tmp_path, sys.executable, warm.OSTEO, *words)


@pytest.fixture
def forever(tmp_path: Path) -> "subprocess.Popen[str]":
    """A process of osteo that imports a plugin which does not come back."""
    (tmp_path / "forever.py").write_text("import time\nprint('imported', flush=True)\ntime.sleep(60)\n")
    command = [warm.OSTEO, "train", "plugins=[forever]"]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, **said)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["KILL", "TERM", "INT"])
def test_it_is_a_process_of_its_own(forever: "subprocess.Popen[str]", tmp_path: Path, how: signal.Signals) -> None:
    assert forever.stdout is not None
    assert forever.stdout.readline() == "imported\n"
    assert forever.poll() is None
    process = psutil.Process(forever.pid)
    assert process.pid != os.getpid()
    assert process.cwd() == str(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        forever.wait(0.1)
    forever.send_signal(how)
    assert forever.wait(20) == {signal.SIGKILL: -9, signal.SIGTERM: -15, signal.SIGINT: 130}[how]
    assert not process.is_running()


def test_another_environment_of_imports_starts_it_cold() -> None:
    server = warm.Popen.server
    assert server.takes([warm.OSTEO, "train"], os.environ) == ["train"]
    assert server.takes([sys.executable, "-m", "osteo", "train"], os.environ) == ["train"]
    assert server.takes([warm.OSTEO, "train"], {**os.environ, "WANDB_MODE": "offline"}) == ["train"]
    assert server.takes([warm.OSTEO, "train"], {**os.environ, "PYTHONPATH": "elsewhere"}) is None
    assert server.takes([sys.executable, warm.OSTEO, "train"], os.environ) is None
