"""How warps of the fast path go through tiles, and through the slots of shared memory that their operands pass.

All warps walk the same tiles in the same order, each on its own account. MODE says how rows find their group, as in
`kernel`. A persistent program takes every PROGRAMS-th tile; tiles that follow one another share rows of A or of B.

    I1  slot s is filled for step i with i mod STAGES = s; its barrier's phase is the parity of i div STAGES
    I2  a slot is free when both warpgroups have released it, each after the multiplication that reads it has ended
"""

from typing import Final

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .call import CONTIGUOUS, MASKED, PSUM

GROUP_ROWS: Final = 128  # groups of a contiguous layout begin at multiples of it
CONSUMER_WARPS: Final = 4  # of each of two
BAND: Final = 8  # tiles of rows that are walked together
WAVE_ROWS: Final = 64  # of an instruction of the tensor core

_GROUP_ROWS: gl.constexpr = gl.constexpr(GROUP_ROWS)
_BAND: gl.constexpr = gl.constexpr(BAND)
_CONTIGUOUS: gl.constexpr = gl.constexpr(CONTIGUOUS)
_PSUM: gl.constexpr = gl.constexpr(PSUM)
_MASKED: gl.constexpr = gl.constexpr(MASKED)
_FAR: gl.constexpr = gl.constexpr(0x7FFFFFFF)

# Triton 3.6 has them under their older names.
tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_wait = tma.store_wait
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def slot_barriers(STAGES: gl.constexpr):
    """Barriers of STAGES slots: filled by one loader, free when two warpgroups have released them."""
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)
    return filled, free


@gluon.jit
def claim(filled, free, step, BYTES: gl.constexpr, STAGES: gl.constexpr):
    """Wait until the slot of a step is free. Returns it, and the barrier at which its BYTES have to arrive."""
    slot = step % STAGES
    mbarrier.wait(free.index(slot), (step // STAGES) & 1 ^ 1)
    barrier = filled.index(slot)
    mbarrier.expect(barrier, BYTES)
    return slot, barrier


@gluon.jit
def place_of(tile, tiles_m, tiles_n):
    """Row and column of a tile. Neighbours in time share rows of A or of B, so that both stay in the L2 cache."""
    width = _BAND * tiles_n
    first = tile // width * _BAND
    size = gl.minimum(tiles_m - first, _BAND)
    return first + tile % width % size, tile % width // size


@gluon.jit
def share_of(
    layout, number, m, tiles_n, dealt, MODE: gl.constexpr, TILE_M: gl.constexpr, PROGRAMS: gl.constexpr
):
    """Of a group's tiles, or of all: the end of their rows, how many, and the first that is this program's."""
    rows_end = m
    if MODE == _MASKED:
        rows_end = gl.minimum(gl.load(layout + number), m)
    tiles = gl.cdiv(rows_end, TILE_M) * tiles_n
    return rows_end, tiles, (gl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS


@gluon.jit
def group_of(
    layout, number, first, rows_end, groups, MODE: gl.constexpr, GROUPS: gl.constexpr, WARPS: gl.constexpr
):
    """The group of the tile that begins at row `first`, negative for none, and where its stored rows end."""
    group = number
    end = rows_end
    if MODE == _CONTIGUOUS:
        group = gl.load(layout + first)
    if MODE == _PSUM:
        # Every warp holds all ends, so that no sum crosses warps.
        spread: gl.constexpr = gl.SliceLayout(0, gl.BlockedLayout([1, 1], [1, 32], [WARPS, 1], [1, 0]))
        each = gl.arange(0, GROUPS, layout=spread)
        ends = gl.load(layout + each, mask=each < groups, other=_FAR)
        starts_after = (gl.minimum(ends, _FAR - _GROUP_ROWS) + _GROUP_ROWS - 1) // _GROUP_ROWS * _GROUP_ROWS
        group = gl.sum((starts_after <= first).to(gl.int32), 0)
        end = gl.minimum(gl.sum(gl.where((each == group) & (each < groups), ends, 0), 0), rows_end)
        group = gl.where(first < end, group, -1)
    return group, end


__all__ = [
    "BAND", "CONSUMER_WARPS", "GROUP_ROWS", "WAVE_ROWS", "claim", "group_of", "place_of", "share_of",
    "slot_barriers", "store_wait", "tma_load", "tma_store",
]  # fmt: skip
