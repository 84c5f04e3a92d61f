"""Distances and sizes of tensors."""

from collections.abc import Iterable

import torch
from torch import Tensor

from luciola.plugins.kernels.quantize import calc_diff


def count_bytes(*tensors: Tensor | Iterable[Tensor] | None) -> int:
    """Count the bytes of all tensors, nested ones too."""
    total = 0
    for each in tensors:
        if isinstance(each, Tensor):
            total += each.numel() * each.element_size()
        elif each is not None:
            total += count_bytes(*each)
    return total


def assert_bitwise_equal(x: Tensor, y: Tensor) -> None:
    """Raise AssertionError unless both have the same shape, dtype and bits."""
    assert x.shape == y.shape, f"shapes {tuple(x.shape)} and {tuple(y.shape)} differ"
    assert x.dtype == y.dtype, f"dtypes {x.dtype} and {y.dtype} differ"
    one, other = (each.reshape(-1).view(torch.uint8) for each in (x, y))
    different = int((one != other).sum())
    assert different == 0, f"{different} of {one.numel()} bytes differ"


__all__ = ["assert_bitwise_equal", "calc_diff", "count_bytes"]
