"""Triton kernels of products; `launch` starts them.

One tile of D = C + A · Bᵀ is computed by `product`, in two levels for FP8: 128 columns of K in the tensor core from a
fresh accumulator (it adds with about 14 bits), then float32 with the blocks' scales. With SWAP the tile is computed
transposed, so that the weights fill the 64 rows of a warpgroup's instruction when there are few tokens.

    I1  no row of A or B influences another row: padding may hold NaN
    I2  nothing is stored outside the real rows and columns, except zeros in rows of group -1
    I3  offsets are 64-bit where a tensor may have more than 2^31 numbers

Kernel names contain what the original's benchmarks look for in a profile ("gemm_", "bf16_gemm", "mqa_logits").
"""

from typing import Any

import triton
import triton.language as tl

from ...kernels.kernel import narrow
from ...kernels.quantize import BLOCK
from .call import CONTIGUOUS, MASKED, NAME_PREFIXES, PSUM

_K_BLOCK: tl.constexpr = tl.constexpr(BLOCK)
_CONTIGUOUS: tl.constexpr = tl.constexpr(CONTIGUOUS)
_PSUM: tl.constexpr = tl.constexpr(PSUM)
_MASKED: tl.constexpr = tl.constexpr(MASKED)
_FAR: tl.constexpr = tl.constexpr(0x7FFFFFFF)


def _gemm_name(specialization: Any) -> str:
    constants = specialization.constants
    kind = "fp8_gemm_1d1d" if constants["B_ROW_SCALES"] else "fp8_gemm_1d2d"
    return f"{NAME_PREFIXES[constants['MODE']]}{kind if constants['FP8'] else 'bf16_gemm'}_kernel"


