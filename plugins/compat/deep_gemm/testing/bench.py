"""Times of functions and kernels; on a machine without a GPU, of its CPU."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch

from luciola.plugins.kernels.errors import BadCall, BadType

FLUSH_BYTES: Final = 256 << 20  # more than any second-level cache holds
BARRIER_CYCLES: Final = 20_000_000  # about 10 ms, in which all ranks come to their barrier
PROFILED_BY_OTHERS: Final = "DG_USE_NVIDIA_TOOLS"  # the original's variable: another profiler is at work

_cuda: Any = torch.cuda  # parts of it have no types


def bench(
    fn: Callable[[], object],
    num_warmups: int = 5,
    num_tests: int = 10,
    high_precision: bool = False,  # noqa: FBT001, FBT002 (the original's)
) -> float:
    """Seconds of a call, on average. `high_precision`: the device is kept busy first, so that launches do not count."""
    for _ in range(num_warmups):
        fn()
    if not torch.cuda.is_available():
        began = time.perf_counter()
        for _ in range(num_tests):
            fn()
        return (time.perf_counter() - began) / num_tests
    _flush()
    if high_precision:
        large = torch.randn((8192, 8192), device="cuda")
        torch.matmul(large, large)
    begin, end = (_cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_tests):
        fn()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / num_tests / 1e3


def bench_kineto(  # noqa: PLR0913 (the original's)
    fn: Callable[[], object],
    kernel_names: str | tuple[str, ...],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,  # noqa: FBT001, FBT002
    trace_path: str | None = None,
    flush_l2: bool = True,  # noqa: FBT001, FBT002
    with_multiple_kernels: bool = False,  # noqa: FBT001, FBT002
    barrier: Callable[[], object] | None = None,
) -> float | tuple[float, ...]:
    """Seconds of the kernels whose names contain `kernel_names`, on average, by torch's profiler; 0 for none.

    A tuple of names gives a tuple of times. Without a CUDA device the names are those of operators on the CPU
    ("aten::mm"). `with_multiple_kernels`: several kernels may fit a name, and the time is their sum in one call.
    `suppress_kineto_output`: what the profiler prints is dropped. `trace_path`: a Chrome trace is written there.
    Raises: BadCall if several kernels fit a name and may not.
    """
    names = (kernel_names,) if isinstance(kernel_names, str) else kernel_names
    if not isinstance(names, tuple):
        raise BadType(
            f"kernel_names is a {type(kernel_names).__name__}; it must be a string or a tuple of strings"
        )
    if int(os.environ.get(PROFILED_BY_OTHERS, "0")):
        found = [1.0] * len(names)
    else:
        with _silence() if suppress_kineto_output else nullcontext():
            rows = _profiled(fn, num_tests, trace_path, flush=flush_l2, barrier=barrier)
        found = [_seconds(rows, name, num_tests, several=with_multiple_kernels) for name in names]
    return found[0] if isinstance(kernel_names, str) else tuple(found)


def _flush() -> None:
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()


def _profiled(
    fn: Callable[[], object],
    num_tests: int,
    trace_path: str | None,
    *,
    flush: bool,
    barrier: Callable[[], object] | None,
) -> list[Any]:
    on_gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    fn()
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(num_tests):
            if on_gpu and flush:
                _flush()
            if barrier is not None:
                if on_gpu:
                    _cuda._sleep(BARRIER_CYCLES)  # noqa: SLF001 (no other way to keep a device busy)
                barrier()
            fn()
        if on_gpu:
            torch.cuda.synchronize()
    if trace_path is not None:
        profiler.export_chrome_trace(trace_path)
    return list(profiler.key_averages())


def _seconds(rows: list[Any], name: str, num_tests: int, *, several: bool) -> float:
    fitting = [each for each in rows if name in each.key]
    if len(fitting) > 1 and not several:
        raise BadCall(
            f"{len(fitting)} kernels fit {name!r} ({', '.join(each.key for each in fitting)}): "
            "name one of them, or pass with_multiple_kernels=True"
        )
    on_gpu = torch.cuda.is_available()
    total = sum(each.device_time_total if on_gpu else each.cpu_time_total for each in fitting) / 1e6
    count = num_tests if several else sum(each.count for each in fitting)
    return total / count if fitting else 0.0


@contextmanager
def _silence() -> Iterator[None]:
    """Standard output and error of the whole process, C++ included, go nowhere."""
    saved = [os.dup(each) for each in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for each in (1, 2):
            os.dup2(nowhere, each)
        yield
    finally:
        for each, before in zip((1, 2), saved, strict=True):
            os.dup2(before, each)
        for each in (nowhere, *saved):
            os.close(each)


__all__ = ["bench", "bench_kineto"]
