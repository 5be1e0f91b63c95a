"""A search: which trials of an Optuna study the jobs of a sweep are, and when one is stopped early."""

import logging
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from osteo.errors import UserError, first_line, unknown
from osteo.files import display_path, write_json
from osteo.records import content
from osteo.records.record import Run
from osteo.records.sweep import runs_of
from osteo.search_settings import SearchSettings
from osteo.task import direction
from osteo.training.ranks import rank

log = logging.getLogger(__name__)

STORAGE = "OSTEO_STORAGE"
"""The environment variable with a storage's URL that no file may hold, since it has a password."""
NOTE = "search.json"
"""What the jobs of a sweep need to find their study, and the sweep's own id in it."""
BUSY = 60
"""Seconds that a process waits for another one to leave an SQLite file."""


def space_of(overrides: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of Hydra's sweep overrides, by key.

    A choice stays the words that Hydra would be given; a range ends, as Hydra's does, before its stop.

    Raises:
        UserError: nothing is left open, or something that cannot be searched.
    """
    if not overrides:
        raise UserError("nothing to search: give a key several values, such as 'optimizer.lr=interval(1e-4,1e-2)'")
    space = {}
    for key, override in overrides.items():
        try:
            space[key] = _distribution(override)
        except ValueError as error:
            raise UserError(f"{override.input_line or key}: {error}") from error
    return space


def _distribution(override: Any) -> BaseDistribution:
    sweep = override.value()
    if override.is_choice_sweep():
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    if unwanted := sweep.tags - {"log"}:
        raise unknown("tag", min(unwanted), ["log"])
    if override.is_interval_sweep():
        low, high, step = sweep.start, sweep.end, None
    else:
        values = sorted(sweep.range())
        if not values:
            raise ValueError("the range is empty")
        low, high, step = values[0], values[-1], abs(sweep.step)
    is_log = "log" in sweep.tags
    if all(isinstance(bound, int) for bound in (low, high, step or 1)):
        return IntDistribution(low, high, log=is_log, step=step or 1)
    return FloatDistribution(low, high, log=is_log, step=step)


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[list[str]]:
    """Overrides that try every choice and both ends of every range once, a key at a time."""
    for key, kind in space.items():
        ends = kind.choices if isinstance(kind, CategoricalDistribution) else (kind.low, kind.high)  # type: ignore[attr-defined]
        yield from ([f"{key}={value}"] for value in ends)


def batches(jobs: Sequence[int], most: int) -> Iterator[list[int]]:
    """At most so many jobs at once, with numbers in a row, as Hydra's launchers count them."""
    batch: list[int] = []
    for job in jobs:
        if batch and (len(batch) == most or job != batch[-1] + 1):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


class Seeded(BaseSampler):
    """A sampler whose chance follows from a seed and the trial's number.

    Workers on one study draw apart, and a search that was killed goes on as if it had not been.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Draws anew."""
        self.inner = self.make(int(SeedSequence((self.seed, trial.number)).generate_state(1)[0]))
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, *arguments: Any) -> dict[str, BaseDistribution]:
        """The inner sampler's."""
        return self.inner.infer_relative_search_space(*arguments)

    def sample_relative(self, *arguments: Any) -> dict[str, Any]:
        """The inner sampler's."""
        return self.inner.sample_relative(*arguments)

    def sample_independent(self, *arguments: Any) -> Any:
        """The inner sampler's."""
        return self.inner.sample_independent(*arguments)


