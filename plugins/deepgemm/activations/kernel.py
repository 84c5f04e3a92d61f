"""The Triton kernel that quantises activations, and how it is started."""

import triton
import triton.language as tl
from torch import Tensor

from ...kernels.aot import start
from ...kernels.kernel import rounded_to_e4m3
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import BLOCK, ceil_div

_K_BLOCK: tl.constexpr = tl.constexpr(BLOCK)


@triton.jit(do_not_specialize=["m", "scales_k"])
def per_token_cast_kernel(
    x, values, scales, m, n, x_m, scales_m, scales_k,
    UE8M0: tl.constexpr, BLOCK_M: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Quantises rows in blocks of 128 and writes the scales at the strides that the product wants."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    block = tl.program_id(1)
    columns = block * _K_BLOCK + tl.arange(0, _K_BLOCK)
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    part = tl.load(x + rows[:, None] * x_m + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(part), 1), 1e-4) / 448.0
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFFF) & 0x7F800000  # up to a power of two
        scale = bits.to(tl.float32, bitcast=True)
    quantised = tl.clamp(part * (1.0 / scale)[:, None], -448.0, 448.0)
    if INTERPRET:
        quantised = rounded_to_e4m3(quantised)
    tl.store(values + rows[:, None] * n + columns[None, :], quantised.to(tl.float8e4nv), mask=mask)
    tl.store(scales + rows * scales_m + block * scales_k, scale, mask=rows < m)


def per_token_cast(x: Tensor, values: Tensor, scales: Tensor, *, use_ue8m0: bool) -> None:
    """Fill values (m, n) e4m3 and scales (m, ceil(n / 128)), of any strides, from x."""
    m, n = x.shape
    rows = 16
    with on_device(x):
        start(
            per_token_cast_kernel, (ceil_div(m, rows), ceil_div(n, BLOCK)),
            x, values, scales, m, n, x.stride(0), scales.stride(0), scales.stride(1),
            UE8M0=use_ue8m0, BLOCK_M=rows, INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


__all__ = ["per_token_cast"]
