"""The fast path of the indexer's logits for Hopper, in Gluon, dense and paged.

One warp loads by TMA, two warpgroups have 64 tokens each of a step of 128. Tokens are the rows of the tensor core's
instruction and a query's heads its columns, so that the sum over heads stays within a warp.

    dense   a piece of work is 4 queries and a part of the tokens; the queries stay in shared memory while the tokens
            that some of them sees go by. The warpgroups write -inf over what no query of the piece sees.
    paged   a piece is 256 tokens of a request, as the schedule deals them out; a step is two pages.

    I1  slot s is filled for step i with i mod STAGES = s; its barrier's phase is the parity of i div STAGES
    I2  a slot is free when both have handed it back, each after its last multiplication that reads it has ended
    I3  queries have two places, filled and handed back by the same rule for each piece of work that has steps
    I4  as in `kernel`: nothing is stored beyond what a query sees, but -inf where that is asked for
"""

from typing import Any, Final

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ...kernels.aot import start
from ...kernels.layers import on_device
from ...kernels.quantize import FP8, ceil_div
from .. import settings
from ..gemm.launch import row_stride
from ..gemm.tile_scheduler import CONSUMER_WARPS, tma_load
from ..scales import TMA_BYTES
from .call import PAGE_TOKENS, PIECE_TOKENS, Logits, PagedLogits

QUERIES: Final = 4  # of a dense piece of work
STEP: Final = 2 * PAGE_TOKENS  # tokens
STAGES: Final = 6  # 16 KiB of tokens each, beside 64 KiB of queries
CONSUMER_REGISTERS: Final = 240
LOADER_REGISTERS: Final = 24

_WARPS: gl.constexpr = gl.constexpr(CONSUMER_WARPS)
_ROWS: gl.constexpr = gl.constexpr(PAGE_TOKENS)
_STEP: gl.constexpr = gl.constexpr(STEP)
_PIECE: gl.constexpr = gl.constexpr(PIECE_TOKENS)
_FAR: gl.constexpr = gl.constexpr(0x7FFFFFFF)


