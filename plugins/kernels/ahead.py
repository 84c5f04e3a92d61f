"""Kernels compiled ahead of time: the launch code itself runs, on meta tensors, and stops before the launch.

    with compiling() as kernels:
        fp8_gemm_nt((a, sfa), (b, sfb), d)          # all on device "meta"
    for kernel in kernels:
        print(machine_code(kernel).failures())

What is compiled is what a call with real tensors of these shapes, strides and dtypes would compile, under the same key
of Triton's cache, because nothing differs but the launch. A cache directory that was warmed on a machine without a GPU
serves machines with one.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from .layers import launcher, record

HOPPER: Final = GPUTarget("cuda", 90, 32)
SHARED_BYTES_MAX: Final = 232_448  # dynamic shared memory of one thread block on sm_90
REGISTER_FILE: Final = 65_536

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# No real device has this number, so kernels compiled here never mix with those that were loaded.
_DEVICE: Final = -1

_INSTRUCTION: Final = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", re.MULTILINE)
_SPILLS: Final = frozenset(("LDL", "STL"))
_MATRIX: Final = frozenset(("HGMMA", "QGMMA", "HMMA", "QMMA", "IGMMA"))

_compiled: ContextVar[list[Any] | None] = ContextVar("luciola_compiled", default=None)


class _TargetDriver:
    """Stands where Triton asks the GPU's driver what it compiles for."""

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
    """Calls of operators inside compile their kernels and launch none; the list holds what was compiled.

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
    """Launches a kernel; inside `compiling`, only compiles it; inside `launching_with`, hands it over.

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
    """Whether calls compile instead of launching."""
    return _compiled.get() is not None


@dataclass(frozen=True)
class MachineCode:
    """What the assembler made of a kernel, and how it should look."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    instructions: Counter[str] = field(repr=False)
    text: str = field(repr=False)

    @property
    def spills(self) -> int:
        """Loads from and stores to local memory."""
        return self.instructions["LDL"] + self.instructions["STL"]

    @property
    def spills_between(self) -> int:
        """Those from the first to the last matrix instruction of each part of the code: of all, if there is none.

        A part is what lies between two changes of the number of registers: a kernel without them has one, in one with
        specialised warps each group of warps has its own.
        """
        parts: list[list[str]] = [[]]
        for each in _INSTRUCTION.findall(self.text):
            if each == "USETMAXREG":
                parts.append([])
            parts[-1].append(each)
        places = [[place for place, each in enumerate(part) if each in _MATRIX] for part in parts]
        if not any(places):
            return self.spills
        return sum(
            each in _SPILLS
            for part, found in zip(parts, places, strict=True)
            if found
            for each in part[found[0] : found[-1]]
        )

    @property
    def serialised(self) -> bool:
        """Whether each matrix instruction of a warpgroup waits for the one before: the assembler makes it so, and says
        nothing, where it cannot keep accumulators in their registers while they are in flight."""
        count = self.instructions["HGMMA"] + self.instructions["QGMMA"]
        return count > 1 and self.text.count("WARPGROUP.ARRIVE") >= count

    def failures(self, *, wanted: Sequence[str] = (), serialised: bool = False) -> list[str]:
        """The gates that do not hold: no spills, matrix instructions in groups, shared memory and registers fit, the
        wanted instructions are there.

        `serialised`: these may wait for one another. An entry of `wanted` is an instruction's name ("HGMMA"), or the
        beginning of one ("QGMMA.64x128x32").
        """
        checks = [
            (self.spills == 0, f"{self.spills} spills (LDL, STL)"),
            (serialised or not self.serialised, "matrix instructions wait for one another"),
            (self.shared_bytes <= SHARED_BYTES_MAX, f"{self.shared_bytes} bytes of shared memory"),
            (
                self.registers * self.threads <= REGISTER_FILE,
                f"{self.registers} registers of {self.threads} threads",
            ),
            *((each in self.text, f"no {each}") for each in wanted),
        ]
        return [message for holds, message in checks if not holds]


def machine_code(compiled: Any) -> MachineCode:
    """Disassembles a compiled kernel with the tools that come with Triton."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        text = _tool("--dump-resource-usage", "-sass", path)
    return MachineCode(
        compiled.metadata.name,
        registers=_number(r"REG:(\d+)", text),
        stack_bytes=_number(r"STACK:(\d+)", text),
        shared_bytes=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * 32,
        instructions=Counter(_INSTRUCTION.findall(text)),
        text=text,
    )


def _tool(*arguments: str | Path) -> str:
    done = subprocess.run([_TOOLS / "cuobjdump", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, "cuobjdump tells registers and stack of every kernel"
    return int(found[1])


__all__ = [
    "HOPPER",
    "REGISTER_FILE",
    "SHARED_BYTES_MAX",
    "MachineCode",
    "compiling",
    "is_compiling",
    "machine_code",
    "start",
]
