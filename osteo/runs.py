"""The run record: everything that later steps need, written whole, read back with types."""

import fcntl
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from osteo.data.manifest import read_manifest
from osteo.errors import UserError
from osteo.files import write_json, write_table, write_text
from osteo.ranks import rank

_held: dict[Path, int] = {}
"""Locks of this process by run directory, as file descriptors."""
LIBRARIES = ("torch", "timm", "lightning", "kornia", "torchmetrics", "numpy", "opencv-python-headless", "wandb")
LOCK = ".lock"
COSTS = ("seconds", "seconds_per_epoch", "pictures_per_second", "peak_memory_mib")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    directory: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    def start(self, config_yaml: str) -> None:
        """Marks the run as running and keeps its configuration.

        Raises:
            UserError: the directory holds a run already, or cannot be written.
        """
        if (self.directory / "status.json").exists():
            raise UserError(
                f"{shown(self.directory)} holds a run already; choose another output_dir, or go on with it:"
                f" osteo train resume={shown(self.directory)}"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self.directory / "config.yaml", config_yaml)
            self.set_status("running")
        except OSError as error:
            raise UserError(f"output_dir {shown(self.directory)} cannot be written: {error.strerror}") from error

    def clear(self) -> None:
        """Removes what a failed run has left, its log and its W&B files aside."""
        for path in self.directory.iterdir():
            if path.name == "checkpoints":
                shutil.rmtree(path)
            elif path.suffix in (".json", ".csv", ".yaml", ".md"):
                path.unlink()

    def hold(self) -> None:
        """Tells other processes that this one works on the run, until it ends or lets go.

        The lock is on a file, since network disks lock no folders.

        Raises:
            UserError: another process does, or the directory cannot be written.
        """
        if self.directory.resolve() in _held:
            return
        try:
            lock = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UserError(f"output_dir {shown(self.directory)} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UserError(f"another process works on {shown(self.directory)}; wait for it or stop it") from error
        except OSError:  # a file system without locks
            pass
        if os.fstat(lock).st_nlink == 0:  # another process has let go of it, and removed it, meanwhile
            os.close(lock)
            self.hold()
        else:
            _held[self.directory.resolve()] = lock

    def release(self) -> None:
        """Lets go of the run."""
        if (lock := _held.pop(self.directory.resolve(), None)) is not None:
            with suppress(OSError):  # what is left is no lock: that ends with its file being closed
                (self.directory / LOCK).unlink()
            os.close(lock)

    @property
    def is_held(self) -> bool:
        """Whether a process works on the run."""
        if self.directory.resolve() in _held:
            return True
        try:
            lock = os.open(self.directory / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(lock)
        return False

    def set_status(self, state: str, error: str | None = None) -> None:
        """Writes status.json: running, done or failed, the error of a failed run, and the run's own id."""
        known = self.status()["id"] if (self.directory / "status.json").exists() else new_id()
        write_json(self.directory / "status.json", {"state": state, "error": error, "id": known})

    def status(self) -> dict[str, Any]:
        """What status.json says: state, error, and an id that no other run has."""
        return self.read_json("status.json")

    @property
    def state(self) -> str:
        """done, failed, running, or interrupted: nobody works on it, but it has not come to an end."""
        status = self.status()
        if status["state"] == "running" and not self.is_held:
            return "interrupted"
        return "interrupted" if (status["error"] or "").startswith("interrupted") else str(status["state"])

    def write_manifest(self, manifest: pd.DataFrame) -> None:
        """Keeps the manifest with its splits."""
        write_table(self.directory / "manifest.csv", manifest)

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Keeps the curves, a row an epoch."""
        write_table(self.directory / "history.csv", pd.DataFrame(list(rows)))

    def write_predictions(self, predictions: pd.DataFrame) -> None:
        """Keeps the predictions on validation and test pictures."""
        write_table(self.directory / "predictions.csv", predictions)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the metrics, named as in test/accuracy."""
        write_json(self.directory / "metrics.json", dict(metrics))

    def write_environment(self, **facts: Any) -> None:
        """Keeps versions and hardware, and the given facts; no name of the machine or its user."""
        write_json(self.directory / "environment.json", {**environment(), **facts})

    def read_manifest(self) -> pd.DataFrame:
        """The manifest with its splits, typed."""
        return read_manifest(self.directory / "manifest.csv")

    def read_config(self) -> dict[str, Any]:
        """The configuration, as plain values."""
        content = OmegaConf.to_container(OmegaConf.load(self.directory / "config.yaml"))
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the JSON files of the record."""
        content: dict[str, Any] = json.loads((self.directory / name).read_text(encoding="utf-8"))
        return content

    def read_table(self, name: str) -> pd.DataFrame:
        """One of the CSV files of the record."""
        return pd.read_csv(self.directory / name)


class Follower(Run):
    """A run whose record another process of the same training keeps."""

    def _leave(self, *_: Any, **__: Any) -> None:
        """The first process does it."""

    start = clear = hold = release = set_status = _leave
    write_manifest = write_history = write_predictions = write_metrics = write_environment = _leave


def new_id() -> str:
    """An id that no other run has: an agent of W&B gives one to the run that it starts, and to that alone."""
    given = os.environ.pop("WANDB_RUN_ID", None) if "WANDB_SWEEP_ID" in os.environ else None
    return given or secrets.token_hex(4)


def record_of(directory: Path) -> Run:
    """The run in a directory, which only the first process of a training writes."""
    return Follower(directory) if rank() else Run(directory)


def environment() -> dict[str, Any]:
    """Versions of what computes, and the machine's kind."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = ""
    return {
        "osteo": version("osteo"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "libraries": versions,
    }


def shown(path: Path) -> str:
    """A path as it may be shown: relative to the working directory where it lies below, else as it is."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def runs_of(sweep: Path) -> list[Run]:
    """The runs of a sweep, or the single run, in the order of their numbers."""
    if (sweep / "status.json").exists():
        return [Run(sweep)]
    found = [path.parent for path in sweep.glob("*/status.json")]
    return [Run(path) for path in sorted(found, key=lambda path: (not path.name.isdigit(), path.name.zfill(9)))]


def leaderboard(sweep: Path) -> pd.DataFrame:
    """One row a finished run, the best test AUROC first.

    Columns: run, backbone, seed, fold, parameters, epochs, best_epoch, the metrics as test/..., and the
    cost: seconds in all and an epoch, pictures trained on a second, peak memory in MiB.
    """
    rows = []
    for run in runs_of(sweep):
        if run.status()["state"] != "done" or not (run.directory / "history.csv").exists():
            continue  # the second: an evaluation
        metrics, facts = run.read_json("metrics.json"), run.read_json("environment.json")
        rows.append(
            {"run": run.directory.name}
            | {key: facts[key] for key in ("backbone", "seed", "fold", "parameters", "epochs", "best_epoch")}
            | {
                name: value
                for name, value in metrics.items()
                if name.startswith("test/") and not isinstance(value, list)
            }
            | {key: facts.get(key) for key in COSTS}
        )
    table = pd.DataFrame(rows)
    if rows:
        table = table.sort_values("test/auroc", ascending=False, kind="stable").reset_index(drop=True)
    return table
