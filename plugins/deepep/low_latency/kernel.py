"""Triton kernels of low-latency mode: they write straight into other ranks' memory, by a table of its addresses.

    slot_kernel             for each expert: which of its messages each (token, k) is; counts go to the peers
    dispatch_send_kernel    a token a program: cast once, written once for each of its experts
    dispatch_receive_kernel an (expert, source) a program: messages become packed rows
    combine_send_kernel     the way back, each row to its source's slot
    combine_receive_kernel  a token a program: the weighted sum of its slots, in float32

No kernel waits: the flags that order sending and receiving are the transport's. None reads a size from the device's
memory that another rank could not have written before its flag. `inactive` (ranks,) int32 marks ranks that nothing is
sent to and nothing is taken from. Once `stopped` is set, as a wait has run out, nothing is sent, and what is received
is nothing: no rows, and sums of zero.
"""

import triton
import triton.language as tl

from ...kernels.kernel import rounded_to_e4m3

_BLOCK: tl.constexpr = tl.constexpr(128)
_HEADER: tl.constexpr = tl.constexpr(16)
_LOG_RANGE: tl.constexpr = tl.constexpr(32.0)
_LOG_STEPS: tl.constexpr = tl.constexpr(510.0)
_FINITE_MAX: tl.constexpr = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _at(address, TYPE: tl.constexpr):
    return address.to(tl.pointer_type(TYPE))


