"""Tokens to the ranks of their experts, once each, and back; if asked for, a row for each of their experts there.

Rows are ordered by (source rank, token), so results and handles are the same bits every time. A call whose routing
comes from a handle sends its expert numbers again: they are few bytes beside the rows.

What comes back from a rank counts at the last of a token's k that the rank owns, its master, and is summed in the
order of k, in float32, after the biases. The sum of a rank's own rows is rounded to the rows' type on the way, unless
each of them travels by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...kernels.quantize import align
from ..normal import layout
from ..normal.dispatcher import MappedDispatcher
from ..normal.row_ops import summed, words_of
from ..normal.tokens import Handle, Received, Tokens
from ..transport.segment_header import Fact

SCALE_ALIGNMENT: Final = 4
"""Rows that a column of scales is a multiple of, in 16 bytes, where TMA is to read it."""


@dataclass
class EPHandle:
    """What a dispatch leaves for combine, and for dispatches of the same routing; the original's, by its names.

    topk_idx (T, K): a copy, unless `do_handle_copy=False`. psum_num_recv_tokens_per_scaleup_rank (R,) int32: rows from
    this and earlier ranks. psum_num_recv_tokens_per_expert (E_loc,) int32: of this and earlier experts, each count
    rounded up to `expert_alignment`; with `do_expand` where the real rows of the expert end, as DeepGEMM's psum layout
    has it. num_recv_tokens_per_expert_list: counts rounded up, empty without `do_cpu_sync`.
    num_unaligned_recv_tokens_per_expert (E_loc,) int32: not rounded.

    recv_src_metadata (N, K + 2) int32, a row for each token that arrived: 0 source rank · num_max_tokens_per_rank +
    token; 1 source rank · K + the last of its k that is of this rank; 2… the row of the expanded result for each k, or
    -1. dst_buffer_slot_idx (T, K) int32: the token's number among those for the rank, at the last k that is of it.

    num_recv_tokens, num_expanded_tokens: rows of the results; without `do_cpu_sync` as many as could arrive.
    token_metadata_at_forward, channel_linked_list: None, as rows go directly from rank to rank.
    """

    do_expand: bool
    num_experts: int
    expert_alignment: int
    num_max_tokens_per_rank: int
    num_sms: int
    topk_idx: Tensor
    num_recv_tokens: int
    num_expanded_tokens: int
    num_recv_tokens_per_expert_list: list[int]
    psum_num_recv_tokens_per_scaleup_rank: Tensor
    psum_num_recv_tokens_per_expert: Tensor
    num_unaligned_recv_tokens_per_expert: Tensor
    recv_src_metadata: Tensor
    dst_buffer_slot_idx: Tensor
    rows: Handle
    """Of the same dispatch, without expansion."""
    owner: Tensor
    """(T, K): the rank of each expert, or -1."""
    token_metadata_at_forward: Tensor | None = None
    channel_linked_list: Tensor | None = None
    number: int = 0
    """Of the dispatch: ranks that combine with handles of different ones get an error."""


@dataclass(frozen=True)
class Call:
    """A dispatch, its arguments checked. tokens.topk_idx is given."""

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
    """Rows and expanded rows of the results; None: as many as arrive."""
    is_cached: bool = False


def dispatch(
    normal: MappedDispatcher, call: Call, before_epilogue: Callable[[], None]
) -> tuple[Tokens, EPHandle]:
    """What arrived, as `call` wants it; topk_idx is None if it is expanded, and topk_weights has one dimension."""
    tokens, ranks = call.tokens, normal.ranks
    assert tokens.topk_idx is not None, "a dispatch has a routing"
    owner = layout.owners(tokens.topk_idx, call.num_experts, ranks)
    facts: dict[str, Fact] = {
        "call": "elastic cached dispatch" if call.is_cached else "elastic dispatch",
        "num_max_tokens_per_rank": call.num_max_tokens,
    }
    came = normal.dispatch(
        tokens, layout.members(owner, ranks), layout.expert_counts(tokens.topk_idx, call.num_experts), channels=1,
        num_sms=call.num_sms, rows=None if call.sizes is None else call.sizes[0], reads_counts=True, facts=facts,
    )  # fmt: skip
    before_epilogue()
    received = came.tokens
    assert received.topk_idx is not None, "what was sent arrives"
    arrived = int(came.handle.rank_prefix_matrix[-1, normal.me])
    local = call.num_experts // ranks
    expansion = Expansion.of(received.topk_idx[:arrived], local, call.alignment)
    handle = _handle(call, came, expansion, owner, normal.me)
    if call.do_expand:
        received = _expanded(received, expansion, handle.num_expanded_tokens, zeros=call.do_zero_padding)
    if call.col_major_scales and received.scales is not None:
        received = Tokens(received.x, col_major(received.scales), received.topk_idx, received.topk_weights)
    return received, handle


def combine(
    normal: MappedDispatcher, x: Tensor, topk_weights: Tensor | None, handle: EPHandle, bias: Sequence[Tensor], *,
    num_sms: int, reduce_first: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Sums (T, H) and weights (T, K). Tensors are on the transport's device.

    Shapes: x (rows of the dispatch, H); topk_weights (rows, K), of expanded rows (rows,). `reduce_first`: rows of one
    token are summed before they travel.
    """
    arrived = int(handle.rows.rank_prefix_matrix[-1, normal.me])
    places = handle.recv_src_metadata[:arrived, 2:].to(x.device).long()
    facts: dict[str, Fact] = {"call": "elastic combine", "handle": f"of dispatch {handle.number}"}
    rows_max = None
    if handle.do_expand and not reduce_first:
        facts["rows"] = "of each expert"
        columns = [x[places[places >= 0]]]
        order = order_of_experts(handle.owner, handle.rows.pairs, normal.me)
        rows_max = max(int(handle.rows.pairs.sum(0).max()), 1)
    else:
        columns = [summed([x] * places.shape[1], places) if handle.do_expand else x[:arrived]]
        order = order_of_ranks(handle.owner, handle.rows, normal.me)
    if topk_weights is not None:
        if handle.do_expand:
            padded = torch.cat([topk_weights, topk_weights.new_zeros(1)])
            topk_weights = padded[torch.where(places >= 0, places, len(topk_weights))]
        columns.append(topk_weights[:arrived])
    combined = normal.combine(
        columns, handle.rows, bias, num_sms=num_sms, order=order, rows_max=rows_max, facts=facts
    )
    return combined[0], None if topk_weights is None else combined[1]


