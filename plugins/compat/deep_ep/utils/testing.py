"""Times of functions and kernels."""

import time
from collections.abc import Callable, Sequence

import torch

from luciola.plugins.compat.deep_gemm.testing.bench import bench_kineto as kineto
from luciola.plugins.kernels.errors import BadCall


def bench(
    fn: Callable[[], object],
    num_warmups: int = 5,
    num_tests: int = 20,
    post_fn: Callable[[], object] | None = None,
) -> tuple[float, float, float]:
    """Seconds of a call: mean, least, most."""
    for _ in range(num_warmups):
        fn()
    times = []
    for _ in range(num_tests):
        _wait()
        began = time.perf_counter()
        fn()
        _wait()
        times.append(time.perf_counter() - began)
        if post_fn is not None:
            post_fn()
    return sum(times) / len(times), min(times), max(times)


def bench_kineto(
    fn: Callable[[], object], kernel_names: str | Sequence[str], num_tests: int = 30, **_unused: object
) -> float | tuple[float, ...]:
    """Seconds that a GPU spends in a call's kernels whose names contain each of `kernel_names`."""
    if not torch.cuda.is_available():
        raise BadCall("bench_kineto measures kernels of a GPU, and there is none: use bench")
    names = kernel_names if isinstance(kernel_names, str) else tuple(kernel_names)
    return kineto(fn, names, num_tests, flush_l2=False, with_multiple_kernels=True)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


__all__ = ["bench", "bench_kineto"]
