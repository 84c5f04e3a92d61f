"""What the fast paths for Hopper have in common, in Gluon: two warpgroups that share an output of 64 x 512 numbers.

Shared memory that threads wrote is read by a multiplication only after `fence_async_shared` and a barrier of those
that wrote it: `meet` and `hand_over` have both. A barrier is signalled by one thread; the compiler lets the others come
there first.
"""

from typing import Final

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS: Final = 64  # query rows of a program: the rows of a warpgroup's instruction
ROWS_MIN: Final = 33  # with fewer, half of the instruction's rows would be padding, and memory is the limit
BLOCK: Final = 64  # tokens of a step
HALF: Final = 256  # columns of the output that a warpgroup has
WARPS: Final = 4  # of a warpgroup

_ROWS: gl.constexpr = gl.constexpr(ROWS)
_HALF: gl.constexpr = gl.constexpr(HALF)
INF: gl.constexpr = gl.constexpr(float("inf"))
LN2: gl.constexpr = gl.constexpr(0.6931471805599453)

SCORES: gl.constexpr = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16])
)
SUMS: gl.constexpr = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HALF, 16])
)
OF_SCORES: gl.constexpr = gl.constexpr(gl.SliceLayout(1, SCORES.value))
OF_SUMS: gl.constexpr = gl.constexpr(gl.SliceLayout(1, SUMS.value))
P_OPERAND: gl.constexpr = gl.constexpr(gl.DotOperandLayout(operand_index=0, parent=SUMS.value, k_width=2))
QUERY_HALF: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0]))
QUERY_ROPE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
NUMBERS: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
SHARED: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit
def wide(number):
    """As 64 bits: offsets into a cache may pass 2^31."""
    return gl.to_tensor(number).to(gl.int64)


@gluon.jit
def none(number):
    """0, of a number that is never negative. The compiler does not know, so what depends on it is computed where it is
    needed, instead of ahead of the loop, from where it would take registers that the loop does not have."""
    return gl.minimum(number, 0)


@gluon.jit
def part(table):
    """What the schedule gives this program: first sequence, last one, first block, end of the last one's, piece."""
    row = table + gl.program_id(2) * 8
    return gl.load(row), gl.load(row + 1), gl.load(row + 2), gl.load(row + 3), gl.load(row + 4)


@gluon.jit
def meet(barrier, meetings):
    """Both sides wait for each other; what was written to shared memory before is seen after."""
    fence_async_shared()
    mbarrier.arrive(barrier, count=1)
    mbarrier.wait(barrier, meetings & 1)


@gluon.jit
def nothing_seen():
    """Half of the output, maxima and sums of rows that have seen no token."""
    acc = gl.zeros((_ROWS, _HALF), gl.float32, SUMS)
    return acc, gl.full((_ROWS,), -INF, gl.float32, OF_SCORES), gl.zeros((_ROWS,), gl.float32, OF_SCORES)


@gluon.jit
def finite(m):
    """Maxima to subtract: -inf less -inf would be NaN."""
    return gl.where(m == -INF, 0.0, m)


@gluon.jit
def times(acc, factor):
    """A half of the output, each row times its factor."""
    return acc * gl.expand_dims(gl.convert_layout(factor, OF_SUMS), 1)


@gluon.jit
def hand_over(p, place, barrier):
    """Probabilities for the other side."""
    place.store(p.to(place.dtype))
    fence_async_shared()
    mbarrier.arrive(barrier, count=1)


@gluon.jit
def add_own(acc, p, half):
    """acc += P · V with P in registers."""
    operand = gl.convert_layout(p.to(half.dtype), P_OPERAND)
    acc = warpgroup_mma(operand, half, acc, is_async=True)
    return warpgroup_mma_wait(0, deps=(acc,))


@gluon.jit
def add_other(acc, p, half, signal, use):
    """acc += P · V with P from the other side."""
    mbarrier.wait(signal, use & 1)
    acc = warpgroup_mma(p, half, acc, is_async=True)
    return warpgroup_mma_wait(0, deps=(acc,))


__all__ = [
    "BLOCK", "HALF", "INF", "LN2", "NUMBERS", "OF_SCORES", "OF_SUMS", "P_OPERAND", "QUERY_HALF", "QUERY_ROPE",
    "ROWS", "ROWS_MIN", "SCORES", "SHARED", "SUMS", "WARPS", "add_other", "add_own", "finite", "hand_over", "meet",
    "none", "nothing_seen", "part", "times", "wide",
]  # fmt: skip
