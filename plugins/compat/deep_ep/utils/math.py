"""Casts, routing made for tests, and sums of bytes."""

from luciola.plugins.deepep.quantize import calc_diff, per_token_cast_back, per_token_cast_to_fp8
from luciola.plugins.deepep.testing import (
    align,
    ceil_div,
    count_bytes,
    create_grouped_scores,
    hash_tensor,
    hash_tensors,
    inplace_unique,
    safe_div,
)

__all__ = [
    "align",
    "calc_diff",
    "ceil_div",
    "count_bytes",
    "create_grouped_scores",
    "hash_tensor",
    "hash_tensors",
    "inplace_unique",
    "per_token_cast_back",
    "per_token_cast_to_fp8",
    "safe_div",
]
