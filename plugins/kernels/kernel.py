"""Pieces of Triton kernels that several plugins use."""

import triton
import triton.language as tl


@triton.jit
def rounded_to_e4m3(x):
    """Float32 that e4m3 can hold exactly.

    The interpreter's cast loses the carry where rounding reaches the next power of two: it gets rounded numbers.
    """
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).to(tl.float32, bitcast=True)
    step = 2.0**-9 * 1.5 * 2.0**23
    small = ((x + step) - step).to(tl.int32, bitcast=True) | (bits & -0x80000000)  # zeros keep their sign
    return tl.where(tl.abs(x) < 2.0**-6, small.to(tl.float32, bitcast=True), normal)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRET: tl.constexpr):
    """Float32 as `dtype`, rounded to the nearest, ties to even; the interpreter's own cast to bfloat16 cuts off."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)  # noqa: PLR0124 (NaN is not rounded)
    return x.to(dtype)


__all__ = ["narrow", "rounded_to_e4m3"]
