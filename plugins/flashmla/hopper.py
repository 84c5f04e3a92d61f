"""The fast path of dense decoding on Hopper, in Gluon: 64 query rows, pages of 64 tokens.

Two warpgroups share the output of 64 x 512 numbers, which would not fit the registers of one: `_left` owns its first
256 columns, `_right` the others. Both need the probabilities of every block of tokens, so they go through the blocks in
pairs: `_left` computes those of the first block, `_right` those of the second, and each hands its own to the other
through shared memory. While one is at its softmax the other keeps the tensor cores busy. A warp of its own loads.

    of a pair     _left                                   _right
                  S0 = Q · K0ᵀ                            S1 = Q · K1ᵀ
                  m0 = max(m, S0), signals ──────────────► m1 = max(m0, S1), signals
                  left += P0 · V0        ◄─────────────── P1 = exp(S1 - m1), handed over
                  P0 = exp(S0 - m1), handed over ───────► right += P1 · V1
                  left += P1 · V1                         right += P0 · V0

    I1  a block's left and right half are loaded and given back on their own; each half has one side that reads it
        last and gives it back: K0's left and K1's left `_left`, the right ones `_right`
    I2  the RoPE part of a block is dead once its logits are there: P takes its place. P0 is with K0's right half,
        which `_right` gives back, P1 with K1's left half
    I3  a sequence's last block is at the end of its 64 rows, below rows that the loader fills with zeros because
        they would come before the page: rows that do not exist are never read, whatever memory holds there, and
        nothing has to be cleaned afterwards. A page that does not exist is all zeros and not visible
    I4  both sides and the loader walk the same pairs in the same order: barriers' phases need no messages

Rows, schedule, pieces and results are those of `kernel.flash_fwd_splitkv_mla_kernel`.
"""

from typing import Final

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..kernels.aot import start
from .call import DenseDecode, Results
from .hopper_pairs import (
    K0_LEFT,
    K0_RIGHT,
    K1_LEFT,
    K1_RIGHT,
    MAX0,
    add_first,
    add_second,
    exchange_sums,
    give_first,
    logits,
    maxima_of_second,
    pair_barriers,
    take_first,
    take_second,
)
from .warpgroups import (
    HALF,
    INF,
    LN2,
    NUMBERS,
    OF_SCORES,
    OF_SUMS,
    QUERY_HALF,
    QUERY_ROPE,
    ROWS,
    ROWS_MIN,
    SCORES,
    SHARED,
    SUMS,
    WARPS,
    finite,
    meet,
    none,
    nothing_seen,
    part,
    times,
    wide,
)

PAGE: Final = 64
RIGHT_REGISTERS: Final = 224
LOADER_REGISTERS: Final = 24

_ROWS: gl.constexpr = gl.constexpr(ROWS)
_PAGE: gl.constexpr = gl.constexpr(PAGE)
_HALF: gl.constexpr = gl.constexpr(HALF)
_LATENT: gl.constexpr = gl.constexpr(512)
_ROPE: gl.constexpr = gl.constexpr(64)
_HALF_BYTES: gl.constexpr = gl.constexpr(PAGE * HALF * 2)
_ROPE_BYTES: gl.constexpr = gl.constexpr(PAGE * 64 * 2)


