"""Triton kernels of the flags by which ranks on GPUs order what they write.

A flag is an epoch (`interface`, T2): how often its source has signalled on its slot. It is stored in the memory of the
rank that waits, and written by its source.

    D1  a signal is a release at system scope behind a barrier of the block: a rank that sees it sees all that the
        stream wrote before the kernel, and all that any thread of the block wrote before the barrier (Triton puts no
        barrier before a release by itself)
    D2  a wait reads with acquire at system scope, so that nothing is read ahead of it
    D3  a wait ends: after `limit` nanoseconds (looks, in the interpreter) it records slot and rank in the status word,
        which the host finds and raises, and sets `stopped`
    D4  what follows a wait that ran out does nothing: no signal is given, no wait takes time, and kernels that move
        rows read `stopped` first, so that nothing is computed from rows that have not arrived
    D5  counts of signals and waits live on the device: a captured graph continues to count when it is replayed
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

_INT64: tl.constexpr = tl.constexpr(tl.int64)
_SLOTS: tl.constexpr = tl.constexpr(32)  # interface.SLOTS


@triton.jit
def _flag(base, source, slot):
    return base.to(tl.pointer_type(_INT64)) + source * _SLOTS + slot


@triton.jit(do_not_specialize=["rank", "first", "slot", "epoch"])
def signal_kernel(
    flags, counts, inactive, stopped, rank, first, slot, epoch, RANKS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """Raise the flag of `rank`, this one, at rank `first + program_id(0)`: to the given epoch, or COUNTED, the next.

    flags (ranks,): addresses of every rank's flags. counts (slots, ranks) int64 on this device.
    """
    peer = (first + tl.program_id(0)) % RANKS
    if COUNTED:
        count = counts + slot * RANKS + peer
        epoch = tl.load(count) + 1
        tl.store(count, epoch)
    if (tl.load(inactive + peer) == 0) & (tl.load(stopped) == 0):
        flag = _flag(tl.load(flags + peer), rank, slot)
        tl.debug_barrier()
        tl.atomic_xchg(flag, tl.full((), epoch, tl.int64), sem="release", scope="sys")


@triton.jit(do_not_specialize=["rank", "first", "slot", "epoch", "limit"])
def wait_kernel(
    flags, counts, inactive, stopped, status, costs, rank, first, slot, epoch, limit,
    RANKS: tl.constexpr, COUNTED: tl.constexpr, LESS: tl.constexpr, DROP: tl.constexpr, COSTS: tl.constexpr,
    CLOCK: tl.constexpr,
):  # fmt: skip
    """Wait until rank `first + program_id(0)` has come to an epoch: the given one, or COUNTED, the next less LESS.

    DROP: a rank that does not come becomes inactive. COSTS: the time it took is added to costs (ranks,) int64.
    status: address of an int64 that the host reads, slot · ranks + peer + 1 of a wait that ran out.
    """
    peer = (first + tl.program_id(0)) % RANKS
    wanted = tl.full((), epoch, tl.int64)
    if COUNTED:
        count = counts + slot * RANKS + peer
        wanted = tl.load(count) + 1
        tl.store(count, wanted)
        wanted -= LESS
    if (tl.load(inactive + peer) == 0) & (tl.load(stopped) == 0):
        flag = _flag(tl.load(flags + rank), peer, slot)
        began = tl.full((), 0, tl.int64)
        if CLOCK:
            began = globaltimer()
        past = tl.full((), 0, tl.int64)
        seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        while (seen < wanted) & (past < limit):
            seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
            if CLOCK:
                past = globaltimer() - began
            else:
                past += 1
        if COSTS:
            tl.store(costs + peer, tl.load(costs + peer) + past)
        if seen < wanted:
            if DROP:
                tl.store(inactive + peer, 1)
            else:
                tl.store(status.to(tl.pointer_type(_INT64)), (slot * RANKS + peer + 1).to(tl.int64))
                tl.store(stopped, 1)


__all__ = ["signal_kernel", "wait_kernel"]