@triton.jit
def swizzled(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    # Neighbours in time share rows of A or of B, so that both stay in the L2 cache.
    width = GROUP * tiles_n
    first = tile // width * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + tile % width % size, tile % width // size


@triton.jit
def _tile(tile, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.reshape(tile.load([batch, row, column]), (ROWS, COLUMNS))


@triton.jit
def begin(
    c, rows, valid_rows, columns, n, c_m,
    ACCUMULATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    # What is added to is loaded first: after the product it would need as many registers again, and spill.
    if ACCUMULATE:
        pointers = c + rows.to(tl.int64)[:, None] * c_m + columns[None, :]
        total = tl.load(pointers, mask=valid_rows[:, None] & (columns < n)[None, :], other=0.0).to(tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    return tl.trans(total) if SWAP else total


@triton.jit
def product(  # noqa: PLR0912 (constants decide, and calls of other functions take most of the interpreter's time)
    total, a_tile, b_tile, batch, sfa, sfb, a_row, a_k, b_row, b_k, rows, rows_end, column, columns, columns_end,
    k_end, blocks, sfa_m, sfa_k, sfb_n, sfb_k,
    BATCHED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FP8: tl.constexpr, B_ROW_SCALES: tl.constexpr,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, RAGGED_K: tl.constexpr, K_STEP: tl.constexpr,
    SWAP: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    for block in range(blocks):
        k = block * K_STEP
        if A_TRANSPOSED:
            a = _tile(a_tile, batch, k, a_row, K_STEP, BLOCK_M) if BATCHED else a_tile.load([a_k + k, a_row])
        else:
            a = _tile(a_tile, batch, a_row, k, BLOCK_M, K_STEP) if BATCHED else a_tile.load([a_row, a_k + k])
        if B_TRANSPOSED:
            b = _tile(b_tile, batch, k, b_row, K_STEP, BLOCK_N) if BATCHED else b_tile.load([b_k + k, b_row])
        else:
            b = _tile(b_tile, batch, b_row, k, BLOCK_N, K_STEP) if BATCHED else b_tile.load([b_row, k])
        if RAGGED_K:
            # The last step of a group reaches into the next one, and 0 · NaN is NaN.
            inside = (k + tl.arange(0, K_STEP) < k_end)[:, None]
            if A_TRANSPOSED:
                a = tl.where(inside, a, 0.0).to(a.dtype)
            b = tl.where(inside, b, 0.0).to(b.dtype)
        if INTERPRET:
            # The interpreter multiplies the bit patterns of bfloat16.
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        if A_TRANSPOSED:
            a = tl.trans(a)
        if B_TRANSPOSED:
            b = tl.trans(b)
        if SWAP:
            part = tl.dot(b, tl.trans(a))
        else:
            part = tl.dot(a, tl.trans(b))
        if FP8:
            scale_a = tl.load(sfa + rows * sfa_m + block * sfa_k, mask=rows < rows_end, other=0.0)
            if B_ROW_SCALES or BLOCK_N > _K_BLOCK:
                scale_rows = columns if B_ROW_SCALES else columns // _K_BLOCK
                scale_b = tl.load(
                    sfb + scale_rows * sfb_n + block * sfb_k, mask=columns < columns_end, other=0.0
                )
                part *= scale_b[:, None] * scale_a[None, :] if SWAP else scale_a[:, None] * scale_b[None, :]
            else:
                # One number for the tile, as a vector: pipelines of scalar loads were wrong (tritonbench, issue 1163).
                one = column // _K_BLOCK * sfb_n + block * sfb_k
                scale_a *= tl.load(sfb + one + tl.zeros((BLOCK_M,), dtype=tl.int32))
                part *= scale_a[None, :] if SWAP else scale_a[:, None]
        total += part
    return tl.trans(total) if SWAP else total


@triton.jit
def store_tile(
    d, total, rows, valid_rows, columns, n, d_m, head_period, head_mid, head_right, HOLES: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    places = columns
    if HOLES:
        # One of head_mid columns in every head.
        places += (columns + head_right) // head_period * head_mid
    pointers = d + rows.to(tl.int64)[:, None] * d_m + places[None, :]
    mask = valid_rows[:, None] & (columns < n)[None, :]
    tl.store(pointers, narrow(total, d.dtype.element_ty, INTERPRET), mask=mask)


# Sizes that change from call to call: no kernel of its own for each of their divisibilities.
@triton.jit(repr=_gemm_name, do_not_specialize=["m", "groups", "d_g", "sfa_g", "sfa_k"])
def gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, layout, m, n, k, groups, d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    head_period, head_mid, head_right,
    MODE: tl.constexpr, FP8: tl.constexpr, B_ROW_SCALES: tl.constexpr, ACCUMULATE: tl.constexpr,
    HOLES: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, RAGGED_K: tl.constexpr,
    GROUPS: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, PROGRAMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Dense and grouped products, persistent: PROGRAMS programs share the tiles.

    B of group g begins at row g · n of its descriptor, or at g · k if it is transposed: the same tensor, flattened.
    Masked: m is the number of rows that every group has room for, and the real ones are counted on the device; tiles of
    all groups are dealt out in turn, so that empty groups cost a load and the host knows nothing.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    dealt = 0
    for number in range(groups if MODE == _MASKED else 1):
        rows_end = m
        if MODE == _MASKED:
            rows_end = tl.minimum(tl.load(layout + number), m)
        tiles_m = tl.cdiv(rows_end, BLOCK_M)
        first_tile = (tl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS
        dealt += tiles_m * tiles_n
        for tile in range(first_tile, tiles_m * tiles_n, PROGRAMS):
            tile_m, tile_n = swizzled(tile, tiles_m, tiles_n, 8)
            first = tile_m * BLOCK_M
            rows = first + tl.arange(0, BLOCK_M)
            columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
            group = number
            blocks = tl.cdiv(k, K_STEP)
            real = rows < rows_end
            stored = real
            if MODE == _CONTIGUOUS:
                of_rows = tl.load(layout + rows, mask=real, other=-1)
                group = tl.max(of_rows, 0)
                real = of_rows >= 0
                blocks = tl.where(group < 0, 0, blocks)
                group = tl.maximum(group, 0)
            if MODE == _PSUM:
                each = tl.arange(0, GROUPS)
                ends = tl.load(layout + each, mask=each < groups, other=_FAR)
                starts_after = (tl.minimum(ends, _FAR - ALIGNMENT) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
                group = tl.sum((starts_after <= first).to(tl.int32), 0)
                end = tl.sum(tl.where((each == group) & (each < groups), ends, 0), 0)
                stored = rows < tl.minimum(end, m)
                blocks = tl.where(first < end, blocks, 0)
                group = tl.minimum(group, groups - 1)
            a_row = first
            b_row = tile_n * BLOCK_N
            b_k = 0
            if B_TRANSPOSED:
                b_k += group * k
            else:
                b_row += group * n
            wide = tl.full((), group, tl.int64)
            own_d = d
            own_sfa = sfa
            if MODE == _MASKED:
                a_row += number * m
                own_d += wide * d_g
                own_sfa += wide * sfa_g
            start = begin(own_d, rows, stored, columns, n, d_m, ACCUMULATE, BLOCK_M, BLOCK_N, SWAP)
            total = product(
                start, a_tile, b_tile, 0, own_sfa, sfb + wide * sfb_g, a_row, 0, b_row, b_k,
                rows.to(tl.int64), rows_end, tile_n * BLOCK_N, columns.to(tl.int64), n, k, blocks,
                sfa_m, sfa_k, sfb_n, sfb_k,
                False, BLOCK_M, BLOCK_N, FP8, B_ROW_SCALES, A_TRANSPOSED, B_TRANSPOSED, RAGGED_K, K_STEP, SWAP,
                INTERPRET,
            )  # fmt: skip
            if MODE == _CONTIGUOUS:
                total = tl.where(real[:, None], total, 0.0)
            store_tile(
                own_d, total, rows, stored, columns, n, d_m, head_period, head_mid, head_right, HOLES, INTERPRET
            )  # fmt: skip


def _k_grouped_name(specialization: Any) -> str:
    return f"k_grouped_{'fp8_gemm_1d1d' if specialization.constants['FP8'] else 'bf16_gemm'}_kernel"


@triton.jit(repr=_k_grouped_name, do_not_specialize=["groups", "in_place"])
def k_grouped_gemm_kernel(
    a, b, c, d, sfa, sfb, ks, m, n, groups, in_place, c_g, c_m, d_g, d_m, sfa_m, sfa_k, sfb_n, sfb_k,
    FP8: tl.constexpr, RAGGED_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, PROGRAMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """D[g] = C[g] + A_g · B_gᵀ, where group g owns ks[g] of the summed dimension; sizes are read on the device.

    bfloat16: a (sum k, m) and b (sum k, n) are descriptors. FP8: they are pointers to blocks (m, k_g) and (n, k_g),
    one after the other, whose rows are k_g apart: each group has descriptors of its own, made here. A program makes
    them when all loads by the ones before have ended.
    `in_place`: c is d, and groups of k = 0 have nothing to do.
    """
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    dealt = 0
    before = tl.full((), 0, tl.int64)
    for group in range(groups):
        k = tl.load(ks + group)
        tiles = tl.where((k > 0) | (in_place == 0), tiles_m * tiles_n, 0)
        first_tile = (tl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS
        dealt += tiles
        if FP8:
            row = tl.maximum(k, K_STEP)
            a_tile = tl.make_tensor_descriptor(a + before * m, [m, row], [row, 1], [BLOCK_M, K_STEP])
            b_tile = tl.make_tensor_descriptor(b + before * n, [n, row], [row, 1], [BLOCK_N, K_STEP])
            first_k = 0
        else:
            a_tile = a
            b_tile = b
            first_k = before.to(tl.int32)
        group_sfa = sfa + before // _K_BLOCK * sfa_k
        group_sfb = sfb + before // _K_BLOCK * sfb_k
        wide = tl.full((), group, tl.int64)
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = swizzled(tile, tiles_m, tiles_n, 8)
            rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
            columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
            start = begin(c + wide * c_g, rows, rows < m, columns, n, c_m, True, BLOCK_M, BLOCK_N, SWAP)
            total = product(
                start, a_tile, b_tile, 0, group_sfa, group_sfb, tile_m * BLOCK_M, first_k, tile_n * BLOCK_N, first_k,
                rows.to(tl.int64), m, tile_n * BLOCK_N, columns.to(tl.int64), n, k, tl.cdiv(k, K_STEP),
                sfa_m, sfa_k, sfb_n, sfb_k,
                False, BLOCK_M, BLOCK_N, FP8, True, not FP8, not FP8, RAGGED_K, K_STEP, SWAP, INTERPRET,
            )  # fmt: skip
            store_tile(d + wide * d_g, total, rows, rows < m, columns, n, d_m, n, 0, 0, False, INTERPRET)
        before += k


@triton.jit(do_not_specialize=["m", "splits"])
def split_sum_kernel(parts, d, m, n, d_m, splits, BLOCK_N: tl.constexpr, INTERPRET: tl.constexpr):
    """D = the sum of parts (splits, m, n) of a product that was cut along k, always added in the same order."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(parts + (split * m + row) * n + columns, mask=columns < n, other=0.0)
    tl.store(d + row * d_m + columns, narrow(total, d.dtype.element_ty, INTERPRET), mask=columns < n)


__all__ = [
    "begin", "gemm_kernel", "k_grouped_gemm_kernel", "product", "split_sum_kernel", "store_tile", "swizzled",
]  # fmt: skip
