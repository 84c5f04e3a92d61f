"""The fast path of sparse prefill on Hopper, in Gluon: 64 heads of a query, the tokens that its list names.

The two sides of `hopper`, with the same exchange of probabilities, and a warpgroup that gathers: tokens of a list are
anywhere, so that no TMA load brings them. It copies 16 bytes a thread straight to shared memory (cp.async), and the
copies themselves arrive at a half block's barrier. A program has one query, so its blocks are walked once.

    I1  a block's left and right half are copied and given back on their own, in the order of `hopper`
    I2  the RoPE part of a block is dead once its logits are there: P takes its place. Rows of 512 numbers
        have none, and the place holds P alone
    I3  a token that no list names, or that is not there, is not read: its row is zeros, and not visible
    I4  what copies wrote is seen by a multiplication of those who fence after the barrier (`hopper_pairs.arrived`)
    I5  which tokens are known is signalled with the first half of a block, and read before that is given back
    I6  blocks come in pairs; a second one behind the list's end is zeros, and P of it too

Rows and results are those of `kernel.sparse_attn_fwd`.
"""

from typing import Final

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..kernels.aot import start
from .call import SparsePrefill, or_none
from .hopper_pairs import (
    K0_LEFT,
    K0_RIGHT,
    K1_LEFT,
    K1_RIGHT,
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
    BLOCK,
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
    times,
    wide,
)

RIGHT_REGISTERS: Final = 232
GATHER_REGISTERS: Final = 40
COPYING: Final = 32 * WARPS  # threads that gather: each arrives when its copies have

_ROWS: gl.constexpr = gl.constexpr(ROWS)
_BLOCK: gl.constexpr = gl.constexpr(BLOCK)
_HALF: gl.constexpr = gl.constexpr(HALF)
_LATENT: gl.constexpr = gl.constexpr(512)
_ROPE: gl.constexpr = gl.constexpr(64)
_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_COPYING: gl.constexpr = gl.constexpr(COPYING)


# Eight threads copy 128 bytes of one row: a line of memory, and a row of the swizzled shared memory.
_COPY: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
_OF_COPY: gl.constexpr = gl.constexpr(gl.SliceLayout(1, _COPY.value))
# Triton 3.6 has it under its older name.
_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
_copies_arrive = async_copy.mbarrier_arrive


@gluon.jit
def _named(names, n, count, s_kv):
    """Tokens at places n to n + 63 of the list, and whether they are there."""
    place = n + gl.arange(0, _BLOCK, layout=_OF_COPY)
    token = gl.load(names + place, mask=place < count, other=-1)
    return token, (token >= 0) & (token < s_kv)


