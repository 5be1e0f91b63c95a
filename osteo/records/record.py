"""The run record: everything that later steps need, written whole, read back with types."""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from osteo.config import Config
from osteo.errors import UserError, counted
from osteo.files import display_path, read_table, sha256_of, write_json, write_table, write_text
from osteo.records import content, locks
from osteo.records.configuration import read_config, read_yaml
from osteo.records.content import DamagedError, damaged
from osteo.records.environment import environment
from osteo.task import T_SCORE

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
STATUS, CONFIG = "status.json", "config.yaml"
STATES = ("running", "done", "failed", "interrupted")
"""What status.json says; the last: cut off by a signal or by the machine, and goes on when it is resumed."""
OF_PRETRAINING = re.compile(rb"^method:", re.MULTILINE)
"""What config.yaml of a pretraining has, and no other; all of it is slow to read where there are many runs."""
KEPT = ("config.yaml", "manifest.csv", "history.csv", "predictions.csv", "metrics.json", "environment.json")
"""Files that do not change any more when a run has ended."""
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
"""The checkpoints of a run: of its best epoch, of its last one and of the one before."""


@dataclass(frozen=True)
class Run:
    """A run directory."""

    directory: Path
    sweep: Path | None = field(default=None, compare=False)
    """the sweep that it was found in"""

    @property
    def name(self) -> str:
        """What it is called in tables: its path in its sweep, else the name of its directory."""
        return self.directory.relative_to(self.sweep).as_posix() if self.sweep else self.directory.name

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.checkpoints / BEST

    def start(self, config_yaml: str) -> None:
        """Marks the run as running and keeps its configuration.

        Raises:
            UserError: the directory holds a run already, or cannot be written.
        """
        if self.has_begun:
            raise UserError(f"{display_path(self.directory)} holds a run already; choose another output_dir")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self.directory / CONFIG, config_yaml)
            self.set_status("running")
        except OSError as error:
            raise UserError(f"output_dir {display_path(self.directory)} cannot be written: {error.strerror}") from error

    def go_on(self, config_yaml: str) -> None:
        """Marks the run as running again, with the configuration that it has now."""
        self.set_status("running")
        write_text(self.directory / CONFIG, config_yaml)

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
        """Writes status.json: one of `STATES`, the error of a run that is not done, the run's own id, and hashes.

        The hashes are those of its files, once it is done; see `changes`.
        """
        try:
            known = self.status()["id"]
        except DamagedError:  # there is none yet, or it was damaged while the run went on
            known = ""
        kept = [name for name in KEPT if (self.directory / name).exists()] if state == "done" else []
        hashes = {name: sha256_of(self.directory / name) for name in kept}
        values = {"state": state, "error": error, "id": known or new_id()}
        write_json(self.directory / STATUS, {**values, "sha256": hashes} if hashes else values)

    def finish(self, keep: str) -> None:
        """Marks the run as done, and then removes the checkpoints that only training needs unless all are kept.

        Args:
            keep: "best" or "all".
        """
        self.set_status("done")
        for unfinished in self.checkpoints.glob(".*.ckpt.*"):  # a kill amid a write has left it
            shutil.rmtree(unfinished, ignore_errors=True)
        for name in (PREVIOUS, LAST) if keep == "best" else ():
            (self.checkpoints / name).unlink(missing_ok=True)

    @property
    def has_best_alone(self) -> bool:
        """Whether it has the best checkpoint alone, which is so only once a run is done."""
        has_all = all((self.directory / name).exists() for name in ("metrics.json", "environment.json"))
        return has_all and self.best_checkpoint.exists() and not (self.checkpoints / LAST).exists()

    @property
    def has_status(self) -> bool:
        """Whether the directory holds a run at all."""
        return (self.directory / STATUS).exists()

    @property
    def has_config(self) -> bool:
        """Whether the directory holds a configuration."""
        return (self.directory / CONFIG).exists()

    @property
    def has_begun(self) -> bool:
        """Whether the directory holds a run, or what is left of one whose status was deleted."""
        return self.has_status or self.has_config

    def status(self) -> dict[str, Any]:
        """What status.json says: state, error, an id that no other run has, and the SHA-256 of files by name.

        Raises:
            DamagedError: it is gone, or makes no sense.
        """
        path = self.directory / STATUS
        read = content.read_json(path, content.OF_STATUS)
        status = {"error": None, "id": "", "sha256": {}, **read}  # older versions wrote no hashes
        content.check_values(path, status, {"error": (str, type(None)), "id": (str,), "sha256": (dict,)})
        if status["state"] not in STATES:
            raise damaged(path, f"is damaged: there is no state {status['state']!r}")
        return status

    @property
    def is_training(self) -> bool:
        """Whether it is the record of a training; else it is one of an evaluation.

        Raises:
            DamagedError: what a training leaves is gone, and the configuration that says so, too.
        """
        has_trained = (self.directory / "history.csv").exists() or self.checkpoints.is_dir()
        return (has_trained or "trainer" in self.read_config()) and not self.is_pretraining

    @property
    def is_pretraining(self) -> bool:
        """Whether it is the record of a pretraining, which knows no labels."""
        try:
            return OF_PRETRAINING.search((self.directory / CONFIG).read_bytes()) is not None
        except OSError:
            return False

    @property
    def verb(self) -> str:
        """The command that goes on with it."""
        return "pretrain" if self.is_pretraining else "train"

    def changes(self) -> str:
        """What is no longer as it was when the run ended, as a clause; empty where nothing is, or nothing is known.

        Raises:
            DamagedError: a file is gone.
        """
        hashes = self.status()["sha256"]
        paths = [self.directory / name for name in KEPT if name in hashes]
        if gone := [path for path in paths if not path.is_file()]:
            raise damaged(gone[0], "is missing")
        changed = [path.name for path in paths if sha256_of(path) != hashes[path.name]]
        verb = "is" if len(changed) == 1 else "are"
        return f"{', '.join(changed)} {verb} no longer as {STATUS} recorded (SHA-256)" if changed else ""

    @property
    def state(self) -> str:
        """One of `STATES`; a run that is marked as running, but that nobody works on, is interrupted."""
        status = self.status()
        if status["state"] == "running":
            return "running" if locks.is_held(self.directory) else "interrupted"
        if status["state"] == "failed" and (status["error"] or "").startswith("interrupted"):  # osteo 0.1 before 2027
            return "interrupted"
        return str(status["state"])

    def write_manifest(self, manifest: "pd.DataFrame") -> None:
        """Keeps the manifest with its splits, and nothing of a clinical sheet."""
        write_table(self.directory / "manifest.csv", manifest.drop(columns=T_SCORE, errors="ignore"))

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Keeps the curves, one row per epoch."""
        import pandas as pd

        write_table(self.directory / "history.csv", pd.DataFrame(list(rows)))

    def write_predictions(self, predictions: "pd.DataFrame") -> None:
        """Keeps the predictions on validation and test pictures."""
        write_table(self.directory / "predictions.csv", predictions)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the metrics, named as in test/accuracy."""
        write_json(self.directory / "metrics.json", dict(metrics))

    def write_environment(self, **facts: Any) -> None:
        """Keeps versions and hardware, and the given facts; no name of the machine or its user."""
        write_json(self.directory / "environment.json", {**environment(), **facts})

    def read_manifest(self) -> "pd.DataFrame":
        """The manifest with its splits, typed; see `tables.read_manifest`."""
        from osteo.records import tables

        return tables.read_manifest(self.directory / "manifest.csv", labelled=not self.is_pretraining)

    def read_predictions(self) -> "pd.DataFrame":
        """The predictions, checked against the manifest; see `tables.read_predictions`."""
        from osteo.records import tables

        return tables.read_predictions(
            self.directory / "predictions.csv", self.read_manifest(), complete=self.is_training
        )

    def read_history(self) -> "pd.DataFrame":
        """The curves, one row per epoch; see `tables.read_history`."""
        from osteo.records import tables

        return tables.read_history(self.directory / "history.csv", labelled=not self.is_pretraining)

    def read_metrics(self) -> dict[str, Any]:
        """The metrics, named as in test/accuracy; None where one is undefined.

        Raises:
            DamagedError: they are gone, or one is no metric, or a training lacks one that reports need.
        """
        return content.read_metrics(self.directory / "metrics.json", content.OF_REPORT if self.is_training else {})

    def read_environment(self) -> dict[str, Any]:
        """Versions, hardware, and facts of the run.

        Raises:
            DamagedError: they are gone, or one that every run has is missing, or one is of another type.
        """
        facts = content.OF_ENVIRONMENT | content.OF_TRAINING if self.is_training else content.OF_ENVIRONMENT
        return content.read_environment(self.directory / "environment.json", facts)

    def read_results(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metrics and environment; see `read_metrics` and `read_environment`."""
        return self.read_metrics(), self.read_environment()

    def check(self) -> None:
        """Reads all that a report needs of a training.

        Raises:
            DamagedError: the first file that is gone, damaged or contradicts another.
        """
        self.changes()
        self.read_settings()
        self.read_predictions()
        self.read_history()
        self.read_results()

    def check_same_data(self, manifest: "pd.DataFrame") -> None:
        """Refuses to go on with other pictures or another split than the run began with.

        Raises:
            UserError: they differ.
        """
        if not (self.directory / "manifest.csv").exists():
            if self.checkpoints.is_dir():
                log.warning("%s", damaged(self.directory / "manifest.csv", "is missing: its pictures are not compared"))
            return
        columns = ["image_id", "sha256", "split"]
        before, now = (table[columns].astype(str).set_index("image_id") for table in (self.read_manifest(), manifest))
        joined = before.join(now, how="outer", lsuffix=" before", rsuffix=" now")
        differs = (joined["sha256 before"] != joined["sha256 now"]) | (joined["split before"] != joined["split now"])
        if differs.any():
            raise UserError(
                f"{counted(int(differs.sum()), 'picture')} changed, or moved to another split, since the run began,"
                f" {joined.index[differs][0]} first; begin a new run"
            )

    def read_config(self) -> dict[str, Any]:
        """The configuration, as plain values.

        Raises:
            DamagedError: it is gone, or no configuration.
        """
        return read_yaml(self.directory / CONFIG)

    def read_settings(self) -> Config:
        """The configuration of a training; see `read_config`."""
        return read_config(self.directory / CONFIG)

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the JSON files of the record."""
        return content.read_json(self.directory / name, {})

    def read_table(self, name: str) -> "pd.DataFrame":
        """One of the CSV files of the record, as it is."""
        return read_table(self.directory / name)


def new_id() -> str:
    """An id that no other run has: an agent of W&B gives one to the run that it starts, and to that alone."""
    given = os.environ.pop("WANDB_RUN_ID", None) if "WANDB_SWEEP_ID" in os.environ else None
    return given or secrets.token_hex(4)


@dataclass(frozen=True)
class Job:
    """Where a run stands: alone, or as one of a sweep."""

    directory: Path
    sweep: Path | None
    config_yaml: str
    goes_on: bool = False
    """whether the directory holds the beginning of the run"""
    is_extended: bool = False
    """whether it is to have more epochs than it was begun with"""
    launcher: str = "BasicLauncher"
    """what started it: BasicLauncher, ProcessesLauncher or SlurmLauncher"""
    jobs_per_gpu: int = 1
    """how many share a GPU, this one among them"""
    title: str = ""
    """which of a sweep's it is, as in "job 2 of 30"; empty for a run alone"""
    log_config: dict[str, Any] = field(default_factory=dict)
    """how its processes log, as logging.config.dictConfig takes it"""
    usual: dict[str, Any] = field(default_factory=dict)
    """of a run alone, the settings of one for which nothing was asked"""
    swept: tuple[str, ...] = ()
    """the overrides that a job of a sweep has of its own"""

    def changed(self, **settings: Any) -> "Job":
        """The same job with other settings, by group, as its record will say."""
        text = OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(self.config_yaml), settings))
        return replace(self, config_yaml=text)
