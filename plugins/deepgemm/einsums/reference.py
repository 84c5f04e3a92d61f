"""The specification of the sums in plain torch: float32 arithmetic, any device."""

import torch
from torch import Tensor

from ...kernels.quantize import BLOCK, dequantize


def einsum(expr: str, a: Tensor, b: Tensor) -> Tensor:
    """Float32 sum of bfloat16 operands. Shapes: by the letters of `expr`."""
    return torch.einsum(expr, a.float(), b.float())


def fp8_einsum(expr: str, a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor) -> Tensor:
    """Float32 sum of FP8 operands: A has a scale for 128 of its last dimension, B one for 128 x 128 of the last two."""
    return torch.einsum(expr, dequantize(a, sfa), dequantize(b, sfb, gran_m=BLOCK))


__all__ = ["einsum", "fp8_einsum"]
