"""A stand-in for CUDA graphs on the CPU: it notes the operations of a call and repeats them on the same tensors."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from osteo import graphs


class Notes(TorchDispatchMode):
    """Keeps what was called, with its arguments and what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, [t for t in tree_flatten(made)[0] if isinstance(t, Tensor)]))
        return made

    def repeat(self) -> None:
        """Computes all anew, into the tensors of the first time."""
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                again = [t for t in tree_flatten(func(*args, **kwargs))[0] if isinstance(t, Tensor)]
                for old, new in zip(made, again, strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


def record(call: Callable[[], Sequence[Tensor | None]]) -> tuple[Callable[[], None], Sequence[Tensor | None]]:
    """As `osteo.graphs.record`; unlike a capture it computes once."""
    with Notes() as notes:
        results = call()
    return notes.repeat, results


@pytest.fixture
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the CPU capture graphs; returns how many operations each one has."""
    counts: list[int] = []

    def counted(call: Callable[[], Sequence[Tensor | None]]) -> Any:
        replay, results = record(call)
        counts.append(len(replay.__self__.calls))  # type: ignore[attr-defined]
        return replay, results

    monkeypatch.setattr(graphs, "CAPTURING", [*graphs.CAPTURING, "cpu"])  # read by its users at every step
    monkeypatch.setattr(graphs, "record", counted)
    monkeypatch.setattr(graphs, "aside", nullcontext)
    monkeypatch.setattr(graphs, "generator", lambda: torch.default_generator)
    return counts
