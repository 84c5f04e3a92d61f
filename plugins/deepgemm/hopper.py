"""The fast path for many rows on Hopper, as calls: which products it takes, in which tiles, and how they are launched.

The kernels are in `hopper_products` and `hopper_k_groups`, in Gluon.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from triton import next_power_of_2
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..kernels.ahead import start
from ..kernels.layers import on_device
from . import settings
from .hopper_k_groups import BLOCK_M, BLOCK_N, specialised_k_grouped_kernel
from .hopper_products import STORED_COLUMNS, specialised_gemm_kernel
from .hopper_walk import CONSUMER_WARPS, GROUP_ROWS, WAVE_ROWS
from .kernel import CONTIGUOUS, DENSE, MASKED, PSUM
from .launch import Scales, start_with_scratch
from .quantize import BLOCK, ceil_div
from .scales import TMA_BYTES, get_tma_aligned_size
from .tiles import BF16_STEP, Tile, choose_specialised

LOADER_REGISTERS: Final = 24  # what a loader needs; the rest of the register file is the consumers'
CONSUMER_REGISTERS: Final = 240
K_GROUPED_REGISTERS: Final = (232, 40)  # of consumers and of a loader that makes descriptors
K_GROUPED_STAGES: Final = 4  # 32 KiB each

_FP8_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
_BF16_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


def takes(rows: int, *, alignment: int = GROUP_ROWS) -> bool:
    """Whether this path is for a product of so many rows (of a group), in groups of that alignment."""
    return rows > WAVE_ROWS and alignment % GROUP_ROWS == 0


def takes_k_groups(rows: int, ks_cpu: Sequence[int]) -> bool:
    """Whether this path is for a k-grouped product of so many rows: steps of K must end where groups end."""
    return takes(rows) and not any(k % BF16_STEP for k in ks_cpu)


def gemm(
    a: Tensor,
    b: Tensor,
    d: Tensor,
    *,
    scales: Scales | None = None,
    layout: Tensor | None = None,
    psum: bool = False,
    a_transposed: bool = False,
    b_transposed: bool = False,
    accumulate: bool = False,
    expected_m: int | None = None,
) -> None:
    """As `launch.gemm`. Limits: `takes` says yes; if B is transposed and has groups, k is a multiple of 64."""
    m, k = a.shape[::-1] if a_transposed else a.shape
    n = b.shape[-1] if b_transposed else b.shape[-2]
    groups = b.shape[0] if b.dim() == 3 else 1
    programs = settings.get_num_sms()
    tile = choose_specialised(
        m if expected_m is None else expected_m * groups, n, fp8=scales is not None, groups=1, programs=programs,
        row_scales=scales is not None and scales.row_scales, tall=layout is None,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    _start(
        a, b, d, layout, (m, n, k, groups), tile,
        count=min(programs, ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)),
        mode=DENSE if layout is None else PSUM if psum else CONTIGUOUS,
        scales=scales, a_transposed=a_transposed, b_transposed=b_transposed, accumulate=accumulate,
    )  # fmt: skip


def masked_gemm(
    a: Tensor, b: Tensor, d: Tensor, masked_m: Tensor, expected_m: int, *, scales: Scales | None = None
) -> None:
    """As `launch.masked_gemm`."""
    groups, max_m, k = a.shape
    n = b.shape[1]
    programs = settings.get_num_sms()
    tile = choose_specialised(
        min(expected_m, max_m), n, fp8=scales is not None, groups=groups, programs=programs, row_scales=False,
        tall=True, multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    _start(a, b, d, masked_m, (max_m, n, k, groups), tile, count=programs, mode=MASKED, scales=scales)


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
    layout = _FP8_LAYOUT if scales else _BF16_LAYOUT
    given: list[Any] = [a, b]
    if scales is None:
        given = [
            _descriptor(each, [BF16_STEP, rows], layout) for each, rows in ((a, WAVE_ROWS), (b, BLOCK_N))
        ]
    count = min(programs, groups * ceil_div(m, BLOCK_M) * ceil_div(n, BLOCK_N))
    with on_device(d):
        start_with_scratch(
            specialised_k_grouped_kernel, (count,), *given, c, d, sfa, sfb, ks, m, n, groups, int(c is d),
            c.stride(0), c.stride(1), d.stride(0), d.stride(1), *sfa.stride(), *sfb.stride(),
            FP8=scales is not None, STEP=BLOCK if scales else BF16_STEP, STAGES=K_GROUPED_STAGES, PROGRAMS=programs,
            A_LAYOUT=layout, B_LAYOUT=layout, CONSUMER_REGISTERS=K_GROUPED_REGISTERS[0],
            LOADER_REGISTERS=K_GROUPED_REGISTERS[1], num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _start(
    a: Tensor,
    b: Tensor,
    d: Tensor,
    layout: Tensor | None,
    sizes: tuple[int, int, int, int],
    tile: Tile,
    *,
    count: int,
    mode: int,
    scales: Scales | None,
    a_transposed: bool = False,
    b_transposed: bool = False,
    accumulate: bool = False,
) -> None:
    m, n, k, groups = sizes
    masked, fp8 = mode == MASKED, scales is not None
    sfa, sfb = (scales.a, scales.b) if scales else (d, d)  # d stands for a pointer that is not followed
    shared_layout = _FP8_LAYOUT if fp8 else _BF16_LAYOUT
    a_block, b_block = [WAVE_ROWS, tile.k_step], [tile.block_n, tile.k_step]
    stored, by_tma = _stored(d)
    piece_m, piece_n = _piece(tile, fp8=fp8)
    with on_device(d):
        start(
            specialised_gemm_kernel, (count,),
            _descriptor(a.flatten(0, -2), a_block[::-1] if a_transposed else a_block, shared_layout),
            _descriptor(b.flatten(0, -2), b_block[::-1] if b_transposed else b_block, shared_layout),
            d, stored, sfa, sfb, d if layout is None else layout, m, n, k, groups,
            d.stride(0) if masked else 0, d.stride(-2),
            sfa.stride(0) if masked else 0, sfa.stride(-2), sfa.stride(-1),
            sfb.stride(0) if sfb.dim() == 3 else 0, sfb.stride(-2), sfb.stride(-1),
            MODE=mode, GROUPS=next_power_of_2(groups) if mode == PSUM else 1, FP8=fp8,
            B_ROW_SCALES=scales is not None and scales.row_scales, ACCUMULATE=accumulate,
            A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, BY_TMA=by_tma,
            TILE_M=tile.block_m, TILE_N=tile.block_n, STEP=tile.k_step, PIECE_M=piece_m, PIECE_N=piece_n,
            STAGES=tile.stages, PROGRAMS=settings.get_num_sms(),
            CONSUMER_REGISTERS=CONSUMER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS, num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _piece(tile: Tile, *, fp8: bool) -> tuple[int, int]:
    """What each of the two warpgroups has of a tile: half of the rows, or of the columns of a wide one of FP8."""
    if fp8 and tile.block_n > BLOCK:
        return tile.block_m, tile.block_n // 2
    return tile.block_m // 2, tile.block_n


def _stored(d: Tensor) -> tuple[Any, bool]:
    """A descriptor of D and True if TMA can write it, else D as it is."""
    if d.dtype != torch.bfloat16 or d.stride(-2) * d.element_size() % TMA_BYTES:
        return d, False
    if d.device.type != "meta" and d.data_ptr() % TMA_BYTES:
        return d, False
    if d.dim() == 3 and d.stride(0) != d.shape[1] * d.stride(1):
        return d, False
    return _descriptor(d.flatten(0, -2), [WAVE_ROWS, STORED_COLUMNS], _BF16_LAYOUT), True


def _descriptor(matrix: Tensor, block: list[int], layout: Any) -> TensorDescriptor:
    # The stride of a single row is any number, but TMA takes multiples of 16 bytes.
    stride = (
        matrix.stride(0)
        if matrix.shape[0] > 1
        else get_tma_aligned_size(matrix.shape[1], matrix.element_size())
    )
    return TensorDescriptor(matrix, list(matrix.shape), [stride, 1], block, layout)


__all__ = ["Scales", "gemm", "k_grouped_gemm", "masked_gemm", "takes", "takes_k_groups"]
