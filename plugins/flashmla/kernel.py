"""Triton kernels of every operator. `launch` calls them; `machine` compiles them ahead of time.

All share one step of online softmax, `_step`: a tile of query rows meets a tile of tokens; running maximum `m`, sum
`l` and unnormalised output `acc` are rescaled and added to. Logits are kept in base 2, so `scale` comes in as
`scale * log2(e)` and results go out through `ln 2`.

    I1  rows of the cache that are not visible are loaded as zeros, never read: they may hold NaN, or not exist
    I2  a row of the tile that has seen nothing has m = -inf, l = 0, acc = 0, and no operation makes NaN of it
    I3  offsets into a cache are 64-bit: a cache may have more than 2^31 numbers

A cache's FORMAT: 0 = 16-bit numbers, 512 + 64 · 1 = 16-bit numbers, 512 · 2 = FP8 "V3.2" · 3 = FP8 "MODEL1".
Kernel names are those that FlashMLA's benchmarks look for.
"""

from typing import Final

import triton
import triton.language as tl

from ..kernels.kernel import narrow as rounded
from .schedule import BLOCK_TOKENS, FIXED_COST_BLOCKS

PLAIN_576: Final = 0
PLAIN_512: Final = 1
FP8_V32: Final = 2
FP8_MODEL1: Final = 3

_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_UNIT: tl.constexpr = tl.constexpr(BLOCK_TOKENS)
_FIXED: tl.constexpr = tl.constexpr(FIXED_COST_BLOCKS)
_LATENT: tl.constexpr = tl.constexpr(512)
_ROPE: tl.constexpr = tl.constexpr(64)
_INF: tl.constexpr = tl.constexpr(float("inf"))
INTERPRETED: Final = bool(triton.knobs.runtime.interpret)  # Triton decides it when a kernel is defined
_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def _dot(a, b, acc):
    # The interpreter multiplies the bit patterns of bfloat16.
    if _INTERPRETED:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        product = tl.dot(a, b, acc)
    return product


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Float32 as 16-bit numbers."""
    return rounded(x, dtype, _INTERPRETED)


@triton.jit
def _wide(number):
    # A loop's variable is a plain int in the interpreter.
    return tl.full((), number, tl.int64)


@triton.jit
def _step(q, q_rope, k, k_rope, v, visible, acc, m, l, scale_log2, HAS_ROPE: tl.constexpr):
    zeros = tl.zeros((q.shape[0], k.shape[0]), dtype=tl.float32)
    logits = _dot(q, tl.trans(k), zeros)
    if HAS_ROPE:
        logits = _dot(q_rope, tl.trans(k_rope), logits)
    logits = tl.where(visible, logits * scale_log2, -_INF)
    m_new = tl.maximum(m, tl.max(logits, 1))
    base = tl.where(m_new == -_INF, 0.0, m_new)
    p = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(m - base)
    l_new = l * shrink + tl.sum(p, 1)
    acc = _dot(narrow(p, v.dtype), v, acc * shrink[:, None])
    return acc, m_new, l_new


@triton.jit
def _load_rows(cache, offset, page_offset, token, valid, PAGE: tl.constexpr, FORMAT: tl.constexpr):
    """The latent part (N, 512) of rows. `offset`: where each begins; `page_offset`, `token`: for MODEL1's scales."""
    channel = tl.arange(0, _LATENT)
    rows: tl.constexpr = offset.shape[0]
    if FORMAT <= 1:
        result = tl.load(cache + offset[:, None] + channel[None, :], mask=valid[:, None], other=0.0)
    elif FORMAT == 2:
        at = (cache + offset[:, None] + channel[None, :]).to(tl.pointer_type(tl.float8e4nv))
        latent = tl.load(at, mask=valid[:, None], other=0.0).to(tl.float32)
        group = tl.arange(0, 4)
        scale_at = (cache + offset[:, None] + 512 + group[None, :] * 4).to(tl.pointer_type(tl.float32))
        scales = tl.load(scale_at, mask=valid[:, None], other=0.0)
        latent = tl.reshape(latent, (rows, 4, 128)) * scales[:, :, None]
        result = narrow(tl.reshape(latent, (rows, _LATENT)), tl.bfloat16)
    else:
        is_latent = (channel < 448)[None, :]
        at = (cache + offset[:, None] + channel[None, :]).to(tl.pointer_type(tl.float8e4nv))
        latent = tl.load(at, mask=valid[:, None] & is_latent, other=0.0).to(tl.float32)
        group = tl.arange(0, 8)
        scale_at = cache + page_offset[:, None] + PAGE * 576 + token[:, None] * 8 + group[None, :]
        bits = tl.load(scale_at, mask=valid[:, None] & (group < 7)[None, :], other=0)
        scales = (bits.to(tl.int32) << 23).to(tl.float32, bitcast=True)
        latent = tl.reshape(tl.reshape(latent, (rows, 8, 64)) * scales[:, :, None], (rows, _LATENT))
        rope_at = (cache + offset[:, None] + (2 * channel - 448)[None, :]).to(tl.pointer_type(tl.bfloat16))
        rope = tl.load(rope_at, mask=valid[:, None] & (channel >= 448)[None, :], other=0.0)
        result = tl.where(is_latent, narrow(latent, tl.bfloat16), rope)
    return result


