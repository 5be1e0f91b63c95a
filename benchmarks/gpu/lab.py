"""Where the checks on a GPU run: their device, pictures and seconds, and osteo as a user calls it."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.noise import python
from osteo.config import PhantomConfig

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINING = {"cuda": 320, "cpu": 32}
"""Pictures that train."""
WATCH = ["plugins=[benchmarks.gpu.watch]"]
CLOCK = [*WATCH, "+callbacks.clock._target_=benchmarks.gpu.watch.Clock"]
WAITS = [*WATCH, "+callbacks.waits._target_=benchmarks.gpu.watch.Waits"]

CUT_OFF = 124
"""Exit code of a command that took longer than its check has."""

Verdict = Literal["PASS", "FAIL", "NOTE", "SKIP"]


class Row(NamedTuple):
    """What a check found."""

    check: str
    verdict: Verdict
    figures: str


class CutOffError(RuntimeError):
    """A command took longer than its check has."""


class OutOfTimeError(Exception):
    """The budget ended within a command."""

    def __init__(self, done: "Done") -> None:
        super().__init__(f"the budget ended {done.seconds:.0f} s after its command began")
        self.done = done


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    text: str
    seconds: float
    seen: list[dict[str, Any]]
    """what `benchmarks.gpu.watch` noted meanwhile"""

    @property
    def last_line(self) -> str:
        """What it said at the end, in one line."""
        return next((line.strip()[:200] for line in reversed(self.text.splitlines()) if line.strip()), "nothing said")

    def of(self, what: str) -> list[dict[str, Any]]:
        """What was noted of one kind, in order."""
        return [line for line in self.seen if line["what"] == what]


class Job(NamedTuple):
    """What a job of a sweep took, in seconds."""

    backbone: str
    total: float
    epochs: list[dict[str, float]]
    """steps, first (until the end of the first step), others (all other steps), validation, rest (until the next)"""
    memory: dict[str, int]
    """in MiB, after it"""

    @property
    def step(self) -> float:
        """A step of an epoch after the first, the first step of an epoch aside."""
        return statistics.median(e["others"] / (e["steps"] - 1) for e in self.epochs[1:])

    def part(self, name: str) -> float:
        """A part of an epoch after the first."""
        return statistics.median(epoch[name] for epoch in self.epochs[1:])

    @property
    def epoch(self) -> float:
        """A whole epoch after the first."""
        return sum(self.part(name) for name in ("first", "others", "validation", "rest"))

    @property
    def fixed(self) -> float:
        """What it took beside so many epochs: to begin, the first epoch's more, to predict and write."""
        return self.total - len(self.epochs) * self.epoch


