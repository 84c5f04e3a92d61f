"""Casts to FP4 (e2m1), two numbers a byte, under the names of `deep_gemm.utils.math`.

    code   0 to 7 stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6; 8 is the sign. The first number of a pair has the low half.

SM90 has no instruction for them: these are for data that goes to later GPUs, and for references.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.errors import BadArgument, BadType, refuse
from .quantize import BLOCK, SMALLEST_AMAX, ceil_div, ceil_to_ue8m0, pack_ue8m0_to_int, unpack_ue8m0_from_int

FP4_MAX: Final = 6.0
_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def per_token_cast_to_fp4(
    x: Tensor,
    use_ue8m0: bool,  # noqa: FBT001 (the original's)
    gran_k: int = BLOCK,
    use_packed_ue8m0: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Tensor, Tensor]:
    """One scale for `gran_k` neighbours of a row. A number half way between two goes to the smaller magnitude.

    Shapes: x (m, n), n even; results (m, n / 2) int8, and scales (m, ceil(n / gran_k)) float32, or int32 packed.
    """
    if x.dim() != 2 or x.shape[1] % 2:
        refuse("x", f"of shape {tuple(x.shape)}", "it must have two dimensions and an even number of columns")
    if use_packed_ue8m0 and not use_ue8m0:
        raise BadArgument("packed scales are powers of two: pass use_ue8m0=True as well")
    m, n = x.shape
    columns = ceil_div(n, gran_k)
    parts = pad(x.float(), (0, columns * gran_k - n)).view(m, columns, gran_k)
    scales = parts.abs().amax(dim=2).clamp(SMALLEST_AMAX) / FP4_MAX
    if use_ue8m0:
        scales = ceil_to_ue8m0(scales)
    scaled = (parts * (1.0 / scales).unsqueeze(2)).view(m, -1)[:, :n]
    borders = torch.tensor([(a + b) / 2 for a, b in pairwise(_VALUES)], device=x.device)
    codes = torch.bucketize(scaled.abs(), borders)
    codes = codes + 8 * ((scaled < 0) & (codes > 0))
    return _packed(codes), pack_ue8m0_to_int(scales) if use_packed_ue8m0 else scales


def cast_back_from_fp4(
    packed: Tensor,
    sf: Tensor,
    gran_k: int = BLOCK,
    use_packed_ue8m0: bool = False,  # noqa: FBT001, FBT002 (the original's)
) -> Tensor:
    """Float32 numbers (m, n) of `per_token_cast_to_fp4`'s results."""
    codes = _codes(packed)
    scales = unpack_ue8m0_from_int(sf) if use_packed_ue8m0 else sf
    values = torch.tensor([*_VALUES, *(-each for each in _VALUES)], device=packed.device)[codes]
    return values * scales.repeat_interleave(gran_k, 1)[:, : codes.shape[1]]


def transpose_packed_fp4(a: Tensor) -> Tensor:
    """The transposed matrix, packed again along its rows. Shapes: a (m, n / 2) int8, m even; result (n, m / 2)."""
    codes = _codes(a)
    if a.shape[0] % 2:
        refuse("a", f"of {a.shape[0]} rows", "they must be an even number")
    return _packed(codes.T)


def _packed(codes: Tensor) -> Tensor:
    return (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8)


def _codes(packed: Tensor) -> Tensor:
    if packed.dtype != torch.int8 or packed.dim() != 2:
        raise BadType(
            f"packed numbers are {packed.dtype} of {packed.dim()} dimensions; they must be int8, of two"
        )
    halves = packed.view(torch.uint8).int()
    return torch.stack((halves & 0xF, halves >> 4), dim=2).flatten(1)


__all__ = ["cast_back_from_fp4", "per_token_cast_to_fp4", "transpose_packed_fp4"]
