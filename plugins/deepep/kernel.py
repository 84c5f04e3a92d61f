"""Triton kernels of normal mode: count where tokens go, move rows, sum rows. `launch` starts them.

`pitch`: words from a row of `out` and of biases to the next; parts have rows of `width` words.

Rows may lie in any memory that the device reaches: in a tensor, in this rank's region, in another's. Flags are not
raised or waited for here: the transport does that, before and after.

    I1  rows are copied as integers, whatever they mean
    I2  sums are made in float32, in the order of ranks, as the reference makes them
    I3  offsets are 64-bit
"""

import triton
import triton.language as tl


@triton.jit
def layout_kernel(
    topk_idx, per_rank, per_expert, in_rank, tokens, experts_per_rank,
    TOPK: tl.constexpr, RANKS: tl.constexpr, RANKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.arange(0, RANKS_PADDED)
    is_there = tl.zeros((BLOCK, RANKS_PADDED), dtype=tl.int32)
    for k in range(TOPK):
        expert = tl.load(topk_idx + token.to(tl.int64) * TOPK + k, mask=token < tokens, other=-1)
        chosen = expert >= 0
        tl.atomic_add(per_expert + expert, 1, mask=chosen, sem="relaxed")
        owner = tl.where(chosen, expert // experts_per_rank, -1).to(tl.int32)
        is_there = is_there | (owner[:, None] == rank[None, :]).to(tl.int32)
    place = token.to(tl.int64)[:, None] * RANKS + rank[None, :]
    tl.store(in_rank + place, is_there.to(tl.int8), mask=(token < tokens)[:, None] & (rank < RANKS)[None, :])
    tl.atomic_add(per_rank + rank, tl.sum(is_there, axis=0), mask=rank < RANKS, sem="relaxed")


@triton.jit
def take_kernel(
    out, source, rows, first, count, width, source_width,
    INDEXED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if INDEXED:
        wanted = tl.load(rows + row, mask=row < count, other=0).to(tl.int64)
    else:
        wanted = first + row.to(tl.int64)
    is_real = (row < count)[:, None] & (column < width)[None, :]
    words = tl.load(source + wanted[:, None] * source_width + column[None, :], mask=is_real)
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], words, mask=is_real)


@triton.jit
def _rounded_to_bf16(x):
    # The interpreter's cast cuts off: it gets numbers that need no rounding.
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).to(tl.float32, bitcast=True)
    return tl.where(x != x, x, nearest)  # noqa: PLR0124 (NaN)


@triton.jit
def reduce_kernel(
    out, parts, rows, bias_0, bias_1, tokens, width, pitch,
    RANKS: tl.constexpr, BIASES: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_real = (token < tokens)[:, None] & (column < width)[None, :]
    place = token.to(tl.int64)[:, None] * pitch + column[None, :]
    total = tl.zeros((BLOCK_TOKENS, BLOCK), dtype=tl.float32)
    if BIASES > 0:
        total += tl.load(bias_0 + place, mask=is_real, other=0.0).to(tl.float32)
    if BIASES > 1:
        total += tl.load(bias_1 + place, mask=is_real, other=0.0).to(tl.float32)
    for rank in range(RANKS):
        start = tl.multiple_of(
            tl.load(parts + rank), ALIGNMENT
        )  # what no argument says of an address in a table
        part = tl.multiple_of(start.to(tl.pointer_type(out.dtype.element_ty)), ALIGNMENT)
        row = tl.load(rows + token.to(tl.int64) * RANKS + rank, mask=token < tokens, other=-1).to(tl.int64)
        is_there = is_real & (row >= 0)[:, None]
        total += tl.load(part + row[:, None] * width + column[None, :], mask=is_there, other=0.0).to(
            tl.float32
        )
    if INTERPRET and out.dtype.element_ty == tl.bfloat16:
        total = _rounded_to_bf16(total)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_real)


# What the host does not count (`captured`). Addresses are whole numbers, as of other ranks' memory.


@triton.jit
def _at(address, TYPE: tl.constexpr):
    return address.to(tl.pointer_type(TYPE))


@triton.jit(do_not_specialize=["rows"])
def publish_kernel(out, source, limit, rows, width, source_width, LIMITED: tl.constexpr, BLOCK: tl.constexpr):
    """Rows below `rows`, and LIMITED, below what `limit` (1,) int32 says."""
    row = tl.program_id(0).to(tl.int64)
    if LIMITED:
        rows = tl.minimum(rows, tl.load(limit))
    if row < rows:
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


@triton.jit(do_not_specialize=["room", "shape", "problem"])
def place_kernel(
    source_rows, heads, ends, peers, numbers_at, head_width, room, shape, problem,
    RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Which token of its source each row will be.

    heads (ranks, head_width) begin with the tokens and the shape of the source's call.
    `problem`, an int64, gets the number of rows if there are more than `room`, and -1 - source for another shape.
    """
    source = tl.program_id(0)
    begin = tl.load(ends + source - 1, mask=source > 0, other=0)
    tokens = tl.minimum(tl.load(heads + source * head_width), room)
    numbers = _at(tl.load(peers + source) + numbers_at, tl.int32)
    for start in range(tl.program_id(1) * BLOCK, tokens, SPLIT * BLOCK):
        token = start + tl.arange(0, BLOCK)
        number = tl.load(numbers + token.to(tl.int64) * RANKS + RANK, mask=token < tokens, other=-1)
        row = begin + number
        tl.store(source_rows + row, token, mask=(number >= 0) & (row < room))
    if tl.program_id(1) == 0:
        total = tl.load(ends + RANKS - 1).to(tl.int64)
        if tl.load(heads + source * head_width + 1) != shape:
            tl.store(_at(problem, tl.int64), (-1 - source).to(tl.int64))
        elif total > room:
            tl.store(_at(problem, tl.int64), total)


@triton.jit(do_not_specialize=["rows", "tokens_max"])
def fetch_kernel(
    out, source_rows, ends, peers, at, rows, tokens_max, width, out_width,
    RANKS: tl.constexpr, RANKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each row from the memory of its source, whose rows of `width` words begin at `at`."""
    row = tl.program_id(0)
    every = tl.arange(0, RANKS_PADDED)
    source = tl.sum((tl.load(ends + every, mask=every < RANKS, other=0x7FFFFFFF) <= row).to(tl.int32), 0)
    if (source < RANKS) & (row < rows):
        token = tl.minimum(tl.maximum(tl.load(source_rows + row), 0), tokens_max - 1).to(tl.int64)
        words = _at(tl.load(peers + source) + at, out.dtype.element_ty) + token * width
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            part = tl.load(words + column, mask=column < width)
            tl.store(out + row.to(tl.int64) * out_width + column, part, mask=column < width)
