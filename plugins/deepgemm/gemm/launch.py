"""How a checked product becomes a launch of a Triton kernel: descriptors, tiles, grids.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.
"""

from collections.abc import Sequence
from contextvars import copy_context
from typing import Any, Final

import torch
from torch import Tensor
from triton import next_power_of_2, set_allocator
from triton.tools.tensor_descriptor import TensorDescriptor

from ...kernels.aot import start
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import ceil_div
from .. import settings
from ..scales import get_tma_aligned_size
from . import kernel
from .call import K_GROUPED, MASKED, PSUM, Call
from .tiles import Tile, choose

INTERPRETED_PROGRAMS: Final = 4  # few enough for quick tests, enough to share tiles


def run(call: Call) -> None:
    """Start the kernel."""
    tile = choose(
        call.rows, call.n, fp8=call.fp8, groups=call.groups if call.mode in {MASKED, K_GROUPED} else 1,
        programs=programs(), alignment=settings.ALIGNMENT if call.layout is None else call.alignment,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    with on_device(call.d):
        (_k_grouped if call.mode == K_GROUPED else _rows)(call, tile)


def _rows(call: Call, tile: Tile) -> None:
    """Start a dense product, or one whose groups cut the rows."""
    b, d, n, heads, masked = call.b, call.d, call.n, call.heads, call.mode == MASKED
    sfa, sfb, of_rows = call.scales or (d, d, False)  # d stands for a pointer that is not followed
    m, count = d.shape[-2], programs()
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    start(
        kernel.gemm_kernel, (count if masked else min(count, tiles),),
        _descriptor(call.a.flatten(0, -2), tile.block_m, tile.k_step, transposed=call.a_transposed),
        _descriptor(b.flatten(0, -2), tile.block_n, tile.k_step, transposed=call.b_transposed),
        d, sfa, sfb, d if call.layout is None else call.layout, m, n, call.k, call.groups, *call.strides(sfa, sfb),
        heads.left + heads.right if heads else n, heads.mid if heads else 0, heads.right if heads else 0,
        MODE=call.mode, FP8=call.fp8, B_ROW_SCALES=of_rows, ACCUMULATE=call.accumulate, HOLES=heads is not None,
        A_TRANSPOSED=call.a_transposed, B_TRANSPOSED=call.b_transposed,
        RAGGED_K=call.b_transposed and b.dim() == 3 and call.k % tile.k_step != 0,
        GROUPS=next_power_of_2(call.groups) if call.mode == PSUM else 1, ALIGNMENT=call.alignment, PROGRAMS=count,
        **tile_constants(tile),
    )  # fmt: skip


def _k_grouped(call: Call, tile: Tile) -> None:
    """The kernel reads the groups' sizes from the device; from `ks` only whether steps of K end with groups."""
    a, b, c, d = call.a, call.b, call.c, call.d
    assert c is not None, "weight gradients are added to something"
    groups, m, n = d.shape
    sfa, sfb, _ = call.scales or (d[0], d[0], False)
    if not call.fp8:
        a = _descriptor(a, tile.block_m, tile.k_step, transposed=True)
        b = _descriptor(b, tile.block_n, tile.k_step, transposed=True)
    count = programs()
    start_with_scratch(
        kernel.k_grouped_gemm_kernel, (min(count, groups * ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)),),
        a, b, c, d, sfa, sfb, call.layout, m, n, groups, int(c is d),
        c.stride(0), c.stride(1), d.stride(0), d.stride(1), *sfa.stride(), *sfb.stride(),
        FP8=call.fp8, RAGGED_K=any(k % tile.k_step for k in call.ks), PROGRAMS=count, **tile_constants(tile),
    )  # fmt: skip


def start_with_scratch(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Start a kernel that makes tensor descriptors, in memory of the device that torch allocates.

    The allocator is Triton's setting of a context: callers keep their own.
    """

    def run() -> None:
        set_allocator(_scratch)
        start(kernel, grid, *arguments, **constants)

    copy_context().run(run)


def _scratch(size: int, _alignment: int, _stream: int | None) -> Tensor:
    # Memory of torch is aligned to 512 bytes, and not used again on this stream before the kernel has ended.
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _descriptor(matrix: Tensor, rows: int, k_step: int, *, transposed: bool = False) -> TensorDescriptor:
    block = [k_step, rows] if transposed else [rows, k_step]
    return TensorDescriptor(matrix, list(matrix.shape), [row_stride(matrix), 1], block)


def row_stride(matrix: Tensor) -> int:
    """Return the stride of rows for TMA: that of a single row is any number, but TMA takes multiples of 16 bytes."""
    if matrix.shape[0] > 1:
        return matrix.stride(0)
    return get_tma_aligned_size(matrix.shape[1], matrix.element_size())


def tile_constants(tile: Tile) -> dict[str, int | bool]:
    """Return what kernels are compiled with."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "K_STEP": tile.k_step,
        "SWAP": tile.swap,
        "INTERPRET": is_interpreting(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def programs() -> int:
    """Return how many programs share the tiles of a product."""
    return INTERPRETED_PROGRAMS if is_interpreting() else settings.get_num_sms()


__all__ = ["programs", "row_stride", "run", "start_with_scratch", "tile_constants"]