def col_major(scales: Tensor) -> Tensor:
    """The same scales, column after column, each aligned to 16 bytes."""
    rows = align(max(len(scales), 1), SCALE_ALIGNMENT)
    made = scales.new_empty(scales.shape[1], rows).T[: len(scales)]
    return made.copy_(scales)


# Where rows go and come from, as numbers of rows; -1 for none.


def are_masters(owner: Tensor) -> Tensor:
    """(T, K): whether no later k is of the same rank."""
    same = owner[:, :, None] == owner[:, None, :]
    later = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=owner.device).triu(1)
    return (owner >= 0) & ~(same & later).any(2)


def order_of_ranks(owner: Tensor, rows: Handle, me: int) -> tuple[Tensor, Tensor]:
    """Ranks and their rows (T, K) int32 of what is summed for each token, if a rank has one row for it."""
    prefix = rows.rank_prefix_matrix
    begins = prefix[me - 1] if me else torch.zeros_like(prefix[0])
    ranks = owner.clamp(min=0)
    places = rows.send_head.gather(1, ranks) + begins[ranks]
    return ranks.int(), torch.where(are_masters(owner), places, -1).int()


def order_of_experts(owner: Tensor, pairs: Tensor, me: int) -> tuple[Tensor, Tensor]:
    """The same, if a rank has a row for each (source, token, k) that is of it, in this order. pairs: see `Handle`."""
    ranks = owner.clamp(min=0)
    flat = owner.reshape(-1)
    is_of = flat[:, None] == torch.arange(len(pairs), device=flat.device)
    number = (is_of.cumsum(0) - 1).gather(1, ranks.reshape(-1, 1)).view(owner.shape)
    begins = pairs[:me].sum(0).to(flat.device)
    return ranks.int(), torch.where(owner >= 0, number + begins[ranks], -1).int()


