"""A pair of blocks in the two fast paths whose sides take turns, in Gluon: `hopper` and `hopper_prefill`.

The left side computes the probabilities of the first block of a pair, the right side those of the second; each
multiplies its own from registers and the other's from shared memory. `hopper` has the picture and the invariants. What
differs between the paths, which tokens a block has and how it comes to shared memory, is theirs.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .warpgroups import BLOCK, OF_SCORES, ROWS, SCORES, add_other, add_own, finite, hand_over, meet, times

_ROWS: gl.constexpr = gl.constexpr(ROWS)
_BLOCK: gl.constexpr = gl.constexpr(BLOCK)
# Barriers by half block: first of a pair, left and right, and second.
K0_LEFT: gl.constexpr = gl.constexpr(0)
K0_RIGHT: gl.constexpr = gl.constexpr(1)
K1_LEFT: gl.constexpr = gl.constexpr(2)
K1_RIGHT: gl.constexpr = gl.constexpr(3)
# Barriers between the sides, and the places of the rows' maxima.
MAX0: gl.constexpr = gl.constexpr(0)
MAX1: gl.constexpr = gl.constexpr(1)
P0: gl.constexpr = gl.constexpr(2)
P1: gl.constexpr = gl.constexpr(3)


@gluon.jit
def arrived(filled, use, COPIED: gl.constexpr):
    """Waits for half a block; if threads copied it, makes it visible to this side's multiplications."""
    mbarrier.wait(filled, use & 1)
    if COPIED:
        fence_async_shared()


@gluon.jit
def logits(
    q_early, q_late, q_rope, early, late, rope, early_filled, late_filled, use,
    HAS_ROPE: gl.constexpr, COPIED: gl.constexpr,
):  # fmt: skip
    """Q · Kᵀ (64, 64), as the halves of K come in. K and Q: (64, 256) and, with RoPE, (64, 64)."""
    zeros = gl.zeros((_ROWS, _BLOCK), gl.float32, SCORES)
    arrived(early_filled, use, COPIED)
    s = warpgroup_mma(q_early, early.permute((1, 0)), zeros, use_acc=False, is_async=True)
    arrived(late_filled, use, COPIED)
    s = warpgroup_mma(q_late, late.permute((1, 0)), s, is_async=True)
    if HAS_ROPE:
        s = warpgroup_mma(q_rope, rope.permute((1, 0)), s, is_async=True)
    return warpgroup_mma_wait(0, deps=(s,))


@gluon.jit
def add_first(s, acc, m, l, left, numbers, free, signals):
    """Left: P0 of the logits, added with V0. Returns the output, P0, the maxima with this block, the sums."""
    m0 = gl.maximum(m, gl.max(s, 1))
    numbers.index(MAX0).store(m0)
    mbarrier.arrive(signals.index(MAX0), count=1)
    base = finite(m0)
    p = gl.exp2(s - gl.expand_dims(base, 1))
    shrink = gl.exp2(m - base)
    l = l * shrink + gl.sum(p, 1)
    acc = add_own(times(acc, shrink), p, left)
    mbarrier.arrive(free.index(K0_LEFT), count=1)
    return acc, p, m0, l


@gluon.jit
def maxima_of_second(numbers, signals, use):
    """Left: the rows' maxima with the second block, once the right side has them."""
    mbarrier.wait(signals.index(MAX1), use & 1)
    return numbers.index(MAX1).load(OF_SCORES)


@gluon.jit
def give_first(p, acc, m0, m, l, place, signals):
    """Left: P0 by the maxima `m` of both blocks, handed over. Returns the output and the sums by them."""
    shrink = gl.exp2(m0 - finite(m))
    hand_over(p * gl.expand_dims(shrink, 1), place, signals.index(P0))
    return times(acc, shrink), l * shrink


@gluon.jit
def take_second(acc, place, left, free, signals, use):
    """Left: adds P1 · V1."""
    acc = add_other(acc, place, left, signals.index(P1), use)
    mbarrier.arrive(free.index(K1_LEFT), count=1)
    return acc


@gluon.jit
def add_second(s, acc, m, l, right, place, numbers, free, signals, use):
    """Right: P1 of the logits, handed over and added with V1. Returns the output, both blocks' maxima, the sums."""
    m1 = gl.max(s, 1)
    mbarrier.wait(signals.index(MAX0), use & 1)
    m1 = gl.maximum(numbers.index(MAX0).load(OF_SCORES), m1)
    numbers.index(MAX1).store(m1)
    mbarrier.arrive(signals.index(MAX1), count=1)
    base = finite(m1)
    p = gl.exp2(s - gl.expand_dims(base, 1))
    hand_over(p, place, signals.index(P1))
    shrink = gl.exp2(m - base)
    l = l * shrink + gl.sum(p, 1)
    acc = add_own(times(acc, shrink), p, right)
    mbarrier.arrive(free.index(K1_RIGHT), count=1)
    return acc, m1, l


@gluon.jit
def take_first(acc, place, right, free, signals, use):
    """Right: adds P0 · V0."""
    acc = add_other(acc, place, right, signals.index(P0), use)
    mbarrier.arrive(free.index(K0_RIGHT), count=1)
    return acc


@gluon.jit
def exchange_sums(l, numbers, meeting, meetings, OWN: gl.constexpr):
    """The rows' sums of both sides. OWN: 2 for the left one, 3 for the right."""
    numbers.index(OWN).store(l)
    meet(meeting, meetings)
    return l + numbers.index(5 - OWN).load(OF_SCORES)


@gluon.jit
def pair_barriers(FILLERS: gl.constexpr, FIRST: gl.constexpr):
    """Of half blocks, filled and free, between the sides, and of their meetings.

    FILLERS arrive at a half that is filled, and FIRST more at the one that a block's side needs first.
    """
    filled = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    signals = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    meeting = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for each in gl.static_range(4):
        mbarrier.init(filled.index(each), count=FILLERS + (FIRST if each % 3 == 0 else 0))
        mbarrier.init(free.index(each), count=1)
        mbarrier.init(signals.index(each), count=1)
    mbarrier.init(meeting, count=2)
    return filled, free, signals, meeting


__all__ = [
    "K0_LEFT", "K0_RIGHT", "K1_LEFT", "K1_RIGHT", "MAX0", "add_first", "add_second", "exchange_sums", "give_first",
    "logits", "maxima_of_second", "pair_barriers", "take_first", "take_second",
]  # fmt: skip
