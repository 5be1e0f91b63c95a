"""What a search searches: Optuna's distributions of the values that a sweep leaves open, and its jobs in batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from osteo.errors import UserError, unknown


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
