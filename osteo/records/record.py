"""The run record: everything that later steps need, written whole, read back with types."""

import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osteo.config import Config, WandbConfig
from osteo.data.manifest import read_manifest
from osteo.errors import UserError
from osteo.files import display_path, read_table, write_json, write_table, write_text
from osteo.records import locks

if TYPE_CHECKING:
    import pandas as pd


STATUS = "status.json"
STATES = ("running", "done", "failed", "interrupted")
"""What status.json says; the last: cut off by a signal or by the machine, and goes on when it is resumed."""
LIBRARIES = ("torch", "timm", "lightning", "kornia", "torchmetrics", "numpy", "opencv-python-headless", "wandb")


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
        if self.has_status:
            raise UserError(
                f"{display_path(self.directory)} holds a run already; choose another output_dir, or go on with it:"
                f" osteo train resume={display_path(self.directory)}"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self.directory / "config.yaml", config_yaml)
            self.set_status("running")
        except OSError as error:
            raise UserError(f"output_dir {display_path(self.directory)} cannot be written: {error.strerror}") from error

    def clear(self) -> None:
        """Removes what a failed run has left, its log and its W&B files aside."""
        for path in self.directory.iterdir():
            if path.name == "checkpoints":
                shutil.rmtree(path)
            elif path.suffix in (".json", ".csv", ".yaml", ".md"):
                path.unlink()

    def hold(self) -> None:
        """Tells other processes that this one works on the run; see `locks.hold`."""
        locks.hold(self.directory)

    def release(self) -> None:
        """Lets go of the run."""
        locks.release(self.directory)

    def set_status(self, state: str, error: str | None = None) -> None:
        """Writes status.json: one of `STATES`, the error of a run that is not done, and the run's own id."""
        known = self.status()["id"] if self.has_status else new_id()
        write_json(self.directory / STATUS, {"state": state, "error": error, "id": known})

    @property
    def has_status(self) -> bool:
        """Whether the directory holds a run at all."""
        return (self.directory / STATUS).exists()

    def status(self) -> dict[str, Any]:
        """What status.json says: state, error, and an id that no other run has."""
        return self.read_json(STATUS)

    @property
    def state(self) -> str:
        """One of `STATES`; a run that is marked as running, but that nobody works on, is interrupted."""
        status = self.status()
        if status["state"] == "running":
            return "running" if locks.is_held(self.directory) else "interrupted"
        if status["state"] == "failed" and (status["error"] or "").startswith("interrupted"):  # osteo 0.1 before 2027
            return "interrupted"
        return str(status["state"])

    def write_manifest(self, manifest: pd.DataFrame) -> None:
        """Keeps the manifest with its splits."""
        write_table(self.directory / "manifest.csv", manifest)

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Keeps the curves, one row per epoch."""
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

    def check_same_data(self, manifest: pd.DataFrame) -> None:
        """Refuses to go on with other pictures or another split than the run began with.

        Raises:
            UserError: they differ.
        """
        if not (self.directory / "manifest.csv").exists():
            return
        columns = ["image_id", "sha256", "split"]
        before, now = (table[columns].astype(str).set_index("image_id") for table in (self.read_manifest(), manifest))
        joined = before.join(now, how="outer", lsuffix=" before", rsuffix=" now")
        differs = (joined["sha256 before"] != joined["sha256 now"]) | (joined["split before"] != joined["split now"])
        if differs.any():
            raise UserError(
                f"{differs.sum()} pictures or their splits are no longer what they were when the run began,"
                f" {joined.index[differs][0]} first; begin a new run"
            )

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
        return read_table(self.directory / name)


def new_id() -> str:
    """An id that no other run has: an agent of W&B gives one to the run that it starts, and to that alone."""
    given = os.environ.pop("WANDB_RUN_ID", None) if "WANDB_SWEEP_ID" in os.environ else None
    return given or secrets.token_hex(4)


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


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Versions and machine that are not what they were: name, before, now."""
    pairs = [(name, before.get(name), now[name]) for name in ("osteo", "python", "system", "machine")]
    pairs += [(name, before["libraries"].get(name), version) for name, version in now["libraries"].items()]
    return [(name, str(first), str(second)) for name, first, second in pairs if first != second]


@dataclass(frozen=True)
class Job:
    """Where a run stands: alone, or as one of a sweep."""

    directory: Path
    sweep: Path | None
    config_yaml: str
    goes_on: bool = False
    """whether the directory holds the beginning of the run"""
    launcher: str = "BasicLauncher"
    """what started it: BasicLauncher, JoblibLauncher or SlurmLauncher"""
    log_config: dict[str, Any] = field(default_factory=dict)
    """how its processes log, as logging.config.dictConfig takes it"""


def read_config(path: Path) -> Config:
    """The configuration that a run has recorded.

    Raises:
        UserError: it is none of ours.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{display_path(path)} is no configuration of osteo train ({reason})") from error
    assert isinstance(config, Config)
    return replace(config, logger={name: _logger(name, node) for name, node in config.logger.items()})


def _logger(name: str, node: Any) -> Any:
    """A logger of a recorded configuration; that of W&B has a schema, and had no `_target_` once."""
    if name != "wandb" or not isinstance(node, dict):
        return node
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(WandbConfig), node))
