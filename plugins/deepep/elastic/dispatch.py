"""Tokens to the ranks of their experts, once each; and, if asked for, a row for each of their experts there.

Rows come ordered by (source rank, token), so results and handles are the same bits every time. A call whose routing
comes from a handle sends its expert numbers again: they are few bytes beside the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...kernels.quantize import align
from .. import moves
from ..exchange import Delivery, Exchange
from ..layout import local_experts
from ..normal import Tokens
from . import routing
from .handle import EPHandle

SCALE_ALIGNMENT: Final = 4
"""Rows that a column of scales is a multiple of, in 16 bytes, where TMA is to read it."""


@dataclass(frozen=True)
class Call:
    """What a dispatch is told. tokens.topk_idx is there."""

    tokens: Tokens
    topk_idx: Tensor
    """As it was given, for the handle."""
    num_experts: int
    num_max_tokens: int
    alignment: int
    num_sms: int
    number: int
    do_expand: bool = False
    do_zero_padding: bool = False
    col_major_scales: bool = False
    sizes: tuple[int, int] | None = None
    """Rows and expanded rows of the results; None: as many as come."""
    is_cached: bool = False


def run(exchange: Exchange, call: Call, before_epilogue: Callable[[], None]) -> tuple[Tokens, EPHandle]:
    """What came, as `call` wants it; topk_idx is None if it is expanded, and topk_weights has one dimension."""
    tokens, ranks = call.tokens, exchange.size
    assert tokens.topk_idx is not None, "a dispatch has a routing"
    local = call.num_experts // ranks
    owner = routing.owners(tokens.topk_idx, local)
    member = routing.members(owner, ranks)
    facts = {
        "call": "elastic cached dispatch" if call.is_cached else "elastic dispatch",
        **tokens.facts(),
        "num_experts": call.num_experts,
        "num_max_tokens_per_rank": call.num_max_tokens,
    }
    rows = None if call.sizes is None else call.sizes[0]
    came = exchange.deliver(facts, tokens.columns(), member, rows=rows, phase="elastic dispatch")
    before_epilogue()
    count = int(came.matrix[:, exchange.me].sum())
    received = _received(tokens.like(came.columns), exchange.me, local, count)
    assert received.topk_idx is not None, "what was sent comes"
    expansion = routing.Expansion.of(received.topk_idx[:count], local, call.alignment)
    slots = torch.where(routing.are_masters(owner), routing.slots(owner, member), -1)
    handle = _handle(call, came, received.topk_idx, expansion, exchange.me, slots)
    if call.do_expand:
        received = _expanded(received, expansion, handle.num_expanded_tokens, zeros=call.do_zero_padding)
    if call.col_major_scales and received.scales is not None:
        received = Tokens(received.x, col_major(received.scales), received.topk_idx, received.topk_weights)
    return received, handle


def col_major(scales: Tensor) -> Tensor:
    """The same scales, column after column, each aligned to 16 bytes."""
    rows = align(max(len(scales), 1), SCALE_ALIGNMENT)
    made = scales.new_empty(scales.shape[1], rows).T[: len(scales)]
    return made.copy_(scales)


def _received(came: Tokens, rank: int, experts: int, count: int) -> Tokens:
    """Expert numbers as this rank counts them, weights of its own experts alone; rows from `count` on have no token."""
    assert came.topk_idx is not None, "a dispatch has a routing"
    idx, weights = came.topk_idx, came.topk_weights
    idx[count:] = -1
    idx = local_experts(idx, rank, experts)
    if weights is not None:
        weights = torch.where(idx >= 0, weights, 0.0)
    return Tokens(came.x, came.scales, idx, weights)


def _expanded(received: Tokens, expansion: routing.Expansion, rows: int, *, zeros: bool) -> Tokens:
    """A row for each (token, local expert), those of an expert together."""
    tokens, ks = torch.nonzero(expansion.places >= 0, as_tuple=True)
    places = expansion.places[tokens, ks]

    def expand(source: Tensor, source_rows: Tensor) -> Tensor:
        out = source.new_empty(rows, *source.shape[1:])
        if zeros:
            out.view(torch.uint8).zero_()
        moves.put(out, source, places, source_rows)
        return out

    scales = None if received.scales is None else expand(received.scales, tokens)
    weights = received.topk_weights
    if weights is not None:
        ks_of_all = weights.shape[1]
        weights = expand(weights.reshape(-1, 1), tokens * ks_of_all + ks).view(-1)
    return Tokens(expand(received.x, tokens), scales, None, weights)


def _handle(  # noqa: PLR0913 (what it is made of)
    call: Call, came: Delivery, idx: Tensor, expansion: routing.Expansion, me: int, slots: Tensor
) -> EPHandle:
    topk, home = idx.shape[1], call.topk_idx.device
    counts = torch.tensor(expansion.counts, dtype=torch.int32)
    rounded = [align(each, call.alignment) for each in expansion.counts]
    ends = expansion.ends if call.do_expand else torch.tensor(rounded).cumsum(0)
    rows, expanded = call.sizes or (len(came.source_rows), expansion.rows(call.alignment))
    return EPHandle(
        do_expand=call.do_expand,
        num_experts=call.num_experts,
        expert_alignment=call.alignment,
        num_max_tokens_per_rank=call.num_max_tokens,
        num_sms=call.num_sms,
        topk_idx=call.topk_idx,
        num_recv_tokens=rows,
        num_expanded_tokens=expanded if call.do_expand else 0,
        num_recv_tokens_per_expert_list=rounded if call.sizes is None else [],
        psum_num_recv_tokens_per_scaleup_rank=came.matrix[:, me].cumsum(0).int().to(home),
        psum_num_recv_tokens_per_expert=ends.int().to(home),
        num_unaligned_recv_tokens_per_expert=counts.to(home),
        recv_src_metadata=_metadata(call, came, idx, expansion, me, topk).to(home),
        dst_buffer_slot_idx=slots.int().to(home),
        number=call.number,
    )


def _metadata(  # noqa: PLR0913 (what it is made of)
    call: Call, came: Delivery, idx: Tensor, expansion: routing.Expansion, me: int, topk: int
) -> Tensor:
    lengths = came.matrix[:, me]
    sources = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(idx.device)
    count = len(sources)
    result = torch.full((len(idx), topk + 2), -1, dtype=torch.int32, device=idx.device)
    result[:count, 0] = (sources * call.num_max_tokens + came.source_rows[:count]).int()
    ks = torch.arange(topk, device=idx.device)
    masters = torch.where(idx[:count] >= 0, ks, -1).amax(1) if topk else sources
    result[:count, 1] = (sources * topk + masters).int()
    if call.do_expand:
        result[:count, 2:] = expansion.places.int()
    return result


__all__ = ["Call", "col_major", "run"]
