"""The fast path of decoding over FP8 caches on Hopper, in Gluon: 64 query rows, 64 tokens a step.

Three warpgroups. `_gather` brings the tokens of a step, which a list or a block table names, from the cache into
registers, scales them to bfloat16 and writes them to shared memory, one step ahead of the others. `_scores` multiplies
the queries with them, has the softmax and the first 256 columns of the output, `_values` has the other columns.

    of a step    _gather                       _scores                          _values
                 K = fp8 * scale, filled ────► S = Q · Kᵀ
                 (the next one)                P = exp(S - m), handed over ───► right = right * shrink + P · Vright
                                               left = left * shrink + P · Vleft
                 free        ◄──────────────── given back by both

    I1  two steps' tokens have room; one is filled again when both sides have given it back
    I2  a token that does not exist, or that no list names, is not read: its row is zeros, and `known` says so
    I3  P and the rows' factors have one place: `_values` says `taken` when it needs them no more
    I4  all three walk the same steps in the same order: barriers' phases need no messages
    I5  the first numbers of the next step are on their way to registers while those of this one are scaled

Rows, schedule, pieces and results are those of `kernel.flash_fwd_splitkv_mla_fp8_sparse_kernel`, and of
`kernel.flash_fwd_splitkv_mla_kernel` for a block table.
"""

from typing import Final

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..kernels.aot import start
from . import layouts
from .call import Results, Scope, or_none
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
    add_other,
    add_own,
    finite,
    hand_over,
    meet,
    none,
    nothing_seen,
    part,
    times,
    wide,
)

# What `_scores` does not get of the registers.
VALUES_REGISTERS: Final = 160
GATHER_REGISTERS: Final = {layouts.V32_BYTES: 144, layouts.MODEL1_BYTES: 152}
ALIGNMENT: Final = 16  # bytes, of pages: rows are multiples of it
_MOST: Final = 2**31 - 1

_ROWS: gl.constexpr = gl.constexpr(ROWS)
_BLOCK: gl.constexpr = gl.constexpr(BLOCK)
_HALF: gl.constexpr = gl.constexpr(HALF)
_LATENT: gl.constexpr = gl.constexpr(512)
_ROPE: gl.constexpr = gl.constexpr(64)
_LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)
_WIDTH: gl.constexpr = gl.constexpr(64)  # numbers of each token that are loaded and scaled at a time
_AHEAD: gl.constexpr = gl.constexpr(4)  # times that many are on their way
# What one side sends the other of a row: by how much its output shrinks, and its last factor.
_SHRINK: gl.constexpr = gl.constexpr(0)
_LAST: gl.constexpr = gl.constexpr(1)

# Eight bytes a thread; eight threads write 128 bytes of one row of shared memory, which is free of conflicts.
_RAW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
_OF_RAW: gl.constexpr = gl.constexpr(gl.SliceLayout(1, _RAW.value))


@gluon.jit
def _heads(s_q, h_q, nothing, LAYOUT: gl.constexpr, DENSE: gl.constexpr):
    """Query and head of each row, and whether the row is there: 64 heads of one query, or rows packed in order.

    `nothing`: what `none` returned where this is needed.
    """
    if DENSE:
        row = gl.program_id(0) * _ROWS + nothing + gl.arange(0, _ROWS, layout=LAYOUT)
        t = row // h_q
        head = row % h_q
        there = row < s_q * h_q
    else:
        tiles = gl.cdiv(h_q, _ROWS)
        head = gl.program_id(0) % tiles * _ROWS + nothing + gl.arange(0, _ROWS, layout=LAYOUT)
        t = gl.program_id(0) // tiles + 0 * head
        there = head < h_q
    return t, head, there


@gluon.jit
def _count(lengths, request, most, GIVEN: gl.constexpr):
    count = most
    if GIVEN:
        count = gl.minimum(gl.maximum(gl.load(lengths + request), 0), most)
    return count


@gluon.jit
def _line(request, share, first_list, second_list, kinds):
    """Tokens of the first list, the block where the second begins, and where this program's steps begin and end.

    Places of both lists, the first rounded up to whole blocks, are one line that the schedule cuts.
    """
    HAS_LENGTH: gl.constexpr = kinds[2]
    HAS_EXTRA: gl.constexpr = kinds[3]
    HAS_EXTRA_LENGTH: gl.constexpr = kinds[4]
    first, last, first_block, last_end, _ = share
    count = _count(first_list[0], request, first_list[1], HAS_LENGTH)
    turn = gl.cdiv(count, _BLOCK) * _BLOCK
    end = count
    if HAS_EXTRA:
        end = turn + _count(second_list[0], request, second_list[1], HAS_EXTRA_LENGTH)
    begin = gl.where(request == first, first_block * _BLOCK, 0)
    end = gl.where(request == last, gl.minimum(last_end * _BLOCK, end), end)
    return count, turn, begin, end


