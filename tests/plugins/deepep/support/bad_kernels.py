"""Kernels with one mistake each, for the gates.

As a program: what the gates find in every kernel of the plugin, and in each of these, as JSON.
"""

import json

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

import codegen_gates
from luciola.plugins.kernels.aot import compiling, start
from machine_code import machine_code, reports


@triton.jit
def _flag(flags, channel, rank, RANKS: tl.constexpr):
    base = tl.load(flags + tl.program_id(0))
    return base.to(tl.pointer_type(tl.int64)) + channel * RANKS + rank


@triton.jit
def relaxed_signal(
    flags, sent, inactive, stopped, rank, first, channel, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr
):
    tl.debug_barrier()
    tl.atomic_xchg(_flag(flags, channel, rank, RANKS), tl.load(sent), sem="relaxed", scope="sys")


@triton.jit
def near_signal(
    flags, sent, inactive, stopped, rank, first, channel, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr
):
    tl.debug_barrier()
    tl.atomic_xchg(_flag(flags, channel, rank, RANKS), tl.load(sent), sem="release", scope="gpu")


@triton.jit
def late_payload_signal(
    flags, sent, inactive, stopped, rank, first, channel, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr
):
    """Every thread stores after the barrier: only one thread's store is ordered before the flag."""
    tl.debug_barrier()
    tl.store(sent + tl.arange(0, 128), tl.load(sent + 128 + tl.arange(0, 128)))
    flag = _flag(flags, channel, rank, RANKS).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ membar.sys; atom.exch.sys.b64 $0, [$1], 1; }",
        "=l,l",
        [flag],
        dtype=tl.int64,
        is_pure=False,
        pack=1,
    )


@triton.jit
def no_barrier_signal(
    flags, sent, inactive, stopped, rank, first, channel, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr
):
    tl.store(sent + tl.arange(0, 128), tl.load(sent + 128 + tl.arange(0, 128)))
    flag = _flag(flags, channel, rank, RANKS).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ membar.sys; atom.exch.sys.b64 $0, [$1], 1; }",
        "=l,l",
        [flag],
        dtype=tl.int64,
        is_pure=False,
        pack=1,
    )


@triton.jit
def silent_signal(
    flags, sent, inactive, stopped, rank, first, channel, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr
):
    tl.store(sent, 1)


@triton.jit
def relaxed_wait(
    flags, waited, inactive, stopped, status, costs, rank, first, channel, epoch, limit,
    RANKS: tl.constexpr, COUNTED: tl.constexpr, LESS: tl.constexpr, DROP: tl.constexpr, COSTS: tl.constexpr,
    CLOCK: tl.constexpr,
):  # fmt: skip
    flag = _flag(flags, channel, rank, RANKS)
    wanted = tl.load(waited)
    began = globaltimer()
    seen = tl.atomic_add(flag, 0, sem="relaxed", scope="sys")
    while (seen < wanted) & (globaltimer() - began < limit):
        seen = tl.atomic_add(flag, 0, sem="relaxed", scope="sys")


@triton.jit
def near_wait(
    flags, waited, inactive, stopped, status, costs, rank, first, channel, epoch, limit,
    RANKS: tl.constexpr, COUNTED: tl.constexpr, LESS: tl.constexpr, DROP: tl.constexpr, COSTS: tl.constexpr,
    CLOCK: tl.constexpr,
):  # fmt: skip
    flag = _flag(flags, channel, rank, RANKS)
    wanted = tl.load(waited)
    began = globaltimer()
    seen = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    while (seen < wanted) & (globaltimer() - began < limit):
        seen = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")


@triton.jit
def endless_wait(
    flags, waited, inactive, stopped, status, costs, rank, first, channel, epoch, limit,
    RANKS: tl.constexpr, COUNTED: tl.constexpr, LESS: tl.constexpr, DROP: tl.constexpr, COSTS: tl.constexpr,
    CLOCK: tl.constexpr,
):  # fmt: skip
    flag = _flag(flags, channel, rank, RANKS)
    wanted = tl.load(waited)
    seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
    while seen < wanted:
        seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")


@triton.jit
def no_wait(
    flags, waited, inactive, stopped, status, costs, rank, first, channel, epoch, limit,
    RANKS: tl.constexpr, COUNTED: tl.constexpr, LESS: tl.constexpr, DROP: tl.constexpr, COSTS: tl.constexpr,
    CLOCK: tl.constexpr,
):  # fmt: skip
    tl.atomic_add(_flag(flags, channel, rank, RANKS), 0, sem="acquire", scope="sys")


@triton.jit
def trapping(x):
    tl.inline_asm_elementwise(
        "{ trap; mov.u64 $0, $1; }", "=l,l", [tl.load(x)], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def narrow(x):
    at = tl.arange(0, 1024)
    tl.store(x + 2 * at, tl.load(x + 2 * at + 1))


def code_of(call, *arguments, **options):
    with compiling() as kernels:
        call(*arguments, **options)
    return machine_code(kernels[-1])


def found_in_all() -> dict[str, list[str]]:
    """What its gate finds in each kernel, by name."""
    signals = (relaxed_signal, near_signal, late_payload_signal, no_barrier_signal, silent_signal)
    waits = (relaxed_wait, near_wait, endless_wait, no_wait)
    found = {
        each.__name__: codegen_gates.release_failures(code_of(codegen_gates.signal, each)) for each in signals
    }
    found |= {each.__name__: codegen_gates.wait_failures(code_of(codegen_gates.wait, each)) for each in waits}
    x = torch.empty(1 << 16, dtype=torch.int64, device="meta")
    found["trapping"] = codegen_gates.trap_failures(code_of(start, trapping, (1,), x, num_warps=1))
    found["narrow"] = codegen_gates.wide_failures(
        code_of(start, narrow, (1,), x.view(torch.int32), num_warps=4)
    )
    return found


if __name__ == "__main__":
    print(json.dumps([reports(codegen_gates.cases()), found_in_all()]))