_LAYOUT: Final = gl.NVMMASharedLayout(128, 16, 3)
# Triton 3.6 has it under its older name.
_tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def _seen(length, s_q, group, CAUSAL: gl.constexpr):
    """Tokens that each row may look at."""
    row = gl.program_id(0) * _ROWS + gl.arange(0, _ROWS, layout=OF_SCORES)
    seen = length + 0 * row
    if CAUSAL:
        seen = length - (s_q - 1 - row // group)
    return seen


@gluon.jit
def _bounds(request, first, last, first_block, last_end, seqlens, table_width):
    """Tokens of a sequence, and those that this program works on."""
    length = gl.minimum(gl.maximum(gl.load(seqlens + request), 0), table_width * _PAGE)
    begin = gl.where(request == first, first_block * _PAGE, 0)
    end = gl.where(request == last, gl.minimum(last_end * _PAGE, length), length)
    return length, begin, end


@gluon.jit
def _block(pages, n, length, page_count):
    """The page of token n, `page_count` if there is none, and the rows by which its tokens are moved down."""
    page = gl.load(pages + n // _PAGE)
    known = (page >= 0) & (page < page_count)
    return gl.where(known, page, page_count), gl.maximum(n + _PAGE - length, 0)


@gluon.jit
def _fill(tile, place, page, shift, channel, filled, free, use, BYTES: gl.constexpr):
    mbarrier.wait(free, use & 1 ^ 1)
    mbarrier.expect(filled, BYTES)
    _tma_load(tile, [page, -shift, channel], filled, place)


@gluon.jit
def _load(half_tile, rope_tile, memory, barriers, cache, plan, stride_head):
    _, _, _, left, right, rope, _ = memory
    filled, free, _, _ = barriers
    block_table, stride_table, page_count, table_width = cache
    table, seqlens = plan
    first, last, first_block, last_end, _ = part(table)
    channel = gl.program_id(1) * stride_head
    pairs = 0
    seconds = 0
    for request in range(first, last + 1):
        length, begin, end = _bounds(request, first, last, first_block, last_end, seqlens, table_width)
        pages = block_table + wide(request) * stride_table
        for n in range(begin, end, 2 * _PAGE):
            page, shift = _block(pages, n, length, page_count)
            _fill(
                half_tile, left.index(0), page, shift, channel,
                filled.index(K0_LEFT), free.index(K0_LEFT), pairs, _HALF_BYTES,
            )  # fmt: skip
            # In the order in which they are given back.
            if n + _PAGE < end:
                page1, shift1 = _block(pages, n + _PAGE, length, page_count)
                _fill(
                    half_tile, right.index(1), page1, shift1, channel + _HALF,
                    filled.index(K1_RIGHT), free.index(K1_RIGHT), seconds, _HALF_BYTES,
                )  # fmt: skip
            _fill(
                half_tile, right.index(0), page, shift, channel + _HALF,
                filled.index(K0_RIGHT), free.index(K0_RIGHT), pairs, _HALF_BYTES + _ROPE_BYTES,
            )  # fmt: skip
            _tma_load(rope_tile, [page, -shift, channel + _LATENT], filled.index(K0_RIGHT), rope.index(0))
            if n + _PAGE < end:
                page1, shift1 = _block(pages, n + _PAGE, length, page_count)
                _fill(
                    half_tile, left.index(1), page1, shift1, channel,
                    filled.index(K1_LEFT), free.index(K1_LEFT), seconds, _HALF_BYTES + _ROPE_BYTES,
                )  # fmt: skip
                _tma_load(
                    rope_tile, [page1, -shift1, channel + _LATENT], filled.index(K1_LEFT), rope.index(1)
                )
                seconds += 1
            pairs += 1


@gluon.jit
def _matrix(place):
    return place.reshape((place.shape[1], place.shape[2]))


@gluon.jit
def _load_query(query, request, channel, rows, group, LAYOUT: gl.constexpr, WIDTH: gl.constexpr):
    q, stride_b, stride_s, stride_h = query
    row = gl.program_id(0) * _ROWS + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, LAYOUT)) + none(request)
    head = gl.program_id(1) * group + row % group
    at = (row // group).to(gl.int64) * stride_s + head.to(gl.int64) * stride_h
    columns = channel + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    places = gl.expand_dims(at, 1) + gl.expand_dims(columns, 0)
    return gl.load(q + wide(request) * stride_b + places, mask=gl.expand_dims(row < rows, 1), other=0.0)


@gluon.jit
def _masked(s, scale_log2, page, shift, n, seen, page_count):
    """Logits in base 2, -inf where a row does not see a token."""
    column = gl.arange(0, _PAGE, layout=gl.SliceLayout(0, SCORES))
    end = gl.where(page < page_count, seen - n + shift, 0)
    visible = gl.expand_dims(column >= shift, 0) & (gl.expand_dims(column, 0) < gl.expand_dims(end, 1))
    return gl.where(visible, s * scale_log2, -INF)


@gluon.jit
def _store_result(acc, m, l, request, column, first, first_piece, results, sizes, LSE: gl.constexpr):
    """Half of the columns of the rows' results, or of a piece of them; the log-sum-exp too, if LSE."""
    num_splits, out, lse, piece_out, piece_lse = results
    s_q, group, h_kv = sizes
    kv_head = gl.program_id(1)
    rows = s_q * group
    empty = l == 0.0
    divisor = gl.where(empty, 1.0, l)
    result = times(acc, 1.0 / divisor)
    lse2 = gl.where(empty, -INF, m + gl.log2(divisor))
    first_row = gl.program_id(0) * _ROWS + none(request)
    row = first_row + gl.arange(0, _ROWS, layout=OF_SUMS)
    lse_row = first_row + gl.arange(0, _ROWS, layout=OF_SCORES)
    columns = gl.expand_dims(column + gl.arange(0, _HALF, layout=gl.SliceLayout(0, SUMS)), 0)
    mask = gl.expand_dims(row < rows, 1)
    before = gl.load(num_splits + request)
    if gl.load(num_splits + request + 1) - before == 1:
        at = (wide(request) * s_q + row // group) * (group * h_kv) + kv_head * group + row % group
        gl.store(
            out + (gl.expand_dims(at, 1) * _LATENT + columns), result.to(out.dtype.element_ty), mask=mask
        )
        if LSE:
            head = kv_head * group + lse_row % group
            lse_at = (wide(request) * (group * h_kv) + head) * s_q + lse_row // group
            natural = gl.where(empty, INF, lse2 * LN2)
            gl.store(lse + lse_at, natural, mask=lse_row < rows)
    else:
        piece = before + gl.where(request == first, first_piece, 0)
        piece_at = (wide(piece) * h_kv + kv_head) * rows
        gl.store(piece_out + (gl.expand_dims(piece_at + row, 1) * _LATENT + columns), result, mask=mask)
        if LSE:
            gl.store(piece_lse + (piece_at + lse_row), lse2, mask=lse_row < rows)


@gluon.jit
def _left(query, memory, barriers, cache, plan, results, sizes, scale_log2, CAUSAL: gl.constexpr):
    q_left, q_right, q_rope, left, right, rope, numbers = memory
    filled, free, signals, meeting = barriers
    block_table, stride_table, page_count, table_width = cache
    table, seqlens = plan
    s_q, group, _ = sizes
    first, last, first_block, last_end, first_piece = part(table)
    pairs = 0
    seconds = 0
    meetings = 0
    for request in range(first, last + 1):
        length, begin, end = _bounds(request, first, last, first_block, last_end, seqlens, table_width)
        pages = block_table + wide(request) * stride_table
        q_left.store(_load_query(query, request, 0, s_q * group, group, QUERY_HALF, _HALF))
        meet(meeting, meetings)
        seen = _seen(length, s_q, group, CAUSAL)
        acc, m, l = nothing_seen()
        for n in range(begin, end, 2 * _PAGE):
            both = n + _PAGE < end
            page, shift = _block(pages, n, length, page_count)
            slot = none(n)
            s = logits(
                q_left, q_right, q_rope,
                _matrix(left.index(slot)), _matrix(right.index(slot)), _matrix(rope.index(slot)),
                filled.index(K0_LEFT), filled.index(K0_RIGHT), pairs, True, False,
            )  # fmt: skip
            s = _masked(s, scale_log2, page, shift, n, seen, page_count)
            acc, p, m0, l = add_first(s, acc, m, l, _matrix(left.index(slot)), numbers, free, signals)
            m = m0
            if both:
                m = maxima_of_second(numbers, signals, seconds)
            acc, l = give_first(p, acc, m0, m, l, _matrix(rope.index(slot)), signals)
            if both:
                place, values = _matrix(rope.index(1 + slot)), _matrix(left.index(1 + slot))
                acc = take_second(acc, place, values, free, signals, seconds)
                seconds += 1
            pairs += 1
        l = exchange_sums(l, numbers, meeting, meetings + 1, 2)
        meetings += 2
        _store_result(acc, m, l, request, 0, first, first_piece, results, sizes, True)


@gluon.jit
def _right(query, memory, barriers, cache, plan, results, sizes, scale_log2, CAUSAL: gl.constexpr):
    q_left, q_right, q_rope, left, right, rope, numbers = memory
    filled, free, signals, meeting = barriers
    block_table, stride_table, page_count, table_width = cache
    table, seqlens = plan
    s_q, group, _ = sizes
    first, last, first_block, last_end, first_piece = part(table)
    pairs = 0
    seconds = 0
    meetings = 0
    for request in range(first, last + 1):
        length, begin, end = _bounds(request, first, last, first_block, last_end, seqlens, table_width)
        pages = block_table + wide(request) * stride_table
        q_right.store(_load_query(query, request, _HALF, s_q * group, group, QUERY_HALF, _HALF))
        q_rope.store(_load_query(query, request, _LATENT, s_q * group, group, QUERY_ROPE, _ROPE))
        meet(meeting, meetings)
        seen = _seen(length, s_q, group, CAUSAL)
        acc, m, l = nothing_seen()
        for n in range(begin, end, 2 * _PAGE):
            slot = 1 + none(n)
            if n + _PAGE < end:
                page, shift = _block(pages, n + _PAGE, length, page_count)
                s = logits(
                    q_right, q_left, q_rope,
                    _matrix(right.index(slot)), _matrix(left.index(slot)), _matrix(rope.index(slot)),
                    filled.index(K1_RIGHT), filled.index(K1_LEFT), seconds, True, False,
                )  # fmt: skip
                s = _masked(s, scale_log2, page, shift, n + _PAGE, seen, page_count)
                place, values = _matrix(rope.index(slot)), _matrix(right.index(slot))
                acc, m, l = add_second(s, acc, m, l, values, place, numbers, free, signals, pairs)
                seconds += 1
            else:
                mbarrier.wait(signals.index(MAX0), pairs & 1)
                m1 = numbers.index(MAX0).load(OF_SCORES)
                shrink = gl.exp2(m - finite(m1))
                l = l * shrink
                acc = times(acc, shrink)
                m = m1
            place, values = _matrix(rope.index(slot - 1)), _matrix(right.index(slot - 1))
            acc = take_first(acc, place, values, free, signals, pairs)
            pairs += 1
        l = exchange_sums(l, numbers, meeting, meetings + 1, 3)
        meetings += 2
        _store_result(acc, m, l, request, _HALF, first, first_piece, results, sizes, False)


@gluon.jit
def flash_fwd_splitkv_mla_kernel_ws(
    half_tile, rope_tile, q, block_table, seqlens, table, num_splits, out, lse, piece_out, piece_lse,
    stride_q_b, stride_q_s, stride_q_h, stride_table, stride_head,
    page_count, table_width, s_q, group, h_kv, scale_log2,
    CAUSAL: gl.constexpr, RIGHT_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Grid: tiles of 64 rows, KV heads, parts."""
    dtype: gl.constexpr = half_tile.dtype
    q_left = gl.allocate_shared_memory(dtype, [_ROWS, _HALF], SHARED)
    q_right = gl.allocate_shared_memory(dtype, [_ROWS, _HALF], SHARED)
    q_rope = gl.allocate_shared_memory(dtype, [_ROWS, _ROPE], SHARED)
    left = gl.allocate_shared_memory(dtype, [2, 1, _PAGE, _HALF], half_tile.layout)
    right = gl.allocate_shared_memory(dtype, [2, 1, _PAGE, _HALF], half_tile.layout)
    rope = gl.allocate_shared_memory(dtype, [2, 1, _PAGE, _ROPE], rope_tile.layout)
    numbers = gl.allocate_shared_memory(gl.float32, [4, _ROWS], NUMBERS)
    filled, free, signals, meeting = pair_barriers(1, 0)
    query = (q, stride_q_b, stride_q_s, stride_q_h)
    memory = (q_left, q_right, q_rope, left, right, rope, numbers)
    barriers = (filled, free, signals, meeting)
    cache = (block_table, stride_table, page_count, table_width)
    plan = (table, seqlens)
    results = (num_splits, out, lse, piece_out, piece_lse)
    sizes = (s_q, group, h_kv)
    sides = (query, memory, barriers, cache, plan, results, sizes, scale_log2, CAUSAL)
    gl.warp_specialize(
        [
            (_left, sides),
            (_right, sides),
            (_load, (half_tile, rope_tile, memory, barriers, cache, plan, stride_head)),
        ],
        [4, 1],
        [RIGHT_REGISTERS, LOADER_REGISTERS],
    )


def takes(call: DenseDecode) -> bool:
    """Return whether this path is for such a call: enough rows, pages of 64, rows of 576 that TMA can address."""
    cache = call.cache
    pages, page, heads, _ = cache.shape
    aligned = all(stride % 8 == 0 for stride in cache.stride()[:3]) and cache.data_ptr() % 16 == 0
    fits = pages > 0 and page == PAGE and cache.element_size() == 2
    apart = heads == 1 or cache.stride(1) >= heads * cache.stride(2)
    return call.rows >= ROWS_MIN and fits and aligned and apart


def dense_decode(call: DenseDecode, plan: tuple[torch.Tensor, torch.Tensor], results: Results) -> None:
    """Fill the results of `launch.dense_decode`, whose schedule `plan` is."""
    q, cache, heads = call.q, call.cache, call.cache.shape[2]
    stride_head = cache.stride(2) if heads > 1 else 0
    start(
        flash_fwd_splitkv_mla_kernel_ws, (-(-call.rows // ROWS), heads, len(plan[0])),
        _descriptor(cache, stride_head, 256), _descriptor(cache, stride_head, 64),
        q, call.table, call.lengths, *plan, *results, *q.stride()[:3], call.table.stride(0), stride_head,
        cache.shape[0], call.table.shape[1], q.shape[1], call.group, heads, call.scale_log2,
        CAUSAL=call.causal, RIGHT_REGISTERS=RIGHT_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS, num_warps=WARPS,
    )  # fmt: skip


def _descriptor(cache: torch.Tensor, stride_head: int, width: int) -> TensorDescriptor:
    """Pages, tokens of a page, numbers of a token: what is before or behind these is read as zeros."""
    pages, page, heads, channels = cache.shape
    shape = [pages, page, (heads - 1) * stride_head + channels]
    return TensorDescriptor(cache, shape, [cache.stride(0), cache.stride(1), 1], [1, page, width], _LAYOUT)


__all__ = ["dense_decode", "flash_fwd_splitkv_mla_kernel_ws", "takes"]
