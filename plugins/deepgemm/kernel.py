"""Triton kernels of every operator; `launch` starts them.

One tile of D = C + A · Bᵀ is computed by `_product`, in two levels for FP8: 128 columns of K in the tensor core from a
fresh accumulator (it adds with about 14 bits), then float32 with the blocks' scales. With SWAP the tile is computed
transposed, so that the weights fill the 64 rows of a warpgroup's instruction when there are few tokens.

    I1  no row of A or B influences another row: padding may hold NaN
    I2  nothing is stored outside the real rows and columns, except zeros in rows of group -1
    I3  offsets are 64-bit where a tensor may have more than 2^31 numbers

Kernel names contain what the original's benchmarks look for in a profile ("gemm_", "bf16_gemm", "mqa_logits").
"""

from typing import Any, Final

import triton
import triton.language as tl

from ..kernels.kernel import rounded_to_e4m3

DENSE: Final = 0
CONTIGUOUS: Final = 1
PSUM: Final = 2
MASKED: Final = 3
NAME_PREFIXES: Final = {
    DENSE: "",
    CONTIGUOUS: "m_grouped_contiguous_",
    PSUM: "m_grouped_psum_",
    MASKED: "m_grouped_masked_",
}

_K_BLOCK: tl.constexpr = tl.constexpr(128)
_DENSE: tl.constexpr = tl.constexpr(DENSE)
_CONTIGUOUS: tl.constexpr = tl.constexpr(CONTIGUOUS)
_PSUM: tl.constexpr = tl.constexpr(PSUM)
_FAR: tl.constexpr = tl.constexpr(0x7FFFFFFF)


def _gemm_name(specialization: Any) -> str:
    constants = specialization.constants
    kind = "fp8_gemm_1d1d" if constants["B_ROW_SCALES"] else "fp8_gemm_1d2d"
    return f"{NAME_PREFIXES[constants.get('MODE', MASKED)]}{kind if constants['FP8'] else 'bf16_gemm'}_kernel"


