"""What osteo does on a CUDA GPU, in eight minutes: right numbers, no waiting, memory, and steps against bare loops.

Each check has a limit in seconds, and all of them share a budget, $OSTEO_SECONDS: a check for which too little is left
is skipped, and says so. $OSTEO_CHECKS names those that run, and OSTEO_DEVICE=cpu tries the checks themselves, small, on
a machine without a GPU. Pictures are phantoms and weights are random: nothing is fetched, and W&B need not be there.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import checks
from benchmarks.gpu.lab import Lab, OutOfTimeError, Row

BUDGET = 470.0


class Check(NamedTuple):
    """A check, and the seconds without which it is not begun and after which it is cut off."""

    run: Callable[[Lab], Iterator[Row]]
    least: float
    most: float


CHECKS = {
    "device": Check(checks.on_the_device, 10, 90),
    "sweep": Check(checks.sweep, 30, 150),
    "large_batch": Check(checks.large_batch, 20, 80),
    "steps": Check(checks.steps, 20, 100),
    "waits": Check(checks.waits, 20, 60),
    "graph": Check(checks.graph, 20, 60),
    "answers": Check(checks.answers, 20, 80),
    "side_by_side": Check(checks.side_by_side, 30, 90),
    "deterministic": Check(checks.deterministic, 40, 130),
    "little_memory": Check(checks.little_memory, 20, 80),
    "clipping": Check(checks.clipping, 15, 60),
    "reckoning": Check(checks.reckoning, 0, 1),
}
"""In the order in which they are of use where the budget is short."""


def measure() -> Iterator[dict[str, Any]]:
    """A row per finding, as it comes; none where there is no GPU and the CPU was not asked for."""
    device = os.environ.get("OSTEO_DEVICE", "cuda" if torch.cuda.is_available() else "")
    if not device:
        return
    chosen = os.environ.get("OSTEO_CHECKS", ",".join(CHECKS)).split(",")
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), device, float(os.environ.get("OSTEO_SECONDS", BUDGET)))
        for name in chosen:
            begun = time.monotonic()
            for row in found(name, CHECKS[name], lab):
                seconds = round(time.monotonic() - begun, 1)
                print(f"{row.verdict} {row.check}: {row.figures} [{seconds} s]", file=sys.stderr, flush=True)
                yield {**row._asdict(), "seconds": seconds}


def found(name: str, check: Check, lab: Lab) -> Iterator[Row]:
    """The rows of a check, whatever becomes of it."""
    lab.begin(check.most if lab.device == "cuda" else lab.left())
    if lab.left() < check.least:
        yield Row(name, "SKIP", f"{max(0.0, lab.left()):.0f} s are left, and it needs {check.least:.0f}")
        return
    try:
        yield from check.run(lab)
    except OutOfTimeError as error:
        yield Row(name, "SKIP", str(error))
    except Exception as error:  # noqa: BLE001  the next checks still have something to say
        yield Row(name, "FAIL", f"the check itself ended with {type(error).__name__}: {str(error)[:300]}")
