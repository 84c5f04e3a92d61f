"""The two FP8 layouts of a latent KV cache, byte by byte. A row is one token: latent numbers, then RoPE numbers.

"V3.2", 576 numbers, 656 bytes a token, everything beside its token:

    0       512  512 latent numbers, float8 e4m3
    512      16  four float32 scales, one for each 128 of them
    528     128  64 RoPE numbers, bfloat16

"MODEL1", 512 numbers, 584 bytes a token, the scales of a page behind its rows; for a page of P tokens:

    0       576P P rows: 448 latent numbers, float8 e4m3, then 64 RoPE numbers, bfloat16
    576P      8P P rows of scales: seven UE8M0 bytes (2^(byte - 127)), one for each 64 numbers, and one byte unused

A cache is a tensor (pages, P, 1, 656 or 584) of one-byte elements whose rows are contiguous within a page; pages may
be further apart. Scales are powers of two: 2^ceil(log2(max(largest magnitude, 1e-4) / 448)).
Infinities saturate; NaN stays NaN.
"""

from typing import Final

import torch

from ..kernels.errors import BadArgument, BadType, refuse
from ..kernels.quantize import FP8_MAX, SMALLEST_AMAX, ceil_to_ue8m0

V32_CHANNELS: Final = 576
V32_BYTES: Final = 656
MODEL1_CHANNELS: Final = 512
MODEL1_BYTES: Final = 584
UE8M0_BIAS: Final = 127
MODEL1_ROW_BYTES: Final = 576  # without its scales; also what pages are padded to

_V32_LATENT: Final = 512
_V32_GROUP: Final = 128
_MODEL1_LATENT: Final = 448
_MODEL1_GROUP: Final = 64
_ONE_BYTE: Final = (torch.float8_e4m3fn, torch.int8, torch.uint8)


def quantize_v32(rows: torch.Tensor) -> torch.Tensor:
    """Quantize to V3.2 layout. Shapes: rows (pages, P, 1, 576); result (pages, P, 1, 656) float8."""
    _check_rows(rows, V32_CHANNELS)
    latent, scales = _quantized(rows[..., :_V32_LATENT], _V32_GROUP)
    rope = rows[..., _V32_LATENT:].to(torch.bfloat16).contiguous()
    parts = [each.view(torch.uint8) for each in (latent, scales, rope)]
    return torch.cat(parts, dim=-1).view(torch.float8_e4m3fn)


def dequantize_v32(cache: torch.Tensor) -> torch.Tensor:
    """Return the rows of a V3.2 cache. Shapes: cache (pages, P, 1, 656); result (pages, P, 1, 576) bfloat16."""
    check_fp8_cache("cache", cache, V32_BYTES)
    raw = cache.view(torch.uint8)
    latent = raw[..., :_V32_LATENT].contiguous().view(torch.float8_e4m3fn).float()
    scales = raw[..., _V32_LATENT : _V32_LATENT + 16].contiguous().view(torch.float32)
    rope = raw[..., _V32_LATENT + 16 :].contiguous().view(torch.bfloat16)
    return torch.cat((_scaled(latent, scales, _V32_GROUP), rope), dim=-1)


