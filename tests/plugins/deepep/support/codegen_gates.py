"""Every kernel that is launched on Hopper, compiled ahead of time (sm_90a), and what must hold of its machine code.

Kernels that move data do so in words of 8 or 16 bytes and spill at most a few numbers. Kernels that order it obey what
their documentation promises (`transport.kernel`):

    release    an exchange at system scope has before it a barrier of the block and then a memory barrier at system
               scope, and no store between barrier and exchange; no exchange has a narrower scope
    acquire    the loop that waits reads with a strong load at system scope and drops what the cache holds
    bounded    that loop reads the clock, and all its ways back are conditional
    no trap    nothing ends the process
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor

from luciola.plugins.deepep.low_latency.launch import KernelOps
from luciola.plugins.deepep.low_latency.layout import Layout, Received
from luciola.plugins.deepep.normal import launch as normal
from luciola.plugins.deepep.transport import kernel as flags
from luciola.plugins.deepep.transport.device import WARPS
from luciola.plugins.deepep.transport.interface import SLOTS, Transport
from luciola.plugins.kernels.aot import start
from machine_code import Case, MachineCode

_LINE: Final = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_RANKS: Final = 8
_SLOT: Final = 3
SPILLS_MAX: Final = 4  # an address that is kept across a loop


@dataclass(frozen=True)
class Instruction:
    """One line of machine code."""

    address: int
    text: str

    @property
    def name(self) -> str:
        return self.text.split()[1 if self.text.startswith("@") else 0].split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch leads."""
        found = re.search(r"\b0x([0-9a-f]+)$", self.text)
        return int(found[1], 16) if self.name == "BRA" and found else None

    @property
    def is_conditional(self) -> bool:
        return self.text.startswith("@") or re.search(r"\bBRA !?U?P\d", self.text) is not None


def instructions(code: MachineCode) -> list[Instruction]:
    """All instructions in their order."""
    return [Instruction(int(at, 16), " ".join(text.split())) for at, text in _LINE.findall(code.text)]


def release_failures(code: MachineCode) -> list[str]:
    """What is wrong with the exchanges that publish."""
    found, failures = instructions(code), []
    places = [
        index for index, each in enumerate(found) if each.name in {"ATOMG", "ATOM"} and "EXCH" in each.text
    ]
    if not places:
        failures.append("no exchange that publishes")
    for place in places:
        if ".STRONG.SYS" not in found[place].text:
            failures.append(f"an exchange of another scope than the system: {found[place].text}")
        before = found[:place]
        fence = _last(before, lambda each: each.name == "MEMBAR" and ".SYS" in each.text)
        if fence is None:
            failures.append("no memory barrier at system scope before the exchange")
            continue
        barrier = _last(before[:fence], lambda each: each.name == "BAR" and "SYNC" in each.text)
        if barrier is None:
            failures.append("no barrier of the block before the memory barrier")
        elif any(each.name in {"STG", "ST", "STS"} for each in found[barrier:place]):
            failures.append("a store between the barrier and the exchange")
    return failures


def wait_failures(code: MachineCode) -> list[str]:
    """What is wrong with the loops that wait."""
    found, failures = instructions(code), []
    loops = [
        body for body in _loops(found) if any(each.name in {"LDG", "LD", "ATOMG", "ATOM"} for each in body)
    ]
    if not loops:
        failures.append("no loop that waits")
    for body in loops:
        reads = [each.text for each in body if each.name in {"LDG", "LD", "ATOMG", "ATOM"}]
        if not all(".STRONG.SYS" in each for each in reads):
            failures.append(f"a wait that reads without system scope: {reads}")
        if not any(each.name == "CCTL" and "IVALL" in each.text for each in body):
            failures.append("a wait that keeps what the cache holds: not an acquire")
        if not any("SR_GLOBALTIMER" in each.text for each in body):
            failures.append("a wait without a clock: not bounded")
        if not body[-1].is_conditional:
            failures.append("a wait that nothing ends")
    return failures