class Scale:
    """How large everything is; on the CPU it is small, to try the checks themselves.

    Args:
        device: cuda or cpu.
    """

    def __init__(self, device: str) -> None:
        self.device, self.is_small = device, device == "cpu"
        self.side, self.batches = (32, (8, 16)) if self.is_small else (224, (16, 64))
        self.backbones = ("test_resnet",) if self.is_small else ("resnet50", "densenet121", "densenet201")
        self.one = self.backbones[0]
        each = (TRAINING[device] * 5 // 4 - 2) // 2
        self.phantoms = PhantomConfig(
            kaggle={"normal": each, "osteoporosis": each}, mendeley={"normal": 1, "osteopenia": 0, "osteoporosis": 1}
        )

    @property
    def data(self) -> list[str]:
        """Overrides: phantoms of which four in five train."""
        kaggle, mendeley = (
            "{" + ",".join(f"{name}:{count}" for name, count in counts.items()) + "}"
            for counts in (self.phantoms.kaggle, self.phantoms.mendeley)
        )
        return [
            "data=phantom", f"data.phantom.kaggle={kaggle}", f"data.phantom.mendeley={mendeley}",
            f"data.image_size={self.side}", "data.split.train=0.8", "data.split.val=0.1",
            "data.split.stratify=[label]",
        ]  # fmt: skip


class Lab(Scale):
    """A folder and a device to run osteo on.

    Args:
        folder: for runs, cache and logs; nobody else's.
        device: cuda or cpu.
        budget: seconds for everything.
    """

    def __init__(self, folder: Path, device: str, budget: float) -> None:
        super().__init__(device)
        self.folder = folder
        self._end = self._end_of_check = time.monotonic() + budget
        self.jobs: dict[int, list[Job]] = {}
        """those of the sweeps so far, by size of batch"""
        self.bare: dict[tuple[str, int, str], float] = {}
        """seconds of a bare step by backbone, size of batch, and way: eager, graphed, compiled"""
        self.around = 0.0
        """seconds of a sweep before its first job and after its last"""
        self.speed_up: float | None = None
        """of several jobs on one GPU over one after the other"""
        self.environment = {
            **os.environ, "OSTEO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
            "OSTEO_WATCH": str(folder / "seen.jsonl"),
        }  # fmt: skip
        self._stand_in()

    def left(self) -> float:
        """Seconds of the budget."""
        return self._end - time.monotonic()

    def begin(self, seconds: float) -> None:
        """Begins a check, which has so many seconds, where the budget has them."""
        self._end_of_check = min(self._end, time.monotonic() + seconds)

    def allowed(self) -> float:
        """Seconds that the check has left."""
        return max(0.0, self._end_of_check - time.monotonic())

    def training(self, name: str, *overrides: str) -> list[str]:
        """Arguments of a training into a folder of this name."""
        return [
            "train", *self.data, f"data.batch_size={self.batches[0]}", f"trainer.accelerator={self.device}",
            "trainer.devices=1", "logger=null", "keep=all", f"output_dir={self.folder / name}", *overrides,
        ]  # fmt: skip

    def sweep(self, name: str, *overrides: str, **environment: str) -> Done:
        """Runs a sweep of such trainings; see `osteo`."""
        return self.osteo(*self.training(name, *overrides), "-m", **environment)

    def osteo(self, *arguments: str, **environment: str) -> Done:
        """Runs a command of osteo until it ends, at most as long as its check has.

        Raises:
            OutOfTimeError: the budget ended first.
        """
        return self.run([*python("osteo"), *arguments], **environment)

    def start(self, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a command with a process group of its own, whose output goes into a file."""
        with log.open("wb") as said:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment | environment, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip

    def run(self, command: Sequence[str], **environment: str) -> Done:
        """Runs a command as `osteo` does."""
        log, watched = self.folder / "said.txt", Path(self.environment["OSTEO_WATCH"])
        watched.unlink(missing_ok=True)
        allowed, begun, code = self.allowed(), time.time(), CUT_OFF
        process = self.start(command, log, **environment)
        try:
            code = process.wait(allowed)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
                process.wait()
        text = log.read_text(errors="replace") + (f"\ncut off after {allowed:.0f} s" if code == CUT_OFF else "")
        done = Done(code, text, time.time() - begun, read_lines(watched))
        if code == CUT_OFF and self.left() <= 0.0:
            raise OutOfTimeError(done)
        return done

    def inside(self, *names: str) -> Iterator[dict[str, Any]]:
        """What `benchmarks.gpu.inside` prints, in a process of its own: an error of CUDA ends no other check."""
        yield from self.lines([sys.executable, "-m", "benchmarks.gpu.inside", self.device, *names])

    def lines(self, command: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The lines of JSON that a command prints, also where it ends early.

        Raises:
            OutOfTimeError: the budget ended first.
            RuntimeError: it ended with an error, or took longer than its check has (CutOffError).
        """
        trouble: Exception | None = None
        try:
            done = self.run(command)
            if done.code:
                kind = CutOffError if done.code == CUT_OFF else RuntimeError
                trouble = kind(f"exit {done.code}: {done.last_line}")
        except OutOfTimeError as error:
            done, trouble = error.done, error
        yield from (json.loads(line) for line in done.text.splitlines() if line.startswith('{"'))
        if trouble:
            raise trouble

    def _stand_in(self) -> None:
        """Gives osteo a version where it runs from a checkout and is not installed: records ask for it."""
        try:
            version("osteo")
        except PackageNotFoundError:
            number = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
            known = self.folder / "site" / f"osteo-{number}.dist-info"
            known.mkdir(parents=True)
            (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: osteo\nVersion: {number}\n")
            before = self.environment.get("PYTHONPATH", "")
            self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(known.parent), before]))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; none where there is no file, and without a last one that a kill cut off."""
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def jobs_of(done: Done) -> list[Job]:
    """The jobs of a sweep in one process that was watched with `CLOCK`."""
    jobs: list[Job] = []
    begun: dict[str, Any] = {}
    epochs: list[dict[str, float]] = []
    for line in done.seen:
        if line["what"] == "begin":
            begun, epochs = line, []
        elif line["what"] == "epoch":
            epochs.append({name: float(value) for name, value in line.items() if name not in ("what", "pid")})
        elif line["what"] == "end" and len(epochs) > 1:
            jobs.append(Job(begun["backbone"], line["at"] - begun["at"], epochs, line["memory"]))
    return jobs
