"""Times of functions and kernels."""

from luciola.plugins.deepgemm.testing import (
    bench,
    bench_kineto,
)

__all__ = [
    "bench",
    "bench_kineto",
]
