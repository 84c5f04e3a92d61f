"""What the original's `deep_gemm.testing` offers to measure and compare."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .quantize import calc_diff


def count_bytes(*tensors: Tensor | Iterable[Tensor] | None) -> int:
    """Bytes of all tensors, nested ones too."""
    total = 0
    for each in tensors:
        if isinstance(each, Tensor):
            total += each.numel() * each.element_size()
        elif each is not None:
            total += count_bytes(*each)
    return total


def get_arch_major() -> int:
    """The major compute capability of the current device.

    Raises: RuntimeError without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device here")
    return int(torch.cuda.get_device_capability()[0])


__all__ = ["calc_diff", "count_bytes", "get_arch_major"]
