"""hydra/sweeper=search: Optuna proposes the jobs of a sweep.

Hydra imports this at every start, so nothing slow is imported above.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from osteo.checks import check
from osteo.config import SearchSettings
from osteo.errors import UserError

ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchSettings)


class SearchSweeper(Sweeper):
    """Asks a study for each job's overrides, launches them and tells the study what the run records say."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, **settings: Any) -> None:
        self.settings = SearchSettings(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Searches what `arguments` leave open.

        Raises:
            UserError: nothing can be searched, or not there.
        """
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError("hydra/sweeper=search needs Optuna: pip install 'osteo[search]'") from error
        from osteo.training import search
        from osteo.training.tracking import group_of

        settings, loader = self.settings, self.hydra_context.config_loader
        check(settings, "hydra.sweeper.")
        parser = OverridesParser.create(config_loader=loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in settings.params.items()), *arguments])
        latest = {override.get_key_element(): override for override in given}  # the command line's is the last
        fixed = [
            f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else key
            for key, override in latest.items()
            if not override.is_sweep_override()
        ]
        space = search.space_of({key: override for key, override in latest.items() if override.is_sweep_override()})
        self.validate_batch_is_legal([[*fixed, *words] for words in search.corners(space)])
        config = loader.load_sweep_config(self.config, fixed)
        if "trial" not in config or {"trainer.monitor", "trial"} & set(space):
            raise UserError("hydra/sweeper=search is for osteo train, and searches neither trainer.monitor nor trial")
        sweep, limits = Path(config.hydra.sweep.dir), config.trainer
        name = settings.study or group_of(config.logger.wandb, sweep)
        asked = search.Search(sweep, name, space, settings, limits.monitor, limits.max_epochs)
        OmegaConf.save(self.config, sweep / "multirun.yaml")
        with search.reachable(asked.url):
            for jobs in search.batches(asked.unfinished(), settings.n_jobs):
                batch = [[*fixed, *asked.take(job)] for job in jobs]
                try:
                    for done in self.launcher.launch(batch, initial_job_idx=jobs[0]):
                        _ = done.return_value  # raises what ended the job, where the job could not
                finally:
                    asked.tell(jobs)
            print(asked.summary())