def _tpe(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar, before Optuna 5
        return TPESampler(seed=seed, constant_liar=True)  # running trials count as bad, so that workers draw apart


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": lambda seed: RandomSampler(seed=seed)}


def pruner_of(name: str, epochs: int) -> optuna.pruners.BasePruner:
    """What compares a trial with others after the same epoch."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)
    return optuna.pruners.NopPruner()


def url_of(storage: str | None, sweep: Path) -> URL:
    """Where the study lies: where configured, else at $OSTEO_STORAGE, else in the sweep's own study.db.

    Raises:
        UserError: it is no URL, or has a password and was not given in the environment.
    """
    try:
        url = make_url(storage or environ.get(STORAGE) or f"sqlite:///{sweep / 'study.db'}")
    except SQLAlchemyError:
        name = "hydra.sweeper.storage" if storage else f"${STORAGE}"
        raise UserError(f"{name} is no URL such as postgresql://host/database or sqlite:///study.db") from None
    if storage and (url.password or any("pass" in key for key in url.query)):
        raise UserError(f"hydra.sweeper.storage would be recorded with its password; set ${STORAGE} to the URL instead")
    return url


def _called(url: URL) -> str:
    if url.database and url.get_backend_name() == "sqlite":
        return display_path(Path(url.database))
    return f"{url.get_backend_name()}://{url.host}/{url.database}"


@contextmanager
def reachable(url: URL, *others: type[Exception]) -> Iterator[None]:
    """Makes one line of what a database answers, without its URL.

    Raises:
        UserError: that line.
    """
    expected: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.StorageInternalError, *others)
    try:
        yield
    except expected as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"the study's storage {_called(url)} cannot be used: {reason}") from None


def _storage(url: URL) -> optuna.storages.RDBStorage:
    waits = {"connect_args": {"timeout": BUSY}} if url.get_backend_name() == "sqlite" else {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reachable(url, ImportError, RuntimeError):  # no driver; tables of another Optuna
        try:
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waits)
        except SQLAlchemyError:  # where two processes meet an empty database, both make its tables and one fails
            time.sleep(2)
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waits)


class Search:
    """The trials of a study that are the jobs of one sweep.

    Args:
        sweep: directory; it is made where the study lies in it.
        name: of the study.
        space: what is searched.
        settings: of the sweeper.
        monitor: what trials are compared by, on validation; the lowest where it is a loss, else the highest.
        epochs: of a trial that is not stopped early.

    Raises:
        UserError: the storage cannot be reached, or its study searches something else.
    """

    def __init__(
        self,
        sweep: Path,
        name: str,
        space: Mapping[str, BaseDistribution],
        settings: SearchSettings,
        monitor: str,
        epochs: int,
    ) -> None:
        self.sweep, self.space, self.settings, self.monitor = sweep, space, settings, monitor
        self.url = url_of(settings.storage, sweep)
        if self.url == url_of(f"sqlite:///{sweep / 'study.db'}", sweep):
            sweep.mkdir(parents=True, exist_ok=True)
        note = sweep / NOTE
        known = content.read_json(note, {"id": (str,), "study": (str,)}) if note.exists() else {}
        self.identity = known.get("id", secrets.token_hex(4))
        self.study = optuna.create_study(
            study_name=known.get("study", name),
            storage=_storage(self.url),
            sampler=Seeded(SAMPLERS[settings.sampler], settings.seed),
            pruner=pruner_of(settings.pruner, epochs),
            direction="minimize" if direction(monitor) == "min" else "maximize",
            load_if_exists=True,
        )
        self._check_same()
        sweep.mkdir(parents=True, exist_ok=True)
        known = {"id": self.identity, "study": self.study.study_name}
        write_json(note, {**known, "storage": settings.storage, "pruner": settings.pruner})

    def _check_same(self) -> None:
        compared = self.study.user_attrs.get("monitor", self.monitor)
        if compared != self.monitor:
            raise UserError(
                f"study {self.study.study_name} compares {compared}, not {self.monitor};"
                " name another hydra.sweeper.study"
            )
        self.study.set_user_attr("monitor", self.monitor)
        for trial in self.study.get_trials(deepcopy=False):
            for key in set(trial.distributions) & set(self.space):
                try:
                    optuna.distributions.check_distribution_compatibility(trial.distributions[key], self.space[key])
                except ValueError:
                    raise UserError(
                        f"study {self.study.study_name} has searched other values of {key}: {trial.distributions[key]};"
                        " name another hydra.sweeper.study"
                    ) from None

    def _latest(self) -> dict[int, FrozenTrial]:
        """The sweep's trials by job; of a job that was repeated, the last."""
        owned = [(str(trial.user_attrs.get("job")), trial) for trial in self.study.get_trials(deepcopy=False)]
        return {int(job.split("/")[1]): trial for job, trial in owned if job.startswith(f"{self.identity}/")}

    def unfinished(self) -> list[int]:
        """The numbers of the jobs that have no end, or a bad one.

        Raises:
            UserError: the sweep has runs that this study does not know, so it is not the one they were proposed by.
        """
        trials, ended = self._latest(), (TrialState.COMPLETE, TrialState.PRUNED)
        if strange := [run.directory.name for run in runs_of(self.sweep) if int(run.directory.name) not in trials]:
            raise UserError(
                f"study {self.study.study_name} in {_called(self.url)} does not know run {strange[0]} of this sweep;"
                f" is ${STORAGE} what it was? Else {display_path(self.sweep / NOTE)} is not what the search wrote"
            )
        return [job for job in range(self.settings.n_trials) if job not in trials or trials[job].state not in ended]

    def take(self, job: int) -> list[str]:
        """The overrides of a job: those of its trial that was cut off or has failed, else those of a new one."""
        last, owner = self._latest().get(job), f"{self.identity}/{job}"
        if last is None:
            self.study.ask(dict(self.space)).set_user_attr("job", owner)
        elif last.state == TrialState.FAIL:
            again = create_trial(
                state=TrialState.RUNNING,
                params=last.params,
                distributions=last.distributions,
                user_attrs={"job": owner},
            )
            self.study.add_trial(again)
        taken = self._latest()[job]
        return [*(f"{key}={value}" for key, value in taken.params.items()), f"trial={taken.number}"]

    def tell(self, jobs: Iterable[int]) -> None:
        """Tells the study how jobs ended, by their records; one that has not ended goes on when the sweep does."""
        for job in jobs:
            run, number = Run(self.sweep / str(job)), self._latest()[job].number
            state = run.state if (run.directory / "status.json").exists() else "interrupted"
            if state == "failed":
                self.study.tell(number, state=TrialState.FAIL)
            elif state == "done" and run.read_environment().get("pruned"):
                self.study.tell(number, state=TrialState.PRUNED)
            elif state == "done":
                curve = run.read_history()[self.monitor]
                self.study.tell(number, curve.min() if direction(self.monitor) == "min" else curve.max())

    def summary(self) -> str:
        """The best trial of the study, and how many ended how."""
        trials = self.study.get_trials(deepcopy=False)
        counts = Counter(trial.state.name.lower().replace("fail", "failed") for trial in trials)
        lines = [
            f"study        {self.study.study_name} in {_called(self.url)}: {len(trials)} trials"
            f" ({', '.join(f'{count} {state}' for state, count in sorted(counts.items()))})"
        ]
        if counts["complete"]:
            best = self.study.best_trial
            words = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.params.items())
            lines += [f"best trial   {best.number}: {self.monitor} {best.value:.4f} with {words}"]
        return "\n".join(lines)


