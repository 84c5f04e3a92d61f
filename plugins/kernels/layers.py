"""Which layer runs a call, for the whole process.

    reference   torch: the specification, on any device
    triton      Triton kernels, on any CUDA device; in Triton's interpreter with TRITON_INTERPRET=1
    hopper      Gluon kernels for sm_90a where an operator has one that takes the call, else its Triton kernel

By default a call runs in the fastest layer that its tensors allow:

    CUDA tensors on sm_90                         hopper, if its kernels passed their gates with this release of Triton
    other CUDA tensors                            triton
    meta tensors (kernels compiled ahead)         as on sm_90
    CPU tensors, TRITON_INTERPRET=1               triton
    other CPU tensors                             reference

`set_layer`, or LUCIOLA_KERNELS in the environment, sets a highest layer for the process: all of its threads see it,
autograd's too. A call whose tensors cannot run there takes the layer below. `using_layer` is for tests and benchmarks:
it demands a layer, and a call that cannot run there raises. `recording` lists the kernels that were launched.

Invariant: the choice depends on the device and on these settings, never on values, so it is the same in a CUDA graph.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

import torch

from .errors import BadArgument

LAYERS: Final = ("reference", "triton", "hopper")
VARIABLE: Final = "LUCIOLA_KERNELS"
# Releases of Triton whose machine code of the Gluon kernels passed the gates in tests.
GATED: Final = ("3.6", "3.9")
HOPPER: Final = (9, 0)
MULTIPROCESSORS: Final = 132  # of an H100 or H200 SXM

Launcher = Callable[..., None]


@dataclass(frozen=True)
class Launch:
    """A kernel that was started: the name of its function, its grid and its compile-time constants."""

    kernel: str
    grid: tuple[int, ...]
    constants: dict[str, Any]


class _Process:
    """What this process has chosen. A lock guards the list of recorders; the others are single values."""

    highest: str | None = None  # of `set_layer`
    demanded: str | None = None  # of `using_layer`
    launcher: Launcher | None = None
    recorders: tuple[list[Launch], ...] = ()
    lock = threading.Lock()


def set_layer(name: str | None) -> None:
    """Set the highest layer for calls of this process; None goes back to LUCIOLA_KERNELS, else to the default.

    Raises: BadArgument (ValueError) for a name that is not in LAYERS.
    """
    _Process.highest = None if name is None else _checked(name)


def layer() -> str | None:
    """Return what `set_layer` or LUCIOLA_KERNELS has set, or None: the fastest layer that tensors allow.

    Raises: BadArgument if the variable names no layer.
    """
    if _Process.highest is not None:
        return _Process.highest
    named = os.environ.get(VARIABLE, "")
    return _checked(named, VARIABLE) if named else None


def layer_for(tensor: torch.Tensor) -> str:
    """Return the layer that a call with this tensor runs in.

    Raises: RuntimeError if `using_layer` demands one that cannot run with this tensor in this process.
    """
    best = _best(tensor)
    demanded = _Process.demanded
    if demanded is None:
        highest = layer()
        if highest == "hopper" and _is_hopper(tensor):  # asked for by name: ungated releases of Triton too
            return highest
        return best if highest is None else LAYERS[min(LAYERS.index(best), LAYERS.index(highest))]
    if demanded == "reference":
        return demanded
    if best == "reference":
        raise RuntimeError(
            f"the Triton kernels cannot run on {tensor.device}: move the tensors to a CUDA device, "
            "or start the process with TRITON_INTERPRET=1"
        )
    if demanded == "hopper" and not _is_hopper(tensor):
        where = (
            f"{tensor.device} is no sm_90 device"
            if tensor.device.type == "cuda"
            else "the interpreter (TRITON_INTERPRET=1) does not run the fast path for Hopper"
        )
        raise RuntimeError(f"{where}: use the layer triton")
    return demanded


def uses_kernels(tensor: torch.Tensor) -> bool:
    """Return whether a call with this tensor runs in kernels, Triton's or Gluon's, rather than in the reference."""
    return layer_for(tensor) != "reference"


@contextmanager
def using_layer(name: str) -> Iterator[None]:
    """Let calls of this process run in that layer or raise; for tests and benchmarks.

    Raises: BadArgument (ValueError) for a name that is not in LAYERS.
    """
    before, _Process.demanded = _Process.demanded, _checked(name)
    try:
        yield
    finally:
        _Process.demanded = before


@contextmanager
def launching_with(launcher: Launcher) -> Iterator[None]:
    """Let calls of this process hand their kernels to `launcher(kernel, grid, *arguments, **constants)`, for a
    simulator. It decides what runs them, so that the fast path can be taken with tensors on the CPU too.
    """
    before, _Process.launcher = _Process.launcher, launcher
    try:
        yield
    finally:
        _Process.launcher = before


def launcher() -> Launcher | None:
    """Return what `launching_with` has set."""
    return _Process.launcher


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """List the kernels that this process starts meanwhile, from all of its threads, in order.

    with recording() as launches:
        fp8_gemm_nt((a, sfa), (b, sfb), d)
    assert [each.kernel for each in launches] == ["specialised_gemm_kernel"]

    A kernel that is only compiled is not in the list; one that a CUDA graph replays is there once, when captured.
    """
    found: list[Launch] = []
    with _Process.lock:
        _Process.recorders += (found,)
    try:
        yield found
    finally:
        with _Process.lock:
            _Process.recorders = tuple(each for each in _Process.recorders if each is not found)


def record(kernel: Any, grid: tuple[int, ...], constants: dict[str, Any]) -> None:
    """Put a launch into the lists of `recording`."""
    if _Process.recorders:
        launched = Launch(kernel.fn.__name__, grid, dict(constants))
        with _Process.lock:
            for each in _Process.recorders:
                each.append(launched)


def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a CUDA device, else an H100's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return MULTIPROCESSORS


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Direct launches inside to the device of this tensor."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def is_interpreting() -> bool:
    """Return whether Triton kernels run in the interpreter: Triton reads TRITON_INTERPRET once a process."""
    runtime = _triton_runtime()
    return runtime is not None and bool(runtime.interpret)


def is_gated() -> bool:
    """Return whether the Gluon kernels passed their gates with the installed release of Triton."""
    return ".".join(triton_release().split(".")[:2]) in GATED


def state() -> str:
    """Describe this machine in one line, for `luciola plugins`."""
    if not triton_release():
        return "no Triton: reference operators on the CPU"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"Triton kernels on {torch.cuda.get_device_name()} (sm_{major}{minor})"
    if is_interpreting():
        return "no CUDA device: Triton kernels in the interpreter"
    return "no CUDA device: reference operators on the CPU"


def _checked(name: str, what: str = "layer") -> str:
    if name not in LAYERS:
        raise BadArgument(f"{what}: there is no layer {name!r}; choose one of {', '.join(LAYERS)}")
    return name


def _best(tensor: torch.Tensor) -> str:
    """The fastest layer that can run with this tensor."""
    if _Process.launcher is not None or tensor.device.type in {"cuda", "meta"}:
        return "hopper" if is_gated() and _is_hopper(tensor) else "triton"
    return "triton" if is_interpreting() else "reference"


def _is_hopper(tensor: torch.Tensor) -> bool:
    """Whether Gluon kernels for sm_90a can run with this tensor."""
    if _Process.launcher is not None:
        return True
    if is_interpreting():
        return False
    return tensor.device.type == "meta" or (
        tensor.device.type == "cuda" and _capability(tensor.device.index) == HOPPER
    )


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def triton_release() -> str:
    """Return the installed release of Triton, "" without one."""
    if find_spec("triton") is None:
        return ""
    try:
        return version("triton")
    except PackageNotFoundError:  # torch's nightly releases bring it in a distribution of another name
        import triton

        return str(triton.__version__)


@cache
def _triton_runtime() -> Any:
    """Triton's settings of this process, or None without Triton."""
    if not triton_release():
        return None
    from triton import knobs

    return knobs.runtime


__all__ = [
    "GATED", "LAYERS", "MULTIPROCESSORS", "VARIABLE", "Launch", "Launcher", "is_gated", "is_interpreting", "launcher",
    "launching_with", "layer", "layer_for", "multiprocessors", "on_device", "record", "recording", "set_layer", "state",
    "triton_release", "uses_kernels", "using_layer",
]  # fmt: skip