@triton.jit
def _row_at(address, TYPE: tl.constexpr):
    """Where a row's data begin: at a multiple of 16 bytes, so that threads move so many at once."""
    return tl.multiple_of(tl.multiple_of(address, 16).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def _chunk(start, GROUPS: tl.constexpr):
    """Channels of some blocks of a row: (GROUPS, 128)."""
    return start + tl.arange(0, GROUPS)[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]


@triton.jit
def _counted(counts, max_tokens):
    """What a rank that died while it wrote may have left is kept in bounds."""
    return tl.minimum(tl.maximum(counts, 0), max_tokens)


@triton.jit
def _power_above(scale):
    """The power of two at or above positive scales, and its inverse."""
    bits = (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["entries", "max_tokens", "rank"])
def slot_kernel(
    topk, slots, peers, inactive, stopped, counts_at, entries, max_tokens, rank,
    LOCAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    peer = expert // LOCAL
    before = 0  # messages for the peer's experts below this one
    for start in range(0, entries, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids = tl.load(topk + at, mask=at < entries, other=-1)
        before += tl.sum(((ids >= peer * LOCAL) & (ids < expert)).to(tl.int32), 0)
    total = 0
    for start in range(0, entries, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = tl.load(topk + at, mask=at < entries, other=-1) == expert
        ones = mine.to(tl.int32)
        tl.store(slots + at, before + total + tl.cumsum(ones, 0) - 1, mask=mine)
        total += tl.sum(ones, 0)
    counts = _at(tl.load(peers + peer) + counts_at, tl.int32)
    active = tl.load(inactive + peer) + tl.load(stopped) == 0
    tl.store(counts + rank * LOCAL + expert % LOCAL, tl.minimum(total, max_tokens), mask=active)


@triton.jit(do_not_specialize=["max_tokens", "rank"])
def dispatch_send_kernel(
    x, topk, slots, peers, inactive, stopped, arrivals_at, max_tokens, message_bytes, rank,
    LOCAL: tl.constexpr, EXPERTS: tl.constexpr, TOPK: tl.constexpr,
    HIDDEN: tl.constexpr, FP8: tl.constexpr, ROUND: tl.constexpr, GROUPS: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    going = tl.load(stopped) == 0
    row = x + token.to(tl.int64) * HIDDEN
    for start in range(0, HIDDEN, GROUPS * 128):
        at = _chunk(start, GROUPS)
        valid = at < HIDDEN
        part = tl.load(row + at, mask=valid, other=0.0)
        if FP8:
            part = part.to(tl.float32)
            amax = tl.maximum(tl.max(tl.abs(part), 1), 1e-4)
            scale = amax * (1.0 / 448.0)
            if ROUND:
                scale, factor = _power_above(scale)
            else:
                factor = tl.div_rn(tl.full([GROUPS], 448.0, tl.float32), amax)
            part = tl.clamp(part * factor[:, None], -448.0, 448.0)
            if INTERPRET:
                part = rounded_to_e4m3(part)
            codes = part.to(tl.float8e4nv)
        for k in range(TOPK):
            expert = tl.load(topk + token * TOPK + k).to(tl.int32)
            known = (expert >= 0) & (expert < EXPERTS)
            peer = tl.where(known, expert // LOCAL, 0)
            slot = tl.load(slots + token * TOPK + k, mask=known, other=0)
            if going & known & (slot < LOCAL * max_tokens) & (tl.load(inactive + peer) == 0):
                place = tl.full((), LOCAL, tl.int64) * rank * max_tokens + slot
                message = tl.load(peers + peer) + arrivals_at + place * message_bytes
                if start == 0:
                    tl.store(_at(message, tl.int32), token)
                if FP8:
                    tl.store(_row_at(message, tl.float8e4nv) + (_HEADER + at), codes, mask=valid)
                    groups = start // 128 + tl.arange(0, GROUPS)
                    scales = _at(message + _HEADER + HIDDEN, tl.float32)
                    tl.store(scales + groups, scale, mask=groups < HIDDEN // 128)
                else:
                    tl.store(_row_at(message, tl.bfloat16) + (_HEADER // 2 + at), part, mask=valid)


@triton.jit(do_not_specialize=["max_tokens"])
def dispatch_receive_kernel(  # noqa: PLR0912 (types of scales)
    own, inactive, stopped, rows, scales, source_tokens, ranges, recv_counts, stats, counts_at, arrivals_at, max_tokens,
    message_bytes,
    RANKS: tl.constexpr, RANKS_PADDED: tl.constexpr, LOCAL: tl.constexpr, LOCAL_PADDED: tl.constexpr,
    HIDDEN: tl.constexpr, FP8: tl.constexpr, UE8M0: tl.constexpr, STATS: tl.constexpr, GROUPS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0) // RANKS
    source = tl.program_id(0) % RANKS
    split = tl.program_id(1)
    base = tl.load(own)
    every = tl.arange(0, RANKS_PADDED)
    left_out = tl.load(inactive + every, mask=every < RANKS, other=1) + tl.load(stopped)
    active = (left_out == 0) & (every < RANKS)
    came = _at(base + counts_at, tl.int32)
    counts = _counted(tl.load(came + every * LOCAL + expert, mask=active, other=0), max_tokens)
    experts = tl.arange(0, LOCAL_PADDED)
    of_source = tl.load(came + source * LOCAL + experts, mask=experts < expert, other=0)
    first = source * LOCAL * max_tokens + tl.sum(_counted(of_source, max_tokens), 0)
    begin = tl.sum(tl.where(every < source, counts, 0), 0)
    count = tl.sum(tl.where(every == source, counts, 0), 0)
    if split == 0:
        tl.store(ranges + expert * RANKS + source, (begin.to(tl.int64) << 32) | count.to(tl.int64))
        if source == 0:
            total = tl.sum(counts, 0)
            tl.store(recv_counts + expert, total)
            if STATS:
                tl.store(stats + expert, tl.load(stats + expert) + total)
    columns = (RANKS * max_tokens).to(tl.int64)
    for i in range(split, count, SPLIT):
        message = base + arrivals_at + (first + i).to(tl.int64) * message_bytes
        line = begin + i
        row = expert * columns + line
        tl.store(source_tokens + row, tl.load(_at(message, tl.int32)))
        for start in range(0, HIDDEN, GROUPS * 128):
            at = _chunk(start, GROUPS)
            valid = at < HIDDEN
            if FP8:
                part = tl.load(_row_at(message, tl.uint8) + (_HEADER + at), mask=valid)
                tl.store(rows + row * HIDDEN + at, part, mask=valid)
            else:
                part = tl.load(_row_at(message, tl.bfloat16) + (_HEADER // 2 + at), mask=valid)
                tl.store(rows + row * HIDDEN + at, part, mask=valid)
        if FP8:
            tail = message + _HEADER + HIDDEN
            if UE8M0:
                for start in range(0, HIDDEN // 512, GROUPS):
                    words = start + tl.arange(0, GROUPS)
                    valid = words < HIDDEN // 512
                    packed = tl.zeros([GROUPS], tl.int32)
                    for byte in range(4):
                        bits = tl.load(_at(tail, tl.int32) + words * 4 + byte, mask=valid, other=0)
                        packed |= ((bits >> 23) & 255) << (8 * byte)
                    where = (expert * (HIDDEN // 512) + words).to(tl.int64) * columns + line
                    tl.store(scales + where, packed, mask=valid)
            else:
                for start in range(0, HIDDEN // 128, GROUPS):
                    groups = start + tl.arange(0, GROUPS)
                    valid = groups < HIDDEN // 128
                    scale = tl.load(_at(tail, tl.float32) + groups, mask=valid)
                    where = (expert * (HIDDEN // 128) + groups).to(tl.int64) * columns + line
                    tl.store(scales + where, scale, mask=valid)


@triton.jit
def _store_logfmt(slot, part, start, HIDDEN: tl.constexpr, GROUPS: tl.constexpr):
    """The codes of some blocks, as `quantize.to_logfmt` lays them out."""
    magnitude = tl.abs(part)
    finite = magnitude <= _FINITE_MAX
    there = finite & (magnitude > 0)
    # Zeros get a logarithm that no float32 has: infinities would make NaN.
    logs = tl.where(there, tl.log2(tl.where(there, magnitude, 1.0)), -1024.0)
    largest = tl.max(logs, 1)
    some = largest > -1024.0
    least = tl.min(tl.where(there, logs, 1024.0), 1)
    least = tl.where(some, tl.maximum(least, largest - _LOG_RANGE), 0.0)
    step = tl.where(some, (largest - least) * (1.0 / _LOG_STEPS), 0.0)
    inverse = tl.where(step > 0, 1.0 / tl.where(step > 0, step, 1.0), 0.0)
    place = tl.where(there, tl.maximum((logs - least[:, None]) * inverse[:, None], -1.0), -1.0)
    # A block in which something is not finite has no range: what is not zero there comes back as NaN.
    broken = tl.max(tl.where(finite, 0, 1), 1) > 0
    least, step = tl.where(broken, float("nan"), least), tl.where(broken, float("nan"), step)
    place = tl.where(broken[:, None], tl.where(part == 0, -1.0, 0.0), place)
    code = tl.minimum(tl.floor(place + 0.5), _LOG_STEPS).to(tl.int32) + 1
    code |= tl.where(part < 0, 512, 0)
    at = _chunk(start, GROUPS)
    valid = at < HIDDEN
    tl.store(_row_at(slot, tl.uint8) + at, (code & 255).to(tl.uint8), mask=valid)
    fours = tl.reshape(code >> 8, [GROUPS, 32, 4]) << (2 * tl.arange(0, 4))[None, None, :]
    pairs = tl.sum(fours, 2)
    where = start // 4 + tl.arange(0, GROUPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(_at(slot + HIDDEN, tl.uint8) + where, pairs.to(tl.uint8), mask=where < HIDDEN // 4)
    groups = start // 128 + tl.arange(0, GROUPS)
    range_at = _at(slot + HIDDEN + HIDDEN // 4, tl.float32) + 2 * groups
    tl.store(range_at, least, mask=groups < HIDDEN // 128)
    tl.store(range_at + 1, step, mask=groups < HIDDEN // 128)


@triton.jit
def _load_logfmt(slot, start, HIDDEN: tl.constexpr, GROUPS: tl.constexpr):
    at = _chunk(start, GROUPS)
    valid = at < HIDDEN
    low = tl.load(_row_at(slot, tl.uint8) + at, mask=valid, other=0).to(tl.int32)
    four = tl.load(_at(slot + HIDDEN, tl.uint8) + at // 4, mask=valid, other=0).to(tl.int32)
    code = low | (((four >> (2 * (at % 4))) & 3) << 8)
    groups = start // 128 + tl.arange(0, GROUPS)
    range_at = _at(slot + HIDDEN + HIDDEN // 4, tl.float32) + 2 * groups
    least = tl.load(range_at, mask=groups < HIDDEN // 128, other=0.0)
    step = tl.load(range_at + 1, mask=groups < HIDDEN // 128, other=0.0)
    place = (code & 511) - 1
    magnitude = tl.exp2(least[:, None] + place.to(tl.float32) * step[:, None])
    magnitude = tl.where(place < 0, 0.0, magnitude)
    return tl.where(code >= 512, -magnitude, magnitude)


@triton.jit(do_not_specialize=["max_tokens", "rank"])
def combine_send_kernel(
    x, ranges, source_tokens, peers, inactive, stopped, arrivals_at, max_tokens, rank,
    RANKS: tl.constexpr, LOCAL: tl.constexpr, HIDDEN: tl.constexpr, LOGFMT: tl.constexpr,
    GROUPS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0) // RANKS
    peer = tl.program_id(0) % RANKS
    found = tl.load(ranges + expert * RANKS + peer)
    begin = (found >> 32).to(tl.int32)
    count = (found & 0x7FFFFFFF).to(tl.int32)
    if (tl.load(inactive + peer) == 0) & (tl.load(stopped) == 0):
        base = tl.load(peers + peer) + arrivals_at
        for i in range(tl.program_id(1), count, SPLIT):
            row = expert.to(tl.int64) * RANKS * max_tokens + begin + i
            token = _counted(tl.load(source_tokens + row), max_tokens - 1)
            slot = base + ((tl.full((), LOCAL, tl.int64) * rank + expert) * max_tokens + token) * (2 * HIDDEN)
            for start in range(0, HIDDEN, GROUPS * 128):
                at = _chunk(start, GROUPS)
                part = tl.load(x + row * HIDDEN + at, mask=at < HIDDEN, other=0.0)
                if LOGFMT:
                    _store_logfmt(slot, part.to(tl.float32), start, HIDDEN, GROUPS)
                else:
                    tl.store(_row_at(slot, tl.bfloat16) + at, part, mask=at < HIDDEN)


@triton.jit(do_not_specialize=["max_tokens"])
def combine_receive_kernel(
    own, topk, weights, inactive, stopped, out, arrivals_at, max_tokens, out_stride,
    LOCAL: tl.constexpr, EXPERTS: tl.constexpr, TOPK: tl.constexpr, HIDDEN: tl.constexpr, LOGFMT: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    start = tl.program_id(1) * GROUPS * 128
    at = _chunk(start, GROUPS)
    base = tl.load(own) + arrivals_at
    total = tl.zeros([GROUPS, 128], tl.float32)
    going = tl.load(stopped) == 0
    for k in range(TOPK):
        expert = tl.load(topk + token * TOPK + k).to(tl.int32)
        known = (expert >= 0) & (expert < EXPERTS)
        peer = tl.where(known, expert // LOCAL, 0)
        if going & known & (tl.load(inactive + peer) == 0):
            slot = base + (expert.to(tl.int64) * max_tokens + token) * (2 * HIDDEN)
            weight = tl.load(weights + token * TOPK + k)
            if LOGFMT:
                part = _load_logfmt(slot, start, HIDDEN, GROUPS)
            else:
                part = tl.load(_row_at(slot, tl.bfloat16) + at, mask=at < HIDDEN, other=0.0).to(tl.float32)
            total += weight * part
    tl.store(out + token.to(tl.int64) * out_stride + at, total.to(tl.bfloat16), mask=at < HIDDEN)


__all__ = [
    "combine_receive_kernel", "combine_send_kernel", "dispatch_receive_kernel", "dispatch_send_kernel", "slot_kernel",
]  # fmt: skip
