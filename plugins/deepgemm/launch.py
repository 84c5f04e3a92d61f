"""How a checked call becomes kernel launches: descriptors, tiles, grids.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.
"""

from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from triton import next_power_of_2, set_allocator
from triton.tools.tensor_descriptor import TensorDescriptor

from ..kernels.ahead import start
from ..kernels.layers import is_interpreting, on_device
from . import kernel, settings
from .indexer import PIECE_TOKENS
from .quantize import BLOCK, FP8, ceil_div
from .scales import get_tma_aligned_size
from .tiles import Tile, choose

INTERPRETED_PROGRAMS: Final = 4  # few enough for quick tests, enough to share tiles
LOGITS_BLOCK: Final = 128


@dataclass(frozen=True)
class Scales:
    """Scales of both operands of an FP8 product; `row_scales`: B has one a row, not one for 128 rows."""

    a: Tensor
    b: Tensor
    row_scales: bool = False


@dataclass(frozen=True)
class Heads:
    """Output columns with a hole of `mid` in each head of left + right columns."""

    left: int
    mid: int
    right: int


def gemm(  # noqa: PLR0913 (a product and its variants)
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
    heads: Heads | None = None,
    expected_m: int | None = None,
) -> None:
    """D = A · Bᵀ, or D += with `accumulate`; with a layout, each row's B is that of its group.

    Shapes: a (m, k), or (k, m) if transposed; b ([groups,] n, k), or (…, k, n) if transposed; d (m, n).
    """
    m, k = a.shape[::-1] if a_transposed else a.shape
    n = b.shape[-2] if not b_transposed else b.shape[-1]
    groups = b.shape[0] if b.dim() == 3 else 1
    alignment = settings.ALIGNMENT if layout is None else settings.get_mk_alignment_for_contiguous_layout()
    programs = _programs()
    rows = m if expected_m is None else expected_m * groups
    tile = choose(
        rows, n, fp8=scales is not None, groups=1, programs=programs, alignment=alignment,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    sfa, sfb = (scales.a, scales.b) if scales else (d, d)  # d stands for a pointer that is not followed
    mode = kernel.DENSE if layout is None else kernel.PSUM if psum else kernel.CONTIGUOUS
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    count = min(programs, tiles)
    with on_device(d):
        start(
            kernel.gemm_kernel, (count,),
            _descriptor(a, tile.block_m, tile.k_step, transposed=a_transposed),
            _descriptor(b.flatten(0, -2), tile.block_n, tile.k_step, transposed=b_transposed),
            d, sfa, sfb, d if layout is None else layout, m, n, k, groups, d.stride(0),
            sfa.stride(-2), sfa.stride(-1), sfb.stride(0) if sfb.dim() == 3 else 0, sfb.stride(-2), sfb.stride(-1),
            heads.left + heads.right if heads else n, heads.mid if heads else 0, heads.right if heads else 0,
            MODE=mode, FP8=scales is not None, B_ROW_SCALES=scales is not None and scales.row_scales,
            ACCUMULATE=accumulate, HOLES=heads is not None, A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed,
            RAGGED_K=b_transposed and b.dim() == 3 and k % tile.k_step != 0,
            GROUPS=next_power_of_2(groups), ALIGNMENT=alignment, PROGRAMS=programs, **_constants(tile),
        )  # fmt: skip


def masked_gemm(  # noqa: PLR0913 (a product and its variants)
    a: Tensor, b: Tensor, d: Tensor, masked_m: Tensor, expected_m: int, *, scales: Scales | None = None
) -> None:
    """D[g] = A[g] · B[g]ᵀ for the first masked_m[g] rows. Shapes: a (groups, max_m, k), b (groups, n, k)."""
    groups, max_m, k = a.shape
    n = b.shape[1]
    programs = _programs()
    tile = choose(
        min(expected_m, max_m), n, fp8=scales is not None, groups=groups, programs=programs,
        alignment=settings.ALIGNMENT, multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    sfa, sfb = (scales.a, scales.b) if scales else (d, d)
    with on_device(d):
        start(
            kernel.masked_gemm_kernel, (programs,),
            _descriptor(a.view(groups * max_m, k), tile.block_m, tile.k_step),
            _descriptor(b.view(groups * n, k), tile.block_n, tile.k_step),
            d, sfa, sfb, masked_m, max_m, n, k, groups, d.stride(0), d.stride(1),
            *(sfa.stride(each) for each in range(3)), *(sfb.stride(each) for each in range(3)),
            FP8=scales is not None, B_ROW_SCALES=False, PROGRAMS=programs, **_constants(tile),
        )  # fmt: skip


def k_grouped_gemm(  # noqa: PLR0913 (a product and its variants)
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    ks: Tensor,
    ks_cpu: Sequence[int],
    *,
    scales: Scales | None = None,
) -> None:
    """D[g] = C[g] + A_g · B_gᵀ in one launch, where group g owns ks[g] of the summed dimension.

    Shapes: a, b bfloat16 (sum k, m) and (sum k, n); or, with scales, flat e4m3: blocks (m, k_g) and (n, k_g). c, d
    (groups, m, n) float32. The kernel reads the sizes from `ks`; from `ks_cpu` only whether steps of K end with groups.
    """
    groups, m, n = d.shape
    programs = _programs()
    tile = choose(
        m, n, fp8=scales is not None, groups=groups, programs=programs, alignment=settings.ALIGNMENT,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    sfa, sfb = (scales.a, scales.b) if scales else (d[0], d[0])
    if scales is None:
        a = _descriptor(a, tile.block_m, tile.k_step, transposed=True)
        b = _descriptor(b, tile.block_n, tile.k_step, transposed=True)
    count = min(programs, groups * ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n))
    with on_device(d):
        start_with_scratch(
            kernel.k_grouped_gemm_kernel, (count,), a, b, c, d, sfa, sfb, ks, m, n, groups, int(c is d),
            c.stride(0), c.stride(1), d.stride(0), d.stride(1), *sfa.stride(), *sfb.stride(),
            FP8=scales is not None, RAGGED_K=any(k % tile.k_step for k in ks_cpu),
            PROGRAMS=programs, **_constants(tile),
        )  # fmt: skip


def start_with_scratch(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """`start` for kernels that make tensor descriptors: these lie in memory of the device that torch lends.

    The allocator is Triton's setting of a context: callers keep their own.
    """

    def run() -> None:
        set_allocator(_scratch)
        start(kernel, grid, *arguments, **constants)

    copy_context().run(run)


def _scratch(size: int, _alignment: int, _stream: int | None) -> Tensor:
    # Memory of torch is aligned to 512 bytes, and not lent again on this stream before the kernel has ended.
    return torch.empty(size, dtype=torch.int8, device="cuda")


def batched_gemm(  # noqa: PLR0913 (a product and its variants)
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
    programs = _programs()
    tile = choose(
        m, n, fp8=scales is not None, groups=batches, programs=programs, alignment=settings.ALIGNMENT,
        multiple_of=settings.get_block_size_multiple_of(),
    )  # fmt: skip
    sfa, sfb = (scales.a, scales.b) if scales else (d, d)
    count = min(programs, batches * ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n))
    with on_device(d):
        start(
            kernel.batched_gemm_kernel, (count,),
            _batched_descriptor(a, tile.block_m, tile.k_step, transposed=a_transposed),
            _batched_descriptor(b, tile.block_n, tile.k_step, transposed=b_transposed),
            d, sfa, sfb, batches, m, n, k, d.stride(0), d.stride(1),
            *(sfa.stride(each) for each in range(3)), *(sfb.stride(each) for each in range(3)),
            FP8=scales is not None, A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, ACCUMULATE=accumulate,
            PROGRAMS=programs, **_constants(tile),
        )  # fmt: skip


def summed_gemm(a: Tensor, b: Tensor) -> Tensor:
    """Float32 sum over z of A[z] · B[z]ᵀ. Shapes: a (batches, m, k), b (batches, n, k); result (m, n).

    The batches are dealt out to parts that fill the device; the parts are added in order, always the same.
    """
    batches, m, k = a.shape
    n = b.shape[1]
    tile = Tile(64 if m <= 64 else 128, 128, 64, 4, 8)
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    count = min(batches, max(1, _programs() // tiles))
    parts = torch.empty((count, m, n), dtype=torch.float32, device=a.device)
    constants = _constants(tile)
    with on_device(a):
        start(
            kernel.bmn_bnk_mn_gemm_impl, (tiles, count),
            _batched_descriptor(a, tile.block_m, tile.k_step), _batched_descriptor(b, tile.block_n, tile.k_step),
            parts, batches, m, n, k, **constants,
        )  # fmt: skip
    return parts.sum(0)


def prenorm_gemm(a: Tensor, b: Tensor, d: Tensor, squares: Tensor) -> None:
    """Fills d (splits, m, n) with parts of A · Bᵀ, and squares (splits, m). Shapes: a (m, k), b (n, k)."""
    splits, m, n = d.shape
    rows, columns = 64, min(128, max(16, next_power_of_2(n)))
    with on_device(d):
        start(
            kernel.tf32_hc_prenorm_gemm_kernel, (ceil_div(m, rows) * ceil_div(n, columns), splits),
            a, b, d, squares, m, n, a.shape[1], splits, a.stride(0), b.stride(0), d.stride(0), d.stride(1),
            BLOCK_M=rows, BLOCK_N=columns, K_STEP=64, num_warps=4, num_stages=4,
        )  # fmt: skip


def per_token_cast(x: Tensor, values: Tensor, scales: Tensor, *, use_ue8m0: bool) -> None:
    """Fills values (m, n) e4m3 and scales (m, ceil(n / 128)), of any strides, from x."""
    m, n = x.shape
    rows = 16
    with on_device(x):
        start(
            kernel.per_token_cast_kernel, (ceil_div(m, rows), ceil_div(n, BLOCK)),
            x, values, scales, m, n, x.stride(0), scales.stride(0), scales.stride(1),
            UE8M0=use_ue8m0, BLOCK_M=rows, INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


def mqa_logits(  # noqa: PLR0913 (the operator's own)
    q: Tensor, kv: Tensor, sf: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, logits: Tensor,
    *, compressed: bool, clean: bool,
) -> None:  # fmt: skip
    """Fills logits (s, s_kv), or (s, max_seqlen_k) if compressed."""
    s, heads, d = q.shape
    with on_device(q):
        start(
            kernel.mqa_logits_kernel, (s, ceil_div(logits.shape[1], LOGITS_BLOCK)),
            q, kv, sf, weights, starts, ends, logits, kv.shape[0], q.stride(0), q.stride(1), kv.stride(0),
            weights.stride(0), logits.stride(0), logits.shape[1],
            HEADS=heads, D=d, BLOCK_KV=LOGITS_BLOCK, COMPRESSED=compressed, CLEAN=clean, num_warps=4,
        )  # fmt: skip


def paged_metadata(context_lens: Tensor, schedule: Tensor) -> None:
    """Fills schedule (programs + 1, 2) for requests of context_lens (b,) tokens."""
    programs = schedule.shape[0] - 1
    with on_device(schedule):
        start(
            kernel.paged_mqa_logits_metadata_kernel, (1,),
            context_lens, schedule, context_lens.shape[0], context_lens.stride(0),
            PIECE=PIECE_TOKENS, SMS=programs, SMS_PADDED=next_power_of_2(programs + 1), num_warps=4,
        )  # fmt: skip


def paged_mqa_logits(  # noqa: PLR0913 (the operator's own)
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule: Tensor,
    logits: Tensor,
) -> None:
    """Fills logits (b · next_n, max_context_len). Shapes: context_lens (b, next_n), cache (blocks, block, 1, d + 4)."""
    _, next_n, heads, d = q.shape
    blocks, page = cache.shape[:2]
    with on_device(q):
        start(
            kernel.paged_mqa_logits_kernel, (schedule.shape[0] - 1,),
            q, cache.view(FP8), cache.view(torch.float32), weights, context_lens, block_table, schedule, logits, blocks,
            q.stride(1), q.stride(2), cache.stride(0), cache.stride(0) // 4, weights.stride(0), block_table.stride(0),
            logits.stride(0), logits.shape[1], next_n, context_lens.stride(0), context_lens.stride(1),
            HEADS=heads, D=d, PAGE=page, PIECE=PIECE_TOKENS, num_warps=4,
        )  # fmt: skip


def _descriptor(matrix: Tensor, rows: int, k_step: int, *, transposed: bool = False) -> TensorDescriptor:
    block = [k_step, rows] if transposed else [rows, k_step]
    # The stride of a single row is any number, but TMA takes multiples of 16 bytes.
    stride = (
        matrix.stride(0)
        if matrix.shape[0] > 1
        else get_tma_aligned_size(matrix.shape[1], matrix.element_size())
    )
    return TensorDescriptor(matrix, list(matrix.shape), [stride, 1], block)


def _batched_descriptor(
    stack: Tensor, rows: int, k_step: int, *, transposed: bool = False
) -> TensorDescriptor:
    block = [1, k_step, rows] if transposed else [1, rows, k_step]
    return TensorDescriptor(stack, list(stack.shape), [stack.stride(0), stack.stride(1), 1], block)


def _constants(tile: Tile) -> dict[str, int | bool]:
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "K_STEP": tile.k_step,
        "SWAP": tile.swap,
        "INTERPRET": is_interpreting(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _programs() -> int:
    return INTERPRETED_PROGRAMS if is_interpreting() else settings.get_num_sms()


__all__ = [
    "Heads",
    "Scales",
    "batched_gemm",
    "gemm",
    "k_grouped_gemm",
    "masked_gemm",
    "mqa_logits",
    "paged_metadata",
    "paged_mqa_logits",
    "per_token_cast",
    "prenorm_gemm",
    "start_with_scratch",
    "summed_gemm",
]
