"""Triton kernels of normal mode: count where tokens go, move rows, sum rows. `launch` starts them.

Rows are in any memory that the device reaches: a tensor, this rank's region, another's. Addresses of regions are whole
numbers. Flags are not raised or waited for here: the transport does that, before and after.

    I1  rows are copied as integers, whatever they mean
    I2  sums are made in float32, in the order of ranks or of the caller, as the reference makes them
    I3  offsets are 64-bit
    I4  nothing is read or written once `stopped` is set: a wait before has run out
"""

import triton
import triton.language as tl

from ...kernels.kernel import narrow


@triton.jit
def _at(address, TYPE: tl.constexpr):
    return address.to(tl.pointer_type(TYPE))


@triton.jit(do_not_specialize=["tokens"])
def layout_kernel(
    topk_idx, per_rank, per_expert, in_rank, tokens, experts_per_rank, experts,
    TOPK: tl.constexpr, RANKS: tl.constexpr, RANKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A number of no expert counts as none: the host of a device cannot look at it."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.arange(0, RANKS_PADDED)
    is_there = tl.zeros((BLOCK, RANKS_PADDED), dtype=tl.int32)
    for k in range(TOPK):
        expert = tl.load(topk_idx + token.to(tl.int64) * TOPK + k, mask=token < tokens, other=-1)
        chosen = (expert >= 0) & (expert < experts)
        tl.atomic_add(per_expert + expert, 1, mask=chosen, sem="relaxed")
        owner = tl.where(chosen, expert // experts_per_rank, -1).to(tl.int32)
        is_there = is_there | (owner[:, None] == rank[None, :]).to(tl.int32)
    place = token.to(tl.int64)[:, None] * RANKS + rank[None, :]
    tl.store(in_rank + place, is_there.to(tl.int8), mask=(token < tokens)[:, None] & (rank < RANKS)[None, :])
    tl.atomic_add(per_rank + rank, tl.sum(is_there, axis=0), mask=rank < RANKS, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def publish_kernel(
    out, source, limit, stopped, rows, width, source_width, LIMITED: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows below `rows`, and LIMITED, below what `limit` () int32 says."""
    if LIMITED:
        rows = tl.minimum(rows, tl.load(limit))
    rows = tl.where(tl.load(stopped) == 0, rows, 0)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.full((), 0, tl.int64) + number
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            words = tl.load(source + row * source_width + column, mask=column < width)
            tl.store(out + row * width + column, words, mask=column < width)


@triton.jit
def heads_kernel(out, peers, at, width, BLOCK: tl.constexpr):
    """The int32 words that each rank has at `at`: out (ranks, width)."""
    source = tl.program_id(0)
    words = _at(tl.load(peers + source) + at, tl.int32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        tl.store(
            out + source * width + column, tl.load(words + column, mask=column < width), mask=column < width
        )


@triton.jit(do_not_specialize=["room", "shape", "problem", "rank"])
def place_kernel(
    source_rows, heads, ends, peers, stopped, numbers_at, head_width, room, shape, problem, rank,
    RANKS: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Which token of its source each row will be.

    heads (ranks, head_width) begin with the tokens and the shape of the source's call.
    `problem`, an int64, gets the number of rows if there are more than `room`, and -1 - source for another shape.
    """
    source = tl.program_id(0)
    going = tl.load(stopped) == 0
    begin = tl.load(ends + source - 1, mask=source > 0, other=0)
    same = tl.load(heads + source * head_width + 1) == shape
    tokens = tl.where(going & same, tl.load(heads + source * head_width), 0)
    numbers = _at(tl.load(peers + source) + numbers_at, tl.int32)
    for start in range(tl.program_id(1) * BLOCK, tokens, SPLIT * BLOCK):
        token = start + tl.arange(0, BLOCK)
        number = tl.load(numbers + token.to(tl.int64) * RANKS + rank, mask=token < tokens, other=-1)
        row = begin + number
        tl.store(source_rows + row, token, mask=(number >= 0) & (row < room))
    if (tl.program_id(1) == 0) & going:
        total = tl.load(ends + RANKS - 1).to(tl.int64)
        if not same:
            tl.store(_at(problem, tl.int64), (-1 - source).to(tl.int64))
        elif total > room:
            tl.store(_at(problem, tl.int64), total)


@triton.jit(do_not_specialize=["rows", "tokens_max"])
def fetch_kernel(
    out, source_rows, ends, peers, stopped, at, rows, tokens_max, width, out_width,
    RANKS: tl.constexpr, RANKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each row from the memory of its source, whose rows of `width` words begin at `at`."""
    every = tl.arange(0, RANKS_PADDED)
    borders = tl.load(ends + every, mask=every < RANKS, other=0x7FFFFFFF)
    filled = tl.max(tl.where(every < RANKS, borders, 0), 0)
    rows = tl.where(tl.load(stopped) == 0, tl.minimum(rows, filled), 0)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.full((), 0, tl.int64) + number
        source = tl.sum((borders <= number).to(tl.int32), 0)
        token = tl.minimum(tl.maximum(tl.load(source_rows + row), 0), tokens_max - 1).to(tl.int64)
        words = _at(tl.load(peers + source) + at, out.dtype.element_ty) + token * width
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            part = tl.load(words + column, mask=column < width)
            tl.store(out + row * out_width + column, part, mask=column < width)


@triton.jit(do_not_specialize=["tokens"])
def reduce_kernel(
    out, starts, rows, ranks, bias_0, bias_1, stopped, tokens, width, pitch,
    PLACES: tl.constexpr, NAMED: tl.constexpr, BIASES: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """out[t] = biases + the row rows[t, p] of each rank ranks[t, p] (NAMED) or p.

    `pitch`: numbers from a row of out and of biases to the next.
    """
    tokens = tl.where(tl.load(stopped) == 0, tokens, 0)
    for first in range(tl.program_id(0) * BLOCK_TOKENS, tokens, tl.num_programs(0) * BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            is_real = (token < tokens)[:, None] & (column < width)[None, :]
            place = token.to(tl.int64)[:, None] * pitch + column[None, :]
            total = tl.zeros((BLOCK_TOKENS, BLOCK), dtype=tl.float32)
            if BIASES > 0:
                total += tl.load(bias_0 + place, mask=is_real, other=0.0).to(tl.float32)
            if BIASES > 1:
                total += tl.load(bias_1 + place, mask=is_real, other=0.0).to(tl.float32)
            for p in range(PLACES):
                at = token.to(tl.int64) * PLACES + p
                row = tl.load(rows + at, mask=token < tokens, other=-1).to(tl.int64)
                is_there = is_real & (row >= 0)[:, None]
                if NAMED:
                    rank = tl.load(ranks + at, mask=row >= 0, other=0)
                    part = tl.load(starts + rank).to(tl.pointer_type(out.dtype.element_ty))[:, None]
                else:  # what no argument says of an address in a table
                    address = tl.multiple_of(tl.load(starts + p), ALIGNMENT)
                    part = tl.multiple_of(address.to(tl.pointer_type(out.dtype.element_ty)), ALIGNMENT)
                words = tl.load(part + row[:, None] * width + column[None, :], mask=is_there, other=0.0)
                total += words.to(tl.float32)
            tl.store(out + place, narrow(total, out.dtype.element_ty, INTERPRET), mask=is_real)
