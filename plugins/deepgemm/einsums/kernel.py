"""Triton kernels of sums over heads and batches, and how they are started."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...kernels.aot import start
from ...kernels.layers import on_device
from ...kernels.quantize import ceil_div
from .. import settings
from ..gemm.call import Scales
from ..gemm.kernel import begin, product, store_tile, swizzled
from ..gemm.launch import programs, tile_constants
from ..gemm.tiles import Tile, choose


def _batched_name(specialization: Any) -> str:
    return f"batched_{'fp8_gemm_1d2d' if specialization.constants['FP8'] else 'bf16_gemm'}_kernel"


@triton.jit(repr=_batched_name, do_not_specialize=["m", "sfa_b", "sfa_m"])
def batched_gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, batches, m, n, k, d_b, d_m, sfa_b, sfa_m, sfa_k, sfb_b, sfb_n, sfb_k,
    FP8: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, PROGRAMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """As many products as there are batches, each with its own A, B and D; descriptors have three dimensions."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    for tile in range(tl.program_id(0), batches * tiles_m * tiles_n, PROGRAMS):
        batch = tile // (tiles_m * tiles_n)
        tile_m, tile_n = swizzled(tile % (tiles_m * tiles_n), tiles_m, tiles_n, 8)
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        wide = tl.full((), batch, tl.int64)
        own = d + wide * d_b
        start = begin(own, rows, rows < m, columns, n, d_m, ACCUMULATE, BLOCK_M, BLOCK_N, SWAP)
        total = product(
            start, a_tile, b_tile, batch, sfa + wide * sfa_b, sfb + wide * sfb_b, tile_m * BLOCK_M, 0,
            tile_n * BLOCK_N, 0, rows.to(tl.int64), m, tile_n * BLOCK_N, columns.to(tl.int64), n, k, tl.cdiv(k, K_STEP),
            sfa_m, sfa_k, sfb_n, sfb_k,
            True, BLOCK_M, BLOCK_N, FP8, False, A_TRANSPOSED, B_TRANSPOSED, False, K_STEP, SWAP, INTERPRET,
        )  # fmt: skip
        store_tile(own, total, rows, rows < m, columns, n, d_m, n, 0, 0, False, INTERPRET)


@triton.jit(do_not_specialize=["batches"])
def bmn_bnk_mn_gemm_impl(
    a_tile, b_tile, parts, batches, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """The sum of all batches' products, in as many parts (parts, m, n) as the grid's second dimension has."""
    first = tl.program_id(0) // tl.cdiv(n, BLOCK_N) * BLOCK_M
    first_column = tl.program_id(0) % tl.cdiv(n, BLOCK_N) * BLOCK_N
    rows = first + tl.arange(0, BLOCK_M)
    columns = first_column + tl.arange(0, BLOCK_N)
    total = begin(parts, rows, rows < m, columns, n, n, False, BLOCK_M, BLOCK_N, SWAP)
    for batch in range(tl.program_id(1), batches, tl.num_programs(1)):
        total = product(
            total, a_tile, b_tile, batch, parts, parts, first, 0, first_column, 0, rows, m, first_column, columns, n,
            k, tl.cdiv(k, K_STEP), 0, 0, 0, 0,
            True, BLOCK_M, BLOCK_N, False, False, False, False, False, K_STEP, SWAP, INTERPRET,
        )  # fmt: skip
    part = parts + tl.program_id(1).to(tl.int64) * m * n
    store_tile(part, total, rows, rows < m, columns, n, n, n, 0, 0, False, INTERPRET)


def batched_gemm(
    a: Tensor,
    b: Tensor,
    d: Tensor,
    *,
    scales: Scales | None = None,
    a_transposed: bool = False,
    b_transposed: bool = False,
    accumulate: bool = False,
) -> None:
    """D[z] = A[z] · B[z]ᵀ, or D[z] += with `accumulate`; scales have the batch in front, too.

    Shapes: a (batches, m, k), or (…, k, m) if transposed; b (batches, n, k), or (…, k, n); d (batches, m, n).
    """
    batches, m, n = d.shape
    k = a.shape[1] if a_transposed else a.shape[2]
    tile = choose(
        m, n, fp8=scales is not None, groups=batches, programs=programs(), alignment=settings.ALIGNMENT,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    sfa, sfb, _ = scales or (d, d, False)
    count = min(programs(), batches * ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n))
    with on_device(d):
        start(
            batched_gemm_kernel, (count,),
            _batched_descriptor(a, tile.block_m, tile.k_step, transposed=a_transposed),
            _batched_descriptor(b, tile.block_n, tile.k_step, transposed=b_transposed),
            d, sfa, sfb, batches, m, n, k, d.stride(0), d.stride(1),
            *sfa.stride(), *sfb.stride(),
            FP8=scales is not None, A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, ACCUMULATE=accumulate,
            PROGRAMS=programs(), **tile_constants(tile),
        )  # fmt: skip


def summed_gemm(a: Tensor, b: Tensor) -> Tensor:
    """Float32 sum over z of A[z] · B[z]ᵀ. Shapes: a (batches, m, k), b (batches, n, k); result (m, n).

    The batches are dealt out to parts that fill the device; the parts are added in order, always the same.
    """
    batches, m, k = a.shape
    n = b.shape[1]
    tile = Tile(64 if m <= 64 else 128, 128, 64, 4, 8)
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    count = min(batches, max(1, programs() // tiles))
    parts = torch.empty((count, m, n), dtype=torch.float32, device=a.device)
    constants = tile_constants(tile)
    with on_device(a):
        start(
            bmn_bnk_mn_gemm_impl, (tiles, count),
            _batched_descriptor(a, tile.block_m, tile.k_step), _batched_descriptor(b, tile.block_n, tile.k_step),
            parts, batches, m, n, k, **constants,
        )  # fmt: skip
    return parts.sum(0)


def _batched_descriptor(
    stack: Tensor, rows: int, k_step: int, *, transposed: bool = False
) -> TensorDescriptor:
    block = [1, k_step, rows] if transposed else [1, rows, k_step]
    return TensorDescriptor(stack, list(stack.shape), [stack.stride(0), stack.stride(1), 1], block)


__all__ = ["batched_gemm", "summed_gemm"]