@dataclass(frozen=True)
class Expansion:
    """The expanded layout: places (N, K), rows of each token's experts; ends (E,), of each expert's real rows."""

    places: Tensor
    ends: Tensor
    counts: list[int]

    @classmethod
    def of(cls, local_idx: Tensor, experts: int, alignment: int) -> "Expansion":
        """Of tokens that came. Shapes: local_idx (N, K), -1 for experts of other ranks."""
        flat = local_idx.long().reshape(-1)
        found = torch.bincount(flat[flat >= 0], minlength=experts)
        rounded = (found + alignment - 1) // alignment * alignment
        starts = rounded.cumsum(0) - rounded
        order = torch.where(flat >= 0, flat, experts).argsort(stable=True)
        sorted_places = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(flat), device=flat.device)
        )
        shift = (starts - (found.cumsum(0) - found))[flat.clamp(min=0)]
        places = torch.where(flat >= 0, sorted_places + shift, -1).view(local_idx.shape)
        return cls(places, starts + found, found.tolist())


def expanded_rows_max(tokens: int, topk: int, experts: int, alignment: int) -> int:
    """As many as the layout can have."""
    return align(tokens * min(topk, experts) + (alignment - 1) * experts, alignment)


def _expanded(received: Tokens, expansion: Expansion, rows: int, *, zeros: bool) -> Tokens:
    """A row for each (token, local expert), those of an expert together."""
    tokens, ks = torch.nonzero(expansion.places >= 0, as_tuple=True)
    places = expansion.places[tokens, ks]

    def expand(found: Tensor) -> Tensor:
        out = found.new_empty(rows, *found.shape[1:])
        if zeros:
            out.view(torch.uint8).zero_()
        words_of(out)[places] = words_of(found)
        return out

    x, scales, weights = received.x, received.scales, received.topk_weights
    return Tokens(
        expand(x[tokens]),
        None if scales is None else expand(scales[tokens]),
        None,
        None if weights is None else expand(weights[tokens, ks].unsqueeze(1)).view(-1),
    )


def _handle(call: Call, came: Received, expansion: Expansion, owner: Tensor, me: int) -> EPHandle:
    home, rows = call.topk_idx.device, came.handle
    rounded = [align(each, call.alignment) for each in expansion.counts]
    ends = expansion.ends if call.do_expand else torch.tensor(rounded).cumsum(0)
    room, expanded = call.sizes or (len(rows.recv_src_idx), sum(rounded))
    numbers = rows.send_head.gather(1, owner.clamp(min=0))
    slots = torch.where(are_masters(owner), numbers, -1).int()
    return EPHandle(
        do_expand=call.do_expand,
        num_experts=call.num_experts,
        expert_alignment=call.alignment,
        num_max_tokens_per_rank=call.num_max_tokens,
        num_sms=call.num_sms,
        topk_idx=call.topk_idx,
        num_recv_tokens=room,
        num_expanded_tokens=expanded if call.do_expand else 0,
        num_recv_tokens_per_expert_list=rounded if call.sizes is None else [],
        psum_num_recv_tokens_per_scaleup_rank=rows.rank_prefix_matrix[:, me].to(home),
        psum_num_recv_tokens_per_expert=ends.int().to(home),
        num_unaligned_recv_tokens_per_expert=torch.tensor(expansion.counts, dtype=torch.int32).to(home),
        recv_src_metadata=_metadata(call, came, expansion, me).to(home),
        dst_buffer_slot_idx=slots.to(home),
        number=call.number,
        rows=rows,
        owner=owner,
    )


def _metadata(call: Call, came: Received, expansion: Expansion, me: int) -> Tensor:
    ends = came.handle.rank_prefix_matrix[:, me].contiguous()
    count, (_, topk) = int(ends[-1]), expansion.places.shape
    tokens = came.handle.recv_src_idx
    result = torch.full((len(tokens), topk + 2), -1, dtype=torch.int32, device=tokens.device)
    sources = torch.searchsorted(ends, torch.arange(count, device=ends.device), right=True)
    result[:count, 0] = (sources * call.num_max_tokens + tokens[:count]).int()
    ks = torch.arange(topk, device=tokens.device)
    masters = torch.where(expansion.places >= 0, ks, -1).amax(1)
    result[:count, 1] = (sources * topk + masters).int()
    if call.do_expand:
        result[:count, 2:] = expansion.places.int()
    return result


__all__ = ["Call", "EPHandle", "col_major", "combine", "dispatch", "expanded_rows_max"]