@gluon.jit
def _places(q, kv, HEADS: gl.constexpr, D: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr):
    """Shared memory: two places for queries, STAGES slots for tokens, and their barriers."""
    q_places = gl.allocate_shared_memory(gl.float8e4nv, [2 * QUERIES, HEADS, D], q.layout)
    kv_slots = gl.allocate_shared_memory(gl.float8e4nv, [2 * STAGES, _ROWS, D], kv.layout)
    barriers = gl.allocate_shared_memory(gl.int64, [2 * STAGES + 4, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 2):
        mbarrier.init(barriers.index(2 * each), count=1)  # filled
        mbarrier.init(barriers.index(2 * each + 1), count=2)  # free
    return q_places, kv_slots, barriers


@gluon.jit
def _fill_queries(q, places, piece, row, HEADS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr):
    q_places, _, barriers = places
    place = piece % 2
    filled = barriers.index(2 * (STAGES + place))
    mbarrier.wait(barriers.index(2 * (STAGES + place) + 1), (piece // 2) & 1 ^ 1)
    mbarrier.expect(filled, QUERIES * q.block_type.nbytes)
    for query in gl.static_range(QUERIES):
        tma_load(q, [row + query * HEADS, 0], filled, q_places.index(place * QUERIES + query))


@gluon.jit
def _fill_tokens(kv, places, step, upper, lower, STAGES: gl.constexpr):
    """Rows `upper` and `lower` of the descriptor, 64 each."""
    _, kv_slots, barriers = places
    slot = step % STAGES
    filled = barriers.index(2 * slot)
    mbarrier.wait(barriers.index(2 * slot + 1), (step // STAGES) & 1 ^ 1)
    mbarrier.expect(filled, 2 * kv.block_type.nbytes)
    tma_load(kv, [upper, 0], filled, kv_slots.index(2 * slot))
    tma_load(kv, [lower, 0], filled, kv_slots.index(2 * slot + 1))


@gluon.jit
def _weights_of(weights, row, rows, HEADS: gl.constexpr, SUMS: gl.constexpr):
    """A query's weights; zeros for a query that is not there."""
    heads = gl.arange(0, HEADS, layout=gl.SliceLayout(0, SUMS))
    return gl.load(
        weights + (gl.to_tensor(row).to(gl.int64) * HEADS + heads),
        mask=(heads >= 0) & (row < rows),
        other=0.0,
    )


@gluon.jit
def _logits_of(
    places, slot, query, weights, scale, HEADS: gl.constexpr, SUMS: gl.constexpr, HALF: gl.constexpr
):
    """Of 64 tokens for one query."""
    q_places, kv_slots, _ = places
    zeros = gl.zeros((_ROWS, HEADS), gl.float32, SUMS)
    scores = warpgroup_mma(
        kv_slots.index(2 * slot + HALF),
        q_places.index(query).permute((1, 0)),
        zeros,
        use_acc=False,
        is_async=True,
    )
    scores = warpgroup_mma_wait(0, deps=(scores,))
    return gl.sum(gl.maximum(scores, 0.0) * gl.expand_dims(weights, 0), 1) * scale


@gluon.jit
def _seen(starts, ends, first, s, s_kv, QUERIES: gl.constexpr):
    """The tokens that some of QUERIES queries see: from, to."""
    begin = gl.to_tensor(_FAR)
    end = gl.to_tensor(0)
    for query in gl.static_range(QUERIES):
        there = first + query < s
        each = gl.minimum(first + query, s - 1)
        own_begin = gl.maximum(gl.load(starts + each), 0)
        own_end = gl.minimum(gl.load(ends + each), s_kv)
        real = there & (own_begin < own_end)
        begin = gl.where(real, gl.minimum(begin, own_begin), begin)
        end = gl.where(real, gl.maximum(end, own_end), end)
    return begin, end


@gluon.jit
def _load_dense(
    q, kv, places, starts, ends, sizes,
    HEADS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
):  # fmt: skip
    s, s_kv, parts, part_tokens, _ = sizes
    step = 0
    pieces = 0
    for item in range(gl.program_id(0), gl.cdiv(s, QUERIES) * parts, PROGRAMS):
        first = item // parts * QUERIES
        begin, end = _seen(starts, ends, first, s, s_kv, QUERIES)
        part = item % parts * part_tokens
        begin = gl.maximum(begin // _STEP * _STEP, part)
        end = gl.minimum(end, part + part_tokens)
        if begin < end:
            _fill_queries(q, places, pieces, first * HEADS, HEADS, QUERIES, STAGES)
            pieces += 1
            for token in range(begin, end, _STEP):
                _fill_tokens(kv, places, step, token, token + _ROWS, STAGES)
                step += 1


@gluon.jit
def _score_dense(  # noqa: PLR0912 (constants decide)
    places, weights, sf, starts, ends, logits, sizes, logits_s,
    HEADS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    COMPRESSED: gl.constexpr, CLEAN: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, HEADS, 32])
    _, _, barriers = places
    s, s_kv, parts, part_tokens, width = sizes
    inside = gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
    step = 0
    pieces = 0
    for item in range(gl.program_id(0), gl.cdiv(s, QUERIES) * parts, PROGRAMS):
        first = item // parts * QUERIES
        begin, end = _seen(starts, ends, first, s, s_kv, QUERIES)
        part = item % parts * part_tokens
        begin = gl.maximum(begin // _STEP * _STEP, part)
        end = gl.minimum(end, part + part_tokens)
        place = pieces % 2
        some = begin < end
        if some:
            mbarrier.wait(barriers.index(2 * (STAGES + place)), (pieces // 2) & 1)
        if CLEAN:
            for token in range(part, gl.minimum(part + part_tokens, s_kv), _STEP):
                if (token < begin) | (token >= end):
                    tokens = token + HALF * _ROWS + inside
                    for query in gl.static_range(QUERIES):
                        out = logits + (gl.to_tensor(first + query).to(gl.int64) * logits_s + tokens)
                        nothing = gl.full(
                            (_ROWS,), float("-inf"), logits.dtype.element_ty, gl.SliceLayout(1, SUMS)
                        )
                        gl.store(out, nothing, mask=(tokens < s_kv) & (first + query < s))
        own_weights = (
            _weights_of(weights, first, s, HEADS, SUMS), _weights_of(weights, first + 1, s, HEADS, SUMS),
            _weights_of(weights, first + 2, s, HEADS, SUMS), _weights_of(weights, first + 3, s, HEADS, SUMS),
        )  # fmt: skip
        for token in range(begin, end, _STEP):
            slot = step % STAGES
            tokens = token + HALF * _ROWS + inside
            scale = gl.load(sf + tokens, mask=tokens < s_kv, other=0.0)
            mbarrier.wait(barriers.index(2 * slot), (step // STAGES) & 1)
            for query in gl.static_range(QUERIES):
                total = _logits_of(
                    places, slot, place * QUERIES + query, own_weights[query], scale, HEADS, SUMS, HALF
                ).to(logits.dtype.element_ty)
                if query == QUERIES - 1:
                    mbarrier.arrive(barriers.index(2 * slot + 1), count=1)
                row = gl.minimum(first + query, s - 1)
                own_begin = gl.maximum(gl.load(starts + row), 0)
                own_end = gl.minimum(gl.load(ends + row), s_kv)
                visible = (tokens >= own_begin) & (tokens < own_end)
                columns = tokens
                if COMPRESSED:
                    columns = tokens - own_begin
                mask = (columns < width) & (first + query < s)
                if CLEAN:
                    total = gl.where(visible, total, float("-inf"))
                else:
                    mask = mask & visible
                gl.store(logits + (gl.to_tensor(row).to(gl.int64) * logits_s + columns), total, mask=mask)
            step += 1
        if some:
            mbarrier.arrive(barriers.index(2 * (STAGES + place) + 1), count=1)
            pieces += 1


@gluon.jit(do_not_specialize=["s", "s_kv", "parts", "width"])
def mqa_logits_ws_kernel(
    q, kv, sf, weights, starts, ends, logits, s, s_kv, parts, part_tokens, logits_s, width,
    HEADS: gl.constexpr, D: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    COMPRESSED: gl.constexpr, CLEAN: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Persistent: PROGRAMS programs share pieces of work, `parts` of `part_tokens` tokens for QUERIES queries."""
    places = _places(q, kv, HEADS, D, QUERIES, STAGES)
    sizes = (s, s_kv, parts, part_tokens, width)
    gl.warp_specialize(
        [
            (
                _score_dense,
                (places, weights, sf, starts, ends, logits, sizes, logits_s, HEADS, QUERIES, STAGES, PROGRAMS,
                 COMPRESSED, CLEAN, 0),
            ),
            (
                _score_dense,
                (places, weights, sf, starts, ends, logits, sizes, logits_s, HEADS, QUERIES, STAGES, PROGRAMS,
                 COMPRESSED, CLEAN, 1),
            ),
            (_load_dense, (q, kv, places, starts, ends, sizes, HEADS, QUERIES, STAGES, PROGRAMS)),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _share(schedule):
    """The pieces of this program: from request and piece, to."""
    own = schedule + gl.program_id(0) * 2
    return gl.load(own), gl.load(own + 1), gl.load(own + 2), gl.load(own + 3)


@gluon.jit
def _longest(lengths, row, strides, QUERIES: gl.constexpr):
    return gl.load(lengths + (row * strides[0] + (QUERIES - 1) * strides[1]))


@gluon.jit
def _page(table, row, token, longest, blocks, table_row):
    """The page of a token, and whether there is one: else page 0 stands for it."""
    block = gl.load(
        table + (gl.to_tensor(row).to(gl.int64) * table_row + token // _ROWS), mask=token < longest, other=-1
    )
    known = (block >= 0) & (block < blocks)
    return gl.where(known, block, 0), known


@gluon.jit
def _load_paged(
    q, kv, places, lengths, table, schedule, strides, page_rows, blocks, table_row,
    HEADS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    row, piece, last_row, last_piece = _share(schedule)
    step = 0
    requests = 0
    while row < last_row + (last_piece > 0).to(gl.int32):
        longest = _longest(lengths, row, strides, QUERIES)
        end = longest
        if row == last_row:
            end = gl.minimum(end, last_piece * _PIECE)
        if piece * _PIECE < end:
            _fill_queries(q, places, requests, row * (QUERIES * HEADS), HEADS, QUERIES, STAGES)
            requests += 1
            for token in range(piece * _PIECE, end, _STEP):
                upper, _ = _page(table, row, token, longest, blocks, table_row)
                lower, _ = _page(table, row, token + _ROWS, longest, blocks, table_row)
                _fill_tokens(kv, places, step, upper * page_rows, lower * page_rows, STAGES)
                step += 1
        piece = 0
        row += 1


@gluon.jit
def _score_paged(
    places, scales, weights, lengths, table, schedule, logits, strides, blocks, table_row, scales_block, logits_row,
    width, HEADS: gl.constexpr, D: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, HEADS, 32])
    _, _, barriers = places
    inside = gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
    row, piece, last_row, last_piece = _share(schedule)
    step = 0
    requests = 0
    while row < last_row + (last_piece > 0).to(gl.int32):
        longest = _longest(lengths, row, strides, QUERIES)
        end = longest
        if row == last_row:
            end = gl.minimum(end, last_piece * _PIECE)
        if piece * _PIECE < end:
            place = requests % 2
            mbarrier.wait(barriers.index(2 * (STAGES + place)), (requests // 2) & 1)
            first = row * QUERIES
            rows = first + QUERIES
            own_weights = (
                _weights_of(weights, first, rows, HEADS, SUMS),
                _weights_of(weights, rows - 1, rows, HEADS, SUMS),
            )
            for token in range(piece * _PIECE, end, _STEP):
                slot = step % STAGES
                own = token + HALF * _ROWS
                tokens = own + inside
                block, known = _page(table, row, own, longest, blocks, table_row)
                wide = block.to(gl.int64)
                visible = (tokens < gl.where(known, longest, 0)) & (tokens < width)
                scale = gl.load(
                    scales + (wide * scales_block + _ROWS * D // 4 + inside), mask=visible, other=0.0
                )
                mbarrier.wait(barriers.index(2 * slot), (step // STAGES) & 1)
                for query in gl.static_range(QUERIES):
                    total = _logits_of(
                        places, slot, place * QUERIES + query, own_weights[query], scale, HEADS, SUMS, HALF
                    ).to(logits.dtype.element_ty)
                    if query == QUERIES - 1:
                        mbarrier.arrive(barriers.index(2 * slot + 1), count=1)
                    length = gl.load(lengths + (row * strides[0] + query * strides[1]))
                    out = logits + (gl.to_tensor(first + query).to(gl.int64) * logits_row + tokens)
                    gl.store(out, total, mask=visible & (tokens < length))
                step += 1
            mbarrier.arrive(barriers.index(2 * (STAGES + place) + 1), count=1)
            requests += 1
        piece = 0
        row += 1


@gluon.jit(do_not_specialize=["blocks", "table_row", "logits_row", "width", "lens_row", "lens_next"])
def paged_mqa_logits_ws_kernel(
    q, kv, scales, weights, lengths, table, schedule, logits, blocks, page_rows, scales_block, table_row, logits_row,
    width, lens_row, lens_next,
    HEADS: gl.constexpr, D: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Program i computes the pieces between schedule[i] and schedule[i + 1], for each of a request's queries.

    `kv` is the cache as rows of D values: a page begins at every `page_rows`-th, and its scales follow its 64 rows.
    """
    places = _places(q, kv, HEADS, D, QUERIES, STAGES)
    strides = (lens_row, lens_next)
    gl.warp_specialize(
        [
            (
                _score_paged,
                (places, scales, weights, lengths, table, schedule, logits, strides, blocks, table_row, scales_block,
                 logits_row, width, HEADS, D, QUERIES, STAGES, 0),
            ),
            (
                _score_paged,
                (places, scales, weights, lengths, table, schedule, logits, strides, blocks, table_row, scales_block,
                 logits_row, width, HEADS, D, QUERIES, STAGES, 1),
            ),
            (
                _load_paged,
                (q, kv, places, lengths, table, schedule, strides, page_rows, blocks, table_row, HEADS, QUERIES,
                 STAGES),
            ),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


def takes(*call: Any) -> bool:
    """Return whether a kernel here is for this call: TMA wants addresses and rows at multiples of 16 bytes."""
    first = call[0]
    if isinstance(first, Logits):
        aligned = first.kv.shape[0] == 1 or first.kv.stride(0) % TMA_BYTES == 0
        return aligned and _is_aligned(first.q) and _is_aligned(first.kv)
    if isinstance(first, PagedLogits):
        cache = first.cache
        whole = cache.shape[0] > 0 and cache.stride(0) % first.q.shape[-1] == 0
        return whole and _is_aligned(first.q) and _is_aligned(cache)
    return False


def _is_aligned(x: Tensor) -> bool:
    return x.device.type == "meta" or x.data_ptr() % TMA_BYTES == 0


def mqa_logits(call: Logits) -> None:
    """As `kernel.mqa_logits`."""
    s, heads, d = call.q.shape
    tokens, programs = call.kv.shape[0], settings.get_num_sms()
    # Parts of the tokens only where queries alone would not keep all programs busy.
    parts = max(1, min(ceil_div(4 * programs, ceil_div(s, QUERIES)), ceil_div(tokens, 8 * STEP)))
    part_tokens = ceil_div(ceil_div(tokens, parts), STEP) * STEP
    parts = ceil_div(tokens, part_tokens)
    layout = _layout(d)
    with on_device(call.q):
        start(
            mqa_logits_ws_kernel, (min(programs, ceil_div(s, QUERIES) * parts),),
            TensorDescriptor(call.q, [s * heads, d], [d, 1], [heads, d], layout),
            TensorDescriptor(call.kv, [tokens, d], [row_stride(call.kv), 1], [PAGE_TOKENS, d], layout),
            call.sf, call.weights, call.starts, call.ends, call.logits, s, tokens, parts, part_tokens,
            call.logits.stride(0), call.logits.shape[1],
            HEADS=heads, D=d, QUERIES=QUERIES, STAGES=STAGES, PROGRAMS=programs, COMPRESSED=call.compressed,
            CLEAN=call.clean, CONSUMER_REGISTERS=CONSUMER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS,
            num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def paged_mqa_logits(call: PagedLogits) -> None:
    """As `kernel.paged_mqa_logits`."""
    b, next_n, heads, d = call.q.shape
    cache, blocks, layout = call.cache, call.cache.shape[0], _layout(d)
    page_rows = cache.stride(0) // d
    rows = (blocks - 1) * page_rows + PAGE_TOKENS
    with on_device(call.q):
        start(
            paged_mqa_logits_ws_kernel, (call.schedule.shape[0] - 1,),
            TensorDescriptor(call.q, [b * next_n * heads, d], [d, 1], [heads, d], layout),
            TensorDescriptor(cache.view(FP8), [rows, d], [d, 1], [PAGE_TOKENS, d], layout),
            cache.view(torch.float32), call.weights, call.lengths, call.table, call.schedule, call.logits,
            blocks, page_rows, cache.stride(0) // 4, call.table.stride(0), call.logits.stride(0), call.logits.shape[1],
            *call.lengths.stride(),
            HEADS=heads, D=d, QUERIES=next_n, STAGES=STAGES, CONSUMER_REGISTERS=CONSUMER_REGISTERS,
            LOADER_REGISTERS=LOADER_REGISTERS, num_warps=CONSUMER_WARPS,
        )  # fmt: skip


def _layout(d: int) -> Any:
    return gl.NVMMASharedLayout(swizzle_byte_width=d, element_bitwidth=8, rank=2)


__all__ = ["mqa_logits", "paged_mqa_logits", "takes"]
