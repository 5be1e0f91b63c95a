"""The logger of Weights & Biases.

Numbers and names reach it, and nothing personal: no picture unless one is asked for, no patient, no name of a file, no
path, no name of machine or user. W&B itself is imported by what uses it, so that a run without it has none of it.
"""

import logging
import logging.config
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import loggers

from osteo.config import WandbConfig
from osteo.errors import UserError
from osteo.files import display_path, public
from osteo.records.tracked import MODES, Place, may_be_online, mode_of_environment, netrc_file
from osteo.task import BINARY, T_SCORE, TASKS, THRESHOLD, probability_columns

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

SECONDS_TO_REACH = 20  # a server that does not answer in this time is out of reach
SECONDS_TO_ASK = 10  # one request, of those that W&B waits for while a run goes on
RETRIES = 3  # of a request for a table or file, seconds apart: W&B counts SECONDS_TO_FINISH only once they have ended
SECONDS_TO_FINISH = 60  # what is not uploaded by then is left to `wandb sync`


def choose_mode(mode: str) -> str:
    """Online, offline or disabled: as configured, or where that is "auto" as the environment or W&B's own settings say.

    Where these say nothing it is online if a key of W&B is found, else offline; nobody is asked for one.

    Raises:
        UserError: a variable of W&B's has a value that W&B does not know.
    """
    # both before W&B reads its environment, which it does once
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports on the machine, and logs where it cannot
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(SECONDS_TO_ASK))  # a table is asked for before it is logged
    given = mode_of_environment()
    os.environ.pop("WANDB_MODE", None)  # W&B refuses an empty one, and one in capitals
    if given:
        os.environ["WANDB_MODE"] = given
    import wandb

    try:
        settings = wandb.setup().settings
    except ValueError as error:  # pydantic's, of several lines
        name, reason = [*str(error).splitlines()[1:3], "", ""][:2]
        raise UserError(f"W&B refuses WANDB_{name.upper()}: {reason.partition(' [')[0].strip()}") from error
    if mode != "auto":
        return mode
    if given or settings.mode != "online":  # the second: `wandb offline` writes it into a file
        return given or MODES[settings.mode]
    return "online" if has_key() else "offline"


def check_environment(mode: str) -> None:
    """Refuses a variable of W&B's that has a value that W&B does not know; W&B is not asked where none is set.

    Raises:
        UserError: one line with the variable.
    """
    if any(name.startswith("WANDB_") and name not in ("WANDB_MODE", "WANDB_DISABLED") for name in os.environ):
        choose_mode(mode)