@triton.jit
def _load_rope(cache, offset, valid, FORMAT: tl.constexpr):
    """The RoPE part (N, 64) of rows, where it is no part of V."""
    channel = tl.arange(0, _ROPE)
    if FORMAT == 2:
        at = (cache + offset[:, None] + 528 + 2 * channel[None, :]).to(tl.pointer_type(tl.bfloat16))
        rope = tl.load(at, mask=valid[:, None], other=0.0)
    else:
        rope = tl.load(cache + offset[:, None] + 512 + channel[None, :], mask=valid[:, None], other=0.0)
    return rope


@triton.jit
def _slot_step(  # one step over tokens at (page, token)
    q, q_rope, cache, page, token, valid, visible, stride_page, stride_token, acc, m, l, scale_log2,
    PAGE: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    page_offset = page.to(tl.int64) * stride_page
    offset = page_offset + token * stride_token
    k = _load_rows(cache, offset, page_offset, token, valid, PAGE, FORMAT)
    if FORMAT % 2 == 0:
        k_rope = _load_rope(cache, offset, valid, FORMAT)
        acc, m, l = _step(q, q_rope, k, k_rope, k, visible, acc, m, l, scale_log2, True)
    else:
        acc, m, l = _step(q, q_rope, k, k, k, visible, acc, m, l, scale_log2, False)
    return acc, m, l


@triton.jit
def _finish(acc, m, l):
    """Normalised output, and log-sum-exp in base 2 (-inf for nothing)."""
    empty = l == 0.0
    divisor = tl.where(empty, 1.0, l)
    return acc / divisor[:, None], tl.where(empty, -_INF, m + tl.log2(divisor))


@triton.jit
def _sink_share(lse2, sink):
    """What the sink leaves of the output. `lse2` in base 2; -inf less -inf would be NaN."""
    empty = lse2 == -_INF
    share = 1.0 / (1.0 + tl.exp2(sink * _LOG2E - tl.where(empty, 0.0, lse2)))
    return tl.where(empty, 0.0, share)


@triton.jit
def _natural(lse2):
    return tl.where(lse2 == -_INF, _INF, lse2 * _LN2)


@triton.jit
def _start(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Output, maximum and sum of rows that have seen nothing."""
    acc = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    return acc, tl.full((ROWS,), -_INF, dtype=tl.float32), tl.zeros((ROWS,), dtype=tl.float32)


@triton.jit
def _query(q_at, inside, HAS_ROPE: tl.constexpr):
    """The latent and the RoPE part of query rows."""
    latent = tl.load(q_at[:, None] + tl.arange(0, _LATENT)[None, :], mask=inside[:, None], other=0.0)
    rope = latent
    if HAS_ROPE:
        rope_channel = _LATENT + tl.arange(0, _ROPE)
        rope = tl.load(q_at[:, None] + rope_channel[None, :], mask=inside[:, None], other=0.0)
    return latent, rope


@triton.jit
def _store_rows(out, at, values, inside):
    places = at[:, None] * _LATENT + tl.arange(0, _LATENT)[None, :]
    tl.store(out + places, narrow(values, out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _part(table, number):
    """What the schedule gives a program: first sequence, last one, first block, end of the last one's, piece."""
    row = table + number * 8
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def schedule_kernel(lengths, table, num_splits, b, parts):
    """`schedule.make_schedule` on the device, in one program."""
    total = 0
    for request in range(b):
        total += tl.cdiv(tl.maximum(tl.load(lengths + request), 1), _UNIT) + _FIXED
    payload = tl.cdiv(total, parts) + _FIXED
    request, block, piece, pieces = 0, 0, 0, 0
    tl.store(num_splits, 0)
    for part in range(parts):
        first, first_block, first_piece = request, block, piece
        left, end = payload, 0
        going = request < b
        while going:
            blocks = tl.cdiv(tl.maximum(tl.load(lengths + request), 1), _UNIT)
            if left >= blocks - block + _FIXED:
                left -= blocks - block + _FIXED
                end = blocks
                pieces += piece + 1
                request += 1
                block = 0
                piece = 0
                tl.store(num_splits + request, pieces)
                going = request < b
            else:
                if left > _FIXED:
                    block += left - _FIXED
                    piece += 1
                    end = block
                going = False
        last = tl.where(block > 0, request, request - 1)
        none = last < first
        alone = last == first
        first_split = (first_block > 0) | (alone & (block > 0))
        last_split = (block > 0) | (alone & (first_block > 0))
        row = table + part * 8
        tl.store(row, tl.where(none, b, first))
        tl.store(row + 1, tl.where(none, b - 1, last))
        tl.store(row + 2, tl.where(none, 0, first_block))
        tl.store(row + 3, tl.where(none, 0, end))
        tl.store(row + 4, tl.where(none, 0, first_piece))
        tl.store(row + 5, tl.where(none, 0, first_split.to(tl.int32)))
        tl.store(row + 6, tl.where(none, 0, last_split.to(tl.int32)))
        tl.store(row + 7, 0)


@triton.jit
def flash_fwd_splitkv_mla_kernel(
    q, cache, block_table, seqlens, table, num_splits, out, lse, piece_out, piece_lse,
    stride_q_b, stride_q_s, stride_q_h, stride_page, stride_token, stride_head, stride_table,
    page_count, table_width, s_q, group, h_kv, scale_log2,
    PAGE: tl.constexpr, FORMAT: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Dense decoding. Grid: row tiles, KV heads, parts. A packed row is (t, head of the group)."""
    kv_head = tl.program_id(1)
    first, last, first_block, last_end, first_piece = _part(table, tl.program_id(2))
    rows = s_q * group
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = row < rows
    t = row // group
    head = kv_head * group + row % group
    q_row = q + t.to(tl.int64) * stride_q_s + head.to(tl.int64) * stride_q_h
    for request in range(first, last + 1):
        length = tl.minimum(tl.maximum(tl.load(seqlens + request), 0), table_width * PAGE)
        start, end = 0, length
        if request == first:
            start = first_block * _UNIT
        if request == last:
            end = tl.minimum(last_end * _UNIT, length)
        seen = length - (s_q - 1 - t) if CAUSAL else length + 0 * t
        q_at = q_row + _wide(request) * stride_q_b
        q_latent, q_rope = _query(q_at, in_rows, True)
        acc, m, l = _start(BLOCK_M, _LATENT)
        pages = block_table + _wide(request) * stride_table
        for n in tl.range(start, end, BLOCK_N, num_stages=STAGES):
            slot = n + tl.arange(0, BLOCK_N)
            if PAGE % BLOCK_N == 0:
                one_page = tl.load(pages + n // PAGE)
                page = tl.zeros((BLOCK_N,), dtype=tl.int32) + one_page
            else:
                page = tl.load(pages + slot // PAGE, mask=slot < end, other=-1)
            valid = (slot < end) & (page >= 0) & (page < page_count)
            visible = valid[None, :] & (slot[None, :] < seen[:, None])
            acc, m, l = _slot_step(
                q_latent, q_rope, cache + kv_head * stride_head, page, slot % PAGE, valid, visible,
                stride_page, stride_token, acc, m, l, scale_log2, PAGE, FORMAT,
            )  # fmt: skip
        result, lse2 = _finish(acc, m, l)
        before = tl.load(num_splits + request)
        if tl.load(num_splits + request + 1) - before == 1:
            at = (_wide(request) * s_q + t) * (group * h_kv) + head
            _store_rows(out, at, result, in_rows)
            lse_at = (_wide(request) * (group * h_kv) + head) * s_q + t
            tl.store(lse + lse_at, _natural(lse2), mask=in_rows)
        else:
            piece = before
            if request == first:
                piece += first_piece
            at = (_wide(piece) * h_kv + kv_head) * rows + row
            _store_rows(piece_out, at, result, in_rows)
            tl.store(piece_lse + at, lse2, mask=in_rows)


@triton.jit
def flash_fwd_mla_combine_kernel(
    piece_out, piece_lse, num_splits, out, lse, sink, s_q, group, h_kv,
    HAS_SINK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Pieces put together. Grid: row tiles of all KV heads × sequences. What has one piece is finished already."""
    tiles = tl.cdiv(s_q * group * h_kv, BLOCK_R)
    request = tl.program_id(0) // tiles
    begin, end = tl.load(num_splits + request), tl.load(num_splits + request + 1)
    if end - begin > 1:
        rows = s_q * group
        row = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
        in_rows = row < rows * h_kv
        channel = tl.arange(0, _LATENT)
        acc, m, l = _start(BLOCK_R, _LATENT)
        for piece in range(begin, end):
            at = _wide(piece) * h_kv * rows + row
            lse2 = tl.load(piece_lse + at, mask=in_rows, other=-_INF)
            m_new = tl.maximum(m, lse2)
            base = tl.where(m_new == -_INF, 0.0, m_new)
            weight, shrink = tl.exp2(lse2 - base), tl.exp2(m - base)
            part = tl.load(
                piece_out + at[:, None] * _LATENT + channel[None, :], mask=in_rows[:, None], other=0.0
            )
            acc = acc * shrink[:, None] + part * weight[:, None]
            l = l * shrink + weight
            m = m_new
        result, lse2 = _finish(acc, m, l)
        kv_head, packed = row // rows, row % rows
        t, head = packed // group, kv_head * group + packed % group
        if HAS_SINK:
            result *= _sink_share(lse2, tl.load(sink + head, mask=in_rows, other=0.0))[:, None]
        at = (_wide(request) * s_q + t) * (group * h_kv) + head
        _store_rows(out, at, result, in_rows)
        lse_at = (_wide(request) * (group * h_kv) + head) * s_q + t
        tl.store(lse + lse_at, _natural(lse2), mask=in_rows)


@triton.jit
def _index_steps(  # steps over tokens that a list names, places `start` to `end` of it
    q, q_rope, cache, indices, start, end, length, page_count, stride_page, stride_token, acc, m, l, scale_log2,
    PAGE: tl.constexpr, FORMAT: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    for n in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        place = n + tl.arange(0, BLOCK_N)
        index = tl.load(indices + place, mask=place < length, other=-1)
        page = index // PAGE
        valid = (index >= 0) & (page < page_count)
        acc, m, l = _slot_step(
            q, q_rope, cache, page, index % PAGE, valid, valid[None, :],
            stride_page, stride_token, acc, m, l, scale_log2, PAGE, FORMAT,
        )  # fmt: skip
    return acc, m, l


@triton.jit
def flash_fwd_splitkv_mla_fp8_sparse_kernel(
    q, cache, indices, topk_length, extra_cache, extra_indices, extra_length, sink,
    table, num_splits, out, lse, piece_out, piece_lse,
    stride_q_b, stride_q_s, stride_q_h, stride_page, stride_token, stride_i_b, stride_i_s,
    stride_extra_page, stride_extra_i_b, stride_extra_i_s,
    page_count, extra_page_count, topk, extra_topk, s_q, h_q, scale_log2,
    PAGE: tl.constexpr, EXTRA_PAGE: tl.constexpr, FORMAT: tl.constexpr, HAS_LENGTH: tl.constexpr,
    HAS_EXTRA: tl.constexpr, HAS_EXTRA_LENGTH: tl.constexpr, HAS_SINK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sparse decoding over one or two FP8 caches. Grid: head tiles × s_q, parts."""
    first, last, first_block, last_end, first_piece = _part(table, tl.program_id(1))
    head_tiles = tl.cdiv(h_q, BLOCK_M)
    t = tl.program_id(0) // head_tiles
    head = tl.program_id(0) % head_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    in_heads = head < h_q
    q_row = q + t.to(tl.int64) * stride_q_s + head.to(tl.int64) * stride_q_h
    for request in range(first, last + 1):
        length, extra = topk, 0
        if HAS_LENGTH:
            length = tl.minimum(tl.maximum(tl.load(topk_length + request), 0), topk)
        if HAS_EXTRA:
            extra = extra_topk
            if HAS_EXTRA_LENGTH:
                extra = tl.minimum(tl.maximum(tl.load(extra_length + request), 0), extra_topk)
        # Places of both lists, the first rounded up to whole blocks, are one line that the schedule cuts.
        start, turn = 0, tl.cdiv(length, _UNIT) * _UNIT
        end = turn + extra
        if request == first:
            start = first_block * _UNIT
        if request == last:
            end = tl.minimum(last_end * _UNIT, end)
        q_at = q_row + _wide(request) * stride_q_b
        q_latent, q_rope = _query(q_at, in_heads, FORMAT == 2)
        acc, m, l = _start(BLOCK_M, _LATENT)
        acc, m, l = _index_steps(
            q_latent, q_rope, cache, indices + _wide(request) * stride_i_b + t.to(tl.int64) * stride_i_s,
            start, tl.minimum(end, turn), length, page_count, stride_page, stride_token,
            acc, m, l, scale_log2, PAGE, FORMAT, BLOCK_N, STAGES,
        )  # fmt: skip
        if HAS_EXTRA:
            extra_at = extra_indices + _wide(request) * stride_extra_i_b + t.to(tl.int64) * stride_extra_i_s
            acc, m, l = _index_steps(
                q_latent, q_rope, extra_cache, extra_at,
                tl.maximum(start - turn, 0), end - turn, extra, extra_page_count, stride_extra_page, stride_token,
                acc, m, l, scale_log2, EXTRA_PAGE, FORMAT, BLOCK_N, STAGES,
            )  # fmt: skip
        result, lse2 = _finish(acc, m, l)
        before = tl.load(num_splits + request)
        if tl.load(num_splits + request + 1) - before == 1:
            if HAS_SINK:
                result *= _sink_share(lse2, tl.load(sink + head, mask=in_heads, other=0.0))[:, None]
            at = (_wide(request) * s_q + t) * h_q + head
            _store_rows(out, at, result, in_heads)
            tl.store(lse + (_wide(request) * h_q + head) * s_q + t, _natural(lse2), mask=in_heads)
        else:
            piece = before
            if request == first:
                piece += first_piece
            at = _wide(piece) * s_q * h_q + t * h_q + head
            _store_rows(piece_out, at, result, in_heads)
            tl.store(piece_lse + at, lse2, mask=in_heads)


@triton.jit
def sparse_attn_fwd(
    q, kv, indices, topk_length, sink, out, max_logits, lse,
    stride_q_s, stride_q_h, stride_kv, stride_i, s_kv, topk, h_q, scale_log2,
    FORMAT: tl.constexpr, HAS_LENGTH: tl.constexpr, HAS_SINK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sparse prefill. Grid: head tiles × queries, one-dimensional because there may be more than 65,535 queries."""
    head_tiles = tl.cdiv(h_q, BLOCK_M)
    query = (tl.program_id(0) // head_tiles).to(tl.int64)
    head = tl.program_id(0) % head_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    in_heads = head < h_q
    length = topk
    if HAS_LENGTH:
        length = tl.minimum(tl.maximum(tl.load(topk_length + query), 0), topk)
    q_at = q + query * stride_q_s + head.to(tl.int64) * stride_q_h
    q_latent, q_rope = _query(q_at, in_heads, FORMAT == 0)
    acc, m, l = _start(BLOCK_M, _LATENT)
    acc, m, l = _index_steps(
        q_latent, q_rope, kv, indices + query * stride_i, 0, length, length, s_kv, stride_kv, 0,
        acc, m, l, scale_log2, 1, FORMAT, BLOCK_N, STAGES,
    )  # fmt: skip
    result, lse2 = _finish(acc, m, l)
    if HAS_SINK:
        result *= _sink_share(lse2, tl.load(sink + head, mask=in_heads, other=0.0))[:, None]
    at = query * h_q + head
    _store_rows(out, at, result, in_heads)
    tl.store(max_logits + at, m * _LN2, mask=in_heads)
    tl.store(lse + at, _natural(lse2), mask=in_heads)


@triton.jit
def _rows(start, at, stride, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Numbers FIRST to FIRST + WIDTH of rows, zeros for those that are not inside."""
    column = FIRST + tl.arange(0, WIDTH)
    return tl.load(start + at[:, None] * stride + column[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def flash_fwd_varlen_kernel(
    q, k, v, starts_q, starts_kv, out, lse,
    stride_q_s, stride_q_h, stride_k_s, stride_k_h, stride_v_s, stride_v_h, total_q, h_q, group, tiles, scale_log2,
    HAS_ROPE: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Plain attention of sequences laid end to end, heads of 128 (+ 64). Grid: query tiles × sequences, heads."""
    tile, sequence = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    head = tl.program_id(1).to(tl.int64)
    begin, begin_kv = tl.load(starts_q + sequence), tl.load(starts_kv + sequence)
    queries, tokens = tl.load(starts_q + sequence + 1) - begin, tl.load(starts_kv + sequence + 1) - begin_kv
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if tile * BLOCK_M < queries:
        in_rows = row < queries
        at = (begin + row).to(tl.int64)
        q_main = _rows(q + head * stride_q_h, at, stride_q_s, in_rows, 0, 128)
        q_rope = q_main
        if HAS_ROPE:
            q_rope = _rows(q + head * stride_q_h, at, stride_q_s, in_rows, 128, _ROPE)
        acc, m, l = _start(BLOCK_M, 128)
        end, seen = tokens, tokens + 0 * row
        if CAUSAL:
            seen = tokens - queries + 1 + row
            end = tl.minimum(tokens, tokens - queries + (tile + 1) * BLOCK_M)
        k_head, v_head = k + head // group * stride_k_h, v + head // group * stride_v_h
        for n in tl.range(0, end, BLOCK_N, num_stages=STAGES):
            token = n + tl.arange(0, BLOCK_N)
            valid = token < tokens
            visible = valid[None, :] & (token[None, :] < seen[:, None])
            token_at = (begin_kv + token).to(tl.int64)
            k_main = _rows(k_head, token_at, stride_k_s, valid, 0, 128)
            k_rope = k_main
            if HAS_ROPE:
                k_rope = _rows(k_head, token_at, stride_k_s, valid, 128, _ROPE)
            values = _rows(v_head, token_at, stride_v_s, valid, 0, 128)
            acc, m, l = _step(
                q_main, q_rope, k_main, k_rope, values, visible, acc, m, l, scale_log2, HAS_ROPE
            )
        result, lse2 = _finish(acc, m, l)
        out_at = (at * h_q + head)[:, None] * 128 + tl.arange(0, 128)[None, :]
        tl.store(out + out_at, narrow(result, out.dtype.element_ty), mask=in_rows[:, None])
        tl.store(lse + head * total_q + at, _natural(lse2), mask=in_rows)


__all__ = [
    "FP8_MODEL1", "FP8_V32", "INTERPRETED", "PLAIN_512", "PLAIN_576", "flash_fwd_mla_combine_kernel",
    "flash_fwd_splitkv_mla_fp8_sparse_kernel", "flash_fwd_splitkv_mla_kernel", "flash_fwd_varlen_kernel",
    "schedule_kernel", "sparse_attn_fwd",
]  # fmt: skip