class Pruning(Callback):
    """Reports every epoch of a trial to its study, and ends the run where its pruner says so.

    A study that cannot be reached meanwhile costs the reports, not the run.

    Args:
        sweep: whose job the run is.
        number: of the trial.
        monitor: what trials are compared by.
        epochs: of the run when it is not stopped.

    Raises:
        UserError: there is no such trial.
    """

    def __init__(self, sweep: Path, number: int, monitor: str, epochs: int) -> None:
        self.monitor, self.pruned = monitor, False
        self.trial: Trial | None = None
        if rank():
            return
        try:
            note = content.read_json(sweep / NOTE, {"study": (str,)})
        except content.DamagedError:
            raise UserError(
                f"trial={number} is set by hydra/sweeper=search alone: {display_path(sweep)} is no search"
            ) from None
        study = optuna.load_study(
            study_name=note["study"],
            storage=_storage(url_of(note["storage"], sweep)),
            sampler=RandomSampler(),
            pruner=pruner_of(note["pruner"], epochs),
        )
        trial = study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            self.trial, self.last = Trial(study, trial._trial_id), max(trial.intermediate_values, default=-1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run that was cut off after it had been told to."""
        trainer.should_stop = self.pruned

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has run by now; an epoch that is run again after a crash is not reported twice."""
        if self.trial is not None:
            try:
                if trainer.current_epoch > self.last:
                    self.trial.report(float(trainer.callback_metrics[self.monitor]), trainer.current_epoch)
                is_last = trainer.current_epoch + 1 == trainer.max_epochs  # nothing is left to be saved
                self.pruned = not is_last and bool(self.trial.should_prune())  # numpy has a bool of its own
            except Exception as error:  # noqa: BLE001  what a server raises depends on its driver
                log.warning("the study cannot be reached (%s); the run goes on", type(error).__name__)
        self.pruned = trainer.strategy.broadcast(self.pruned)
        trainer.should_stop = self.pruned
        if self.pruned:
            log.info("stopped after epoch %d: the search's pruner says so", trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Whether the run was told to end."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.pruned = state_dict["pruned"]
