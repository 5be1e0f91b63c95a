"""The logger of Weights & Biases. Nothing personal reaches it: no patient, no path, no name of machine or user."""

import logging
import logging.config
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pandas as pd
import wandb
from lightning.pytorch import loggers

from osteo.config import Config, WandbConfig
from osteo.files import display_path
from osteo.records.record import Job
from osteo.task import CLASS_NAMES, THRESHOLD

log = logging.getLogger(__name__)

SECONDS_TO_REACH = 20  # a server that does not answer in this time is out of reach
SECONDS_TO_ASK = 10  # one request, of those that W&B waits for while a run goes on
RETRIES = 3  # of a request for a table or file, seconds apart: W&B counts SECONDS_TO_FINISH only once they have ended
SECONDS_TO_FINISH = 60  # what is not uploaded by then is left to `wandb sync`


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
    """What "auto" stands for: online where a key of W&B is found, else offline; nobody is asked for one."""
    if mode != "auto":
        return mode
    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return "online"
    try:
        known = netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser()).hosts
    except (OSError, NetrcParseError):
        return "offline"
    hosts = {urlsplit(settings.base_url).hostname, "api.wandb.ai"}  # the second: what the hosted service was called
    return "online" if hosts & known.keys() else "offline"


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger of Weights & Biases, whose failure never ends a run, for one W&B run.

    Whatever goes wrong with W&B is a warning. All that is logged is kept in a file before it is sent, so that
    `wandb sync` can upload later what the server has not got. Curves stand against the epoch.

    Args:
        settings: what was configured.
        configuration: that W&B shows of the run.
        place: among others.
        run_id: of a run that W&B may know already and goes on with; None for a new one.
    """

    def __init__(
        self, settings: WandbConfig, configuration: Mapping[str, Any], place: Place, run_id: str | None = None
    ) -> None:
        self._run_id = run_id
        self._has_warned = False
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # its debug log, which would be removed at the end
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports on the machine, and logs where it cannot
        os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(SECONDS_TO_ASK))  # a table is asked for before it is logged
        self._run = self._begin(settings, configuration, place, choose_mode(settings.mode))
        super().__init__(experiment=self._run, save_dir=str(place.folder), project=settings.project)
        self._attempt(lambda: self._run.define_metric("epoch"))
        self._attempt(lambda: self._run.define_metric("*", step_metric="epoch"))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a point to the curves of these metrics, by the epoch that stands among them."""
        self._attempt(lambda: self._run.log(dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run has its configuration from its start, without paths."""

    def result(self, metrics: Mapping[str, Any], predictions: pd.DataFrame) -> None:
        """Adds final values to the summary, and the test predictions as table, confusion matrix, ROC and PR curve."""
        values = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
        self._attempt(lambda: self._run.summary.update(values))
        self._attempt(lambda: self._run.log(self._plots(predictions)))

    def figures(self, paths: Mapping[str, Path]) -> None:
        """Adds pictures, by their names."""
        self._attempt(
            lambda: self._run.log({f"figures/{name}": wandb.Image(str(path)) for name, path in paths.items()})
        )

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Adds tables, by their names."""
        self._attempt(lambda: self._run.log({f"tables/{name}": wandb.Table(dataframe=t) for name, t in tables.items()}))

    def finalize(self, status: str) -> None:
        """Called by Lightning after each of its stages; a run has several and ends with `finish`."""

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run and sends what has not been sent."""
        self._attempt(lambda: self._finish(exit_code))

    def _begin(self, wanted: WandbConfig, configuration: Mapping[str, Any], place: Place, mode: str) -> "wandb.Run":
        """Starts the run as `mode` says; else offline; else, where its folder cannot be written, without W&B."""
        pattern = f"wandb/run-*-{self._run_id}"
        known = set(place.folder.glob(pattern))
        try:
            return self._start(wanted, configuration, place, mode)
        except Exception as error:  # noqa: BLE001  its own, the system's, its parts': no list is whole
            wandb.teardown()
            if mode == "offline":
                log.warning(
                    "W&B keeps nothing of this run: %s cannot be written (%s)",
                    display_path(place.folder / "wandb"),
                    _name(error),
                )
                return self._start(wanted, configuration, place, "disabled")
            for nothing in set(place.folder.glob(pattern)) - known:
                shutil.rmtree(nothing, ignore_errors=True)
            run = self._begin(wanted, configuration, place, "offline")
            if not run.disabled:
                log.warning(
                    "W&B cannot be reached (%s); the run is kept offline, upload it later with: %s",
                    _name(error),
                    upload(run),
                )
            return run

    def _start(self, wanted: WandbConfig, configuration: Mapping[str, Any], place: Place, mode: str) -> "wandb.Run":
        settings = wandb.Settings(
            console="off",  # the terminal may show paths
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=SECONDS_TO_FINISH,
            finish_timeout_raises=True,
            host="",
            init_timeout=SECONDS_TO_REACH,
            program="osteo",  # else the path of the script
            quiet=True,
            root_dir=str(place.folder),
            save_code=False,
            silent=True,
            symlink=False,
            x_disable_meta=True,
            x_disable_stats=mode != "online",
            x_file_transfer_retry_max=RETRIES,
            x_file_transfer_retry_wait_max_seconds=5,
            x_graphql_retry_max=RETRIES,
            x_graphql_retry_wait_max_seconds=5,
        )
        if mode != "disabled":
            place.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
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
            id=self._run_id,
            resume="allow" if self._run_id else None,
            settings=settings,
        )
        if mode == "online":
            run._public_api()  # asks once who we are; later, while the server is down, no table could be logged
        return run

    def _attempt(self, call: Callable[[], object]) -> None:
        """Calls W&B; the first time that it fails is logged, and what was logged otherwise stays."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  whatever W&B raises, the training is worth more
            if not self._has_warned:
                log.warning("W&B has failed (%s: %s); the run goes on without it", _name(error), error)
            self._has_warned = True

    def _plots(self, predictions: pd.DataFrame) -> dict[str, Any]:
        test = predictions[predictions["split"] == "test"].drop(columns=["group"]).reset_index(drop=True)
        truth = test["label"].astype(int).tolist()
        both = [[1.0 - p, p] for p in test["probability"]]
        curve: dict[str, Any] = {
            "y_true": truth,
            "y_probas": both,
            "labels": list(CLASS_NAMES),
            "classes_to_plot": [1],
        }
        return {
            "test/confusion": wandb.plot.confusion_matrix(
                y_true=truth, preds=[int(p > THRESHOLD) for _, p in both], class_names=list(CLASS_NAMES), title="test"
            ),
            "test/roc": wandb.plot.roc_curve(title="test ROC", **curve),
            "test/pr": wandb.plot.pr_curve(title="test precision and recall", **curve),
            "test/predictions": wandb.Table(dataframe=test),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(0 if kind is None else 1)

    def _finish(self, exit_code: int) -> None:
        logs = Path(self._run.settings.log_dir)
        try:
            self._run.finish(exit_code)
        except TimeoutError:
            log.warning(
                "W&B has not taken all of the run within %d s; upload the rest later with: %s",
                SECONDS_TO_FINISH,
                upload(self._run),
            )
        if not self._run.disabled and not shutil.disk_usage(logs).free:
            log.warning("the disk of %s is full: W&B has not kept all of the run", display_path(logs.parent))
        shutil.rmtree(logs, ignore_errors=True)  # W&B's own debug logs name paths


def upload(run: "wandb.Run") -> str:
    """What to type to upload a run that is kept in a folder."""
    online = "" if run.offline else "--include-online "
    return f"wandb sync {online}{display_path(Path(run.settings.sync_dir))}"


def _name(error: Exception) -> str:
    return type(error).__name__


def wandb_settings(config: Config) -> WandbConfig:
    """What was configured of W&B; disabled where it is none of the loggers."""
    found = config.logger.get("wandb")
    return found if isinstance(found, WandbConfig) else WandbConfig(mode="disabled")


def place_of(config: Config, job: Job) -> Place:
    """Where the run stands in W&B: the sweep's group, named by backbone and seed."""
    settings, folder = wandb_settings(config), job.sweep or job.directory
    fold = config.data.split.fold
    return Place(
        folder=folder,
        group=group_of(settings, folder),
        name="-".join([config.model.backbone, *([f"fold{fold}"] if fold is not None else []), f"seed{config.seed}"]),
        job_type="train",
        tags=[config.experiment or "train", config.model.backbone, config.data.name, *settings.tags],
    )


def describe(config: Config) -> str:
    """The effective configuration, one line per group, without absolute paths."""
    lines = []
    for group, values in public(asdict(config)).items():
        flat = values if isinstance(values, dict) else {"": values}
        lines.append(f"  {group:9} " + " ".join(f"{key}={value}" if key else f"{value}" for key, value in flat.items()))
    return "configuration\n" + "\n".join(lines)
