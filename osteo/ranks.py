"""Which of a training's processes this is; costs nothing to import."""

import os
from typing import Literal


def launched() -> Literal["srun", "processes"] | None:
    """What started this process as one of several: SLURM's srun, osteo or torchrun; None for a process alone."""
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        return "processes"
    return "srun" if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None


def rank() -> int:
    """The number of this process among those of one training; 0 keeps the record."""
    return int(os.environ[{"srun": "SLURM_PROCID", "processes": "RANK"}[how]]) if (how := launched()) else 0


def started() -> int:
    """How many processes were started together with this one."""
    return (
        int(os.environ[{"srun": "SLURM_STEP_NUM_TASKS", "processes": "WORLD_SIZE"}[how]]) if (how := launched()) else 1
    )
