"""Casts to FP8 under the names of `deep_gemm.utils.math`; plugins share their code (`plugins/kernels`)."""

from ..kernels.quantize import (
    BLOCK,
    FP8,
    FP8_MAX,
    SMALLEST_AMAX,
    align,
    calc_diff,
    ceil_div,
    ceil_to_ue8m0,
    dequantize,
    pack_ue8m0_to_int,
    per_block_cast_to_fp8,
    per_channel_cast_to_fp8,
    per_custom_dims_cast_to_fp8,
    per_token_cast_to_fp8,
    unpack_ue8m0_from_int,
)

__all__ = [
    "BLOCK",
    "FP8",
    "FP8_MAX",
    "SMALLEST_AMAX",
    "align",
    "calc_diff",
    "ceil_div",
    "ceil_to_ue8m0",
    "dequantize",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp8",
    "unpack_ue8m0_from_int",
]