@gluon.jit
def _copy_rows(place, at, known, FIRST: gl.constexpr, WIDTH: gl.constexpr):
    """Numbers FIRST to FIRST + WIDTH of each row, 64 at a time."""
    column = gl.expand_dims(gl.arange(0, _ROPE, layout=gl.SliceLayout(0, _COPY)), 0)
    mask = gl.expand_dims(known, 1)
    for chunk in gl.static_range(WIDTH // 64):
        _copy(place.slice(chunk * 64, 64, dim=1), at + (FIRST + chunk * 64 + column), mask=mask)


@gluon.jit
def _given_back(free, pair):
    """Wait until no side needs this half of the pair before."""
    mbarrier.wait(free, pair & 1 ^ 1)


@gluon.jit
def _gather(kv, stride_kv, tokens, memory, barriers, kinds):
    HAS_ROPE: gl.constexpr = kinds[0]
    names, count, s_kv = tokens
    _, _, _, left, right, rope, known_place, _ = memory
    filled, free, _, _ = barriers
    token, known = _named(names, 0, count, s_kv)
    token1, known1 = _named(names, _BLOCK, count, s_kv)
    for n in range(0, count, 2 * _BLOCK):
        pair = n // (2 * _BLOCK)
        at = kv + gl.expand_dims(token.to(gl.int64) * stride_kv, 1)
        at1 = kv + gl.expand_dims(token1.to(gl.int64) * stride_kv, 1)
        now, now1 = known, known1
        # The next names are on their way while this pair's rows are.
        token, known = _named(names, n + 2 * _BLOCK, count, s_kv)
        token1, known1 = _named(names, n + 3 * _BLOCK, count, s_kv)
        # In the order in which they are given back.
        _given_back(free.index(K0_LEFT), pair)
        known_place.index(0).store(now.to(gl.int32))
        mbarrier.arrive(filled.index(K0_LEFT), count=1)
        _copy_rows(left.index(0), at, now, 0, _HALF)
        _copies_arrive(filled.index(K0_LEFT), increment_count=False)
        _given_back(free.index(K1_RIGHT), pair)
        known_place.index(1).store(now1.to(gl.int32))
        mbarrier.arrive(filled.index(K1_RIGHT), count=1)
        _copy_rows(right.index(1), at1, now1, _HALF, _HALF)
        _copies_arrive(filled.index(K1_RIGHT), increment_count=False)
        _given_back(free.index(K0_RIGHT), pair)
        _copy_rows(right.index(0), at, now, _HALF, _HALF)
        if HAS_ROPE:
            _copy_rows(rope.index(0), at, now, _LATENT, _ROPE)
        _copies_arrive(filled.index(K0_RIGHT), increment_count=False)
        _given_back(free.index(K1_LEFT), pair)
        _copy_rows(left.index(1), at1, now1, 0, _HALF)
        if HAS_ROPE:
            _copy_rows(rope.index(1), at1, now1, _LATENT, _ROPE)
        _copies_arrive(filled.index(K1_LEFT), increment_count=False)


@gluon.jit
def _head(h_q, nothing, LAYOUT: gl.constexpr):
    """Head of each row, and whether it is there."""
    tile = gl.program_id(0) % gl.cdiv(h_q, _ROWS)
    head = tile * _ROWS + nothing + gl.arange(0, _ROWS, layout=LAYOUT)
    return head, head < h_q


@gluon.jit
def _load_query(heads, column, LAYOUT: gl.constexpr, WIDTH: gl.constexpr):
    q, stride_h, h_q = heads
    head, there = _head(h_q, 0, gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    places = gl.expand_dims(head.to(gl.int64) * stride_h, 1) + gl.expand_dims(columns, 0)
    return gl.load(q + places, mask=gl.expand_dims(there, 1), other=0.0)


@gluon.jit
def _masked(s, known_place, scale_log2):
    """Logits in base 2, -inf for tokens that are not there."""
    known = known_place.load(gl.SliceLayout(0, SCORES))
    return gl.where(gl.expand_dims(known, 0) != 0, s * scale_log2, -INF)


@gluon.jit
def _store(acc, l, m, column, sink, out, h_q, nothing, HAS_SINK: gl.constexpr):
    """Half of the columns of the output. `nothing`: what `none` returned."""
    empty = l == 0.0
    factor = 1.0 / gl.where(empty, 1.0, l)
    if HAS_SINK:
        head, there = _head(h_q, nothing, OF_SCORES)
        weight = gl.load(sink + head, mask=there, other=0.0) * _LOG2E
        lse2 = finite(m) + gl.log2(gl.where(empty, 1.0, l))
        factor *= gl.where(empty, 0.0, 1.0 / (1.0 + gl.exp2(weight - lse2)))
    head, there = _head(h_q, nothing, OF_SUMS)
    columns = column + gl.arange(0, _HALF, layout=gl.SliceLayout(0, SUMS))
    places = gl.expand_dims(head * _LATENT, 1) + gl.expand_dims(columns, 0)
    result = times(acc, factor).to(out.dtype.element_ty)
    gl.store(out + places, result, mask=gl.expand_dims(there, 1))


@gluon.jit
def _left(heads, tokens, memory, barriers, results, scale_log2, kinds):
    HAS_ROPE: gl.constexpr = kinds[0]
    HAS_SINK: gl.constexpr = kinds[1]
    q_left, q_right, q_rope, left, right, rope, known_place, numbers = memory
    filled, free, signals, meeting = barriers
    count = tokens[1]
    sink, out, max_logits, lse = results
    q_left.store(_load_query(heads, 0, QUERY_HALF, _HALF))
    meet(meeting, 0)
    acc, m, l = nothing_seen()
    for n in range(0, count, 2 * _BLOCK):
        pair = n // (2 * _BLOCK)
        s = logits(
            q_left, q_right, q_rope, left.index(0), right.index(0), rope.index(0),
            filled.index(K0_LEFT), filled.index(K0_RIGHT), pair, HAS_ROPE, True,
        )  # fmt: skip
        s = _masked(s, known_place.index(0), scale_log2)
        acc, p, m0, l = add_first(s, acc, m, l, left.index(0), numbers, free, signals)
        m = maxima_of_second(numbers, signals, pair)
        acc, l = give_first(p, acc, m0, m, l, rope.index(0), signals)
        acc = take_second(acc, rope.index(1), left.index(1), free, signals, pair)
    l = exchange_sums(l, numbers, meeting, 1, 2)
    _store(acc, l, m, 0, sink, out, heads[2], none(count), HAS_SINK)
    head, there = _head(heads[2], none(count), OF_SCORES)
    empty = l == 0.0
    lse2 = m + gl.log2(gl.where(empty, 1.0, l))
    gl.store(max_logits + head, m * LN2, mask=there)
    gl.store(lse + head, gl.where(empty, INF, lse2 * LN2), mask=there)


@gluon.jit
def _right(heads, tokens, memory, barriers, results, scale_log2, kinds):
    HAS_ROPE: gl.constexpr = kinds[0]
    HAS_SINK: gl.constexpr = kinds[1]
    q_left, q_right, q_rope, left, right, rope, known_place, numbers = memory
    filled, free, signals, meeting = barriers
    count = tokens[1]
    sink, out, _, _ = results
    q_right.store(_load_query(heads, _HALF, QUERY_HALF, _HALF))
    if HAS_ROPE:
        q_rope.store(_load_query(heads, _LATENT, QUERY_ROPE, _ROPE))
    meet(meeting, 0)
    acc, m, l = nothing_seen()
    for n in range(0, count, 2 * _BLOCK):
        pair = n // (2 * _BLOCK)
        s = logits(
            q_right, q_left, q_rope, right.index(1), left.index(1), rope.index(1),
            filled.index(K1_RIGHT), filled.index(K1_LEFT), pair, HAS_ROPE, True,
        )  # fmt: skip
        s = _masked(s, known_place.index(1), scale_log2)
        acc, m, l = add_second(s, acc, m, l, right.index(1), rope.index(1), numbers, free, signals, pair)
        acc = take_first(acc, rope.index(0), right.index(0), free, signals, pair)
    l = exchange_sums(l, numbers, meeting, 1, 3)
    _store(acc, l, m, _HALF, sink, out, heads[2], none(count), HAS_SINK)


@gluon.jit
def sparse_attn_fwd_ws(
    q, kv, indices, topk_length, sink, out, max_logits, lse,
    stride_q_s, stride_q_h, stride_kv, stride_i, s_kv, topk, h_q, scale_log2,
    HAS_ROPE: gl.constexpr, HAS_LENGTH: gl.constexpr, HAS_SINK: gl.constexpr,
    RIGHT_REGISTERS: gl.constexpr, GATHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Grid: head tiles × queries."""
    query = wide(gl.program_id(0) // gl.cdiv(h_q, _ROWS))
    q_left = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _HALF], SHARED)
    q_right = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _HALF], SHARED)
    q_rope = q_left
    if HAS_ROPE:
        q_rope = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _ROPE], SHARED)
    left = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _HALF], SHARED)
    right = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _HALF], SHARED)
    rope = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _ROPE], SHARED)
    known_place = gl.allocate_shared_memory(gl.int32, [2, _BLOCK], NUMBERS)
    numbers = gl.allocate_shared_memory(gl.float32, [4, _ROWS], NUMBERS)
    # Each thread's copies arrive, and which tokens are known.
    filled, free, signals, meeting = pair_barriers(_COPYING, 1)
    count = topk
    if HAS_LENGTH:
        count = gl.minimum(gl.maximum(gl.load(topk_length + query), 0), topk)
    names = indices + query * stride_i
    memory = (q_left, q_right, q_rope, left, right, rope, known_place, numbers)
    barriers = (filled, free, signals, meeting)
    first = query * h_q
    results = (sink, out + first * _LATENT, max_logits + first, lse + first)
    heads = (q + query * stride_q_s, stride_q_h, h_q)
    tokens = (names, count, s_kv)
    kinds: gl.constexpr = (HAS_ROPE, HAS_SINK)
    gl.warp_specialize(
        [
            (_left, (heads, tokens, memory, barriers, results, scale_log2, kinds)),
            (_right, (heads, tokens, memory, barriers, results, scale_log2, kinds)),
            (_gather, (kv, stride_kv, tokens, memory, barriers, kinds)),
        ],
        [4, 4],
        [RIGHT_REGISTERS, GATHER_REGISTERS],
    )


def takes(call: SparsePrefill) -> bool:
    """Return whether this path is for such a call: enough heads, rows that can be copied by 16 bytes."""
    return call.q.shape[1] >= ROWS_MIN and call.kv.stride(0) % 8 == 0 and call.kv.data_ptr() % 16 == 0


def sparse_prefill(call: SparsePrefill, results: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Fill the results of `launch.sparse_prefill`: output, largest logits, log-sum-exp."""
    q, kv, indices, none = call.q, call.kv, call.indices, results[2]
    s_q, h_q, channels = q.shape
    start(
        sparse_attn_fwd_ws, (-(-h_q // ROWS) * s_q,),
        q, kv, indices, or_none(call.length, none), or_none(call.sink, none), *results,
        q.stride(0), q.stride(1), kv.stride(0), indices.stride(0), kv.shape[0], indices.shape[2], h_q, call.scale_log2,
        HAS_ROPE=channels > 2 * HALF, HAS_LENGTH=call.length is not None, HAS_SINK=call.sink is not None,
        RIGHT_REGISTERS=RIGHT_REGISTERS, GATHER_REGISTERS=GATHER_REGISTERS, num_warps=WARPS,
    )  # fmt: skip


__all__ = ["sparse_attn_fwd_ws", "sparse_prefill", "takes"]
