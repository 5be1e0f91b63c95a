"""The study of a search: which of its trials the jobs of a sweep are."""

import secrets
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from osteo.errors import UserError, counted
from osteo.files import display_path, write_json
from osteo.records import content
from osteo.records.record import Run
from osteo.records.sweep import runs_of
from osteo.search.settings import SearchSettings
from osteo.search.storage import STORAGE, called, open_storage, outlast, reachable, url_of
from osteo.task import direction

T = TypeVar("T")
P = ParamSpec("P")

NOTE = "search.json"
"""What the jobs of a sweep need to find their study, and the sweep's own id in it."""


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


def _patient(method: Callable[Concatenate["Search", P], T]) -> Callable[Concatenate["Search", P], T]:
    def repeated(self: "Search", /, *given: P.args, **named: P.kwargs) -> T:
        return outlast(self.url, partial(method, self, *given, **named))

    return wraps(method)(repeated)


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
        with reachable(self.url, ImportError, RuntimeError):  # no driver; tables of another Optuna
            self.study = optuna.create_study(
                study_name=known.get("study", name),
                storage=open_storage(self.url),
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
                        f"study {self.study.study_name} was begun with other values of {key}:"
                        f" {trial.distributions[key]};"
                        " name another hydra.sweeper.study"
                    ) from None

    def _latest(self) -> dict[int, FrozenTrial]:
        """The sweep's trials by job; of a job that was repeated, the last."""
        owned = [(str(trial.user_attrs.get("job")), trial) for trial in self.study.get_trials(deepcopy=False)]
        return {int(job.split("/")[1]): trial for job, trial in owned if job.startswith(f"{self.identity}/")}

    @_patient
    def unfinished(self) -> list[int]:
        """The numbers of the jobs that have no end, or a bad one.

        Raises:
            UserError: the sweep has runs that this study does not know, so it is not the one they were proposed by.
        """
        trials, ended = self._latest(), (TrialState.COMPLETE, TrialState.PRUNED)
        if strange := [run.directory.name for run in runs_of(self.sweep) if int(run.directory.name) not in trials]:
            raise UserError(
                f"study {self.study.study_name} in {called(self.url)} does not know run {strange[0]} of this sweep;"
                f" is ${STORAGE} what it was? Else {display_path(self.sweep / NOTE)} is not what the search wrote"
            )
        return [job for job in range(self.settings.n_trials) if job not in trials or trials[job].state not in ended]

    @_patient
    def take(self, job: int) -> list[str]:
        """The overrides of a job: those of its trial that was cut off or has failed, else those of a new one."""
        last, owner = self._latest().get(job), {"job": f"{self.identity}/{job}"}
        if last is None or last.state == TrialState.FAIL:  # with its owner at once: study.ask could be cut off before
            params, kinds = (last.params, last.distributions) if last else ({}, {})
            again = create_trial(state=TrialState.RUNNING, params=params, distributions=kinds, user_attrs=owner)
            self.study.add_trial(again)
        trial = Trial(self.study, self._latest()[job]._trial_id)
        for key, kind in self.space.items():
            trial._suggest(key, kind)  # what has been proposed already stays
        return [*(f"{key}={value}" for key, value in trial.params.items()), f"trial={trial.number}"]

    @_patient
    def tell(self, jobs: Iterable[int]) -> None:
        """Tells the study how jobs ended, by their records; one that has not ended goes on when the sweep does."""
        for job in jobs:
            run, trial = Run(self.sweep / str(job)), self._latest()[job]
            state = run.state if (run.directory / "status.json").exists() else "interrupted"
            if trial.state.is_finished():
                continue
            if state == "failed":
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif state == "done":
                curve = run.read_history()[self.monitor]
                for epoch in set(range(len(curve))) - set(trial.intermediate_values):  # when it could not be reached
                    Trial(self.study, trial._trial_id).report(curve[epoch], epoch)
                if run.read_environment().get("pruned"):
                    self.study.tell(trial.number, state=TrialState.PRUNED)
                else:
                    self.study.tell(trial.number, curve.min() if direction(self.monitor) == "min" else curve.max())

    @_patient
    def summary(self) -> str:
        """The best trial of the study, and how many ended how."""
        trials = self.study.get_trials(deepcopy=False)
        counts = Counter(trial.state.name.lower().replace("fail", "failed") for trial in trials)
        lines = [
            f"study        {self.study.study_name} in {called(self.url)}: {counted(len(trials), 'trial')}"
            f" ({', '.join(f'{count} {state}' for state, count in sorted(counts.items()))})"
        ]
        if counts["complete"]:
            best = self.study.best_trial
            words = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.params.items())
            lines += [f"best trial   {best.number}: {self.monitor} {best.value:.4f} with {words}"]
        return "\n".join(lines)


def trial_of(sweep: Path, number: int, epochs: int) -> tuple[Trial | None, int]:
    """The trial of this number of a sweep's study, to report to, and the last epoch that was reported.

    Args:
        sweep: its directory.
        number: of the trial.
        epochs: of a trial that is not stopped early.

    Returns:
        None where the trial has ended; -1 where no epoch was reported.

    Raises:
        UserError: the sweep is no search, or its storage cannot be used.
    """
    try:
        note = content.read_json(sweep / NOTE, {"study": (str,)})
    except content.DamagedError:
        raise UserError(
            f"trial={number} is set by hydra/sweeper=search only: {display_path(sweep)} is not a search"
        ) from None
    url = url_of(note["storage"], sweep)

    def load() -> tuple[Trial | None, int]:
        study = optuna.load_study(
            study_name=note["study"],
            storage=open_storage(url),
            sampler=RandomSampler(),
            pruner=pruner_of(note["pruner"], epochs),
        )
        trial = study.get_trials(deepcopy=False)[number]
        last = max(trial.intermediate_values, default=-1)
        return None if trial.state.is_finished() else Trial(study, trial._trial_id), last

    with reachable(url, ImportError, RuntimeError):
        return outlast(url, load)
