"""Activations quantised and their scales laid out in one pass, so that no transposing kernel follows."""

import torch
from torch import Tensor

from ...kernels.errors import BadType, refuse
from ...kernels.layers import layer_for
from ...kernels.quantize import BLOCK, FP8, ceil_div, per_token_cast_to_fp8
from ..scales import get_tma_aligned_size


def quantize_activations(x: Tensor, *, use_ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Cast as `per_token_cast_to_fp8`, the scales MN-major and aligned already.

    Shapes: x (m, n) bfloat16, float16 or float32, contiguous rows; results (m, n) e4m3 and (m, ceil(n / 128)) float32
    of strides (1, m rounded up to 4).
    """
    if x.dim() != 2:
        refuse("x", f"of shape {tuple(x.shape)}", "it must have two dimensions")
    if x.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
        raise BadType(f"x is {x.dtype}; it must be bfloat16, float16 or float32")
    if x.stride(1) != 1 and x.shape[1] > 1:
        refuse("x", f"of strides {x.stride()}", "its rows must be contiguous")
    m, n = x.shape
    scales = torch.empty_strided(
        (m, ceil_div(n, BLOCK)), (1, get_tma_aligned_size(m, 4)), dtype=torch.float32, device=x.device
    )
    if x.numel() == 0:
        return torch.empty((m, n), dtype=FP8, device=x.device), scales
    if layer_for(x) == "reference":
        values, plain = per_token_cast_to_fp8(x, use_ue8m0)
        return values, scales.copy_(plain)
    from . import kernel

    values = torch.empty((m, n), dtype=FP8, device=x.device)
    kernel.per_token_cast(x, values, scales, use_ue8m0=use_ue8m0)
    return values, scales


__all__ = ["quantize_activations"]