@triton.jit
def _swizzled(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    # Neighbours in time share rows of A or of B, so that both stay in the L2 cache.
    width = GROUP * tiles_n
    first = tile // width * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + tile % width % size, tile % width // size


@triton.jit
def _tile(tile, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.reshape(tile.load([batch, row, column]), (ROWS, COLUMNS))


@triton.jit
def _begin(
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
def _product(  # noqa: PLR0912 (constants decide, and calls of other functions take most of the interpreter's time)
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
def _store(
    d, total, rows, valid_rows, columns, n, d_m, head_period, head_mid, head_right, HOLES: tl.constexpr
):
    places = columns
    if HOLES:
        # One of head_mid columns in every head.
        places += (columns + head_right) // head_period * head_mid
    pointers = d + rows.to(tl.int64)[:, None] * d_m + places[None, :]
    mask = valid_rows[:, None] & (columns < n)[None, :]
    tl.store(pointers, total.to(d.dtype.element_ty), mask=mask)


# Sizes that change from call to call: no kernel of its own for each of their divisibilities.
@triton.jit(repr=_gemm_name, do_not_specialize=["m", "groups", "sfa_k"])
def gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, layout, m, n, k, groups, d_m, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    head_period, head_mid, head_right,
    MODE: tl.constexpr, FP8: tl.constexpr, B_ROW_SCALES: tl.constexpr, ACCUMULATE: tl.constexpr,
    HOLES: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, RAGGED_K: tl.constexpr,
    GROUPS: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, PROGRAMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Dense and contiguous grouped products, persistent: PROGRAMS programs share the tiles.

    B of group g begins at row g · n of its descriptor, or at g · k if it is transposed: the same tensor, flattened.
    """
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS):
        tile_m, tile_n = _swizzled(tile, tiles_m, tiles_n, 8)
        first = tile_m * BLOCK_M
        rows = first + tl.arange(0, BLOCK_M)
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        group = 0
        blocks = tl.cdiv(k, K_STEP)
        real = rows < m
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
        b_row = tile_n * BLOCK_N
        b_k = 0
        if B_TRANSPOSED:
            b_k += group * k
        else:
            b_row += group * n
        wide = tl.full((), group, tl.int64)
        start = _begin(d, rows, stored, columns, n, d_m, ACCUMULATE, BLOCK_M, BLOCK_N, SWAP)
        total = _product(
            start, a_tile, b_tile, 0, sfa, sfb + wide * sfb_g, first, 0, b_row, b_k, rows.to(tl.int64), m,
            tile_n * BLOCK_N, columns.to(tl.int64), n, k, blocks, sfa_m, sfa_k, sfb_n, sfb_k,
            False, BLOCK_M, BLOCK_N, FP8, B_ROW_SCALES, A_TRANSPOSED, B_TRANSPOSED, RAGGED_K, K_STEP, SWAP, INTERPRET,
        )  # fmt: skip
        if MODE == _CONTIGUOUS:
            total = tl.where(real[:, None], total, 0.0)
        _store(d, total, rows, stored, columns, n, d_m, head_period, head_mid, head_right, HOLES)


@triton.jit(repr=_gemm_name, do_not_specialize=["max_m", "groups", "d_g", "sfa_g", "sfa_k"])
def masked_gemm_kernel(
    a_tile, b_tile, d, sfa, sfb, masked_m, max_m, n, k, groups, d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    FP8: tl.constexpr, B_ROW_SCALES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr, SWAP: tl.constexpr, PROGRAMS: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """Grouped products whose real rows are counted on the device: group g has masked_m[g] of max_m.

    The tiles of all groups are dealt out in turn, so that empty groups cost a load and the host knows nothing.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    dealt = 0
    for group in range(groups):
        rows_end = tl.minimum(tl.load(masked_m + group), max_m)
        tiles = tl.cdiv(rows_end, BLOCK_M) * tiles_n
        first_tile = (tl.program_id(0) + PROGRAMS - dealt % PROGRAMS) % PROGRAMS
        dealt += tiles
        wide = tl.full((), group, tl.int64)
        for tile in range(first_tile, tiles, PROGRAMS):
            tile_m, tile_n = _swizzled(tile, tl.cdiv(rows_end, BLOCK_M), tiles_n, 8)
            first = tile_m * BLOCK_M
            rows = first + tl.arange(0, BLOCK_M)
            columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
            start = _begin(d, rows, rows < rows_end, columns, n, d_m, False, BLOCK_M, BLOCK_N, SWAP)
            total = _product(
                start, a_tile, b_tile, 0, sfa + wide * sfa_g, sfb + wide * sfb_g,
                group * max_m + first, 0, group * n + tile_n * BLOCK_N, 0, rows.to(tl.int64), rows_end,
                tile_n * BLOCK_N, columns.to(tl.int64), n, k, tl.cdiv(k, K_STEP), sfa_m, sfa_k, sfb_n, sfb_k,
                False, BLOCK_M, BLOCK_N, FP8, B_ROW_SCALES, False, False, False, K_STEP, SWAP, INTERPRET,
            )  # fmt: skip
            _store(d + wide * d_g, total, rows, rows < rows_end, columns, n, d_m, n, 0, 0, False)


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
            tile_m, tile_n = _swizzled(tile, tiles_m, tiles_n, 8)
            rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
            columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
            start = _begin(c + wide * c_g, rows, rows < m, columns, n, c_m, True, BLOCK_M, BLOCK_N, SWAP)
            total = _product(
                start, a_tile, b_tile, 0, group_sfa, group_sfb, tile_m * BLOCK_M, first_k, tile_n * BLOCK_N, first_k,
                rows.to(tl.int64), m, tile_n * BLOCK_N, columns.to(tl.int64), n, k, tl.cdiv(k, K_STEP),
                sfa_m, sfa_k, sfb_n, sfb_k,
                False, BLOCK_M, BLOCK_N, FP8, True, not FP8, not FP8, RAGGED_K, K_STEP, SWAP, INTERPRET,
            )  # fmt: skip
            _store(d + wide * d_g, total, rows, rows < m, columns, n, d_m, n, 0, 0, False)
        before += k


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
        tile_m, tile_n = _swizzled(tile % (tiles_m * tiles_n), tiles_m, tiles_n, 8)
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        wide = tl.full((), batch, tl.int64)
        own = d + wide * d_b
        start = _begin(own, rows, rows < m, columns, n, d_m, ACCUMULATE, BLOCK_M, BLOCK_N, SWAP)
        total = _product(
            start, a_tile, b_tile, batch, sfa + wide * sfa_b, sfb + wide * sfb_b, tile_m * BLOCK_M, 0,
            tile_n * BLOCK_N, 0, rows.to(tl.int64), m, tile_n * BLOCK_N, columns.to(tl.int64), n, k, tl.cdiv(k, K_STEP),
            sfa_m, sfa_k, sfb_n, sfb_k,
            True, BLOCK_M, BLOCK_N, FP8, False, A_TRANSPOSED, B_TRANSPOSED, False, K_STEP, SWAP, INTERPRET,
        )  # fmt: skip
        _store(own, total, rows, rows < m, columns, n, d_m, n, 0, 0, False)


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
    total = _begin(parts, rows, rows < m, columns, n, n, False, BLOCK_M, BLOCK_N, SWAP)
    for batch in range(tl.program_id(1), batches, tl.num_programs(1)):
        total = _product(
            total, a_tile, b_tile, batch, parts, parts, first, 0, first_column, 0, rows, m, first_column, columns, n,
            k, tl.cdiv(k, K_STEP), 0, 0, 0, 0,
            True, BLOCK_M, BLOCK_N, False, False, False, False, False, K_STEP, SWAP, INTERPRET,
        )  # fmt: skip
    part = parts + tl.program_id(1).to(tl.int64) * m * n
    _store(part, total, rows, rows < m, columns, n, n, n, 0, 0, False)


@triton.jit(do_not_specialize=["m"])
def tf32_hc_prenorm_gemm_kernel(
    a, b, d, squares, m, n, k, splits, a_m, b_n, d_s, d_m,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, K_STEP: tl.constexpr,
):  # fmt: skip
    """A tile of one part of D = A · Bᵀ; the programs of the first columns write the rows' sums of squares, too.

    Part i has steps i, i + splits, … of k.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    rows = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M,), dtype=tl.float32)
    a_rows = a + rows.to(tl.int64)[:, None] * a_m
    b_rows = b + columns.to(tl.int64)[:, None] * b_n
    for step in range(split, tl.cdiv(k, K_STEP), splits):
        inside = step * K_STEP + tl.arange(0, K_STEP)
        mask = (inside < k)[None, :]
        left = tl.load(a_rows + inside[None, :], mask=(rows < m)[:, None] & mask, other=0.0).to(tl.float32)
        right = tl.load(b_rows + inside[None, :], mask=(columns < n)[:, None] & mask, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="tf32")
        sums += tl.sum(left * left, 1)
    wide = split.to(tl.int64)
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(d + wide * d_s + rows.to(tl.int64)[:, None] * d_m + columns[None, :], total, mask=mask)
    rows_end = tl.where(tl.program_id(0) % tiles_n == 0, m, 0)
    tl.store(squares + wide * m + rows, sums, mask=rows < rows_end)


@triton.jit(do_not_specialize=["m", "scales_k"])
def per_token_cast_kernel(
    x, values, scales, m, n, x_m, scales_m, scales_k,
    UE8M0: tl.constexpr, BLOCK_M: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Quantises rows in blocks of 128 and writes the scales at the strides that the product wants."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    block = tl.program_id(1)
    columns = block * _K_BLOCK + tl.arange(0, _K_BLOCK)
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    part = tl.load(x + rows[:, None] * x_m + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(part), 1), 1e-4) / 448.0
    if UE8M0:
        bits = scale.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFFF) & 0x7F800000  # up to a power of two
        scale = bits.to(tl.float32, bitcast=True)
    quantised = tl.clamp(part * (1.0 / scale)[:, None], -448.0, 448.0)
    if INTERPRET:
        quantised = rounded_to_e4m3(quantised)
    tl.store(values + rows[:, None] * n + columns[None, :], quantised.to(tl.float8e4nv), mask=mask)
    tl.store(scales + rows * scales_m + block * scales_k, scale, mask=rows < m)


@triton.jit(do_not_specialize=["s_kv", "logits_s", "max_seqlen_k"])
def mqa_logits_kernel(
    q, kv, sf, weights, starts, ends, logits, s_kv, q_s, q_h, kv_t, weights_s, logits_s, max_seqlen_k,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_KV: tl.constexpr, COMPRESSED: tl.constexpr, CLEAN: tl.constexpr,
):  # fmt: skip
    """One query against one block of tokens. COMPRESSED: column j - start instead of j."""
    query = tl.program_id(0)
    wide = tl.full((), query, tl.int64)
    start = tl.maximum(tl.load(starts + query), 0)
    end = tl.minimum(tl.load(ends + query), s_kv)
    first = tl.program_id(1) * BLOCK_KV
    if COMPRESSED:
        first += start
    tokens = first + tl.arange(0, BLOCK_KV)
    visible = (tokens >= start) & (tokens < end)
    columns = tokens
    width = s_kv
    if COMPRESSED:
        columns = tokens - start
        width = max_seqlen_k
    out = logits + wide * logits_s + columns
    if (first < end) & (first + BLOCK_KV > start):
        heads = tl.arange(0, HEADS)
        dims = tl.arange(0, D)
        queries = tl.load(q + wide * q_s + heads[None, :] * q_h + dims[:, None])
        keys = tl.load(
            kv + tokens.to(tl.int64)[:, None] * kv_t + dims[None, :], mask=visible[:, None], other=0.0
        )
        scores = tl.maximum(tl.dot(keys, queries), 0.0)
        scores *= tl.load(weights + wide * weights_s + heads)[None, :]
        scale = tl.load(sf + tokens, mask=visible, other=0.0)
        total = tl.sum(scores, 1) * scale
        tl.store(out, total.to(logits.dtype.element_ty), mask=visible & (columns < width))
    if CLEAN:
        tl.store(
            out,
            tl.full((BLOCK_KV,), float("-inf"), logits.dtype.element_ty),
            mask=~visible & (columns < width),
        )


@triton.jit(do_not_specialize=["rows", "rows_per_length"])
def paged_mqa_logits_metadata_kernel(
    context_lens, schedule, rows, rows_per_length,
    PIECE: tl.constexpr, SMS: tl.constexpr, SMS_PADDED: tl.constexpr,
):  # fmt: skip
    """Where each of SMS programs begins: (row, piece) after an even share of all pieces."""
    total = 0
    for row in range(rows):
        total += tl.cdiv(tl.load(context_lens + row * rows_per_length), PIECE)
    programs = tl.arange(0, SMS_PADDED)
    share = total // SMS
    rest = total % SMS
    wanted = programs * share + tl.minimum(programs, rest)
    at_row = tl.zeros((SMS_PADDED,), dtype=tl.int32) + rows
    at_piece = tl.zeros((SMS_PADDED,), dtype=tl.int32)
    before = 0
    for row in range(rows):
        pieces = tl.cdiv(tl.load(context_lens + row * rows_per_length), PIECE)
        inside = (wanted >= before) & (wanted < before + pieces)
        at_row = tl.where(inside, row, at_row)
        at_piece = tl.where(inside, wanted - before, at_piece)
        before += pieces
    tl.store(schedule + programs * 2, at_row, mask=programs <= SMS)
    tl.store(schedule + programs * 2 + 1, at_piece, mask=programs <= SMS)


@triton.jit(
    do_not_specialize=["block_count", "table_row", "logits_row", "width", "next_n", "lens_row", "lens_next"]
)
def paged_mqa_logits_kernel(
    q, cache, scales, weights, context_lens, block_table, schedule, logits, block_count,
    q_row, q_h, cache_block, scales_block, weights_row, table_row, logits_row, width, next_n, lens_row, lens_next,
    HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Program i computes the pieces between schedule[i] and schedule[i + 1], for each of a request's queries.

    A page holds the values of its tokens first, then their scales: `scales` is the cache, seen as float32.
    """
    program = tl.program_id(0)
    row = tl.load(schedule + program * 2)
    piece = tl.load(schedule + program * 2 + 1)
    last_row = tl.load(schedule + program * 2 + 2)
    last_piece = tl.load(schedule + program * 2 + 3)
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, D)
    while (row < last_row) | ((row == last_row) & (piece < last_piece)):
        longest = tl.load(context_lens + row * lens_row + (next_n - 1) * lens_next)
        first = piece * PIECE
        for step in range(PIECE // PAGE):
            start = first + step * PAGE
            if start < longest:
                block = tl.load(block_table + row.to(tl.int64) * table_row + start // PAGE)
                known = (block >= 0) & (block < block_count)
                wide = tl.where(known, block, 0).to(tl.int64)
                inside = tl.arange(0, PAGE)
                tokens = start + inside
                visible = tokens < tl.where(known, longest, 0)
                keys = tl.load(
                    cache + wide * cache_block + inside[:, None] * D + dims[None, :],
                    mask=visible[:, None],
                    other=0.0,
                )
                scale = tl.load(
                    scales + wide * scales_block + PAGE * D // 4 + inside, mask=visible, other=0.0
                )
                for next_token in range(next_n):
                    out_row = (row * next_n + next_token).to(tl.int64)
                    length = tl.load(context_lens + row * lens_row + next_token * lens_next)
                    queries = tl.load(q + out_row * q_row + heads[None, :] * q_h + dims[:, None])
                    scores = tl.maximum(tl.dot(keys, queries), 0.0)
                    scores *= tl.load(weights + out_row * weights_row + heads)[None, :]
                    total = (tl.sum(scores, 1) * scale).to(logits.dtype.element_ty)
                    tl.store(
                        logits + out_row * logits_row + tokens,
                        total,
                        mask=visible & (tokens < length) & (tokens < width),
                    )
        piece += 1
        if piece * PIECE >= longest:
            row += 1
            piece = 0


__all__ = [
    "CONTIGUOUS",
    "DENSE",
    "MASKED",
    "NAME_PREFIXES",
    "PSUM",
    "batched_gemm_kernel",
    "bmn_bnk_mn_gemm_impl",
    "gemm_kernel",
    "k_grouped_gemm_kernel",
    "masked_gemm_kernel",
    "mqa_logits_kernel",
    "paged_mqa_logits_kernel",
    "paged_mqa_logits_metadata_kernel",
    "per_token_cast_kernel",
    "tf32_hc_prenorm_gemm_kernel",
]
