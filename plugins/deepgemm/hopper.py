"""The fast path for many rows on Hopper, in Gluon: dense and contiguous grouped FP8 products.

One warp loads, two warpgroups multiply. The loader fills STAGES slots of shared memory by TMA, as far ahead as there
are free ones; the others wait for a slot, multiply its 128 columns into a fresh accumulator, hand the slot back, and
add the result, scaled, to the sum. Both sides walk the same tiles in the same order: slot and phase need no messages.

    I1  slot s is filled for step i with i mod STAGES = s; its barrier's phase is the parity of i div STAGES
    I2  a slot is handed back after the multiplication that reads it has ended
    I3  as in `kernel`: no row influences another; nothing is stored outside real rows and columns, but zeros in
        rows of group -1
"""

from typing import Any, Final

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..kernels.ahead import start
from ..kernels.layers import on_device
from . import settings
from .quantize import BLOCK, ceil_div

BLOCK_M: Final = 128
BLOCK_N: Final = 128
STAGES: Final = 4  # 32 KiB each
CONSUMER_WARPS: Final = 8
LOADER_REGISTERS: Final = 24  # what a loader needs; the rest of the register file is the consumers'

_K: gl.constexpr = gl.constexpr(BLOCK)
_TILE_M: gl.constexpr = gl.constexpr(BLOCK_M)
_TILE_N: gl.constexpr = gl.constexpr(BLOCK_N)
# Triton 3.6 has it under its older name.
_tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)


@gluon.jit
def _place(tile, tiles_m, tiles_n):
    # Neighbours in time share rows of A or of B, so that both stay in the L2 cache.
    width = 8 * tiles_n
    first = tile // width * 8
    size = gl.minimum(tiles_m - first, 8)
    return first + tile % width % size, tile % width // size


@gluon.jit
def _group_of(layout, row, GROUPED: gl.constexpr):
    group = 0
    if GROUPED:
        group = gl.load(layout + row)
    return group


