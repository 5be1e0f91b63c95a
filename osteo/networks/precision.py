"""The arithmetic that answers are computed in, so that one picture has one logit on every device."""

import threading
import warnings
from collections.abc import Iterator, Sequence
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
    with _ALONE:
        older, values = _older_settings(), [place.fp32_precision for place in _places()]
        try:
            _set(("highest", False) if older else None, [IEEE] * len(values))
            yield
        finally:
            _set(older, values)


def _places() -> list[Any]:
    """Where torch keeps how products are computed."""
    backends: Any = torch.backends
    return [
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ]


def _older_settings() -> tuple[str, bool] | None:
    """What torch's older settings of the same say; None where somebody has set these apart, so that none can be read.

    They are kept in step, since what reads them, such as `torch.backends.cudnn.flags`, fails where they differ.
    """
    with warnings.catch_warnings(action="ignore"):  # some versions warn of them
        try:
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        except RuntimeError:
            return None


def _set(older: tuple[str, bool] | None, values: Sequence[str]) -> None:
    if older is not None:
        with warnings.catch_warnings(action="ignore"):
            torch.set_float32_matmul_precision(older[0])
            torch.backends.cudnn.allow_tf32 = older[1]
    for place, value in zip(_places(), values, strict=True):
        place.fp32_precision = value