def empty_model1_cache(
    pages: int, page_tokens: int = 64, *, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Make a cache in MODEL1 layout, zeros, its pages padded to a multiple of 576 bytes."""
    page_bytes = -(-page_tokens * MODEL1_BYTES // MODEL1_ROW_BYTES) * MODEL1_ROW_BYTES
    memory = torch.zeros((pages, page_bytes), dtype=torch.uint8, device=device)
    shape = (pages, page_tokens, 1, MODEL1_BYTES)
    strides = (page_bytes, MODEL1_BYTES, MODEL1_BYTES, 1)
    return memory.as_strided(shape, strides).view(torch.float8_e4m3fn)


def quantize_model1(rows: torch.Tensor) -> torch.Tensor:
    """Quantize to MODEL1 layout. Shapes: rows (pages, P, 1, 512); result (pages, P, 1, 584) float8, pages padded."""
    _check_rows(rows, MODEL1_CHANNELS)
    cache = empty_model1_cache(rows.shape[0], rows.shape[1], device=rows.device)
    data, scales = model1_parts(cache)
    latent, powers = _quantized(rows[:, :, 0, :_MODEL1_LATENT], _MODEL1_GROUP)
    data[..., :_MODEL1_LATENT] = latent.view(torch.uint8)
    data[..., _MODEL1_LATENT:] = (
        rows[:, :, 0, _MODEL1_LATENT:].to(torch.bfloat16).contiguous().view(torch.uint8)
    )
    scales[..., :-1] = (powers.view(torch.int32) >> 23).to(torch.uint8)  # their exponents
    return cache


def dequantize_model1(cache: torch.Tensor) -> torch.Tensor:
    """Return the rows of a MODEL1 cache. Shapes: cache (pages, P, 1, 584); result (pages, P, 1, 512) bfloat16."""
    check_fp8_cache("cache", cache, MODEL1_BYTES)
    data, scales = model1_parts(cache)
    latent = data[..., :_MODEL1_LATENT].contiguous().view(torch.float8_e4m3fn).float()
    rope = data[..., _MODEL1_LATENT:].contiguous().view(torch.bfloat16)
    powers = torch.exp2(scales[..., :-1].float() - UE8M0_BIAS)
    return torch.cat((_scaled(latent, powers, _MODEL1_GROUP), rope), dim=-1).unsqueeze(2)


def model1_parts(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a cache in MODEL1 layout: rows (pages, P, 576) and scales (pages, P, 8), both uint8."""
    pages, tokens = cache.shape[:2]
    raw = cache.view(torch.uint8)
    stride, start = raw.stride(0), raw.storage_offset()
    rows = raw.as_strided((pages, tokens, MODEL1_ROW_BYTES), (stride, MODEL1_ROW_BYTES, 1), start)
    scales = raw.as_strided((pages, tokens, 8), (stride, 8, 1), start + tokens * MODEL1_ROW_BYTES)
    return rows, scales


def check_fp8_cache(name: str, cache: torch.Tensor, row_bytes: int) -> None:
    """Check that a tensor is a cache of rows of `row_bytes`. Raises: BadArgument, BadType."""
    if cache.dtype not in _ONE_BYTE:
        raise BadType(f"{name} has dtype {cache.dtype}; an FP8 cache is float8_e4m3fn, int8 or uint8")
    if cache.dim() != 4 or cache.shape[2] != 1 or cache.shape[3] != row_bytes:
        refuse(f"{name}.shape", tuple(cache.shape), f"it must be (pages, tokens of a page, 1, {row_bytes})")
    if cache.stride(3) != 1 or cache.stride(1) != row_bytes:
        refuse(
            f"{name}.stride()",
            cache.stride(),
            f"rows of a page must follow one another, {row_bytes} bytes each",
        )
    alignment = cache.stride(0) | cache.storage_offset()
    if alignment % 4:
        raise BadArgument(
            f"{name}: pages begin {alignment} bytes apart; they must begin at multiples of 4 bytes"
        )


def _check_rows(rows: torch.Tensor, channels: int) -> None:
    if not rows.is_floating_point() or rows.element_size() < 2:
        raise BadType(f"rows has dtype {rows.dtype}; it must be bfloat16, float16 or float32")
    if rows.dim() != 4 or rows.shape[2] != 1 or rows.shape[3] != channels:
        refuse("rows.shape", tuple(rows.shape), f"it must be (pages, tokens of a page, 1, {channels})")


def _quantized(latent: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers as e4m3, and scales (…, groups) that are powers of two."""
    grouped = latent.float().reshape(*latent.shape[:-1], latent.shape[-1] // group, group)
    largest = grouped.abs().nan_to_num(nan=0.0).amax(dim=-1).clamp(min=SMALLEST_AMAX)
    scales = ceil_to_ue8m0(largest / FP8_MAX)
    scaled = grouped * (1.0 / scales).unsqueeze(-1)
    return scaled.clamp(-FP8_MAX, FP8_MAX).flatten(-2).to(torch.float8_e4m3fn), scales


def _scaled(latent: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    grouped = latent.reshape(*latent.shape[:-1], latent.shape[-1] // group, group)
    return (grouped * scales.unsqueeze(-1)).flatten(-2).to(torch.bfloat16)


__all__ = [
    "MODEL1_BYTES", "MODEL1_CHANNELS", "V32_BYTES", "V32_CHANNELS", "check_fp8_cache", "dequantize_model1",
    "dequantize_v32", "empty_model1_cache", "model1_parts", "quantize_model1", "quantize_v32",
]  # fmt: skip