@gluon.jit
def _load_tiles(
    a_tile, b_tile, a_slots, b_slots, filled, free, layout, m, n, k,
    GROUPED: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    tiles_m = gl.cdiv(m, _TILE_M)
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, PROGRAMS):
        tile_m, tile_n = _place(tile, tiles_m, tiles_n)
        group = _group_of(layout, tile_m * _TILE_M, GROUPED)
        if group >= 0:
            for block in range(gl.cdiv(k, _K)):
                slot = step % STAGES
                mbarrier.wait(free.index(slot), (step // STAGES) & 1 ^ 1)
                barrier = filled.index(slot)
                mbarrier.expect(barrier, a_tile.block_type.nbytes + b_tile.block_type.nbytes)
                _tma_load(a_tile, [tile_m * _TILE_M, block * _K], barrier, a_slots.index(slot))
                _tma_load(b_tile, [group * n + tile_n * _TILE_N, block * _K], barrier, b_slots.index(slot))
                step += 1


@gluon.jit
def _multiply_tiles(
    a_slots, b_slots, filled, free, d, sfa, sfb, layout, m, n, k, d_m, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    GROUPED: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    sums: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, _TILE_N, 32]
    )
    tiles_m = gl.cdiv(m, _TILE_M)
    tiles_n = gl.cdiv(n, _TILE_N)
    step = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, PROGRAMS):
        tile_m, tile_n = _place(tile, tiles_m, tiles_n)
        rows = tile_m * _TILE_M + gl.arange(0, _TILE_M, layout=gl.SliceLayout(1, sums))
        columns = tile_n * _TILE_N + gl.arange(0, _TILE_N, layout=gl.SliceLayout(0, sums))
        group = _group_of(layout, tile_m * _TILE_M, GROUPED)
        total = gl.zeros((_TILE_M, _TILE_N), gl.float32, sums)
        zeros = gl.zeros((_TILE_M, _TILE_N), gl.float32, sums)
        if group >= 0:
            scales_a = sfa + rows.to(gl.int64) * sfa_m
            # A tile starts at a multiple of 128 columns, so it has one scale of B.
            scales_b = sfb + gl.to_tensor(group).to(gl.int64) * sfb_g + tile_n * sfb_n
            for block in range(gl.cdiv(k, _K)):
                slot = step % STAGES
                mbarrier.wait(filled.index(slot), (step // STAGES) & 1)
                part = warpgroup_mma(
                    a_slots.index(slot),
                    b_slots.index(slot).permute((1, 0)),
                    zeros,
                    use_acc=False,
                    is_async=True,
                )
                scale = gl.load(scales_a + block * sfa_k, mask=rows < m, other=0.0)
                scale *= gl.load(scales_b + block * sfb_k)
                part = warpgroup_mma_wait(0, deps=(part,))
                mbarrier.arrive(free.index(slot), count=1)
                total += part * gl.expand_dims(scale, 1)
                step += 1
        if GROUPED:
            of_rows = gl.load(layout + rows, mask=rows < m, other=-1)
            total = gl.where(gl.expand_dims(of_rows, 1) >= 0, total, 0.0)
        places = gl.expand_dims(rows.to(gl.int64), 1) * d_m + gl.expand_dims(columns, 0)
        mask = (gl.expand_dims(rows, 1) < m) & (gl.expand_dims(columns, 0) < n)
        gl.store(d + places, total.to(d.dtype.element_ty), mask=mask)


def _name(specialization: Any) -> str:
    return f"{'m_grouped_contiguous_' * specialization.constants['GROUPED']}fp8_gemm_1d2d_ws_kernel"


@gluon.jit(repr=_name, do_not_specialize=["m", "sfa_k"])
def specialised_gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, layout, m, n, k, d_m, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    GROUPED: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Persistent: PROGRAMS programs share the tiles. B of group g begins at row g · n of its descriptor."""
    a_slots = gl.allocate_shared_memory(a_tile.dtype, [STAGES] + a_tile.block_type.shape, a_tile.layout)  # noqa: RUF005 (Gluon knows no *)
    b_slots = gl.allocate_shared_memory(b_tile.dtype, [STAGES] + b_tile.block_type.shape, b_tile.layout)  # noqa: RUF005
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(free.index(slot), count=1)
    gl.warp_specialize(
        [
            (
                _multiply_tiles,
                (
                    a_slots, b_slots, filled, free, d, sfa, sfb, layout, m, n, k,
                    d_m, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k, GROUPED, STAGES, PROGRAMS,
                ),
            ),
            (
                _load_tiles,
                (a_tile, b_tile, a_slots, b_slots, filled, free, layout, m, n, k, GROUPED, STAGES, PROGRAMS),
            ),
        ],
        [1],
        [LOADER_REGISTERS],
    )  # fmt: skip


def takes(rows: int, *, alignment: int = BLOCK_M) -> bool:
    """Whether this path is for a product of so many rows, in groups of that alignment."""
    return rows > BLOCK_M // 2 and alignment % BLOCK_M == 0


def fp8_gemm(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], d: Tensor, layout: Tensor | None = None
) -> None:
    """D = A · Bᵀ; with a layout (m,) int32, each row's B is that of its group, and rows of group -1 become zeros.

    Shapes: as `dense.fp8_gemm_nt` and `grouped.m_grouped_fp8_gemm_nt_contiguous`, which have checked them.
    """
    (a_values, sfa), (b_values, sfb) = a, b
    m, k = a_values.shape
    n = b_values.shape[-2]
    count = min(settings.get_num_sms(), ceil_div(m, BLOCK_M) * ceil_div(n, BLOCK_N))
    with on_device(d):
        start(
            specialised_gemm_kernel, (count,),
            _descriptor(a_values, BLOCK_M), _descriptor(b_values.flatten(0, -2), BLOCK_N), d, sfa, sfb,
            d if layout is None else layout, m, n, k, d.stride(0), sfa.stride(0), sfa.stride(1),
            sfb.stride(0) if layout is not None else 0, sfb.stride(-2), sfb.stride(-1),
            GROUPED=layout is not None, STAGES=STAGES, PROGRAMS=count, LOADER_REGISTERS=LOADER_REGISTERS,
            num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _descriptor(matrix: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [rows, BLOCK], _LAYOUT)


__all__ = ["fp8_gemm", "specialised_gemm_kernel", "takes"]
