"""The product before the norm of hyper-connections: few columns, a long sum, and the squares that the norm needs."""

from typing import Final

import torch
from torch import Tensor

from ...kernels.checks import check_contiguous, check_same_device, check_tensor
from ...kernels.errors import BadArgument, refuse
from ...kernels.layers import layer_for
from . import reference

SPLITS_MAX: Final = 65_535  # what a grid takes in its second dimension


def tf32_hc_prenorm_gemm(
    a: Tensor, b: Tensor, d: Tensor, sqr_sum: Tensor, num_splits: int | None = None
) -> None:
    """D = A · Bᵀ in TF32, and the sum of squares of each row of A.

    Shapes: a (m, k) bfloat16, b (n, k), d (m, n), sqr_sum (m,) float32. With `num_splits`, d (num_splits, m, n) and
    sqr_sum (num_splits, m) are parts whose sums are the results: k is cut, so that few rows fill the chip.
    Limits: n and k positive; last dimensions contiguous. TF32 keeps 10 bits behind the point of b, a CPU all.
    Raises: BadArgument (ValueError, RuntimeError) and BadType (TypeError, RuntimeError).
    Source: DeepGEMM `tf32_hc_prenorm_gemm`.
    """
    check_tensor("a", a, (None, None), (torch.bfloat16,))
    m, k = a.shape
    check_tensor("b", b, (None, k), (torch.float32,))
    n = b.shape[0]
    if not n or not k:
        refuse("b", f"of shape {tuple(b.shape)}", "n and k must be positive")
    parts: tuple[int, ...] = ()
    if num_splits is not None:
        if not 1 <= num_splits <= SPLITS_MAX:
            refuse("num_splits", num_splits, f"it must be 1 to {SPLITS_MAX}, or None")
        parts = (num_splits,)
    check_tensor("d", d, (*parts, m, n), (torch.float32,))
    check_contiguous("sqr_sum", sqr_sum, (*parts, m), (torch.float32,))
    check_same_device(a, b, d, sqr_sum)
    if m > 1 and (d.stride(-2) < n or a.stride(0) < k):
        raise BadArgument("rows of a, or of d, overlap: they must not")
    if m == 0:
        return
    if num_splits is None:
        d, sqr_sum = d.unsqueeze(0), sqr_sum.unsqueeze(0)
    if layer_for(d) == "reference":
        d.zero_()
        sqr_sum.zero_()
        d[0], sqr_sum[0] = reference.prenorm_gemm(a, b)
        return
    from . import kernel

    kernel.prenorm_gemm(a, b, d, sqr_sum)


__all__ = ["tf32_hc_prenorm_gemm"]