def size_failures(code: MachineCode) -> list[str]:
    """More spills than a few, and shared memory or registers that do not fit."""
    few = code.spills <= SPILLS_MAX
    return [each for each in code.failures() if not (few and "spills" in each)]


def wide_failures(code: MachineCode) -> list[str]:
    """Rows that are not written in words of 8 or 16 bytes."""
    return [] if re.search(r"STG\.E\.(64|128)\b", code.text) else ["rows are written in words below 8 bytes"]


def narrow_failures(code: MachineCode) -> list[str]:
    """Rows that are read number by number."""
    return ["rows are read in words of 2 bytes"] if re.search(r"LDG\.E\.U16\b", code.text) else []


def trap_failures(code: MachineCode) -> list[str]:
    """Instructions that end the process."""
    return [f"a trap: {each.text}" for each in instructions(code) if each.name in {"BPT", "KILL"}]


DATA: Final = (size_failures, trap_failures, wide_failures)
"""Gates of kernels that move rows."""


def cases() -> Iterator[Case]:
    """Every kernel that is launched on Hopper."""
    ordered = (size_failures, trap_failures)
    yield Case("signal-next", "signal_kernel", signal, (release_failures, *ordered))
    yield Case("wait-next", "wait_kernel", _wait(counted=True), (wait_failures, *ordered))
    yield Case("wait-drop", "wait_kernel", _wait(counted=True, drop=True), (wait_failures, *ordered))
    yield Case("layout", "layout_kernel", _layout, ordered)
    yield Case(
        "reduce", "reduce_kernel", lambda: _reduce(named=False), (*ordered, wide_failures, narrow_failures)
    )
    yield Case("reduce-named", "reduce_kernel", lambda: _reduce(named=True), ordered)
    yield Case("publish", "publish_kernel", _publish, DATA)
    yield Case("heads", "heads_kernel", lambda: _kernels().heads(0, 2 + 11 * _RANKS), ordered)
    yield Case("place", "place_kernel", _place, ordered)
    yield Case("fetch", "fetch_kernel", _fetch, DATA)
    yield Case("slots", "slot_kernel", lambda: dispatch_send(fp8=False), ordered)
    yield Case("dispatch-send-bf16", "dispatch_send_kernel", lambda: dispatch_send(fp8=False), DATA)
    yield Case("dispatch-send-fp8", "dispatch_send_kernel", lambda: dispatch_send(fp8=True), DATA)
    yield Case("dispatch-receive-bf16", "dispatch_receive_kernel", lambda: dispatch_receive(fp8=False), DATA)
    yield Case("dispatch-receive-ue8m0", "dispatch_receive_kernel", lambda: dispatch_receive(fp8=True), DATA)
    yield Case("combine-send-bf16", "combine_send_kernel", lambda: combine_send(logfmt=False), DATA)
    yield Case("combine-send-logfmt", "combine_send_kernel", lambda: combine_send(logfmt=True), DATA)
    yield Case("combine-receive-bf16", "combine_receive_kernel", lambda: combine_receive(logfmt=False), DATA)
    yield Case("combine-receive-logfmt", "combine_receive_kernel", lambda: combine_receive(logfmt=True), DATA)


# The launches, with tensors that have no memory: the sizes of the original's tests.

_TOKENS: Final = 4096


def _layout() -> None:
    normal.layout(_meta(_TOKENS, 8, dtype=torch.int64), 256, _RANKS)


def _kernels() -> normal.RowKernels:
    return normal.RowKernels(cast("Transport", _Meta()), _long(_RANKS), 20)  # all that it needs


def _reduce(*, named: bool) -> None:
    rows, places = _meta(_TOKENS, 7168, dtype=torch.bfloat16), _int(_TOKENS, _RANKS)
    _kernels().reduce(rows, 1024, places, places if named else None, [rows, rows], _TOKENS)


