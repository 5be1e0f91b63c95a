"""The arithmetic that answers are computed in, so that one picture has one logit on every device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

IEEE = "ieee"
"""torch's name for float32 products without a short cut such as TF32, which keeps 10 of 23 bits."""
_ALONE = threading.RLock()  # torch's settings are of the process, not of a thread


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Computes products and convolutions of float32 in float32 within the block, on a GPU and on a CPU.

    What was set before holds again afterwards. Threads enter one after the other.
    """
    backends: Any = torch.backends
    places: list[Any] = [
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ]
    with _ALONE:
        before = [place.fp32_precision for place in places]
        try:
            for place in places:
                place.fp32_precision = IEEE
            yield
        finally:
            for place, value in zip(places, before, strict=True):
                place.fp32_precision = value
