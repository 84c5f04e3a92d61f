"""Casts to FP8 (e4m3) with one scale a block, and the arithmetic around them.

A block's scale is max(largest magnitude, 1e-4) / 448, and a value becomes e4m3(value · (1 / scale)). With `use_ue8m0`
the scale is rounded up to a power of two. Source: DeepGEMM's `deep_gemm.utils.math`; names and results are its own.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import BadArgument, refuse

FP8: Final = torch.float8_e4m3fn
FP8_MAX: Final = 448.0
SMALLEST_AMAX: Final = 1e-4  # a block of zeros has a scale too
BLOCK: Final = 128


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return (x + y - 1) // y


def align(x: int, y: int) -> int:
    """The smallest multiple of y that is not below x."""
    return ceil_div(x, y) * y


def ceil_to_ue8m0(x: Tensor) -> Tensor:
    """Positive float32 rounded up to powers of two: exact, by exponent and not by logarithm."""
    mantissa, exponent = torch.frexp(x.abs().float())
    return torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).to(exponent.dtype))


def pack_ue8m0_to_int(x: Tensor) -> Tensor:
    """Exponents of four powers of two along the last dimension in one int32, the first in the lowest byte.

    Shapes: x (..., k) float32, k a multiple of 4; result (..., k / 4) int32.
    """
    if x.dtype != torch.float32 or x.shape[-1] % 4:
        refuse(
            "x", f"{x.dtype} of shape {tuple(x.shape)}", "it must be float32, its last size a multiple of 4"
        )
    bits = x.contiguous().view(torch.int32)
    if x.device.type != "meta" and bool(((bits & 0x7FFFFF) != 0).any() | (x <= 0).any()):
        raise BadArgument("x holds values that are no powers of two; round them with ceil_to_ue8m0 first")
    return (bits >> 23).to(torch.uint8).view(torch.int32)


def unpack_ue8m0_from_int(packed: Tensor) -> Tensor:
    """The inverse of `pack_ue8m0_to_int`."""
    # A copy: contiguous() keeps odd strides of dimensions of size 1, which view() refuses.
    exponents = (
        torch.empty(packed.shape, dtype=torch.int32, device=packed.device).copy_(packed).view(torch.uint8)
    )
    return (exponents.to(torch.int32) << 23).view(torch.float32)


def per_token_cast_to_fp8(
    x: Tensor,
    use_ue8m0: bool,  # noqa: FBT001 (the original's)
    gran_k: int = BLOCK,
    use_packed_ue8m0: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Tensor, Tensor]:
    """One scale for `gran_k` neighbours of a row: for activations.

    Shapes: x (m, n); results (m, n) e4m3 and (m, ceil(n / gran_k)) float32 (int32, a quarter as many, if packed).
    """
    _check_matrix(x)
    m, n = x.shape
    blocks = ceil_div(n, gran_k)
    parts = pad(x, (0, blocks * gran_k - n)).view(m, blocks, gran_k)
    scales = _scales(parts.abs().float().amax(dim=2), use_ue8m0=use_ue8m0)
    values = _quantized(parts, scales.unsqueeze(2)).flatten(1)[:, :n].contiguous()
    return values, pack_ue8m0_to_int(scales) if use_packed_ue8m0 else scales


def per_channel_cast_to_fp8(
    x: Tensor,
    use_ue8m0: bool,  # noqa: FBT001 (the original's)
    gran_k: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """One scale for `gran_k` neighbours of a column: for weight gradients.

    Shapes: x (m, n), m a multiple of gran_k; results (m, n) e4m3 and (m / gran_k, n) float32.
    """
    _check_matrix(x)
    m, n = x.shape
    if m % gran_k:
        refuse("x", f"of {m} rows", f"the rows must be a multiple of {gran_k}")
    parts = x.view(m // gran_k, gran_k, n)
    scales = _scales(parts.abs().float().amax(dim=1), use_ue8m0=use_ue8m0)
    return _quantized(parts, scales.unsqueeze(1)).view(m, n), scales


def per_block_cast_to_fp8(
    x: Tensor,
    use_ue8m0: bool,  # noqa: FBT001 (the original's)
    gran_k: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """One scale for a square of `gran_k` · `gran_k`: for weights.

    Shapes: x (m, n); results (m, n) e4m3 and (ceil(m / gran_k), ceil(n / gran_k)) float32.
    """
    _check_matrix(x)
    m, n = x.shape
    rows, columns = ceil_div(m, gran_k), ceil_div(n, gran_k)
    padded = pad(x, (0, columns * gran_k - n, 0, rows * gran_k - m))
    parts = padded.view(rows, gran_k, columns, gran_k)
    scales = _scales(parts.abs().float().amax(dim=(1, 3)), use_ue8m0=use_ue8m0)
    values = _quantized(parts, scales[:, None, :, None]).view(rows * gran_k, columns * gran_k)
    return values[:m, :n].contiguous(), scales


def per_custom_dims_cast_to_fp8(
    x: Tensor,
    dims: Sequence[int],
    use_ue8m0: bool,  # noqa: FBT001 (the original's)
) -> tuple[Tensor, Tensor]:
    """One scale for all that differs only in dimensions that `dims` does not name.

    Shapes: x any; results the same in e4m3, and float32 scales without the unnamed dimensions.
    """
    others = tuple(each for each in range(x.dim()) if each not in {dim % x.dim() for dim in dims})
    scales = _scales(x.abs().float().amax(dim=others, keepdim=True), use_ue8m0=use_ue8m0)
    return _quantized(x, scales), scales.squeeze()


def dequantize(values: Tensor, scales: Tensor, *, gran_m: int = 1, gran_k: int = BLOCK) -> Tensor:
    """Float32 values of FP8 blocks of `gran_m` rows and `gran_k` columns.

    Shapes: values (..., m, k); scales (..., ceil(m / gran_m), ceil(k / gran_k)).
    """
    if gran_m > 1:
        scales = scales.repeat_interleave(gran_m, -2)[..., : values.shape[-2], :]
    return values.float() * scales.repeat_interleave(gran_k, -1)[..., : values.shape[-1]]


def calc_diff(x: Tensor, y: Tensor) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>) in float64: 0 for equal tensors, also if both are zero everywhere."""
    x, y = x.double(), y.double()
    denominator = (x * x + y * y).sum().item()
    return 0.0 if denominator == 0 else 1 - 2 * (x * y).sum().item() / denominator


def _check_matrix(x: Tensor) -> None:
    if x.dim() != 2:
        refuse("x", f"of shape {tuple(x.shape)}", "it must have two dimensions")


def _scales(amax: Tensor, *, use_ue8m0: bool) -> Tensor:
    scales = amax.clamp(SMALLEST_AMAX) / FP8_MAX
    return ceil_to_ue8m0(scales) if use_ue8m0 else scales


def _quantized(x: Tensor, scales: Tensor) -> Tensor:
    # Some releases of torch make NaN of what is above the largest e4m3; rounding 1 / scale may lead there.
    return (x.float() * (1.0 / scales)).clamp(-FP8_MAX, FP8_MAX).to(FP8)


__all__ = [
    "BLOCK", "FP8", "FP8_MAX", "SMALLEST_AMAX", "align", "calc_diff", "ceil_div", "ceil_to_ue8m0", "dequantize",
    "pack_ue8m0_to_int", "per_block_cast_to_fp8", "per_channel_cast_to_fp8", "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp8", "unpack_ue8m0_from_int",
]  # fmt: skip