@gluon.jit
def _names(names, page, n, count, DENSE: gl.constexpr):
    """What a list says of places n to n + 63, or the block table of tokens: -1 from `count` on."""
    place = n + gl.arange(0, _BLOCK, layout=_OF_RAW)
    if DENSE:
        named = gl.load(names + place // page, mask=place < count, other=-1)
    else:
        named = gl.load(names + place, mask=place < count, other=-1)
    return named


@gluon.jit
def _places(named, page, n, page_count, stride_page, V32: gl.constexpr, DENSE: gl.constexpr):
    """Where the rows of tokens begin and where their scales do, in words of four bytes, and whether they are there."""
    if DENSE:
        number = named
        token = (n + gl.arange(0, _BLOCK, layout=_OF_RAW)) % page
    else:
        number = named // page
        token = named % page
    known = (named >= 0) & (number < page_count)
    begin = number.to(gl.int64) * (stride_page // 4)
    if V32:
        at = begin + token * 164
        scales_at = at + 128
    else:
        at = begin + token * 144
        scales_at = begin + page * 144 + token * 2
    return at, scales_at, known


@gluon.jit
def _words(cache, at, known, FIRST: gl.constexpr, COUNT: gl.constexpr, EACH: gl.constexpr):
    """COUNT words of each row from word FIRST on, EACH of them together."""
    layout: gl.constexpr = gl.BlockedLayout([1, EACH], [4, 8], [4, 1], [1, 0])
    rows = gl.expand_dims(gl.convert_layout(at, gl.SliceLayout(1, layout)), 1)
    mask = gl.expand_dims(gl.convert_layout(known, gl.SliceLayout(1, layout)), 1)
    column = FIRST + gl.expand_dims(gl.arange(0, COUNT, layout=gl.SliceLayout(0, layout)), 0)
    return gl.load(cache.to(gl.pointer_type(gl.int32)) + (rows + column), mask=mask, other=0)


@gluon.jit
def _scales(cache, at, known, V32: gl.constexpr):
    """The scales of each row as words: four float32, or eight bytes."""
    count: gl.constexpr = 4 if V32 else 2
    return _words(cache, at, known, 0, count, count)


@gluon.jit
def _scale(words, CHUNK: gl.constexpr, V32: gl.constexpr):
    """What 64 numbers of each row are multiplied with."""
    count: gl.constexpr = 4 if V32 else 2
    layout: gl.constexpr = gl.BlockedLayout([1, count], [4, 8], [4, 1], [1, 0])
    column = gl.expand_dims(gl.arange(0, count, layout=gl.SliceLayout(0, layout)), 0)
    chosen: gl.constexpr = CHUNK // 2 if V32 else CHUNK // 4
    bits = gl.sum(gl.where(column == chosen, words, 0), 1)
    if not V32:
        bits = (bits >> CHUNK % 4 * 8 & 0xFF) << 23
    return gl.expand_dims(gl.convert_layout(gl.cast(bits, gl.float32, bitcast=True), _OF_RAW), 1)


@gluon.jit
def _chunk(cache, at, known, CHUNK: gl.constexpr, V32: gl.constexpr):
    """64 numbers of each row: of FP8, in words of four, or the RoPE ones, which come last."""
    if (8 if V32 else 7) == CHUNK:
        column = gl.expand_dims(gl.arange(0, _WIDTH, layout=gl.SliceLayout(0, _RAW)), 0)
        places = gl.expand_dims(at * 2, 1) + ((264 if V32 else 224) + column)
        pointers = cache.to(gl.pointer_type(gl.bfloat16)) + places
        numbers = gl.load(pointers, mask=gl.expand_dims(known, 1), other=0.0)
    else:
        numbers = _words(cache, at, known, CHUNK * 16, 16, 2)
    return numbers


@gluon.jit
def _unpacked(words):
    """The numbers of words of four. As bytes they would each take a register from step to step."""
    even = gl.join(words.to(gl.uint8), (words >> 16).to(gl.uint8))
    odd = gl.join((words >> 8).to(gl.uint8), (words >> 24).to(gl.uint8))
    numbers = gl.cast(gl.join(even, odd).reshape((_BLOCK, _WIDTH)), gl.float8e4nv, bitcast=True)
    return gl.convert_layout(numbers, _RAW).to(gl.float32)


@gluon.jit
def _write(raw, bits, memory, slot, CHUNK: gl.constexpr, V32: gl.constexpr):
    """Numbers of this step, scaled, in their place."""
    _, _, _, left, right, rope, _, _, _ = memory
    rows = raw
    if (8 if V32 else 7) != CHUNK:
        rows = (_unpacked(raw) * _scale(bits, CHUNK, V32)).to(gl.bfloat16)
    if CHUNK == 8:
        rope.index(slot).store(rows)
    elif CHUNK < 4:
        left.index(slot).slice(CHUNK * _WIDTH, _WIDTH, dim=1).store(rows)
    else:
        right.index(slot).slice((CHUNK - 4) * _WIDTH, _WIDTH, dim=1).store(rows)


@gluon.jit
def _gather(first_list, second_list, memory, barriers, plan, sizes, kinds):
    V32: gl.constexpr = kinds[0]
    DENSE: gl.constexpr = kinds[1]
    HAS_EXTRA: gl.constexpr = kinds[3]
    CHUNKS: gl.constexpr = 9 if V32 else 8
    filled, free, _, _, _ = barriers
    known_place = memory[7]
    share = part(plan)
    t = 0
    if not DENSE:
        t = gl.program_id(0) // gl.cdiv(sizes[1], _ROWS)
    steps = 0
    for request in range(share[0], share[1] + 1):
        count, turn, begin, end = _line(request, share, first_list, second_list, kinds)
        cache, stride_page, page, page_count = first_list[2], first_list[3], first_list[4], first_list[5]
        names = first_list[6] + (wide(request) * first_list[7] + wide(t) * first_list[8])
        others = second_list[6] + (wide(request) * second_list[7] + wide(t) * second_list[8])
        source = (second_list[2], second_list[3], second_list[4], second_list[5])
        shift = 0
        if HAS_EXTRA:  # noqa: SIM102 (the compiler knows it)
            if begin >= turn:
                cache, stride_page, page, page_count = source
                names = others
                shift = turn
                count = end - turn
        named = _names(names, page, begin - shift, gl.where(begin < end, count, 0), DENSE)
        at, scales_at, known = _places(named, page, begin - shift, page_count, stride_page, V32, DENSE)
        bits = _scales(cache, scales_at, known, V32)
        ring = (
            _chunk(cache, at, known, 0, V32),
            _chunk(cache, at, known, 1, V32),
            _chunk(cache, at, known, 2, V32),
            _chunk(cache, at, known, 3, V32),
        )
        for n in range(begin, end, _BLOCK):
            slot = steps & 1
            after = n + _BLOCK
            next_cache = cache
            if HAS_EXTRA:  # noqa: SIM102
                if (shift == 0) & (after >= turn) & (after < end):
                    next_cache, stride_page, page, page_count = source
                    names = others
                    shift = turn
                    count = end - turn
            named = _names(names, page, after - shift, gl.where(after < end, count, 0), DENSE)
            mbarrier.wait(free.index(slot), steps >> 1 & 1 ^ 1)  # given back two steps before
            known_place.index(slot).store(known.to(gl.int32))
            for chunk in gl.static_range(CHUNKS):
                if chunk == CHUNKS - _AHEAD:
                    next_at, next_scales_at, next_known = _places(
                        named, page, after - shift, page_count, stride_page, V32, DENSE
                    )
                    next_bits = _scales(next_cache, next_scales_at, next_known, V32)
                if chunk < CHUNKS - _AHEAD:
                    coming = _chunk(cache, at, known, chunk + _AHEAD, V32)
                else:
                    coming = _chunk(next_cache, next_at, next_known, chunk + _AHEAD - CHUNKS, V32)
                _write(ring[0], bits, memory, slot, chunk, V32)
                ring = (ring[1], ring[2], ring[3], coming)
            fence_async_shared()
            mbarrier.arrive(filled.index(slot), count=1)
            cache, at, known, bits = next_cache, next_at, next_known, next_bits
            steps += 1


@gluon.jit
def _load_query(
    query, request, column, sizes, LAYOUT: gl.constexpr, WIDTH: gl.constexpr, DENSE: gl.constexpr
):
    q, stride_b, stride_s, stride_h = query
    t, head, there = _heads(sizes[0], sizes[1], none(request), gl.SliceLayout(1, LAYOUT), DENSE)
    at = wide(request) * stride_b + t.to(gl.int64) * stride_s + head.to(gl.int64) * stride_h
    columns = column + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    places = gl.expand_dims(at, 1) + gl.expand_dims(columns, 0)
    return gl.load(q + places, mask=gl.expand_dims(there, 1), other=0.0)


@gluon.jit
def _store(acc, request, column, piece, results, sizes, DENSE: gl.constexpr):
    """Half of the columns of the rows' results, or of a piece of them."""
    num_splits, out, _, piece_out, _ = results
    s_q, h_q = sizes
    t, head, there = _heads(s_q, h_q, none(request), OF_SUMS, DENSE)
    columns = gl.expand_dims(column + gl.arange(0, _HALF, layout=gl.SliceLayout(0, SUMS)), 0)
    row = t * h_q + head
    mask = gl.expand_dims(there, 1)
    before = gl.load(num_splits + request)
    if gl.load(num_splits + request + 1) - before == 1:
        at = wide(request) * s_q * h_q + row
        gl.store(out + (gl.expand_dims(at, 1) * _LATENT + columns), acc.to(out.dtype.element_ty), mask=mask)
    else:
        at = wide(before + piece) * s_q * h_q + row
        gl.store(piece_out + (gl.expand_dims(at, 1) * _LATENT + columns), acc, mask=mask)


@gluon.jit
def _finished(m, l, request, piece, results, sink, sizes, kinds):
    """What each row's output is multiplied with; its log-sum-exp is stored."""
    DENSE: gl.constexpr = kinds[1]
    HAS_SINK: gl.constexpr = kinds[5]
    num_splits, _, lse, _, piece_lse = results
    s_q, h_q = sizes
    t, head, there = _heads(s_q, h_q, none(request), OF_SCORES, DENSE)
    empty = l == 0.0
    divisor = gl.where(empty, 1.0, l)
    lse2 = gl.where(empty, -INF, m + gl.log2(divisor))
    factor = 1.0 / divisor
    before = gl.load(num_splits + request)
    if gl.load(num_splits + request + 1) - before == 1:
        if HAS_SINK:
            weight = gl.load(sink + head, mask=there, other=0.0) * _LOG2E
            factor *= gl.where(empty, 0.0, 1.0 / (1.0 + gl.exp2(weight - gl.where(empty, 0.0, lse2))))
        at = (wide(request) * h_q + head) * s_q + t
        gl.store(lse + at, gl.where(empty, INF, lse2 * LN2), mask=there)
    else:
        at = wide(before + piece) * s_q * h_q + (t * h_q + head)
        gl.store(piece_lse + at, lse2, mask=there)
    return factor


@gluon.jit
def _scores(query, sink, first_list, second_list, memory, barriers, plan, results, sizes, scale_log2, kinds):
    V32: gl.constexpr = kinds[0]
    DENSE: gl.constexpr = kinds[1]
    CAUSAL: gl.constexpr = kinds[6]
    q_left, q_right, q_rope, left, right, rope, p_place, known_place, numbers = memory
    filled, free, signal, taken, meeting = barriers
    share = part(plan)
    steps = 0
    meetings = 0
    for request in range(share[0], share[1] + 1):
        line = _line(request, share, first_list, second_list, kinds)
        q_left.store(_load_query(query, request, 0, sizes, QUERY_HALF, _HALF, DENSE))
        meet(meeting, meetings)
        if CAUSAL:
            t = _heads(sizes[0], sizes[1], none(request), OF_SCORES, DENSE)[0]
            seen = line[0] - (sizes[0] - 1 - t)
        acc, m, l = nothing_seen()
        for n in range(line[2], line[3], _BLOCK):
            slot = steps & 1
            mbarrier.wait(filled.index(slot), steps >> 1 & 1)
            zeros = gl.zeros((_ROWS, _BLOCK), gl.float32, SCORES)
            s = warpgroup_mma(q_left, left.index(slot).permute((1, 0)), zeros, use_acc=False, is_async=True)
            s = warpgroup_mma(q_right, right.index(slot).permute((1, 0)), s, is_async=True)
            if V32:
                s = warpgroup_mma(q_rope, rope.index(slot).permute((1, 0)), s, is_async=True)
            s = warpgroup_mma_wait(0, deps=(s,))
            known = known_place.index(slot).load(gl.SliceLayout(0, SCORES))
            visible = gl.expand_dims(known, 0) != 0
            if CAUSAL:
                column = n + gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, SCORES))
                visible = visible & (gl.expand_dims(column, 0) < gl.expand_dims(seen, 1))
            s = gl.where(visible, s * scale_log2, -INF)
            largest = gl.maximum(m, gl.max(s, 1))
            base = finite(largest)
            p = gl.exp2(s - gl.expand_dims(base, 1))
            shrink = gl.exp2(m - base)
            l = l * shrink + gl.sum(p, 1)
            m = largest
            mbarrier.wait(taken, steps & 1 ^ 1)  # those of the step before
            numbers.index(_SHRINK).store(shrink)
            hand_over(p, p_place, signal)
            acc = add_own(times(acc, shrink), p, left.index(slot))
            mbarrier.arrive(free.index(slot), count=1)
            steps += 1
        piece = gl.where(request == share[0], share[4], 0)
        factor = _finished(m, l, request, piece, results, sink, sizes, kinds)
        numbers.index(_LAST).store(factor)
        meet(meeting, meetings + 1)
        meetings += 2
        _store(times(acc, factor), request, 0, piece, results, sizes, DENSE)


