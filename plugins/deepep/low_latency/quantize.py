"""Formats of fewer bytes than BF16: e4m3 with a scale for 128 channels, and LogFMT with ten bits a channel.

The torch reference of the casts that the kernels make on the way. All are of blocks of 128 neighbours of a row.

FP8      amax = max(largest magnitude, 1e-4); value = e4m3(x · (448 / amax)), scale = amax / 448, or the next power of
         two (`round_scale`), whose exponent can be packed, four in an int32 (`use_ue8m0`).
LogFMT   code 0 is zero; sign and 9 bits of code 1 … 511 are the place of log2 |x| between the block's least and
         largest, of which the least is at most 32 below the largest. Each value is as wrong as its step: at most
         32 / 510 of a power of two, less the less the block spreads. A block in which something is not finite has no
         range: what is not zero there comes back as NaN.
         Layout of a row: `channels` low bytes, `channels` / 4 bytes with the two high bits of four neighbours each, and
         two float32 (least, step) a block.

Source: DeepEP's kernels and `deep_ep.utils.math`; reference of section "Low latency" in docs/plugins/deepep.md.
"""

from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadType, refuse
from ...kernels.quantize import (
    BLOCK,
    FP8,
    FP8_MAX,
    SMALLEST_AMAX,
    ceil_to_ue8m0,
    dequantize,
    pack_ue8m0_to_int,
    unpack_ue8m0_from_int,
)  # fmt: skip

# Powers of two between the largest and the smallest magnitude that a block distinguishes.
LOG_RANGE: Final = 32.0
LOG_CODES: Final = 511  # 1 … 511: what nine bits hold beside the zero
LOG_STEPS: Final = LOG_CODES - 1


def cast_to_fp8(x: Tensor, *, round_scale: bool = False, use_ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Values and scales of blocks of 128 along the last dimension.

    Shapes: x (…, H) of any float type, H a multiple of 128; results (…, H) e4m3 and (…, H / 128) float32, or
    (…, H / 512) int32 with `use_ue8m0`.
    """
    if use_ue8m0 and not round_scale:
        refuse("use_ue8m0", use_ue8m0, "exponents are exact only with round_scale=True")
    blocks = _blocks(x, 512 if use_ue8m0 else BLOCK)
    amax = blocks.abs().amax(-1).clamp(SMALLEST_AMAX)
    if round_scale:
        scales = ceil_to_ue8m0(amax * (1.0 / FP8_MAX))
        factors = 1.0 / scales
    else:
        scales = amax * (1.0 / FP8_MAX)
        factors = torch.full_like(amax, FP8_MAX) / amax  # a number divided by a tensor is rounded twice
    values = (blocks * factors.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(FP8).view(x.shape)
    return values, pack_ue8m0_to_int(scales) if use_ue8m0 else scales


def cast_from_fp8(values: Tensor, scales: Tensor) -> Tensor:
    """BF16 of e4m3 values. Shapes: values (…, H), scales (…, ceil(H / 128)) float32 or (…, H / 512) int32."""
    if scales.dtype == torch.int32:
        scales = unpack_ue8m0_from_int(scales)
    return dequantize(values, scales).to(torch.bfloat16)


def to_logfmt(x: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes and (least, step) of each block.

    Shapes: x (rows, H); results (rows, H + H / 4) uint8 and (rows, H / 128, 2) float32.
    """
    blocks = _blocks(x, BLOCK)
    logs = torch.log2(blocks.abs().double()).float()  # rounded once; -inf for zeros
    logs = torch.where(logs == torch.inf, torch.nan, logs)
    largest = logs.amax(-1, keepdim=True)
    least = torch.where(logs.isinf(), largest, logs).amin(-1, keepdim=True)
    least = torch.maximum(least, largest - LOG_RANGE)
    least = torch.where(largest.isinf(), 0.0, least)  # a block of zeros
    step = torch.where(largest.isinf(), 0.0, (largest - least) * (1.0 / LOG_STEPS))
    places = torch.where(step > 0, (logs - least) / step, torch.where(logs.isinf(), -torch.inf, 0.0))
    codes = (places + 0.5).floor().clamp(-1, LOG_STEPS) + 1
    codes = codes.to(torch.int32) | ((blocks < 0).to(torch.int32) << 9)
    codes = codes.flatten(-2)
    low = (codes & 255).to(torch.uint8)
    pairs = _split(codes >> 8, 4) << torch.arange(0, 8, 2, device=x.device, dtype=torch.int32)
    return torch.cat([low, pairs.sum(-1).to(torch.uint8)], -1), torch.cat([least, step], -1)


def from_logfmt(packed: Tensor, ranges: Tensor) -> Tensor:
    """Float32 values. Shapes: as `to_logfmt` makes them; result (rows, H)."""
    channels = packed.shape[-1] * 4 // 5
    low, pairs = packed[..., :channels].to(torch.int32), packed[..., channels:].to(torch.int32)
    shifts = torch.arange(0, 8, 2, device=packed.device, dtype=torch.int32)
    codes = low | (((pairs.unsqueeze(-1) >> shifts) & 3).flatten(-2) << 8)
    places = _split(codes & 511, BLOCK).float() - 1
    magnitudes = torch.exp2(ranges[..., :1] + places * ranges[..., 1:])
    magnitudes = torch.where(places < 0, 0.0, magnitudes).flatten(-2)
    return torch.where(codes >= 512, -magnitudes, magnitudes)


def _blocks(x: Tensor, multiple: int) -> Tensor:
    if not x.is_floating_point():
        raise BadType(f"x is {x.dtype}; it must be a float type")
    if x.shape[-1] % multiple or x.shape[-1] == 0:
        refuse("the last dimension of x", x.shape[-1], f"it must be a multiple of {multiple}")
    return _split(x.float(), BLOCK)


def _split(x: Tensor, size: int) -> Tensor:
    """The last dimension in pieces."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


__all__ = ["LOG_CODES", "LOG_RANGE", "LOG_STEPS", "cast_from_fp8", "cast_to_fp8", "from_logfmt", "to_logfmt"]
