"""What Weights & Biases is told of a run. Nothing personal: no patient, no path, no name of machine or user."""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import wandb

from osteo.config import WandbConfig

log = logging.getLogger(__name__)

CLASS_NAMES = ["normal", "osteoporosis"]
SECONDS_TO_REACH = 20  # a server that does not answer in this time is out of reach


@dataclass(frozen=True)
class Place:
    """Where a run stands among others."""

    folder: Path
    """holds the wandb folder: the sweep directory, or the run's own"""
    group: str
    name: str
    job_type: str
    tags: list[str]


def public(value: Any) -> Any:
    """A configuration without what tells of a machine or a user: of every absolute path, only the last name stays."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and re.match(r"/|~|[A-Za-z]:[\\/]|\.\.", value):
        return re.split(r"[\\/]", value.rstrip("/\\"))[-1]
    return value


def group_of(settings: WandbConfig, folder: Path) -> str:
    """The group of a sweep's runs: as configured, else its folder, with the date where it is named by the time.

    A folder further up is never used, since it may name a person.
    """
    by_date = re.fullmatch(r"\d{4}-\d{2}-\d{2}", folder.parent.name)
    return settings.group or ("-".join(folder.parts[-2:]) if by_date else folder.name)


def choose_mode(mode: str) -> str:
    """What "auto" stands for: online where a key of W&B is found, else offline."""
    if mode != "auto":
        return mode
    try:
        key = wandb.Api().api_key
    except Exception:  # noqa: BLE001  not logged in is no error here, whatever class it has
        key = None
    return "online" if key else "offline"


class Tracker:
    """One W&B run, from its start to its end; as a context manager it is finished whatever happens.

    Curves are kept against the epoch, one point each.

    Args:
        settings: what was configured.
        configuration: that W&B shows of the run.
        place: among others.
        run_id: of a run that W&B may know already and goes on with; null for a new one.
    """

    def __init__(
        self, settings: WandbConfig, configuration: Mapping[str, Any], place: Place, run_id: str | None = None
    ) -> None:
        self._id = run_id
        mode = choose_mode(settings.mode)
        try:
            self._run = self._start(settings, configuration, place, mode)
        except (
            wandb.errors.CommError,
            wandb.errors.AuthenticationError,
            wandb.errors.UsageError,
            TimeoutError,
        ) as error:
            log.warning(
                "W&B cannot be reached (%s); the run is kept offline, upload it later with: wandb sync",
                type(error).__name__,
            )
            wandb.teardown()
            self._run = self._start(settings, configuration, place, "offline")
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def _start(self, wanted: WandbConfig, configuration: Mapping[str, Any], place: Place, mode: str) -> "wandb.Run":
        settings = wandb.Settings(
            console="off",  # the terminal may show paths
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            init_timeout=SECONDS_TO_REACH,
            quiet=True,
            root_dir=str(place.folder),
            save_code=False,
            silent=True,
            symlink=False,
            x_disable_meta=True,
            x_disable_stats=mode != "online",
        )
        place.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=wanted.entity,
            project=wanted.project,
            group=place.group,
            name=place.name,
            job_type=place.job_type,
            tags=place.tags,
            config=public(configuration),
            dir=str(place.folder),
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            id=self._id,
            resume="allow" if self._id else None,
            settings=settings,
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        """Adds one point to every curve."""
        self._run.log(dict(row))

    def result(self, metrics: Mapping[str, Any], predictions: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Adds the final metrics, and the test predictions as table, confusion matrix, ROC and PR curve."""
        for name, value in {**metrics, **facts}.items():
            if isinstance(value, int | float | str):
                self._run.summary[name] = value
        test = predictions[predictions["split"] == "test"].drop(columns=["group"]).reset_index(drop=True)
        truth = test["label"].astype(int).tolist()
        both = [[1.0 - p, p] for p in test["probability"]]
        curve: dict[str, Any] = {
            "y_true": truth,
            "y_probas": both,
            "labels": CLASS_NAMES,
            "classes_to_plot": [1],
        }
        plots = {
            "test/confusion": wandb.plot.confusion_matrix(
                y_true=truth, preds=[int(p > 0.5) for _, p in both], class_names=CLASS_NAMES, title="test"
            ),
            "test/roc": wandb.plot.roc_curve(title="test ROC", **curve),
            "test/pr": wandb.plot.pr_curve(title="test precision and recall", **curve),
            "test/predictions": wandb.Table(dataframe=test),
        }
        self._run.log(plots)

    def figures(self, paths: Mapping[str, Path]) -> None:
        """Adds pictures, by their names."""
        self._run.log({f"figures/{name}": wandb.Image(str(path)) for name, path in paths.items()})

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Adds tables, by their names."""
        self._run.log({f"tables/{name}": wandb.Table(dataframe=table) for name, table in tables.items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logs = Path(self._run.settings.log_dir)
        self._run.finish(exit_code=0 if kind is None else 1)
        shutil.rmtree(logs, ignore_errors=True)  # W&B's own debug logs name paths
