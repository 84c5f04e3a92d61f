"""Low-latency mode in torch, for ranks that share host memory: what the kernels do, whole calls at a time.

`memories` are the shared regions, a flat uint8 tensor for each rank; `active` the ranks that take part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.errors import refuse
from ...kernels.quantize import pack_ue8m0_to_int
from ..quantize import cast_to_fp8, from_logfmt, to_logfmt
from .layout import HEADER_BYTES, Layout

Memories = Sequence[Tensor]
_COUNT_MASK = (1 << 32) - 1
_WORD = torch.int64  # rows are copied in words, which is faster than byte by byte


def dispatch_send(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    memories: Memories,
    active: Sequence[int],
    half: int,
    x: Tensor,
    topk: Tensor,
    *,
    rank: int,
    fp8: bool,
    round_scale: bool,
) -> None:
    """Writes messages and counts."""
    messages = _messages(layout, x, fp8=fp8, round_scale=round_scale)
    flat = topk.reshape(-1)
    entries = ((flat >= 0) & (flat < layout.experts)).nonzero().view(-1)
    experts = flat[entries]
    order = experts.argsort(stable=True)
    entries, experts = entries[order], experts[order]
    counts = torch.bincount(experts, minlength=layout.experts)
    ends = counts.cumsum(0)
    tokens = entries // topk.shape[1]
    borders = [0, *ends[layout.local - 1 :: layout.local].tolist()]
    first = rank * layout.local * layout.max_tokens
    for peer in active:
        begin, end = borders[peer], borders[peer + 1]
        _counts(layout, memories[peer], half)[rank] = counts.view(layout.ranks, layout.local)[peer]
        arrivals = _slots(memories[peer], layout.arrivals_at(half), layout, layout.message_bytes)
        place = arrivals[first : first + end - begin, : messages.shape[1]]
        place.copy_(messages.index_select(0, tokens[begin:end]))


def require_room(layout: Layout, topk: Tensor) -> None:
    """Raises: BadArgument for an expert that gets more than max_tokens of this rank."""
    flat = topk.reshape(-1)
    counts = torch.bincount(flat[(flat >= 0) & (flat < layout.experts)], minlength=layout.experts)
    if int(counts.max()) > layout.max_tokens:
        refuse(
            "topk_idx", f"with {int(counts.max())} tokens for expert {int(counts.argmax())}",
            f"it gets at most {layout.max_tokens} of one rank, and a token names an expert once",
        )  # fmt: skip


def dispatch_receive(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    own: Tensor,
    active: Sequence[int],
    half: int,
    *,
    rows: Tensor,
    scales: Tensor | None,
    source_tokens: Tensor,
    ranges: Tensor,
    recv_counts: Tensor,
    stats: Tensor | None,
) -> None:
    """Fills the packed outputs: rows (e, R · N, H), scales (e, R · N, …) of any strides, ranges (e, R)."""
    counts = torch.zeros(layout.ranks, layout.local, dtype=torch.int64)
    counts[list(active)] = _counts(layout, own, half)[list(active)].to(torch.int64)
    counts = counts.T.contiguous()  # (local, ranks)
    begins = counts.cumsum(1) - counts
    ranges.copy_((begins << 32) | counts)
    recv_counts.copy_(counts.sum(1))
    if stats is not None:
        stats += recv_counts
    source, target = _moves(layout, counts, begins)
    arrivals = _slots(own, layout.arrivals_at(half), layout, layout.message_bytes)
    header = HEADER_BYTES // 8
    data_bytes = layout.hidden if scales is not None else layout.bf16_bytes
    came = arrivals.index_select(0, source) if scales is not None else None
    head = (arrivals if came is None else came)[:, 0]
    tokens = head.index_select(0, source) if came is None else head
    source_tokens.view(-1).index_copy_(0, target, (tokens & 0x7FFFFFFF).to(torch.int32))
    words = rows.view(torch.uint8).view(_WORD).view(-1, data_bytes // 8)
    if came is None:
        data = arrivals[:, header : header + data_bytes // 8]
        words.index_copy_(0, target, data.index_select(0, source))
        return
    assert scales is not None, "FP8 rows come with scales"
    words.index_copy_(0, target, came[:, header : header + data_bytes // 8])
    end = HEADER_BYTES + layout.fp8_bytes
    scale = came.view(torch.uint8)[:, HEADER_BYTES + layout.hidden : end].contiguous().view(torch.float32)
    if scales.dtype == torch.int32:
        scale = pack_ue8m0_to_int(scale)
    scales[target // layout.rows, target % layout.rows] = scale


def combine_send(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    memories: Memories,
    active: Sequence[int],
    half: int,
    x: Tensor,
    *,
    ranges: Tensor,
    source_tokens: Tensor,
    rank: int,
    logfmt: bool,
) -> None:
    """Writes each row to the slot of its expert and token at its source."""
    counts, begins = ranges & _COUNT_MASK, ranges >> 32
    first = torch.arange(layout.local).view(-1, 1) * layout.rows
    for peer in active:
        lengths = counts[:, peer]
        expert = torch.arange(layout.local).repeat_interleave(lengths)
        within = torch.arange(len(expert)) - (lengths.cumsum(0) - lengths)[expert]
        row = (first[:, 0] + begins[:, peer])[expert] + within
        place = (rank * layout.local + expert) * layout.max_tokens + source_tokens.view(-1)[row]
        slots = _slots(memories[peer], layout.arrivals_at(half), layout, layout.bf16_bytes)
        if logfmt:
            codes, steps = to_logfmt(x.reshape(-1, layout.hidden).index_select(0, row))
            words = torch.cat([codes, _bytes(steps.flatten(1))], 1).view(_WORD)
        else:
            words = _words(x).view(-1, layout.bf16_bytes // 8).index_select(0, row)
        slots[:, : words.shape[1]].index_copy_(0, place, words)


def combine_receive(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    own: Tensor,
    active: Sequence[int],
    half: int,
    *,
    topk: Tensor,
    weights: Tensor,
    out: Tensor,
    logfmt: bool,
) -> None:
    """Weighted sums, in float32, of what came for each token."""
    slots = _slots(own, layout.arrivals_at(half), layout, layout.bf16_bytes)
    takes_part = torch.zeros(layout.ranks + 1, dtype=torch.bool)
    takes_part[list(active)] = True
    known = (topk >= 0) & (topk < layout.experts)
    owner = torch.where(known, topk // layout.local, layout.ranks)
    known &= takes_part[owner]
    total = torch.zeros(topk.shape[0], layout.hidden)
    for k in range(topk.shape[1]):
        tokens = known[:, k].nonzero().view(-1)
        came = slots.index_select(0, topk[tokens, k] * layout.max_tokens + tokens)
        if logfmt:
            width = layout.hidden * 5 // 4
            steps = came.view(torch.uint8)[:, width : width + 8 * layout.groups].contiguous()
            part = from_logfmt(
                came.view(torch.uint8)[:, :width],
                steps.view(torch.float32).view(len(steps), layout.groups, 2),
            )
        else:
            part = came.view(torch.bfloat16).float()
        total.index_add_(0, tokens, part * weights[tokens, k].unsqueeze(1))
    out.copy_(total)


def _messages(layout: Layout, x: Tensor, *, fp8: bool, round_scale: bool) -> Tensor:
    """All tokens as messages, in words."""
    header = torch.zeros(x.shape[0], HEADER_BYTES // 4, dtype=torch.int32)
    header[:, 0] = torch.arange(x.shape[0])
    parts = [_bytes(header)]
    if fp8:
        values, scales = cast_to_fp8(x, round_scale=round_scale)
        parts += [_bytes(values), _bytes(scales)]
        padding = -layout.fp8_bytes % 8
        parts += [torch.zeros(x.shape[0], padding, dtype=torch.uint8)] if padding else []
    else:
        parts.append(_bytes(x))
    return torch.cat(parts, 1).view(_WORD)


def _moves(layout: Layout, counts: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Which slot goes to which row, for (local, ranks) counts."""
    lengths = counts.reshape(-1)
    block = torch.arange(len(lengths)).repeat_interleave(lengths)
    within = torch.arange(len(block)) - (lengths.cumsum(0) - lengths)[block]
    of_source = counts.cumsum(0) - counts + torch.arange(layout.ranks) * (layout.local * layout.max_tokens)
    source = of_source.reshape(-1)[block] + within
    target = block // layout.ranks * layout.rows + begins.reshape(-1)[block] + within
    return source, target


def _counts(layout: Layout, memory: Tensor, half: int) -> Tensor:
    at, size = layout.counts_at(half), 4 * layout.experts
    return memory[at : at + size].view(torch.int32).view(layout.ranks, layout.local)


def _slots(memory: Tensor, at: int, layout: Layout, slot_bytes: int) -> Tensor:
    size = layout.experts * layout.max_tokens * slot_bytes
    return memory[at : at + size].view(_WORD).view(-1, slot_bytes // 8)


def _bytes(rows: Tensor) -> Tensor:
    """Rows of bytes. Tensors without rows have strides that views refuse."""
    return (
        rows.contiguous().view(torch.uint8)
        if len(rows)
        else rows.new_zeros((0, rows.shape[1] * rows.element_size()), dtype=torch.uint8)
    )


def _words(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8).view(_WORD)


__all__ = ["combine_receive", "combine_send", "dispatch_receive", "dispatch_send", "require_room"]
