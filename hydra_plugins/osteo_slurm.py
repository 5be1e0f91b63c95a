"""Hydra's submitit launcher for SLURM, which waits until every job of the sweep has ended, however it ended."""

import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from submitit import Job

log = logging.getLogger(__name__)

POLL = 2.0  # seconds between two queries of the queue
GRACE = 15.0  # seconds in which the result of a job that has left the queue appears on a shared disk
COMMON_KEYS = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node",
                   "stderr_to_stdout")  # fmt: skip
"""Keys that submitit spells the same for every cluster; the others begin with slurm_."""


class SlurmLauncher(Launcher):
    """Submits the jobs as one array; the launcher of Hydra's plugin would stop at the first that was cancelled.

    Args:
        params: the keys of conf/hydra/launcher/slurm.yaml.
    """

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            name: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for name, value in params.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Plugin

        self.config = config
        self.job = Plugin()
        self.job.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs, waits for them, and records those that never began; the output of a job is in its log."""
        import submitit

        params = {name: value for name, value in self.params.items() if value not in (None, {})}
        folder, requeues = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=requeues)
        executor.update_parameters(**{k if k in COMMON_KEYS else f"slurm_{k}": v for k, v in params.items()})
        numbers = list(range(initial_job_idx, initial_job_idx + len(job_overrides)))
        for number, overrides in zip(numbers, job_overrides, strict=True):
            log.info("#%d : %s", number, " ".join(filter_overrides(overrides)))
        jobs = executor.map_array(
            self.job,
            [list(overrides) for overrides in job_overrides],
            ["hydra.sweep.dir"] * len(numbers),
            numbers,
            [f"osteo_{number}" for number in numbers],
            [Singleton.get_state()] * len(numbers),
        )
        name = jobs[0].job_id.partition("_")[0]
        log.info("SLURM job %s: squeue -j %s shows it, scancel %s ends it", name, name, name)
        try:
            ended = self._wait(jobs)
        except KeyboardInterrupt:
            log.warning("the jobs go on without this process; scancel %s ends them", name)
            raise
        return [
            self._returned(job, ended[job.job_id], number, overrides)
            for job, number, overrides in zip(jobs, numbers, job_overrides, strict=True)
        ]

    def _wait(self, jobs: "Sequence[Job[JobReturn]]") -> dict[str, bool]:
        """Whether each job has left its result; one that has left the queue without it was ended by the cluster."""
        from osteo.app.sweeps import log_ended

        ended: dict[str, bool] = {}
        gone_since: dict[str, float] = {}
        said = 0
        while len(ended) < len(jobs):
            time.sleep(POLL)
            queued = in_queue(jobs[0].job_id.partition("_")[0])
            for job in jobs:
                if job.job_id in ended:
                    continue
                if job.paths.result_pickle.exists():
                    ended[job.job_id] = True
                elif queued is not None and job.job_id not in queued:
                    since = gone_since.setdefault(job.job_id, time.monotonic())
                    if time.monotonic() - since > GRACE:
                        ended[job.job_id] = False
                        if self.config.fail_fast:
                            subprocess.run(["scancel", job.job_id.partition("_")[0]], check=False)
                else:
                    gone_since.pop(job.job_id, None)
            if len(ended) > said:
                said = len(ended)
                log_ended(Path(self.config.hydra.sweep.dir), said, len(jobs))
        return ended

    def _directory(self, number: int, overrides: Sequence[str]) -> Path:
        """Where a job has its record."""
        config = self.job.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)

    def _returned(self, job: "Job[JobReturn]", has_result: bool, number: int, overrides: Sequence[str]) -> JobReturn:
        from osteo.records.record import Run

        error = job.exception() if has_result else "ended by the cluster"
        if error is None:
            outcome = job.results()[0]
            assert isinstance(outcome, JobReturn)
            return outcome
        reason, directory = str(error).strip().splitlines()[-1], self._directory(number, overrides)
        log.error("run %s: %s; its log is %s", directory.name, reason, job.paths.stdout.name)
        if not (directory / "status.json").exists():
            Run(directory).set_status("failed", f"{reason}, before it began")
        return JobReturn(status=JobStatus.COMPLETED)  # its record holds how it ended


def in_queue(array: str) -> set[str] | None:
    """The jobs of an array that wait, run or are being requeued; None where SLURM does not answer."""
    command = ["squeue", "--array", "--noheader", "--format=%i", "--jobs", array]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return set(done.stdout.split())
