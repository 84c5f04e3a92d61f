"""Kernels compiled ahead of time: the launch code itself runs, on meta tensors, and stops before the launch.

    with compiling() as kernels:
        fp8_gemm_nt((a, sfa), (b, sfb), d)          # all on device "meta"
    kernels[0].asm["cubin"]                         # what the assembler made of it

What is compiled is what a call with real tensors of these shapes, strides and dtypes would compile, under the same key
of Triton's cache, because nothing differs but the launch. A cache directory that was warmed on a machine without a GPU
serves machines with one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from .layers import launcher, record

HOPPER: Final = GPUTarget("cuda", 90, 32)
# No real device has this number, so kernels compiled here never mix with those that were loaded.
_DEVICE: Final = -1

_compiled: ContextVar[list[Any] | None] = ContextVar("luciola_compiled", default=None)


class _TargetDriver:
    """What Triton asks, instead of the GPU's driver, what it compiles for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return _DEVICE

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def compiling(target: GPUTarget = HOPPER) -> Iterator[list[Any]]:
    """Let calls of operators compile their kernels and launch none; the list holds what was compiled.

    Raises: RuntimeError in a process that interprets kernels (TRITON_INTERPRET=1).
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET=1: unset it and start again")
    before = driver._active  # noqa: SLF001 (`driver.active` would look for a GPU)
    driver.set_active(_TargetDriver(target))
    kernels: list[Any] = []
    token = _compiled.set(kernels)
    try:
        yield kernels
    finally:
        _compiled.reset(token)
        driver._active = before  # noqa: SLF001


def start(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel; inside `compiling`, only compile it; inside `launching_with`, hand it over.

    Multiplications and additions are fused, whatever this release of Triton does by itself.
    """
    kernels = _compiled.get()
    constants.setdefault("enable_fp_fusion", True)
    other = launcher()
    if kernels is not None and other is None:
        kernels.append(kernel.run(*arguments, grid=tuple(grid), warmup=True, **constants))
        return
    if other is not None:
        other(kernel, tuple(grid), *arguments, **constants)
    else:
        kernel[tuple(grid)](*arguments, **constants)
    record(kernel, tuple(grid), constants)


def is_compiling() -> bool:
    """Return whether calls compile instead of launching."""
    return _compiled.get() is not None


__all__ = ["HOPPER", "compiling", "is_compiling", "start"]
