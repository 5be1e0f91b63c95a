"""Runs a function of tensors as a CUDA graph, so that its hundreds of launches become one."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from osteo.errors import UserError, first_line

log = logging.getLogger(__name__)

CAPTURING = ["cuda"]
"""Devices that capture graphs."""
WARM_UP = 3
"""Calls of a shape that run as they are before one is captured: libraries choose algorithms and allocate meanwhile."""
TOLERANCE = 0.05
"""Of what a graph gives against what is right, as a share of its norm: kernels may differ, and bfloat16 is coarse."""
Tensors = Sequence[Any]
"""Tensors or None."""


def is_wanted(graph: Any, device: str, processes: int, batches: int, precision: str) -> bool:
    """Whether steps are to be captured.

    Args:
        graph: `trainer.graph`.
        device: kind of the device that trains.
        processes: that train together.
        batches: that make one step of the optimiser.
        precision: Lightning's name of the arithmetic.

    Raises:
        UserError: a graph is required, and none is possible.
    """
    obstacles = {
        f"the device is {device}": device not in CAPTURING,
        "several processes train together": processes > 1,
        "trainer.accumulate_grad_batches is more than 1": batches > 1,
        "trainer.precision=16-mixed scales the loss": precision == "16-mixed",
    }
    found = [obstacle for obstacle, is_there in obstacles.items() if is_there]
    if found and graph is True:
        raise UserError(f"trainer.graph=true needs a CUDA graph, but {found[0]}; use trainer.graph=auto")
    return bool(graph) and not found


class Graphed:
    """A function of tensors that is captured for each shape of its arguments that comes more than `WARM_UP` times.

    A replay copies its arguments to where the captured call had them, and writes its results, and the gradients of the
    module, to the same tensors each time: the next call overwrites them. Where the function cannot be captured, or the
    first replay does not give what the function does, that is logged and the function is called as it is.

    Args:
        function: takes and returns tensors or None. It reads no value from the device, and what it does follows from
            the shapes alone.
        module: whose gradients it computes anew and whose buffers it changes; None for neither.
        is_required: whether there has to be a graph.

    Raises:
        UserError: there can be no graph, and one is required.
    """

    def __init__(
        self, function: Callable[..., Tensors], module: nn.Module | None = None, *, is_required: bool = False
    ) -> None:
        self._function, self._is_required = function, is_required
        self._parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
        self._buffers = [] if module is None else list(module.buffers())
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, Captured] = {}

    def __call__(self, *arguments: Tensor | None) -> Tensors:
        """What the function returns."""
        shapes = tuple(None if argument is None else (argument.shape, argument.dtype) for argument in arguments)
        if shapes in self._graphs:
            return self._graphs[shapes](arguments)
        self._seen[shapes] += 1
        if self._seen[shapes] != WARM_UP + 1:
            return self._as_it_is(arguments)
        return self._captured(shapes, arguments)

    def _as_it_is(self, arguments: Tensors) -> Tensors:
        for parameter in self._parameters:
            parameter.grad = None
        with aside():
            return self._function(*arguments)

    def _captured(self, shapes: Any, arguments: Tensors) -> Tensors:
        """The results of the function itself; captures it too, and keeps the graph if it gives the same."""
        drawing = generator()
        before, state = [buffer.clone() for buffer in self._buffers], drawing.get_state()
        results = self._as_it_is(arguments)
        gradients = [parameter.grad for parameter in self._parameters]
        after, next_state = [buffer.clone() for buffer in self._buffers], drawing.get_state()
        try:
            graph = Captured(self._function, arguments, self._parameters)
            self._set(before)
            drawing.set_state(state)
            found = graph(arguments)
            if _is_close(found, results) and _is_close([p.grad for p in self._parameters], gradients):
                self._graphs[shapes], trouble = graph, None
            else:
                trouble = "its results differ from those of single launches"
        except RuntimeError as error:
            trouble = first_line(error)
        self._set(after)
        drawing.set_state(next_state)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        if trouble and self._is_required:
            raise UserError(
                f"trainer.graph=true, but a step cannot be a CUDA graph ({trouble}); use trainer.graph=auto"
            )
        if trouble:
            log.warning("a step does not run as a CUDA graph (%s); its operations are launched one by one", trouble)
        return results

    def _set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


class Captured:
    """One graph, with the tensors that it reads and writes.

    Args:
        function: that is captured.
        arguments: of the shapes that it is captured for.
        parameters: whose gradients it computes.
    """

    def __init__(
        self, function: Callable[..., Tensors], arguments: Tensors, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._arguments = [None if argument is None else argument.clone() for argument in arguments]
        self._parameters = parameters
        for parameter in parameters:
            parameter.grad = None  # else the graph would add to it
        self._replay, self._results = record(partial(function, *self._arguments))
        self._gradients = [parameter.grad for parameter in parameters]

    def __call__(self, arguments: Tensors) -> Tensors:
        """Replays the graph."""
        for own, given in zip(self._arguments, arguments, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._results


def _is_close(found: Tensors, wanted: Tensors) -> bool:
    """Whether two lists of tensors are the same but for rounding; waits for the device once."""
    if [tensor is None for tensor in found] != [tensor is None for tensor in wanted]:
        return False
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True) if a is not None and b is not None]
    if not pairs:
        return True
    difference = torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt()
    norm = torch.stack([b.square().sum() for _, b in pairs]).sum().sqrt()
    return bool(difference <= TOLERANCE * norm)


def record(call: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    """Captures a call: what replays it, and the results that a replay writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads use the device meanwhile
        results = call()
    return graph.replay, results


@contextmanager
def aside() -> Iterator[None]:
    """A stream other than the usual one, as CUDA wants it before a capture; the order of work stays that of calls."""
    usual, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(usual)
    with torch.cuda.stream(other):
        yield
    usual.wait_stream(other)


def generator() -> torch.Generator:
    """What the device draws random numbers from."""
    return torch.cuda.default_generators[torch.cuda.current_device()]


def uncached_autocast(device: str) -> torch.autocast:
    """The mixed precision that is set, without weights that were cast in an earlier call."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
