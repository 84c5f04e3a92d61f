"""Which layer runs a call: "triton" or "reference", or "hopper" where it is asked for.

tensors on a CUDA device                          triton
meta tensors while kernels are compiled ahead     triton
CPU tensors, TRITON_INTERPRET=1                   triton, in its interpreter
other CPU tensors                                 reference
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import torch

LAYERS: Final = ("reference", "triton", "hopper")
MULTIPROCESSORS: Final = 132  # of an H100 or H200 SXM

Launcher = Callable[..., None]

_forced: ContextVar[str | None] = ContextVar("luciola_kernel_layer", default=None)
_launcher: ContextVar[Launcher | None] = ContextVar("luciola_kernel_launcher", default=None)


def layer_for(tensor: torch.Tensor) -> str:
    """The layer that a call with this tensor runs in.

    Raises: RuntimeError if `using_layer` asks for one that cannot run with this tensor in this process.
    """
    simulated = _launcher.get() is not None
    runnable = tensor.device.type in {"cuda", "meta"} or is_interpreting() or simulated
    forced = _forced.get()
    if forced in {"triton", "hopper"} and not runnable:
        raise RuntimeError(
            f"the Triton kernels cannot run on {tensor.device}: move the tensors to a CUDA device, "
            "or start the process with TRITON_INTERPRET=1"
        )
    if forced == "hopper" and is_interpreting() and not simulated:
        raise RuntimeError("the interpreter (TRITON_INTERPRET=1) does not run the fast path for Hopper")
    return forced or ("triton" if runnable else "reference")


@contextmanager
def using_layer(name: str) -> Iterator[None]:
    """Calls inside run in that layer."""
    if name not in LAYERS:
        raise ValueError(f"there is no layer {name!r}; choose one of {', '.join(LAYERS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def launching_with(launcher: Launcher) -> Iterator[None]:
    """Calls inside hand their kernels to `launcher(kernel, grid, *arguments, **constants)`, as a simulator takes them.

    It decides what runs them, so that the fast path can be taken with tensors on the CPU too.
    """
    token = _launcher.set(launcher)
    try:
        yield
    finally:
        _launcher.reset(token)


def launcher() -> Launcher | None:
    """What `launching_with` has set."""
    return _launcher.get()


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device, else an H100's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return MULTIPROCESSORS


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Launches inside go to the device of this tensor."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def is_interpreting() -> bool:
    """Whether Triton kernels of this process run in the interpreter: Triton reads TRITON_INTERPRET once for each."""
    runtime = _triton_runtime()
    return runtime is not None and bool(runtime.interpret)


def state() -> str:
    """One line about this machine, for `luciola plugins`."""
    if not _has_triton():
        return "no Triton: reference operators on the CPU"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"Triton kernels on {torch.cuda.get_device_name()} (sm_{major}{minor})"
    if is_interpreting():
        return "no CUDA device: Triton kernels in the interpreter"
    return "no CUDA device: reference operators on the CPU"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _triton_runtime() -> Any:
    """Triton's settings of this process, or None without Triton."""
    if not _has_triton():
        return None
    from triton import knobs

    return knobs.runtime


__all__ = [
    "LAYERS",
    "MULTIPROCESSORS",
    "Launcher",
    "is_interpreting",
    "launcher",
    "launching_with",
    "layer_for",
    "multiprocessors",
    "on_device",
    "state",
    "using_layer",
]
