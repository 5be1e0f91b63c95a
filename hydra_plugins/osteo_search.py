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
from osteo.errors import UserError
from osteo.search.settings import SearchSettings

ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchSettings)


class SearchSweeper(Sweeper):
    """Asks a study for the overrides of each job, launches the jobs, and reports their results to the study."""

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
        """Searches the values that `arguments` leave open.

        Raises:
            UserError: nothing is left open, Optuna is not installed, or the study cannot be used.
        """
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError("hydra/sweeper=search needs Optuna: pip install 'osteo[search]'") from error
        from osteo.app.hydra import SweepStart
        from osteo.app.jobs import check_jobs
        from osteo.records.tracked import group_of
        from osteo.search import space, storage, study

        settings, loader = self.settings, self.hydra_context.config_loader
        check(settings, "hydra.sweeper.")
        parser = OverridesParser.create(config_loader=loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in settings.params.items()), *arguments])
        latest = {override.get_key_element(): override for override in given}  # the command line comes last
        fixed = [
            f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else key
            for key, override in latest.items()
            if not override.is_sweep_override()
        ]
        searched = space.space_of({key: override for key, override in latest.items() if override.is_sweep_override()})
        corners = [[*fixed, *words] for words in space.corners(searched)]
        self.validate_batch_is_legal(corners)
        check_jobs(self.config, corners, *SweepStart.checks, is_search=True)
        SweepStart.show(self.config, 0)
        config = loader.load_sweep_config(self.config, fixed)
        if "trial" not in config or {"trainer.monitor", "trial"} & set(searched):
            raise UserError("hydra/sweeper=search goes with osteo train, and cannot search trainer.monitor or trial")
        if any("hydra.sweep.subdir" in str(word) for word in self.config.hydra.overrides.hydra):
            raise UserError("hydra/sweeper=search finds its runs by their numbers; leave hydra.sweep.subdir out")
        sweep, trainer = Path(config.hydra.sweep.dir), config.trainer
        name = settings.study or group_of(config.logger.wandb, sweep)
        search = study.Search(sweep, name, searched, settings, trainer.monitor, trainer.max_epochs)
        OmegaConf.save(self.config, sweep / "multirun.yaml")
        with storage.reachable(search.url):
            for jobs in space.batches(search.unfinished(), settings.n_jobs):
                batch = [[*fixed, *search.take(job)] for job in jobs]
                try:
                    for done in self.launcher.launch(batch, initial_job_idx=jobs[0]):
                        _ = done.return_value  # raises what ended the job, where the job itself could not report it
                finally:
                    search.tell(jobs)
            print(search.summary())
