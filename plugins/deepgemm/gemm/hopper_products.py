"""The fast path for many rows on Hopper, in Gluon: FP8 and bfloat16 products, dense and grouped.

One warp loads, two warpgroups multiply a piece of each tile. The loader fills STAGES slots of shared memory by TMA, as
far ahead as there are free ones; each of the others waits for a slot, multiplies it and releases it. All
walk the same tiles in the same order: slot and phase need no messages.

    tile         piece of a warpgroup, and how it is multiplied
    128 x 128    64 rows
    128 x 256    bfloat16: 64 rows. FP8: 128 columns, 64 rows at a time
    256 x 128    FP8: 128 rows, 64 at a time

Bfloat16 is multiplied straight into the sum. FP8 goes, 128 columns of K at a time, into a fresh accumulator, which is
scaled and added to the sum while the tensor core is the other's: two sums of 64 x 128 and an accumulator are what the
registers of a warpgroup hold.

    I1, I2  of `tile_scheduler`
    I3  as in `kernel`: no row influences another; nothing is stored outside real rows and columns, but zeros in
        rows of group -1
    I4  results of bfloat16 leave by TMA through a staging place of each warpgroup, which is written again only when the
        stores from it have read it; a tile whose last rows are not to be written is stored number by number
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ...kernels.quantize import BLOCK
from .call import CONTIGUOUS, MASKED, NAME_PREFIXES, PSUM
from .tile_scheduler import (
    CONSUMER_WARPS,
    WAVE_ROWS,
    claim,
    group_of,
    place_of,
    share_of,
    slot_barriers,
    store_wait,
    tma_load,
    tma_store,
)

STORED_COLUMNS = 128  # of a staging place

_K: gl.constexpr = gl.constexpr(BLOCK)
_CONTIGUOUS: gl.constexpr = gl.constexpr(CONTIGUOUS)
_PSUM: gl.constexpr = gl.constexpr(PSUM)
_MASKED: gl.constexpr = gl.constexpr(MASKED)
_WARPS: gl.constexpr = gl.constexpr(CONSUMER_WARPS)
_ROWS: gl.constexpr = gl.constexpr(WAVE_ROWS)
_STORED: gl.constexpr = gl.constexpr(STORED_COLUMNS)
_READ: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [CONSUMER_WARPS, 1], [1, 0]))
_STORED_LAYOUT: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit
def load_tiles(
    a_tile, b_tile, slots, layout, sizes,
    MODE: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    TILE_M: gl.constexpr, TILE_N: gl.constexpr, STEP: gl.constexpr,
    A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr,
):  # fmt: skip
    """The loader: fills slots with the tiles' operands, STEP columns of K at a time."""
    PARTS: gl.constexpr = TILE_M // _ROWS
    BYTES: gl.constexpr = PARTS * a_tile.block_type.nbytes + b_tile.block_type.nbytes
    a_slots, b_slots, filled, free = slots
    m, n, k, groups = sizes
    tiles_n = gl.cdiv(n, TILE_N)
    step = 0
    dealt = 0
    for number in range(groups if MODE == _MASKED else 1):
        rows_end, tiles, first_tile = share_of(layout, number, m, tiles_n, dealt, MODE, TILE_M, PROGRAMS)
        dealt += tiles
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = place_of(tile, gl.cdiv(rows_end, TILE_M), tiles_n)
            first = tile_m * TILE_M
            group, _ = group_of(layout, number, first, rows_end, groups, MODE, GROUPS, 1)
            if group >= 0:
                a_row = first
                if MODE == _MASKED:
                    a_row += number * m
                column = tile_n * TILE_N
                for block in range(gl.cdiv(k, STEP)):
                    slot, barrier = claim(filled, free, step, BYTES, STAGES)
                    for part in gl.static_range(PARTS):
                        a_place = a_slots.index(slot * PARTS + part)
                        if A_TRANSPOSED:
                            tma_load(a_tile, [block * STEP, a_row + part * _ROWS], barrier, a_place)
                        else:
                            tma_load(a_tile, [a_row + part * _ROWS, block * STEP], barrier, a_place)
                    if B_TRANSPOSED:
                        tma_load(b_tile, [group * k + block * STEP, column], barrier, b_slots.index(slot))
                    else:
                        tma_load(b_tile, [group * n + column, block * STEP], barrier, b_slots.index(slot))
                    step += 1


