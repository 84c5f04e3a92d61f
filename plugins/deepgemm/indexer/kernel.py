"""Triton kernels of the indexer's logits, and how they are started."""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels.aot import start
from ...kernels.kernel import narrow
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import FP8, ceil_div
from .call import PIECE_TOKENS, Logits, PagedLogits

LOGITS_BLOCK: Final = 128


@triton.jit(do_not_specialize=["s_kv", "logits_s", "max_seqlen_k"])
def mqa_logits_kernel(
    q, kv, sf, weights, starts, ends, logits, s_kv, q_s, q_h, kv_t, weights_s, logits_s, max_seqlen_k,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_KV: tl.constexpr, COMPRESSED: tl.constexpr, CLEAN: tl.constexpr,
    INTERPRET: tl.constexpr,
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
        tl.store(out, narrow(total, logits.dtype.element_ty, INTERPRET), mask=visible & (columns < width))
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
    HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr, INTERPRET: tl.constexpr,
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
                    total = narrow(tl.sum(scores, 1) * scale, logits.dtype.element_ty, INTERPRET)
                    tl.store(
                        logits + out_row * logits_row + tokens,
                        total,
                        mask=visible & (tokens < length) & (tokens < width),
                    )
        piece += 1
        if piece * PIECE >= longest:
            row += 1
            piece = 0


def mqa_logits(call: Logits) -> None:
    """Fill the logits."""
    s, heads, d = call.q.shape
    out = call.logits
    with on_device(call.q):
        start(
            mqa_logits_kernel, (s, ceil_div(out.shape[1], LOGITS_BLOCK)),
            call.q, call.kv, call.sf, call.weights, call.starts, call.ends, out, call.kv.shape[0], call.q.stride(0),
            call.q.stride(1), call.kv.stride(0), call.weights.stride(0), out.stride(0), out.shape[1],
            HEADS=heads, D=d, BLOCK_KV=LOGITS_BLOCK, COMPRESSED=call.compressed, CLEAN=call.clean,
            INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


def paged_metadata(context_lens: Tensor, schedule: Tensor) -> None:
    """Fill schedule (programs + 1, 2) for requests of context_lens (b,) tokens."""
    programs = schedule.shape[0] - 1
    with on_device(schedule):
        start(
            paged_mqa_logits_metadata_kernel, (1,),
            context_lens, schedule, context_lens.shape[0], context_lens.stride(0),
            PIECE=PIECE_TOKENS, SMS=programs, SMS_PADDED=triton.next_power_of_2(programs + 1), num_warps=4,
        )  # fmt: skip


def paged_mqa_logits(call: PagedLogits) -> None:
    """Fill the logits."""
    q, cache, lengths = call.q, call.cache, call.lengths
    _, next_n, heads, d = q.shape
    with on_device(q):
        start(
            paged_mqa_logits_kernel, (call.schedule.shape[0] - 1,),
            q, cache.view(FP8), cache.view(torch.float32), call.weights, lengths, call.table, call.schedule,
            call.logits,
            cache.shape[0], q.stride(1), q.stride(2), cache.stride(0), cache.stride(0) // 4, call.weights.stride(0),
            call.table.stride(0), call.logits.stride(0), call.logits.shape[1], next_n, *lengths.stride(),
            HEADS=heads, D=d, PAGE=cache.shape[1], PIECE=PIECE_TOKENS, INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


__all__ = ["mqa_logits", "paged_metadata", "paged_mqa_logits"]
