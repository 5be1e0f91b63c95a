"""Arrays that stand in many files, by what they hold."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Grey: TypeAlias = npt.NDArray[np.uint8]
"""A radiograph of eight bits, (H, W); or several of one size, (N, S, S)."""
Floats: TypeAlias = npt.NDArray[np.float64]
"""Numbers of full precision, of any shape."""
Singles: TypeAlias = npt.NDArray[np.float32]
"""Numbers of half the precision, of any shape."""
Labels: TypeAlias = npt.NDArray[np.int_]
"""One label per picture, (N,); see osteo.task."""
Mask: TypeAlias = npt.NDArray[np.bool_]
"""Chosen pixels or pictures, of any shape."""
Statistic: TypeAlias = Callable[[Floats], Floats]
"""A statistic of weighted rows, see osteo.evaluation.bootstrap: weights (D, M) -> values (D, C)."""
Transform: TypeAlias = Callable[[Grey], Grey]
"""Changes one eight-bit picture (H, W)."""
ReadFile: TypeAlias = Callable[[str], bytes]
"""Gives the bytes of a picture by its image_id."""
