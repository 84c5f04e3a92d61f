"""The fast path for many rows on Hopper, in Gluon: FP8 products, dense and in every grouped form.

One warp loads, two warpgroups multiply 64 rows of a tile each. The loader fills STAGES slots of shared memory by TMA,
as far ahead as there are free ones; each of the others waits for a slot, multiplies its 128 columns into a fresh
accumulator, hands the slot back, and adds the result, scaled, to the sum, while the tensor core is the other's. They
walk the same tiles in the same order: slot and phase need no messages.

    I1  slot s is filled for step i with i mod STAGES = s; its barrier's phase is the parity of i div STAGES
    I2  a slot is free when both have handed it back, each after the multiplication that reads it has ended
    I3  as in `kernel`: no row influences another; nothing is stored outside real rows and columns, but zeros in
        rows of group -1

    I4  descriptors that are made on the device are made anew only when every load by the old ones has ended

MODE says how rows find their group, as in `kernel`. Groups that cut k have a kernel of their own.
"""

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor
from triton import next_power_of_2
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..kernels.ahead import start
from ..kernels.layers import on_device
from . import settings
from .kernel import CONTIGUOUS, DENSE, MASKED, PSUM
from .launch import start_with_scratch
from .quantize import BLOCK, ceil_div

BLOCK_M: Final = 128
BLOCK_N: Final = 128
STAGES: Final = 4  # 32 KiB each
CONSUMER_WARPS: Final = 4  # of each of two
LOADER_REGISTERS: Final = 24  # what a loader needs; the rest of the register file is the consumers'
CONSUMER_REGISTERS: Final = 240
K_GROUPED_REGISTERS: Final = (232, 40)  # of consumers and of a loader that makes descriptors
BF16_STEP: Final = 64  # columns of K in a slot of bfloat16

_K: gl.constexpr = gl.constexpr(BLOCK)
_TILE_M: gl.constexpr = gl.constexpr(BLOCK_M)
_TILE_N: gl.constexpr = gl.constexpr(BLOCK_N)
_CONTIGUOUS: gl.constexpr = gl.constexpr(CONTIGUOUS)
_PSUM: gl.constexpr = gl.constexpr(PSUM)
_MASKED: gl.constexpr = gl.constexpr(MASKED)
_WARPS: gl.constexpr = gl.constexpr(CONSUMER_WARPS)
_ROWS: gl.constexpr = gl.constexpr(BLOCK_M // 2)
_SUMS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [CONSUMER_WARPS, 1], [16, BLOCK_N, 32]))
_BF16_SUMS: gl.constexpr = gl.constexpr(
    gl.NVMMADistributedLayout([3, 0], [CONSUMER_WARPS, 1], [16, BLOCK_N, 16])
)
_FAR: gl.constexpr = gl.constexpr(0x7FFFFFFF)
_make_descriptor = tma.make_tensor_descriptor
# Triton 3.6 has it under its older name.
_tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
_BF16_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _place(tile, tiles_m, tiles_n):
    # Neighbours in time share rows of A or of B, so that both stay in the L2 cache.
    width = 8 * tiles_n
    first = tile // width * 8
    size = gl.minimum(tiles_m - first, 8)
    return first + tile % width % size, tile % width // size


