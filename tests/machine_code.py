"""Kernels compiled ahead of time for Hopper (sm_90a), without a GPU, and gates on their machine code.

A `Case` is a call with tensors that have no memory, so that what is compiled is what such a call would launch. A
program that lists cases prints what their gates find (`reports`); a test runs it in a process of its own
(`run_program`), because kernels are interpreted in the tests' process.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import triton
from triton.runtime.cache import get_cache_manager

from luciola.plugins.kernels.aot import compiling
from luciola.plugins.kernels.layers import using_layer

SHARED_BYTES_MAX: Final = 232_448  # dynamic shared memory of one thread block on sm_90
REGISTER_FILE: Final = 65_536

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_INSTRUCTION: Final = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", re.MULTILINE)
_SPILLS: Final = frozenset(("LDL", "STL"))
_MATRIX: Final = frozenset(("HGMMA", "QGMMA", "HMMA", "QMMA", "IGMMA"))


@dataclass(frozen=True)
class MachineCode:
    """What the assembler made of a kernel, and how it should look."""

    name: str
    registers: int
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

        A part is the code between two changes of the number of registers: a kernel without them has one, in one with
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
    """What a compiled kernel is made of."""
    text = _disassembled(compiled.asm["cubin"])
    return MachineCode(
        compiled.metadata.name,
        registers=_number(r"REG:(\d+)", text),
        shared_bytes=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * 32,
        instructions=Counter(_INSTRUCTION.findall(text)),
        text=text,
    )


Gate = Callable[[MachineCode], list[str]]
"""Says what is wrong; nothing if it holds."""


@dataclass(frozen=True)
class Case:
    """A call, which of its kernels is looked at, and the gates of its machine code."""

    name: str
    kernel: str
    call: Callable[[], object]
    gates: tuple[Gate, ...] = ()
    layer: str = "triton"

    def compile(self) -> MachineCode:
        """Compile, and read the machine code. Takes seconds; Triton's cache remembers the result."""
        with compiling() as kernels, using_layer(self.layer):
            self.call()
        return machine_code(next(each for each in kernels if each.metadata.name == self.kernel))

    def failures(self, code: MachineCode | None = None) -> list[str]:
        """What the gates find."""
        found = self.compile() if code is None else code
        return [message for gate in self.gates for message in gate(found)]


def reports(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What each case's gates find, and whether it uses matrix instructions of warpgroups."""
    found = []
    for each in cases:
        code = each.compile()
        warpgroup = code.instructions["HGMMA"] > 0
        found.append({"name": each.name, "failures": each.failures(code), "warpgroup": warpgroup})
    return found


def run_program(python: str, *arguments: str | Path, given: str = "") -> Any:
    """What a program prints as JSON; it finds the modules that the tests find. `python` runs it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [python, *arguments],
        env=environment, input=given, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _disassembled(cubin: bytes) -> str:
    """Of the tools that come with Triton. Its cache keeps the text beside the kernels: the tools take a third of a
    second of a processor for each.
    """
    key = hashlib.sha256(triton.__version__.encode() + cubin).hexdigest()
    cache = get_cache_manager(key)
    known = cache.get_file("kernel.sass")
    if known is not None:
        return Path(known).read_text()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_TOOLS / "cuobjdump", "--dump-resource-usage", "-sass", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cache.put(text, "kernel.sass", binary=False)
    return text


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, "cuobjdump shows the registers of every kernel"
    return int(found[1])
