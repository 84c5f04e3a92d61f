"""The Triton kernel of the product before the norm, and how it is started."""

import triton
import triton.language as tl
from torch import Tensor

from ...kernels.aot import start
from ...kernels.layers import on_device
from ...kernels.quantize import ceil_div


@triton.jit(do_not_specialize=["m"])
def tf32_hc_prenorm_gemm_kernel(
    a, b, d, squares, m, n, k, splits, a_m, b_n, d_s, d_m,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr,
):  # fmt: skip
    """A tile of one part of D = A · Bᵀ; the programs of the first columns write the rows' sums of squares, too.

    Part i has steps i, i + splits, … of k.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    rows = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M,), dtype=tl.float32)
    a_rows = a + rows.to(tl.int64)[:, None] * a_m
    b_rows = b + columns.to(tl.int64)[:, None] * b_n
    for step in range(split, tl.cdiv(k, K_STEP), splits):
        inside = step * K_STEP + tl.arange(0, K_STEP)
        mask = (inside < k)[None, :]
        left = tl.load(a_rows + inside[None, :], mask=(rows < m)[:, None] & mask, other=0.0).to(tl.float32)
        right = tl.load(b_rows + inside[None, :], mask=(columns < n)[:, None] & mask, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="tf32")
        sums += tl.sum(left * left, 1)
    wide = split.to(tl.int64)
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(d + wide * d_s + rows.to(tl.int64)[:, None] * d_m + columns[None, :], total, mask=mask)
    rows_end = tl.where(tl.program_id(0) % tiles_n == 0, m, 0)
    tl.store(squares + wide * m + rows, sums, mask=rows < rows_end)


def prenorm_gemm(a: Tensor, b: Tensor, d: Tensor, squares: Tensor) -> None:
    """Fill d (splits, m, n) with parts of A · Bᵀ, and squares (splits, m). Shapes: a (m, k), b (n, k)."""
    splits, m, n = d.shape
    rows, columns = 64, min(128, max(16, triton.next_power_of_2(n)))
    with on_device(d):
        start(
            tf32_hc_prenorm_gemm_kernel, (ceil_div(m, rows) * ceil_div(n, columns), splits),
            a, b, d, squares, m, n, a.shape[1], splits, a.stride(0), b.stride(0), d.stride(0), d.stride(1),
            BLOCK_M=rows, BLOCK_N=columns, K_STEP=64, num_warps=4, num_stages=4,
        )  # fmt: skip


__all__ = ["prenorm_gemm"]