@gluon.jit
def _values(query, first_list, second_list, memory, barriers, plan, results, sizes, kinds):
    V32: gl.constexpr = kinds[0]
    DENSE: gl.constexpr = kinds[1]
    _, q_right, q_rope, _, right, _, p_place, _, numbers = memory
    filled, free, signal, taken, meeting = barriers
    share = part(plan)
    steps = 0
    meetings = 0
    for request in range(share[0], share[1] + 1):
        line = _line(request, share, first_list, second_list, kinds)
        q_right.store(_load_query(query, request, _HALF, sizes, QUERY_HALF, _HALF, DENSE))
        if V32:
            q_rope.store(_load_query(query, request, _LATENT, sizes, QUERY_ROPE, _ROPE, DENSE))
        meet(meeting, meetings)
        acc = gl.zeros((_ROWS, _HALF), gl.float32, SUMS)
        for _n in range(line[2], line[3], _BLOCK):
            slot = steps & 1
            mbarrier.wait(filled.index(slot), steps >> 1 & 1)
            mbarrier.wait(signal, steps & 1)
            acc = times(acc, numbers.index(_SHRINK).load(OF_SUMS))
            acc = add_other(acc, p_place, right.index(slot), signal, steps)
            mbarrier.arrive(taken, count=1)
            mbarrier.arrive(free.index(slot), count=1)
            steps += 1
        meet(meeting, meetings + 1)
        meetings += 2
        piece = gl.where(request == share[0], share[4], 0)
        acc = times(acc, numbers.index(_LAST).load(OF_SUMS))
        _store(acc, request, _HALF, piece, results, sizes, DENSE)