def _publish() -> None:
    words = _meta(_TOKENS, 1792, dtype=torch.int64)  # 7168 of two bytes
    _kernels().publish(words, words, _int(1))


def _place() -> None:
    tables = (_int(_RANKS, 2 + 11 * _RANKS), _int(_RANKS))
    _kernels().place(_int(_RANKS * _TOKENS), *tables, 512, shape=1 << 30, problem=1 << 40)


def _fetch() -> None:
    rows = _RANKS * _TOKENS
    out = _meta(rows, 1792, dtype=torch.int64)
    _kernels().fetch(out, _int(rows), _int(_RANKS), 1024, tokens_max=rows)


LAYOUT: Final = Layout(max_tokens=128, hidden=7168, ranks=_RANKS, experts=288)
TOPK: Final = 8


class _Meta:
    """A transport of tensors that have no memory."""

    rank, size = 1, _RANKS

    @property
    def stopped(self) -> Tensor:
        return _int(1)


def signal(kernel: Any = flags.signal_kernel, *, counted: bool = True) -> None:
    """One signal to every peer."""
    start(
        kernel, (_RANKS - 1,), _long(_RANKS), _long(SLOTS, _RANKS), _int(_RANKS), _int(1), 1, 2, _SLOT, 1,
        RANKS=_RANKS, COUNTED=counted, num_warps=WARPS,
    )  # fmt: skip


def wait(kernel: Any = flags.wait_kernel, *, counted: bool = True, drop: bool = False) -> None:
    """One wait for every peer."""
    start(
        kernel, (_RANKS - 1,), _long(_RANKS), _long(SLOTS, _RANKS), _int(_RANKS), _int(1), 1 << 40, _long(_RANKS),
        1, 2, _SLOT, 1, 10**11,
        RANKS=_RANKS, COUNTED=counted, LESS=0, DROP=drop, COSTS=drop, CLOCK=True, num_warps=WARPS,
    )  # fmt: skip


def _wait(*, counted: bool, drop: bool = False) -> Callable[[], None]:
    return lambda: wait(counted=counted, drop=drop)


def dispatch_send(*, fp8: bool) -> None:
    """128 tokens of the original's test."""
    x = _meta(128, LAYOUT.hidden, dtype=torch.bfloat16)
    _ops().dispatch_send(0, x, _long(128, TOPK), fp8=fp8, round_scale=fp8)


def dispatch_receive(*, fp8: bool) -> None:
    """Into rows of BF16, or FP8 with packed exponents."""
    _ops().dispatch_receive(0, Received.empty(LAYOUT, "meta", fp8=fp8, use_ue8m0=fp8), _int(LAYOUT.local))


def combine_send(*, logfmt: bool) -> None:
    """Rows of every expert."""
    rows = Received.empty(LAYOUT, "meta", fp8=False)
    _ops().combine_send(0, rows.rows, ranges=rows.ranges, source_tokens=rows.source_tokens, logfmt=logfmt)


def combine_receive(*, logfmt: bool) -> None:
    """Sums of 128 tokens."""
    out, weights = (
        _meta(128, LAYOUT.hidden, dtype=torch.bfloat16),
        _meta(128, TOPK, dtype=torch.float32),
    )
    _ops().combine_receive(0, topk=_long(128, TOPK), weights=weights, out=out, logfmt=logfmt)


def _ops() -> KernelOps:
    return KernelOps(LAYOUT, 1, _long(_RANKS), _int(_RANKS), _int(1))


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _int(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int32)


def _long(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int64)


def _last(found: list[Instruction], wanted: Callable[[Instruction], bool]) -> int | None:
    return next((place for place in reversed(range(len(found))) if wanted(found[place])), None)


def _loops(found: list[Instruction]) -> Iterator[list[Instruction]]:
    """The bodies of loops: from where a branch leads back to, to the branch; not the one that ends every kernel."""
    for place, each in enumerate(found):
        target = each.target
        if target is not None and target < each.address:
            yield [other for other in found[: place + 1] if other.address >= target]
