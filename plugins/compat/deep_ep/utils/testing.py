"""Times of functions and kernels."""

import time
from collections.abc import Callable
from typing import Any

import torch

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
    fn: Callable[[], object], kernel_names: str | tuple[str, ...], num_tests: int = 30, **_unused: object
) -> float | tuple[float, ...]:
    """Seconds that a GPU spends in a call's kernels whose names contain each of `kernel_names`."""
    if not torch.cuda.is_available():
        raise BadCall("bench_kineto measures kernels of a GPU, and there is none: use bench")
    names = (kernel_names,) if isinstance(kernel_names, str) else kernel_names
    fn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_tests):
            fn()
        _wait()
    events: list[Any] = list(profile.key_averages())
    sums = [sum(each.self_device_time_total for each in events if name in each.key) for name in names]
    seconds = tuple(each / num_tests / 1e6 for each in sums)
    return seconds[0] if isinstance(kernel_names, str) else seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


__all__ = ["bench", "bench_kineto"]
