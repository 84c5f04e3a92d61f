"""The fast path for Hopper, as calls: which products it takes, in which kernel and tiles, and how they are launched.

hopper_products     more than 64 rows
hopper_decode       up to 128 rows with B stored (n, k): of few tokens, cut along k to fill the chip
hopper_k_groups     weight gradients
"""

from typing import Any, Final

import torch
from torch import Tensor
from triton import next_power_of_2
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ...kernels.aot import start
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import BLOCK, ceil_div
from .. import settings
from ..scales import TMA_BYTES
from .call import CONTIGUOUS, DENSE, K_GROUPED, MASKED, PSUM, Call
from .hopper_decode import decode_gemm_kernel
from .hopper_k_groups import BLOCK_M, BLOCK_N, specialised_k_grouped_kernel
from .hopper_products import STORED_COLUMNS, specialised_gemm_kernel
from .kernel import split_sum_kernel
from .launch import row_stride, start_with_scratch
from .tile_scheduler import CONSUMER_WARPS, GROUP_ROWS, WAVE_ROWS
from .tiles import BF16_STEP, DECODE_ROWS_MAX, Tile, choose_decode, choose_specialised

LOADER_REGISTERS: Final = 24  # what a loader needs; the rest of the register file is the consumers'
CONSUMER_REGISTERS: Final = 240
K_GROUPED_REGISTERS: Final = (232, 40)  # of consumers and of a loader that makes descriptors
K_GROUPED_STAGES: Final = 4  # 32 KiB each
SUM_COLUMNS: Final = 1024  # that a program of `split_sum_kernel` adds

_FP8_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
_BF16_LAYOUT: Final = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


def takes(call: Call) -> bool:
    """Return whether a kernel here is for this product."""
    if call.heads is not None:
        return False
    if call.mode == K_GROUPED:  # steps of K must end where groups end
        return call.rows > WAVE_ROWS and not any(k % BF16_STEP for k in call.ks)
    if _is_decode(call):
        return True
    # A step of K that ends beyond its group would meet rows of the next group's B, which the Triton kernels mask.
    ragged = call.b_transposed and call.b.dim() == 3 and call.k % BF16_STEP != 0
    return call.rows > WAVE_ROWS and call.alignment % GROUP_ROWS == 0 and not ragged


def run(call: Call) -> None:
    """Start the kernel. Limits: `takes` says yes."""
    with on_device(call.d):
        if call.mode == K_GROUPED:
            _k_grouped(call)
        elif _is_decode(call):
            _decode(call)
        else:
            _many_rows(call)


def _is_decode(call: Call) -> bool:
    plain = not call.a_transposed and not call.b_transposed
    of_rows = call.scales is not None and call.scales.of_rows
    return call.mode in {DENSE, MASKED} and call.rows <= DECODE_ROWS_MAX and plain and not of_rows