@gluon.jit
def multiply_tiles(
    slots, staging, d, d_tile, scales, layout, sizes, strides,
    MODE: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    TILE_M: gl.constexpr, TILE_N: gl.constexpr, STEP: gl.constexpr, PIECE_M: gl.constexpr, PIECE_N: gl.constexpr,
    FP8: gl.constexpr, A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, B_ROW_SCALES: gl.constexpr,
    ACCUMULATE: gl.constexpr, BY_TMA: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """One of two warpgroups: multiplies and stores its piece, PIECE_M x PIECE_N, of every tile."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, PIECE_N, 32 if FP8 else 16])
    TWO: gl.constexpr = PIECE_M > _ROWS
    m, n, k, groups = sizes
    d_g, d_m, _, sfa_m, sfa_k, _, _, sfb_k = strides
    scale_steps = (sfa_m, sfa_k, sfb_k)
    tiles_n = gl.cdiv(n, TILE_N)
    step = 0
    dealt = 0
    for number in range(groups if MODE == _MASKED else 1):
        rows_end, tiles, first_tile = share_of(layout, number, m, tiles_n, dealt, MODE, TILE_M, PROGRAMS)
        dealt += tiles
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = place_of(tile, gl.cdiv(rows_end, TILE_M), tiles_n)
            first = tile_m * TILE_M
            group, end = group_of(layout, number, first, rows_end, groups, MODE, GROUPS, _WARPS)
            row = first + (HALF * PIECE_M if TILE_M > PIECE_M else 0)
            column = tile_n * TILE_N + (HALF * PIECE_N if TILE_N > PIECE_N else 0)
            rows = row + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
            columns = column + gl.arange(0, PIECE_N, layout=gl.SliceLayout(0, SUMS))
            corner = d
            if MODE == _MASKED:
                corner = d + gl.to_tensor(number).to(gl.int64) * d_g
            upper = _begin(corner, d_m, rows, columns, end, n, ACCUMULATE, PIECE_N, SUMS)
            lower = upper
            if TWO:
                lower = _begin(corner, d_m, rows + _ROWS, columns, end, n, ACCUMULATE, PIECE_N, SUMS)
            if group >= 0:
                if FP8:
                    scales_of = _scales_of(
                        scales, strides, group, rows, columns, column, n, MODE, B_ROW_SCALES
                    )
                    upper, lower, step = add_blocks(
                        upper, lower, slots, step, gl.cdiv(k, STEP), scales_of, scale_steps,
                        (rows, end, columns < n), STAGES, TILE_M, TILE_N, PIECE_M, PIECE_N, B_ROW_SCALES, HALF, SUMS,
                    )  # fmt: skip
                else:
                    upper, step = add_steps(
                        upper, slots, step, gl.cdiv(k, STEP), STAGES, A_TRANSPOSED, B_TRANSPOSED, HALF,
                    )  # fmt: skip
            stored_row = row
            if MODE == _MASKED:
                stored_row = row + number * m
            _finish(
                upper, staging, corner, d_m, d_tile, layout, rows, columns, (stored_row, column, row),
                m, n, end, MODE, BY_TMA, PIECE_N, HALF,
            )  # fmt: skip
            if TWO:
                _finish(
                    lower, staging, corner, d_m, d_tile, layout, rows + _ROWS, columns,
                    (stored_row + _ROWS, column, row + _ROWS), m, n, end, MODE, BY_TMA, PIECE_N, HALF,
                )  # fmt: skip
    if BY_TMA:
        store_wait(0)


@gluon.jit
def _scales_of(
    scales, strides, group, rows, columns, column, n, MODE: gl.constexpr, B_ROW_SCALES: gl.constexpr
):
    """Where the first scales of 64 rows are, and of the piece's B: it starts at a multiple of 128 columns, so B has one
    scale, or one for each of its rows."""
    sfa, sfb = scales
    _, _, sfa_g, sfa_m, _, sfb_g, sfb_n, _ = strides
    wide = gl.to_tensor(group).to(gl.int64)
    of_a = sfa + rows.to(gl.int64) * sfa_m
    if MODE == _MASKED:
        of_a = of_a + wide * sfa_g
    of_b = sfb + wide * sfb_g
    if B_ROW_SCALES:
        of_b = of_b + columns.to(gl.int64) * sfb_n
    else:
        of_b = of_b + gl.minimum(column // _K, gl.cdiv(n, _K) - 1) * sfb_n
    return of_a, of_b


@gluon.jit
def _places(d_m, rows, columns):
    return gl.expand_dims(rows.to(gl.int64), 1) * d_m + gl.expand_dims(columns, 0)


@gluon.jit
def _begin(
    d, d_m, rows, columns, end, n, ACCUMULATE: gl.constexpr, PIECE_N: gl.constexpr, SUMS: gl.constexpr
):
    """What 64 rows are added to."""
    if ACCUMULATE:
        mask = (gl.expand_dims(rows, 1) < end) & (gl.expand_dims(columns, 0) < n)
        total = gl.load(d + _places(d_m, rows, columns), mask=mask, other=0.0).to(gl.float32)
    else:
        total = gl.zeros((_ROWS, PIECE_N), gl.float32, SUMS)
    return total


@gluon.jit
def add_blocks(
    upper, lower, slots, step, blocks, scales, strides, masks,
    STAGES: gl.constexpr, TILE_M: gl.constexpr, TILE_N: gl.constexpr, PIECE_M: gl.constexpr, PIECE_N: gl.constexpr,
    B_ROW_SCALES: gl.constexpr, HALF: gl.constexpr, SUMS: gl.constexpr,
):  # fmt: skip
    """Adds `blocks` products of 128 columns of K, each of them scaled, to 64 rows of a piece, or to twice 64.

    Scales are loaded a block ahead, so that the tensor core does not wait for them.
    """
    WAVES: gl.constexpr = PIECE_M // _ROWS
    PARTS: gl.constexpr = TILE_M // _ROWS
    OWN: gl.constexpr = HALF * WAVES if TILE_M > PIECE_M else 0
    a_slots, b_slots, filled, free = slots
    sfa, sfb = scales
    sfa_m, sfa_k, sfb_k = strides
    rows, end, real_columns = masks
    zeros = gl.zeros((_ROWS, PIECE_N), gl.float32, SUMS)
    scale_a = gl.load(sfa, mask=(rows < end) & (blocks > 0), other=0.0)
    if B_ROW_SCALES:
        scale_b = gl.load(sfb, mask=real_columns & (blocks > 0), other=0.0)
    else:
        scale_b = gl.load(sfb)
    turns = blocks * WAVES
    # One place multiplies, for either wave: the assembler gives every place an accumulator of its own.
    for turn in range(turns):
        slot = step % STAGES
        wave = turn % WAVES
        mbarrier.wait(filled.index(slot), (step // STAGES) & 1)
        b = b_slots.index(slot)
        if TILE_N > PIECE_N:
            b = b.slice(HALF * PIECE_N, PIECE_N)
        part = warpgroup_mma(
            a_slots.index(slot * PARTS + OWN + wave), b.permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        ahead = gl.minimum(turn + 1, turns - 1)
        down = ahead % WAVES * _ROWS
        block = ahead // WAVES
        next_a = gl.load(sfa + (down * sfa_m + block * sfa_k), mask=rows + down < end, other=0.0)
        if B_ROW_SCALES:
            next_b = gl.load(sfb + block * sfb_k, mask=real_columns, other=0.0)
        else:
            next_b = gl.load(sfb + block * sfb_k)
        part = warpgroup_mma_wait(0, deps=(part,))
        if B_ROW_SCALES:
            factor = gl.expand_dims(scale_a, 1) * gl.expand_dims(scale_b, 0)
        else:
            factor = gl.expand_dims(scale_a * scale_b, 1)
        if wave < WAVES - 1:
            upper += part * factor
        else:
            mbarrier.arrive(free.index(slot), count=1)
            if WAVES > 1:
                lower += part * factor
            else:
                upper += part * factor
        scale_a = next_a
        scale_b = next_b
        step += wave if WAVES > 1 else 1
    return upper, lower, step


@gluon.jit
def add_steps(
    total, slots, step, steps,
    STAGES: gl.constexpr, A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Adds `steps` products of bfloat16 to the piece's 64 rows.

    A step's multiplication is begun while that of the step before may still run; then the slot of that one is free.
    """
    a_slots, b_slots, filled, free = slots
    for each in range(steps):
        slot = step % STAGES
        mbarrier.wait(filled.index(slot), (step // STAGES) & 1)
        a = a_slots.index(2 * slot + HALF)
        b = b_slots.index(slot)
        if A_TRANSPOSED:
            a = a.permute((1, 0))
        if not B_TRANSPOSED:
            b = b.permute((1, 0))
        total = warpgroup_mma(a, b, total, is_async=True)
        total = warpgroup_mma_wait(1, deps=(total,))
        mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1, pred=each > 0)
        step += 1
    total = warpgroup_mma_wait(0, deps=(total,))
    mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1, pred=steps > 0)
    return total, step


@gluon.jit
def _finish(
    total, staging, d, d_m, d_tile, layout, rows, columns, place, m, n, end,
    MODE: gl.constexpr, BY_TMA: gl.constexpr, PIECE_N: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Stores 64 rows of a piece."""
    if MODE == _CONTIGUOUS:
        of_rows = gl.load(layout + rows, mask=rows < m, other=-1)
        total = gl.where(gl.expand_dims(of_rows, 1) >= 0, total, 0.0)
    result = total.to(d.dtype.element_ty)
    if BY_TMA:
        # TMA keeps to the tensor's rows, not to those of a group.
        ENDS: gl.constexpr = MODE == _MASKED or MODE == _PSUM  # noqa: PLR1714 (Gluon knows no `in`)
        if PIECE_N > _STORED:
            left, right = gl.split(gl.permute(gl.reshape(result, (_ROWS, 2, _STORED)), (0, 2, 1)))
            _leave(left, staging.index(HALF), d, d_m, d_tile, place, n, end, ENDS)
            stored_row, column, row = place
            beside = (stored_row, column + _STORED, row)
            _leave(right, staging.index(HALF), d, d_m, d_tile, beside, n, end, ENDS)
        else:
            _leave(result, staging.index(HALF), d, d_m, d_tile, place, n, end, ENDS)
    else:
        mask = (gl.expand_dims(rows, 1) < end) & (gl.expand_dims(columns, 0) < n)
        gl.store(d + _places(d_m, rows, columns), result, mask=mask)


@gluon.jit
def _leave(values, staged, d, d_m, d_tile, place, n, end, ENDS: gl.constexpr):
    """Results go through shared memory: by TMA, or row by row where a group ends among them."""
    stored_row, column, row = place
    store_wait(0)
    staged.store(values)
    fence_async_shared()
    if ENDS:
        if row + _ROWS <= end:
            tma_store(d_tile, [stored_row, column], staged)
        else:
            rows = row + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, _READ))
            columns = column + gl.arange(0, _STORED, layout=gl.SliceLayout(0, _READ))
            mask = (gl.expand_dims(rows, 1) < end) & (gl.expand_dims(columns, 0) < n)
            gl.store(d + _places(d_m, rows, columns), staged.load(_READ), mask=mask)
    else:
        tma_store(d_tile, [stored_row, column], staged)


def _name(specialization: Any) -> str:
    constants = specialization.constants
    fp8 = "fp8_gemm_1d1d" if constants["B_ROW_SCALES"] else "fp8_gemm_1d2d"
    return f"{NAME_PREFIXES[constants['MODE']]}{fp8 if constants['FP8'] else 'bf16_gemm'}_ws_kernel"


@gluon.jit(repr=_name, do_not_specialize=["m", "groups", "d_g", "sfa_g", "sfa_k"])
def specialised_gemm_kernel(
    a_tile, b_tile, d, d_tile, sfa, sfb, layout, m, n, k, groups,
    d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    MODE: gl.constexpr, GROUPS: gl.constexpr, FP8: gl.constexpr, B_ROW_SCALES: gl.constexpr, ACCUMULATE: gl.constexpr,
    A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, BY_TMA: gl.constexpr,
    TILE_M: gl.constexpr, TILE_N: gl.constexpr, STEP: gl.constexpr, PIECE_M: gl.constexpr, PIECE_N: gl.constexpr,
    STAGES: gl.constexpr, PROGRAMS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Persistent: PROGRAMS programs share the tiles. B of group g begins at row g · n (or g · k) of its descriptor.

    Masked: m is the number of rows that every group has room for. BY_TMA: `d_tile` is a descriptor of D.
    """
    PLACES: gl.constexpr = STAGES * (TILE_M // _ROWS)
    a_slots = gl.allocate_shared_memory(a_tile.dtype, [PLACES] + a_tile.block_type.shape, a_tile.layout)  # noqa: RUF005 (Gluon knows no *)
    b_slots = gl.allocate_shared_memory(b_tile.dtype, [STAGES] + b_tile.block_type.shape, b_tile.layout)  # noqa: RUF005
    filled, free = slot_barriers(STAGES)
    staging = free  # stands for what is not used
    if BY_TMA:
        staging = gl.allocate_shared_memory(gl.bfloat16, [2, _ROWS, _STORED], _STORED_LAYOUT)
    slots = (a_slots, b_slots, filled, free)
    sizes = (m, n, k, groups)
    strides = (d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k)
    scales = (sfa, sfb)
    gl.warp_specialize(
        [
            (
                multiply_tiles,
                (slots, staging, d, d_tile, scales, layout, sizes, strides, MODE, GROUPS, STAGES, PROGRAMS, TILE_M,
                 TILE_N, STEP, PIECE_M, PIECE_N, FP8, A_TRANSPOSED, B_TRANSPOSED, B_ROW_SCALES, ACCUMULATE, BY_TMA, 0),
            ),
            (
                multiply_tiles,
                (slots, staging, d, d_tile, scales, layout, sizes, strides, MODE, GROUPS, STAGES, PROGRAMS, TILE_M,
                 TILE_N, STEP, PIECE_M, PIECE_N, FP8, A_TRANSPOSED, B_TRANSPOSED, B_ROW_SCALES, ACCUMULATE, BY_TMA, 1),
            ),
            (
                load_tiles,
                (a_tile, b_tile, slots, layout, sizes, MODE, GROUPS, STAGES, PROGRAMS, TILE_M, TILE_N, STEP,
                 A_TRANSPOSED, B_TRANSPOSED),
            ),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


__all__ = ["STORED_COLUMNS", "add_blocks", "specialised_gemm_kernel"]
