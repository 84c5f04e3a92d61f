"""Memory for results, used again once nobody has it any more.

Taking fresh pages from the kernel costs several times what a copy into them does, and what large tensors on a CPU are
freed to is the kernel. On other devices torch keeps memory itself.
"""

import math
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT_BYTES_MIN: Final = 1 << 20
"""The C library keeps what is smaller, or soon does."""
PIECES_MAX: Final = 3
"""Two results may be alive while a third one is made."""
WASTE_MAX: Final = 2
"""So many times what is asked for a piece may have."""


class Results:
    """Pieces of memory of one process, each the home of one tensor at a time and of all views of it."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.uint8]] = []

    def empty(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous tensor on the device of `like`, of its type unless another is given."""
        dtype = like.dtype if dtype is None else dtype
        size = math.prod(shape) * dtype.itemsize
        if like.device.type != "cpu" or size < KEPT_BYTES_MIN:
            return torch.empty(tuple(shape), dtype=dtype, device=like.device)
        piece = torch.from_numpy(self._take(size))  # it refers to the piece as long as a view of it lives
        return piece[:size].view(dtype).view(tuple(shape))

    def _take(self, size: int) -> NDArray[np.uint8]:
        free = [number for number in range(len(self._pieces)) if self._is_free(number)]
        fitting = [each for each in free if size <= len(self._pieces[each]) <= WASTE_MAX * size]
        if fitting:
            return self._pieces[min(fitting, key=lambda each: len(self._pieces[each]))]
        made: NDArray[np.uint8] = np.empty(size, np.uint8)
        if len(self._pieces) >= PIECES_MAX and free:
            del self._pieces[free[0]]
        if len(self._pieces) < PIECES_MAX:
            self._pieces.append(made)
        return made

    def _is_free(self, number: int) -> bool:
        return sys.getrefcount(self._pieces[number]) == _UNUSED


def _references_to_a_kept_piece() -> int:
    pieces = [np.empty(1, np.uint8)]
    return sys.getrefcount(pieces[0])


_UNUSED: Final = _references_to_a_kept_piece()

__all__ = ["Results"]