def _decode(call: Call) -> None:
    d, groups, n, k = call.d, call.groups, call.n, call.k
    m = d.shape[-2]
    masked = call.mode == MASKED
    programs = settings.get_num_sms()
    plan = choose_decode(
        call.rows, n, k, fp8=call.fp8, programs=programs, can_split=not masked,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    parts = d
    if plan.splits > 1:
        parts = torch.empty((plan.splits, m, n), dtype=torch.float32, device=d.device)
    sfa, sfb, _ = call.scales or (d, d, False)
    layout = _layout(call)
    start(
        decode_gemm_kernel, (programs if masked else min(programs, plan.items),),
        _descriptor(call.b.flatten(0, -2), [WAVE_ROWS, plan.k_step], layout),
        _descriptor(call.a.flatten(0, -2), [plan.tokens, plan.k_step], layout),
        d, parts, sfa, sfb, call.layout if masked else d, m, n, k, groups, *call.strides(sfa, sfb),
        MODE=call.mode, FP8=call.fp8, ACCUMULATE=call.accumulate, TOKENS=plan.tokens, STEP=plan.k_step,
        SPLITS=plan.splits, STAGES=plan.stages, PROGRAMS=programs,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS, num_warps=CONSUMER_WARPS,
    )  # fmt: skip
    if plan.splits > 1:
        start(
            split_sum_kernel, (m, ceil_div(n, SUM_COLUMNS)), parts, d, m, n, d.stride(0), plan.splits,
            BLOCK_N=SUM_COLUMNS, INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


def _k_grouped(call: Call) -> None:
    a, b, c, d = call.a, call.b, call.c, call.d
    assert c is not None, "weight gradients are added to something"
    groups, m, n = d.shape
    sfa, sfb, _ = call.scales or (d[0], d[0], False)
    programs, layout = settings.get_num_sms(), _layout(call)
    given: list[Any] = [a, b]
    if not call.fp8:
        given = [
            _descriptor(each, [BF16_STEP, rows], layout) for each, rows in ((a, WAVE_ROWS), (b, BLOCK_N))
        ]
    start_with_scratch(
        specialised_k_grouped_kernel, (min(programs, groups * ceil_div(m, BLOCK_M) * ceil_div(n, BLOCK_N)),),
        *given, c, d, sfa, sfb, call.layout, m, n, groups, int(c is d),
        c.stride(0), c.stride(1), d.stride(0), d.stride(1), *sfa.stride(), *sfb.stride(),
        FP8=call.fp8, STEP=BLOCK if call.fp8 else BF16_STEP, STAGES=K_GROUPED_STAGES, PROGRAMS=programs,
        A_LAYOUT=layout, B_LAYOUT=layout, CONSUMER_REGISTERS=K_GROUPED_REGISTERS[0],
        LOADER_REGISTERS=K_GROUPED_REGISTERS[1], num_warps=CONSUMER_WARPS,
    )  # fmt: skip


def _many_rows(call: Call) -> None:
    a, b, d, layout = call.a, call.b, call.d, _layout(call)
    m, n, masked = d.shape[-2], call.n, call.mode == MASKED
    programs = settings.get_num_sms()
    sfa, sfb, of_rows = call.scales or (d, d, False)  # d stands for a pointer that is not followed
    tile = choose_specialised(
        call.rows, n, fp8=call.fp8, groups=call.groups if masked else 1, programs=programs, row_scales=of_rows,
        tall=call.mode not in {CONTIGUOUS, PSUM}, multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    a_block, b_block = [WAVE_ROWS, tile.k_step], [tile.block_n, tile.k_step]
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    stored, by_tma = _stored(d)
    piece_m, piece_n = _piece(tile, fp8=call.fp8)
    start(
        specialised_gemm_kernel, (programs if masked else min(programs, tiles),),
        _descriptor(a.flatten(0, -2), a_block[::-1] if call.a_transposed else a_block, layout),
        _descriptor(b.flatten(0, -2), b_block[::-1] if call.b_transposed else b_block, layout),
        d, stored, sfa, sfb, d if call.layout is None else call.layout, m, n, call.k, call.groups,
        *call.strides(sfa, sfb),
        MODE=call.mode, GROUPS=next_power_of_2(call.groups) if call.mode == PSUM else 1, FP8=call.fp8,
        B_ROW_SCALES=of_rows, ACCUMULATE=call.accumulate,
        A_TRANSPOSED=call.a_transposed, B_TRANSPOSED=call.b_transposed, BY_TMA=by_tma,
        TILE_M=tile.block_m, TILE_N=tile.block_n, STEP=tile.k_step, PIECE_M=piece_m, PIECE_N=piece_n,
        STAGES=tile.stages, PROGRAMS=programs,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS, num_warps=CONSUMER_WARPS,
    )  # fmt: skip


def _layout(call: Call) -> Any:
    return _FP8_LAYOUT if call.fp8 else _BF16_LAYOUT


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
    return TensorDescriptor(matrix, list(matrix.shape), [row_stride(matrix), 1], block, layout)


__all__ = ["run", "takes"]
