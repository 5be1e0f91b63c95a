"""When a measurement can be trusted: nothing of ours runs beside it, and repeated ones agree."""

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

SPREAD = 0.10
OURS = ("osteo", "benchmarks", "pytest")


def python(module: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", module]


def spread(values: Sequence[float]) -> float:
    """How far the middle half of repeated measurements reaches, over their median; of fewer than four, the range."""
    if len(values) < 4:
        return (max(values) - min(values)) / statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def note(*series: Sequence[float]) -> str:
    """The largest spread of repeated measurements, with a word where it is above ten per cent."""
    largest = max(spread(values) for values in series)
    return f"{largest:.0%}" + (", too noisy to trust" if largest > SPREAD else "")


def other_jobs() -> list[str]:
    """Commands of ours that run now, this one and what it is part of aside (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) in _ancestors() or not (words := _command(entry)):
            continue
        named = [Path(word).name for word in words[:4]]
        if any(word in OURS for word in named) and "python" in " ".join(named):
            found.append(" ".join(named))
    return found


def _command(entry: Path) -> list[str]:
    try:
        return entry.joinpath("cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0")
    except OSError:  # it has ended
        return []


def _ancestors() -> set[int]:
    found, current = set(), os.getpid()
    while current > 1:
        found.add(current)
        current = int(Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()[1])
    return found
