"""Distances and sizes of tensors."""

from luciola.plugins.deepgemm.testing import (
    calc_diff,
    count_bytes,
)

__all__ = [
    "calc_diff",
    "count_bytes",
]
