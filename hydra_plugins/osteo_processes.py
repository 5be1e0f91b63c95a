"""Hydra's joblib launcher, which runs as many jobs at once as the GPUs of this machine are to take.

Hydra imports this at every start, so nothing slow is imported above.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from osteo.errors import UserError, counted

log = logging.getLogger(__name__)

WITHOUT_GPU = 2
"""Jobs at once where nothing is said and there is no GPU."""
THREADS = ("MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""What follows OMP_NUM_THREADS where the user has set that: torch takes the least. joblib leaves OpenCV as it is."""


class ProcessesLauncher(Launcher):
    """Starts the jobs in processes of this machine, so many at once; they share its cores and its GPUs out.

    Args:
        n_jobs: at once; None for what the GPUs take.
        jobs_per_gpu: at once on each GPU.
        joblib: arguments of joblib.Parallel.
    """

    def __init__(self, n_jobs: int | None, jobs_per_gpu: int, **joblib: Any) -> None:
        self.n_jobs, self.jobs_per_gpu, self.joblib = n_jobs, jobs_per_gpu, joblib

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra.

        Raises:
            UserError: so many jobs cannot run at once, or share no GPU.
        """
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

        self.at_once = self._count(OmegaConf.select(config, "trainer"))
        self.plugin = JoblibLauncher(**self.joblib)
        self.plugin.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Starts the jobs, and waits for them."""
        from joblib import cpu_count

        at_once = min(self.at_once, len(job_overrides))
        self.plugin.joblib["n_jobs"] = at_once
        if self.jobs_per_gpu > 1:
            log.info("%d jobs share a GPU, %s", self.jobs_per_gpu, mps())
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_count() // at_once)))
        added = {name: threads for name in THREADS if name not in os.environ}
        os.environ.update(added)
        try:
            done: Sequence[JobReturn] = self.plugin.launch(job_overrides, initial_job_idx)
        finally:
            for name in added:
                del os.environ[name]
        return done

    def _count(self, trainer: DictConfig | None) -> int:
        """How many jobs run at once, of which each trains as `trainer` says."""
        for name, value, others in (("n_jobs", self.n_jobs, (None, -1)), ("jobs_per_gpu", self.jobs_per_gpu, ())):
            if value not in others and (not isinstance(value, int) or value < 1):
                more = ", -1 for one per core, or null" if others else ""
                raise UserError(f"hydra.launcher.{name}={value} is not allowed; give a number from 1{more}")
        gpus = 0 if trainer is None or trainer.accelerator in ("cpu", "mps") else count_gpus()
        if gpus and trainer is not None and trainer.devices != 1:
            gpus = 1  # all jobs take the same
        if self.jobs_per_gpu > 1 and not gpus:
            raise UserError(
                f"hydra.launcher.jobs_per_gpu={self.jobs_per_gpu} shares GPUs out, and there is none to train on; leave"
                " it out, and hydra.launcher.n_jobs says how many jobs run at once"
            )
        from joblib import cpu_count

        most = gpus * self.jobs_per_gpu
        wanted = cpu_count() if self.n_jobs == -1 else self.n_jobs
        if gpus and wanted is not None and wanted > most:
            raise UserError(
                f"hydra.launcher.n_jobs={self.n_jobs} is more than {counted(gpus, 'GPU')} take with"
                f" hydra.launcher.jobs_per_gpu={self.jobs_per_gpu}; use jobs_per_gpu={-(-wanted // gpus)}"
            )
        return wanted or most or WITHOUT_GPU


def count_gpus() -> int:
    """The GPUs that CUDA shows; counts without making a context on any."""
    import torch

    return torch.cuda.device_count()


def mps() -> str:
    """Whether NVIDIA's Multi-Process Service runs: without it the kernels of two processes take turns."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if (folder / "control").exists():
        return f"at the same time by CUDA MPS ({folder})"
    return "taking turns: CUDA MPS is not running (nvidia-cuda-mps-control -d starts it)"