def has_key() -> bool:
    """Whether W&B would find a key without asking for one."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        known = netrc(netrc_file()).hosts
    except (OSError, NetrcParseError):
        return False
    hosts = {urlsplit(settings.base_url).hostname, "api.wandb.ai"}  # the second: what the hosted service was called
    return bool(hosts & known.keys())


def is_plain(value: object) -> bool:
    """Whether a value is a number, a word, or a histogram or table of these: anything else may show a picture."""
    from wandb import Histogram, Table
    from wandb.plot.custom_chart import CustomChart  # a drawing of such a table, which W&B makes at its side

    if isinstance(value, CustomChart):
        return is_plain(value.table)
    if isinstance(value, Table):
        return all(is_plain(cell) for row in value.data for cell in row)
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.ndim == 0
    return value is None or isinstance(value, int | float | str | Histogram)


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger of Weights & Biases, whose failure never ends a run, for one W&B run.

    Whatever goes wrong with W&B is a warning. All that is logged is kept in a file before it is sent, so that
    `wandb sync` can upload later what the server has not got. Curves stand against the epoch. What may show a picture,
    such as a callback's `log_image`, is logged only where `settings.upload_pictures` says so.

    The W&B run begins at once where it may be online, so that it is seen and a server out of reach is told; else with
    the first values, since importing and starting W&B takes longer than a first step.

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
        self._has_warned = self._has_withheld = False
        self._upload_pictures = settings.upload_pictures
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # its debug log, which would be removed at the end
        self._task = TASKS[configuration.get("task", BINARY.name)]
        self._settings, self._configuration, self._place = settings, configuration, place
        super().__init__(save_dir=str(place.folder), project=settings.project, id=run_id)
        if may_be_online(settings.mode):
            _ = self._run

    @cached_property
    def _run(self) -> "wandb.Run":
        """W&B's run, which begins when it is first asked for."""
        run = self._begin(self._settings, self._configuration, self._place, self._mode(self._settings.mode))
        self._attempt(lambda: run.define_metric("epoch"))
        self._attempt(lambda: run.define_metric("*", step_metric="epoch"))
        return run

    @property
    def experiment(self) -> "wandb.Run":
        """W&B's run, for whatever Lightning or a callback does with it."""
        return self._run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a point to the curves of these metrics, by the epoch that stands among them."""
        self._attempt(lambda: self._send(metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run has its configuration from its start, without paths."""

    def result(self, metrics: Mapping[str, Any], predictions: pd.DataFrame) -> None:
        """Adds final values to the summary, and the test predictions as table, confusion matrix, ROC and PR curve.

        The table names a picture by its row in predictions.csv, counted from 0: a file's name may be a patient's.
        """
        values = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
        self._attempt(lambda: self._run.summary.update(values))
        self._attempt(lambda: self._send(self._plots(predictions)))

    def figures(self, paths: Mapping[str, Path]) -> None:
        """Adds pictures, by their names, where pictures are to be uploaded."""
        import wandb

        if self._upload_pictures:
            images = {f"figures/{name}": str(path) for name, path in paths.items()}
            self._attempt(lambda: self._send({name: wandb.Image(path) for name, path in images.items()}))

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Adds tables, by their names."""
        import wandb

        named = {f"tables/{name}": table for name, table in tables.items()}
        self._attempt(lambda: self._send({name: wandb.Table(dataframe=table) for name, table in named.items()}))

    def finalize(self, status: str) -> None:
        """Called by Lightning after each of its stages; a run has several and ends with `finish`."""

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run, where it has begun, and sends what has not been sent."""
        if "_run" in vars(self):
            self._attempt(lambda: self._finish(exit_code))

    def _send(self, values: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in values.items() if self._upload_pictures or is_plain(value)}
        if len(kept) < len(values) and not self._has_withheld:
            log.warning(
                "W&B gets only numbers and names, so %s is left out; logger.wandb.upload_pictures=true sends pictures",
                ", ".join(sorted(set(values) - set(kept))),
            )
            self._has_withheld = True
        if kept:
            self._run.log(kept)

    def _mode(self, configured: str) -> str:
        mode = choose_mode(configured)
        if mode == "online" and not has_key():
            log.warning("no W&B API key is found, so the run is kept offline; `wandb login` once, or set WANDB_API_KEY")
            return "offline"
        return mode

    def _begin(self, wanted: WandbConfig, configuration: Mapping[str, Any], place: Place, mode: str) -> "wandb.Run":
        """Starts the run as `mode` says; else offline; else, where its folder cannot be written, without W&B."""
        import wandb

        pattern = f"wandb/run-*-{self._run_id}"
        known = set(place.folder.glob(pattern))
        try:
            return self._start(wanted, configuration, place, mode)
        except Exception as error:  # noqa: BLE001  its own, the system's, its parts': no list is whole
            wandb.teardown()
            if mode == "offline":
                log.warning(
                    "W&B records nothing of this run: %s cannot be written (%s)",
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
        import wandb

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
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=mode != "online",
            x_file_transfer_retry_max=RETRIES,
            x_file_transfer_retry_wait_max_seconds=5,
            x_graphql_retry_max=RETRIES,
            x_graphql_retry_wait_max_seconds=5,
            x_save_requirements=False,  # packages may be named after a hospital; environment.json has what computes
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
                log.warning("W&B has failed (%s: %s); the run continues without it", _name(error), error)
            self._has_warned = True

    def _plots(self, predictions: pd.DataFrame) -> dict[str, Any]:
        import wandb

        test = predictions[predictions["split"] == "test"].reset_index(names="row")
        test = test.drop(columns=["image_id", "group", T_SCORE], errors="ignore")  # none is anybody else's business
        truth = (test["label"] == self._task.positive).astype(int).tolist()
        both = [[1.0 - p, p] for p in test["probability"]]
        names, called = list(self._task.sides), [int(p > THRESHOLD) for p in test["probability"]]
        curve: dict[str, Any] = {"y_true": truth, "y_probas": both, "labels": names, "classes_to_plot": [1]}
        if columns := probability_columns(self._task):
            names, truth = list(self._task.class_names), test["label"].astype(int).tolist()
            called = test[columns].to_numpy().argmax(1).tolist()
        return {
            "test/confusion": wandb.plot.confusion_matrix(y_true=truth, preds=called, class_names=names, title="test"),
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
                "W&B has not received all of the run within %d s; upload the rest later with: %s",
                SECONDS_TO_FINISH,
                upload(self._run),
            )
        if not self._run.disabled and not shutil.disk_usage(logs).free:
            log.warning("the disk of %s is full: W&B has kept only a part of the run", display_path(logs.parent))
        shutil.rmtree(logs, ignore_errors=True)  # W&B's own debug logs name paths


def upload(run: "wandb.Run") -> str:
    """What to type to upload a run that is kept in a folder."""
    online = "" if run.offline else "--include-online "
    return f"wandb sync {online}{display_path(Path(run.settings.sync_dir))}"


def _name(error: Exception) -> str:
    return type(error).__name__