@gluon.jit
def _share(layout, number, m, tiles_n, dealt, MODE: gl.constexpr, PROGRAMS: gl.constexpr):
    """Of a group's tiles, or of all: the end of their rows, how many, and the first that is this program's."""
    rows_end = m
    if MODE == _MASKED:
        rows_end = gl.minimum(gl.load(layout + number), m)
    tiles = gl.cdiv(rows_end, _TILE_M) * tiles_n
    return rows_end, tiles, (gl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS


@gluon.jit
def _group_of(
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
        starts_after = (gl.minimum(ends, _FAR - _TILE_M) + _TILE_M - 1) // _TILE_M * _TILE_M
        group = gl.sum((starts_after <= first).to(gl.int32), 0)
        end = gl.minimum(gl.sum(gl.where((each == group) & (each < groups), ends, 0), 0), rows_end)
        group = gl.where(first < end, group, -1)
    return group, end


@gluon.jit
def _load_tiles(
    a_tile, b_tile, slots, layout, sizes,
    MODE: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    a_slots, b_slots, filled, free = slots
    m, n, k, groups = sizes
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    dealt = 0
    for number in range(groups if MODE == _MASKED else 1):
        rows_end, tiles, first_tile = _share(layout, number, m, tiles_n, dealt, MODE, PROGRAMS)
        dealt += tiles
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = _place(tile, gl.cdiv(rows_end, _TILE_M), tiles_n)
            first = tile_m * _TILE_M
            group, _ = _group_of(layout, number, first, rows_end, groups, MODE, GROUPS, 1)
            if group >= 0:
                a_row = first
                if MODE == _MASKED:
                    a_row += number * m
                for block in range(gl.cdiv(k, _K)):
                    slot = step % STAGES
                    mbarrier.wait(free.index(slot), (step // STAGES) & 1 ^ 1)
                    barrier = filled.index(slot)
                    mbarrier.expect(barrier, a_tile.block_type.nbytes + b_tile.block_type.nbytes)
                    _tma_load(a_tile, [a_row, block * _K], barrier, a_slots.index(slot))
                    _tma_load(
                        b_tile, [group * n + tile_n * _TILE_N, block * _K], barrier, b_slots.index(slot)
                    )
                    step += 1


@gluon.jit
def _multiply_tiles(
    slots, d, scales, layout, sizes, strides,
    MODE: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    B_ROW_SCALES: gl.constexpr, ACCUMULATE: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    a_slots, b_slots, filled, free = slots
    sfa, sfb = scales
    m, n, k, groups = sizes
    d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k = strides
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    dealt = 0
    for number in range(groups if MODE == _MASKED else 1):
        rows_end, tiles, first_tile = _share(layout, number, m, tiles_n, dealt, MODE, PROGRAMS)
        dealt += tiles
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = _place(tile, gl.cdiv(rows_end, _TILE_M), tiles_n)
            first = tile_m * _TILE_M
            rows = first + HALF * _ROWS + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, _SUMS))
            columns = tile_n * _TILE_N + gl.arange(0, _TILE_N, layout=gl.SliceLayout(0, _SUMS))
            group, end = _group_of(layout, number, first, rows_end, groups, MODE, GROUPS, _WARPS)
            places = gl.expand_dims(rows.to(gl.int64), 1) * d_m + gl.expand_dims(columns, 0)
            if MODE == _MASKED:
                places += gl.to_tensor(number).to(gl.int64) * d_g
            mask = (gl.expand_dims(rows, 1) < end) & (gl.expand_dims(columns, 0) < n)
            if ACCUMULATE:
                total = gl.load(d + places, mask=mask, other=0.0)
            else:
                total = gl.zeros((_ROWS, _TILE_N), gl.float32, _SUMS)
            if group >= 0:
                wide = gl.to_tensor(group).to(gl.int64)
                scales_a = sfa + rows.to(gl.int64) * sfa_m
                if MODE == _MASKED:
                    scales_a += wide * sfa_g
                # A tile starts at a multiple of 128 columns, so it has one scale of B, or one for each of its rows.
                scales_b = sfb + wide * sfb_g
                if B_ROW_SCALES:
                    scales_of_b = scales_b + columns.to(gl.int64) * sfb_n
                else:
                    scales_of_b = scales_b + tile_n * sfb_n
                total, step = _add_blocks(
                    total, (a_slots, b_slots, filled, free), step, gl.cdiv(k, _K), (scales_a, scales_of_b),
                    (sfa_k, sfb_k), (rows < end, columns < n), STAGES, B_ROW_SCALES, HALF,
                )  # fmt: skip
            if MODE == _CONTIGUOUS:
                of_rows = gl.load(layout + rows, mask=rows < m, other=-1)
                total = gl.where(gl.expand_dims(of_rows, 1) >= 0, total, 0.0)
            gl.store(d + places, total.to(d.dtype.element_ty), mask=mask)


@gluon.jit
def _add_blocks(
    total, slots, step, blocks, scales, strides, masks,
    STAGES: gl.constexpr, B_ROW_SCALES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Adds `blocks` products of 128 columns of K, each of them scaled, to 64 rows of a tile.

    Scales are loaded a block ahead, so that nobody waits for them while the tensor core could work.
    """
    a_slots, b_slots, filled, free = slots
    sfa, sfb = scales
    sfa_k, sfb_k = strides
    real_rows, real_columns = masks
    zeros = gl.zeros((_ROWS, _TILE_N), gl.float32, _SUMS)
    scale_a = gl.load(sfa, mask=real_rows & (blocks > 0), other=0.0)
    if B_ROW_SCALES:
        scale_b = gl.load(sfb, mask=real_columns & (blocks > 0), other=0.0)
    else:
        scale_a *= gl.load(sfb)
    for block in range(blocks):
        slot = step % STAGES
        mbarrier.wait(filled.index(slot), (step // STAGES) & 1)
        part = warpgroup_mma(
            a_slots.index(slot).slice(HALF * _ROWS, _ROWS),
            b_slots.index(slot).permute((1, 0)),
            zeros,
            use_acc=False,
            is_async=True,
        )
        ahead = gl.minimum(block + 1, blocks - 1)
        next_a = gl.load(sfa + ahead * sfa_k, mask=real_rows, other=0.0)
        if B_ROW_SCALES:
            next_b = gl.load(sfb + ahead * sfb_k, mask=real_columns, other=0.0)
        else:
            next_b = gl.load(sfb + ahead * sfb_k)
        part = warpgroup_mma_wait(0, deps=(part,))
        mbarrier.arrive(free.index(slot), count=1)
        if B_ROW_SCALES:
            total += part * (gl.expand_dims(scale_a, 1) * gl.expand_dims(scale_b, 0))
            scale_a = next_a
            scale_b = next_b
        else:
            total += part * gl.expand_dims(scale_a, 1)
            scale_a = next_a * next_b
        step += 1
    return total, step


def _name(specialization: Any) -> str:
    constants = specialization.constants
    kind = "1d1d" if constants["B_ROW_SCALES"] else "1d2d"
    prefix = {
        DENSE: "",
        CONTIGUOUS: "m_grouped_contiguous_",
        PSUM: "m_grouped_psum_",
        MASKED: "m_grouped_masked_",
    }
    return f"{prefix[constants['MODE']]}fp8_gemm_{kind}_ws_kernel"


@gluon.jit(repr=_name, do_not_specialize=["m", "groups", "d_g", "sfa_g", "sfa_k"])
def specialised_gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, layout, m, n, k, groups, d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    MODE: gl.constexpr, GROUPS: gl.constexpr, B_ROW_SCALES: gl.constexpr, ACCUMULATE: gl.constexpr,
    STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Persistent: PROGRAMS programs share the tiles. B of group g begins at row g · n of its descriptor.

    Masked: m is the number of rows that every group has room for.
    """
    a_slots = gl.allocate_shared_memory(a_tile.dtype, [STAGES] + a_tile.block_type.shape, a_tile.layout)  # noqa: RUF005 (Gluon knows no *)
    b_slots = gl.allocate_shared_memory(b_tile.dtype, [STAGES] + b_tile.block_type.shape, b_tile.layout)  # noqa: RUF005
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)
    slots = (a_slots, b_slots, filled, free)
    sizes = (m, n, k, groups)
    strides = (d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k)
    scales = (sfa, sfb)
    gl.warp_specialize(
        [
            (
                _multiply_tiles,
                (slots, d, scales, layout, sizes, strides, MODE, GROUPS, STAGES, PROGRAMS, B_ROW_SCALES, ACCUMULATE, 0),
            ),
            (
                _multiply_tiles,
                (slots, d, scales, layout, sizes, strides, MODE, GROUPS, STAGES, PROGRAMS, B_ROW_SCALES, ACCUMULATE, 1),
            ),
            (_load_tiles, (a_tile, b_tile, slots, layout, sizes, MODE, GROUPS, STAGES, PROGRAMS)),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _share_of_k(ks, group, tiles, dealt, in_place, PROGRAMS: gl.constexpr):
    """Of group `group`: what it owns of the summed dimension, its tiles, and the first that is this program's."""
    k = gl.load(ks + group)
    own = gl.where((k > 0) | (in_place == 0), tiles, 0)
    return k, own, (gl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS


@gluon.jit
def _wait_for_loads(filled, step, STAGES: gl.constexpr):
    # Descriptors are made in the place of those of the group before (I4).
    for back in gl.static_range(STAGES):
        if step > back:
            last = step - 1 - back
            mbarrier.wait(filled.index(last % STAGES), (last // STAGES) & 1)


@gluon.jit
def _load_k_groups(
    a, b, slots, ks, sizes, in_place,
    FP8: gl.constexpr, STEP: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    A_LAYOUT: gl.constexpr, B_LAYOUT: gl.constexpr,
):  # fmt: skip
    a_slots, b_slots, filled, free = slots
    m, n, groups = sizes
    tiles_m = gl.cdiv(m, _TILE_M)
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    dealt = 0
    before = gl.to_tensor(0).to(gl.int64)
    for group in range(groups):
        k, tiles, first_tile = _share_of_k(ks, group, tiles_m * tiles_n, dealt, in_place, PROGRAMS)
        dealt += tiles
        first_k = 0
        if FP8:
            _wait_for_loads(filled, step, STAGES)
            row = gl.maximum(k, STEP)
            a_tile = _make_descriptor(a + before * m, [m, row], [row, 1], [_TILE_M, STEP], A_LAYOUT)
            b_tile = _make_descriptor(b + before * n, [n, row], [row, 1], [_TILE_N, STEP], B_LAYOUT)
        else:
            a_tile = a
            b_tile = b
            first_k = before.to(gl.int32)
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = _place(tile, tiles_m, tiles_n)
            for block in range(gl.cdiv(k, STEP)):
                slot = step % STAGES
                mbarrier.wait(free.index(slot), (step // STAGES) & 1 ^ 1)
                barrier = filled.index(slot)
                mbarrier.expect(barrier, a_tile.block_type.nbytes + b_tile.block_type.nbytes)
                if FP8:
                    _tma_load(a_tile, [tile_m * _TILE_M, block * STEP], barrier, a_slots.index(slot))
                    _tma_load(b_tile, [tile_n * _TILE_N, block * STEP], barrier, b_slots.index(slot))
                else:
                    place = first_k + block * STEP
                    _tma_load(a_tile, [place, tile_m * _TILE_M], barrier, a_slots.index(slot))
                    _tma_load(b_tile, [place, tile_n * _TILE_N], barrier, b_slots.index(slot))
                step += 1
        before += k


@gluon.jit
def _multiply_k_groups(
    slots, c, d, scales, ks, sizes, strides, in_place,
    FP8: gl.constexpr, STEP: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    SUMS: gl.constexpr = _SUMS if FP8 else _BF16_SUMS
    a_slots, b_slots, filled, free = slots
    sfa, sfb = scales
    m, n, groups = sizes
    c_g, c_m, d_g, d_m, sfa_m, sfa_k, sfb_n, sfb_k = strides
    tiles_m = gl.cdiv(m, _TILE_M)
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    dealt = 0
    before = gl.to_tensor(0).to(gl.int64)
    for group in range(groups):
        k, tiles, first_tile = _share_of_k(ks, group, tiles_m * tiles_n, dealt, in_place, PROGRAMS)
        dealt += tiles
        wide = gl.to_tensor(group).to(gl.int64)
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = _place(tile, tiles_m, tiles_n)
            rows = tile_m * _TILE_M + HALF * _ROWS + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
            columns = tile_n * _TILE_N + gl.arange(0, _TILE_N, layout=gl.SliceLayout(0, SUMS))
            down = gl.expand_dims(rows.to(gl.int64), 1)
            mask = (gl.expand_dims(rows, 1) < m) & (gl.expand_dims(columns, 0) < n)
            total = gl.load(c + (wide * c_g + down * c_m + gl.expand_dims(columns, 0)), mask=mask, other=0.0)
            if FP8:
                at = before // STEP
                total, step = _add_blocks(
                    total, slots, step, gl.cdiv(k, STEP),
                    (sfa + (at * sfa_k + rows.to(gl.int64) * sfa_m), sfb + (at * sfb_k + columns.to(gl.int64) * sfb_n)),
                    (sfa_k, sfb_k), (rows < m, columns < n), STAGES, True, HALF,
                )  # fmt: skip
            else:
                for _ in range(gl.cdiv(k, STEP)):
                    slot = step % STAGES
                    mbarrier.wait(filled.index(slot), (step // STAGES) & 1)
                    total = warpgroup_mma(
                        a_slots.index(slot).slice(HALF * _ROWS, _ROWS, dim=1).permute((1, 0)),
                        b_slots.index(slot),
                        total,
                        is_async=True,
                    )
                    total = warpgroup_mma_wait(0, deps=(total,))
                    mbarrier.arrive(free.index(slot), count=1)
                    step += 1
            gl.store(d + (wide * d_g + down * d_m + gl.expand_dims(columns, 0)), total, mask=mask)
        before += k


def _k_grouped_name(specialization: Any) -> str:
    return f"k_grouped_{'fp8_gemm_1d1d' if specialization.constants['FP8'] else 'bf16_gemm'}_ws_kernel"


@gluon.jit(repr=_k_grouped_name, do_not_specialize=["groups", "in_place"])
def specialised_k_grouped_kernel(
    a, b, c, d, sfa, sfb, ks, m, n, groups, in_place, c_g, c_m, d_g, d_m, sfa_m, sfa_k, sfb_n, sfb_k,
    FP8: gl.constexpr, STEP: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    A_LAYOUT: gl.constexpr, B_LAYOUT: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """As `kernel.k_grouped_gemm_kernel`: D[g] = C[g] + A_g · B_gᵀ, all groups in one launch."""
    if FP8:
        a_slots = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, _TILE_M, STEP], A_LAYOUT)
        b_slots = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, _TILE_N, STEP], B_LAYOUT)
    else:
        a_slots = gl.allocate_shared_memory(gl.bfloat16, [STAGES, STEP, _TILE_M], A_LAYOUT)
        b_slots = gl.allocate_shared_memory(gl.bfloat16, [STAGES, STEP, _TILE_N], B_LAYOUT)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)
    slots = (a_slots, b_slots, filled, free)
    scales = (sfa, sfb)
    sizes = (m, n, groups)
    strides = (c_g, c_m, d_g, d_m, sfa_m, sfa_k, sfb_n, sfb_k)
    gl.warp_specialize(
        [
            (_multiply_k_groups, (slots, c, d, scales, ks, sizes, strides, in_place, FP8, STEP, STAGES, PROGRAMS, 0)),
            (_multiply_k_groups, (slots, c, d, scales, ks, sizes, strides, in_place, FP8, STEP, STAGES, PROGRAMS, 1)),
            (_load_k_groups, (a, b, slots, ks, sizes, in_place, FP8, STEP, STAGES, PROGRAMS, A_LAYOUT, B_LAYOUT)),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


def takes(rows: int, *, alignment: int = BLOCK_M) -> bool:
    """Whether this path is for a product of so many rows (of a group), in groups of that alignment."""
    return rows > BLOCK_M // 2 and alignment % BLOCK_M == 0


def fp8_gemm(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    layout: Tensor | None = None,
    *,
    psum: bool = False,
    accumulate: bool = False,
) -> None:
    """D = A · Bᵀ, or D += with `accumulate`, where B has a scale for each row instead of for 128.

    With a layout, each row's B is that of its group, and rows of group -1 become zeros; `psum` as in the contiguous
    form. Shapes: as `dense.fp8_gemm_nt` and `grouped.m_grouped_fp8_gemm_nt_contiguous`, which have checked them.
    """
    m = a[0].shape[0]
    n = b[0].shape[-2]
    mode = DENSE if layout is None else PSUM if psum else CONTIGUOUS
    tiles = ceil_div(m, BLOCK_M) * ceil_div(n, BLOCK_N)
    _start(a, b, d, layout, mode=mode, programs=min(settings.get_num_sms(), tiles), accumulate=accumulate)


def fp8_masked_gemm(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], d: Tensor, masked_m: Tensor) -> None:
    """D[g] = A[g] · B[g]ᵀ for the first masked_m[g] rows. Shapes: as `grouped.m_grouped_fp8_gemm_nt_masked`."""
    _start(a, b, d, masked_m, mode=MASKED, programs=settings.get_num_sms(), accumulate=False)


def takes_k_groups(rows: int, ks_cpu: Sequence[int]) -> bool:
    """Whether this path is for a k-grouped product of so many rows: steps of K must end where groups end."""
    return takes(rows) and not any(k % BF16_STEP for k in ks_cpu)


def k_grouped_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    ks: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """D[g] = C[g] + A_g · B_gᵀ. Shapes: as `launch.k_grouped_gemm`."""
    groups, m, n = d.shape
    sfa, sfb = scales or (d[0], d[0])
    programs = settings.get_num_sms()
    layouts = (_LAYOUT, _LAYOUT)
    given: tuple[Any, Any] = (a, b)
    if scales is None:
        descriptors = [
            TensorDescriptor(each, list(each.shape), [each.stride(0), 1], [BF16_STEP, BLOCK_M], _BF16_LAYOUT)
            for each in (a, b)
        ]
        given, layouts = (descriptors[0], descriptors[1]), (_BF16_LAYOUT, _BF16_LAYOUT)
    count = min(programs, groups * ceil_div(m, BLOCK_M) * ceil_div(n, BLOCK_N))
    with on_device(d):
        start_with_scratch(
            specialised_k_grouped_kernel, (count,), *given, c, d, sfa, sfb, ks, m, n, groups, int(c is d),
            c.stride(0), c.stride(1), d.stride(0), d.stride(1), *sfa.stride(), *sfb.stride(),
            FP8=scales is not None, STEP=BLOCK if scales else BF16_STEP, STAGES=STAGES, PROGRAMS=programs,
            A_LAYOUT=layouts[0], B_LAYOUT=layouts[1], CONSUMER_REGISTERS=K_GROUPED_REGISTERS[0],
            LOADER_REGISTERS=K_GROUPED_REGISTERS[1], num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _start(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    layout: Tensor | None,
    *,
    mode: int,
    programs: int,
    accumulate: bool,
) -> None:
    (a_values, sfa), (b_values, sfb) = a, b
    m, k = a_values.shape[-2:]
    n = b_values.shape[-2]
    grouped, masked = b_values.dim() == 3, mode == MASKED
    groups = b_values.shape[0] if grouped else 1
    with on_device(d):
        start(
            specialised_gemm_kernel, (programs,),
            _descriptor(a_values.flatten(0, -2), BLOCK_M), _descriptor(b_values.flatten(0, -2), BLOCK_N), d, sfa, sfb,
            d if layout is None else layout, m, n, k, groups, d.stride(0) if masked else 0, d.stride(-2),
            sfa.stride(0) if masked else 0, sfa.stride(-2), sfa.stride(-1),
            sfb.stride(0) if grouped else 0, sfb.stride(-2), sfb.stride(-1),
            MODE=mode, GROUPS=next_power_of_2(groups) if mode == PSUM else 1, B_ROW_SCALES=accumulate,
            ACCUMULATE=accumulate, STAGES=STAGES, PROGRAMS=settings.get_num_sms(),
            CONSUMER_REGISTERS=CONSUMER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS, num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _descriptor(matrix: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [rows, BLOCK], _LAYOUT)


__all__ = [
    "fp8_gemm",
    "fp8_masked_gemm",
    "k_grouped_gemm",
    "specialised_gemm_kernel",
    "specialised_k_grouped_kernel",
    "takes",
    "takes_k_groups",
]
