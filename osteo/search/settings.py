"""What can be configured of a search, as hydra.sweeper of hydra/sweeper=search; see osteo.config for the rest."""

from dataclasses import dataclass

from osteo.config import option


@dataclass
class SearchSettings:
    """Optuna proposes the jobs of a sweep, and may stop them early."""

    _target_: str = "hydra_plugins.osteo_search.SearchSweeper"
    n_trials: int = option(20, "trials of this sweep directory", low=1)
    n_jobs: int = option(1, "trials that are launched at once, side by side where the launcher can", low=1)
    storage: str | None = option(
        None, "URL of the database, without a password; null for $OSTEO_STORAGE, else study.db in the sweep directory"
    )
    study: str | None = option(None, "name of the study, which several sweeps may share; null for the W&B group's")
    sampler: str = option("tpe", "what proposes the trials: Optuna's TPE, or chance", choices=("tpe", "random"))
    seed: int = option(0, "seed of the proposals", low=0, high=2**32 - 1)
    pruner: str = option("median", "what stops a trial early", choices=("median", "hyperband", "none"))
    params: dict[str, str] = option({}, "values by key, for an experiment file; the command line comes after")
