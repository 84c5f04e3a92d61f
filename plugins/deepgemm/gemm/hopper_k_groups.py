"""The fast path for weight gradients on Hopper, in Gluon: groups cut the dimension that is summed over.

As `hopper_products`, with tiles of 128 x 128, and one thing more:

    I5  descriptors that are made on the device are replaced only when every load by the old ones has ended
"""

from typing import Any, Final

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .hopper_products import add_blocks, add_steps
from .tile_scheduler import CONSUMER_WARPS, WAVE_ROWS, claim, place_of, slot_barriers, tma_load

BLOCK_M: Final = 128
BLOCK_N: Final = 128

_TILE_M: gl.constexpr = gl.constexpr(BLOCK_M)
_TILE_N: gl.constexpr = gl.constexpr(BLOCK_N)
_WARPS: gl.constexpr = gl.constexpr(CONSUMER_WARPS)
_ROWS: gl.constexpr = gl.constexpr(WAVE_ROWS)
_SUMS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [CONSUMER_WARPS, 1], [16, BLOCK_N, 32]))
_BF16_SUMS: gl.constexpr = gl.constexpr(
    gl.NVMMADistributedLayout([3, 0], [CONSUMER_WARPS, 1], [16, BLOCK_N, 16])
)
make_descriptor = tma.make_tensor_descriptor


@gluon.jit
def _share_of_k(ks, group, tiles, dealt, in_place, PROGRAMS: gl.constexpr):
    """Of group `group`: what it owns of the summed dimension, its tiles, and the first that is this program's."""
    k = gl.load(ks + group)
    own = gl.where((k > 0) | (in_place == 0), tiles, 0)
    return k, own, (gl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS


@gluon.jit
def _wait_for_loads(filled, step, STAGES: gl.constexpr):
    # Descriptors are made in the place of those of the group before (I5).
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
    BYTES: gl.constexpr = (_TILE_M + _TILE_N) * STEP * (1 if FP8 else 2)
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
            length = gl.maximum(k, STEP)
            a_tile = make_descriptor(a + before * m, [m, length], [length, 1], [_ROWS, STEP], A_LAYOUT)
            b_tile = make_descriptor(b + before * n, [n, length], [length, 1], [_TILE_N, STEP], B_LAYOUT)
        else:
            a_tile = a
            b_tile = b
            first_k = before.to(gl.int32)
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = place_of(tile, tiles_m, tiles_n)
            for block in range(gl.cdiv(k, STEP)):
                slot, barrier = claim(filled, free, step, BYTES, STAGES)
                place = first_k + block * STEP
                for half in gl.static_range(2):
                    row = tile_m * _TILE_M + half * _ROWS
                    a_place = a_slots.index(2 * slot + half)
                    if FP8:
                        tma_load(a_tile, [row, place], barrier, a_place)
                    else:
                        tma_load(a_tile, [place, row], barrier, a_place)
                if FP8:
                    tma_load(b_tile, [tile_n * _TILE_N, place], barrier, b_slots.index(slot))
                else:
                    tma_load(b_tile, [place, tile_n * _TILE_N], barrier, b_slots.index(slot))
                step += 1
        before += k


@gluon.jit
def _multiply_k_groups(
    slots, c, d, scales, ks, sizes, strides, in_place,
    FP8: gl.constexpr, STEP: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    SUMS: gl.constexpr = _SUMS if FP8 else _BF16_SUMS
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
            tile_m, tile_n = place_of(tile, tiles_m, tiles_n)
            rows = tile_m * _TILE_M + HALF * _ROWS + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
            columns = tile_n * _TILE_N + gl.arange(0, _TILE_N, layout=gl.SliceLayout(0, SUMS))
            down = gl.expand_dims(rows.to(gl.int64), 1)
            mask = (gl.expand_dims(rows, 1) < m) & (gl.expand_dims(columns, 0) < n)
            total = gl.load(c + (wide * c_g + down * c_m + gl.expand_dims(columns, 0)), mask=mask, other=0.0)
            if FP8:
                at = before // STEP
                total, _, step = add_blocks(
                    total, total, slots, step, gl.cdiv(k, STEP),
                    (sfa + (at * sfa_k + rows.to(gl.int64) * sfa_m), sfb + (at * sfb_k + columns.to(gl.int64) * sfb_n)),
                    (sfa_m, sfa_k, sfb_k), (rows, m, columns < n), STAGES, _TILE_M, _TILE_N, _ROWS, _TILE_N,
                    True, HALF, SUMS,
                )  # fmt: skip
            else:
                total, step = add_steps(total, slots, step, gl.cdiv(k, STEP), STAGES, True, True, HALF)
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
        a_slots = gl.allocate_shared_memory(gl.float8e4nv, [2 * STAGES, _ROWS, STEP], A_LAYOUT)
        b_slots = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, _TILE_N, STEP], B_LAYOUT)
    else:
        a_slots = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, STEP, _ROWS], A_LAYOUT)
        b_slots = gl.allocate_shared_memory(gl.bfloat16, [STAGES, STEP, _TILE_N], B_LAYOUT)
    filled, free = slot_barriers(STAGES)
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


__all__ = ["BLOCK_M", "BLOCK_N", "specialised_k_grouped_kernel"]