@gluon.jit
def flash_fwd_splitkv_mla_fp8_sparse_kernel_ws(
    q, cache, names, lengths, extra_cache, extra_names, extra_lengths, sink,
    table, num_splits, out, lse, piece_out, piece_lse,
    stride_q_b, stride_q_s, stride_q_h, stride_page, stride_names_b, stride_names_s,
    stride_extra_page, stride_extra_b, stride_extra_s,
    page, extra_page, page_count, extra_page_count, most, extra_most, s_q, h_q, scale_log2,
    V32: gl.constexpr, DENSE: gl.constexpr, HAS_LENGTH: gl.constexpr, HAS_EXTRA: gl.constexpr,
    HAS_EXTRA_LENGTH: gl.constexpr, HAS_SINK: gl.constexpr, CAUSAL: gl.constexpr,
    VALUES_REGISTERS: gl.constexpr, GATHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Grid: tiles of 64 rows (head tiles × s_q, or packed rows if DENSE), 1, parts."""
    q_left = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _HALF], SHARED)
    q_right = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _HALF], SHARED)
    left = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _HALF], SHARED)
    right = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _HALF], SHARED)
    # RoPE numbers of the other layout are among the latent ones.
    q_rope = q_left
    rope = left
    if V32:
        q_rope = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _ROPE], SHARED)
        rope = gl.allocate_shared_memory(gl.bfloat16, [2, _BLOCK, _ROPE], SHARED)
    p_place = gl.allocate_shared_memory(gl.bfloat16, [_ROWS, _BLOCK], SHARED)
    known_place = gl.allocate_shared_memory(gl.int32, [2, _BLOCK], NUMBERS)
    numbers = gl.allocate_shared_memory(gl.float32, [2, _ROWS], NUMBERS)
    filled = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    signal = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    meeting = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for each in gl.static_range(2):
        mbarrier.init(filled.index(each), count=1)
        mbarrier.init(free.index(each), count=2)
    mbarrier.init(signal, count=1)
    mbarrier.init(taken, count=1)
    mbarrier.init(meeting, count=2)
    query = (q, stride_q_b, stride_q_s, stride_q_h)
    memory = (q_left, q_right, q_rope, left, right, rope, p_place, known_place, numbers)
    barriers = (filled, free, signal, taken, meeting)
    first_list = (lengths, most, cache, stride_page, page, page_count, names, stride_names_b, stride_names_s)
    second_list = (
        extra_lengths, extra_most, extra_cache, stride_extra_page, extra_page, extra_page_count,
        extra_names, stride_extra_b, stride_extra_s,
    )  # fmt: skip
    results = (num_splits, out, lse, piece_out, piece_lse)
    sizes = (s_q, h_q)
    kinds: gl.constexpr = (V32, DENSE, HAS_LENGTH, HAS_EXTRA, HAS_EXTRA_LENGTH, HAS_SINK, CAUSAL)
    gl.warp_specialize(
        [
            (_scores, (query, sink, first_list, second_list, memory, barriers, table, results, sizes, scale_log2,
                       kinds)),
            (_values, (query, first_list, second_list, memory, barriers, table, results, sizes, kinds)),
            (_gather, (first_list, second_list, memory, barriers, table, sizes, kinds)),
        ],
        [4, 4],
        [VALUES_REGISTERS, GATHER_REGISTERS],
    )  # fmt: skip


def takes(q: torch.Tensor, rows: int, *caches: torch.Tensor) -> bool:
    """Return whether this path is for such a call: enough rows that share tokens, bfloat16, pages that are aligned."""
    aligned = all((cache.stride(0) | cache.data_ptr()) % ALIGNMENT == 0 for cache in caches)
    return rows >= ROWS_MIN and q.dtype == torch.bfloat16 and aligned


def decode(
    q: torch.Tensor,
    scopes: tuple[Scope, ...],
    plan: tuple[torch.Tensor, torch.Tensor],
    results: Results,
    *,
    scale_log2: float,
    sink: torch.Tensor | None = None,
    causal: bool = False,
) -> None:
    """Fill the results of `launch.dense_decode` or `launch.sparse_decode`, whose schedule `plan` is."""
    _, s_q, h_q, _ = q.shape
    first, more, none = scopes[0], scopes[-1], results[1]
    dense = first.names.dim() == 2
    row_bytes = first.cache.shape[3]
    tiles = -(-s_q * h_q // ROWS) if dense else -(-h_q // ROWS) * s_q
    start(
        flash_fwd_splitkv_mla_fp8_sparse_kernel_ws, (tiles, 1, len(plan[0])),
        q, first.cache, first.names, or_none(first.length, none), more.cache, more.names, or_none(more.length, none),
        or_none(sink, none), *plan, *results, *q.stride()[:3],
        first.cache.stride(0), first.names.stride(0), 0 if dense else first.names.stride(1),
        more.cache.stride(0), more.names.stride(0), 0 if dense else more.names.stride(1),
        first.cache.shape[1], more.cache.shape[1], first.cache.shape[0], more.cache.shape[0],
        _most(first), _most(more), s_q, h_q, scale_log2,
        V32=row_bytes == layouts.V32_BYTES, DENSE=dense, HAS_LENGTH=first.length is not None,
        HAS_EXTRA=len(scopes) > 1, HAS_EXTRA_LENGTH=len(scopes) > 1 and more.length is not None,
        HAS_SINK=sink is not None, CAUSAL=causal,
        VALUES_REGISTERS=VALUES_REGISTERS, GATHER_REGISTERS=GATHER_REGISTERS[row_bytes], num_warps=WARPS,
    )  # fmt: skip


def _most(scope: Scope) -> int:
    """Tokens that can be named for a query."""
    tokens = scope.cache.shape[1] if scope.names.dim() == 2 else 1
    return min(scope.names.shape[-1] * tokens, _MOST)


__all__ = ["decode", "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws", "takes"]
