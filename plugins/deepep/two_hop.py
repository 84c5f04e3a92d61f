"""Dispatch and combine over several nodes: between nodes each token travels once for each node, then inside it.

A rank is (node, place in the node). Hop 1 brings a token to the rank with its source's place on each node that has one
of its experts; hop 2 brings it from there to the ranks of that node. Combine goes back the same way: the rows of a node
are summed there first, and their sum travels in bfloat16.

Rows end ordered by (source rank, token), as on one node, although hop 2 brings them ordered by place first: each of its
sources says how many rows are from which node, so that they are put where they belong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .exchange import Delivery, Exchange, Runs
from .failure import RanksDisagree
from .layout import in_nodes
from .normal import Received, Tokens, combine_facts, finish
from .notes import Fact


@dataclass(frozen=True)
class Nodes:
    """The two exchanges of a rank: `across` has the ranks with its place on all nodes, `within` those of its node."""

    across: Exchange
    within: Exchange

    @property
    def node(self) -> int:
        """The node of this rank."""
        return self.across.me


@dataclass(frozen=True)
class _Hop:
    """matrix, member and source_rows as `Exchange.collect` wants them; order: of rows that were put elsewhere."""

    matrix: Tensor
    member: Tensor
    source_rows: Tensor
    order: Tensor | None = None


class TwoHopHandle(tuple[Any, ...]):  # noqa: SLOT001 (a tuple of any length cannot have slots)
    """What a dispatch over several nodes leaves: ten tensors, where the original has them.

    0 is_token_in_rank (T, R). 4 recv_rdma_rank_prefix_sum (nodes,): rows of hop 1 from this and earlier nodes.
    6 recv_gbl_rank_prefix_sum (R,): rows from this and earlier ranks. 7 recv_src_meta (N, 2): source rank and token of
    hop 1 for each row. 8 send_rdma_head (T, nodes) and 9 send_nvl_head (rows of hop 1, ranks of a node): number among
    those that go there, or -1. 1 to 3 and 5, (…, channels): the same counts by channels of one.
    """

    hops: tuple[_Hop, _Hop]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], hops: tuple[_Hop, _Hop]) -> Self:
        """With what the way back needs."""
        made = cls(tensors)
        made.hops = hops
        return made


def dispatch(nodes: Nodes, tokens: Tokens, is_token_in_rank: Tensor, num_tokens_per_expert: Sequence[int], *,
             rows: int | None = None) -> Received:  # fmt: skip
    """As `normal.dispatch`."""
    facts = {"call": "dispatch", **tokens.facts(), "num_experts": len(num_tokens_per_expert)}
    first, second, order = _both_hops(nodes, facts, tokens, is_token_in_rank, num_tokens_per_expert, rows)
    places = nodes.within.size
    skip = nodes.across.size * places
    count = int(second.matrix[:, nodes.within.me].sum())
    experts = [each[skip:] for each in second.extras]
    received = finish(tokens.like(second.columns), experts, nodes.within, count)
    return Received(*received, _handle(nodes, first, second, order, is_token_in_rank))


def cached_dispatch(nodes: Nodes, tokens: Tokens, handle: TwoHopHandle) -> Tokens:
    """As `normal.cached_dispatch`."""
    facts = {"call": "cached dispatch", **tokens.facts()}
    second = _both_hops(nodes, facts, tokens, handle[0], [], len(handle[7]))[1]
    return tokens.like(second.columns)


def combine(
    nodes: Nodes, columns: Sequence[Tensor], handle: TwoHopHandle, bias: Sequence[Tensor]
) -> list[Tensor]:
    """As `normal.combine`."""
    first, second = handle.hops
    facts = combine_facts(columns)
    try:
        partial = nodes.within.collect(
            facts, columns, second.member,
            matrix=second.matrix, source_rows=second.source_rows, order=second.order, phase="combine in the node",
        )  # fmt: skip
    except RanksDisagree as error:
        nodes.across.disagree(error, phase="combine between nodes")
        raise
    return nodes.across.collect(
        facts, partial, first.member,
        matrix=first.matrix, source_rows=first.source_rows, bias=bias, phase="combine between nodes",
    )  # fmt: skip


def _both_hops(  # noqa: PLR0913 (what a dispatch has)
    nodes: Nodes, facts: dict[str, Fact], tokens: Tokens, member: Tensor, num_tokens_per_expert: Sequence[int],
    rows: int | None,
) -> tuple[Delivery, Delivery, Tensor]:  # fmt: skip
    places, me = nodes.within.size, nodes.within.me
    try:
        first = nodes.across.deliver(
            facts, [*tokens.columns(), member], in_nodes(member, places),
            extra=num_tokens_per_expert, phase="dispatch between nodes",
        )  # fmt: skip
    except RanksDisagree as error:
        nodes.within.disagree(error, phase="dispatch in the node")
        raise
    *columns, members = first.columns
    inside = members[:, nodes.node * places : (nodes.node + 1) * places].contiguous()
    by_node = [part.sum(0).tolist() for part in torch.split(inside, first.matrix[:, nodes.node].tolist())]
    experts = [sum(each) for each in zip(*first.extras, strict=True)]
    starts: list[Runs] = []

    def runs(_: Tensor, extras: list[list[int]]) -> list[Runs]:
        starts[:] = _runs(extras, nodes=nodes.across.size, places=places, me=me)
        return starts

    extra = [*(count for part in by_node for count in part), *experts]
    second = nodes.within.deliver(
        facts, columns, inside, extra=extra, runs=runs, rows=rows, phase="dispatch in the node"
    )
    pieces = [torch.arange(start, start + count) for each in starts for start, count in each]
    return first, second, torch.cat(pieces).to(member.device)


def _runs(extras: list[list[int]], *, nodes: int, places: int, me: int) -> list[Runs]:
    """Where the rows that came by way of each place belong: those of node m and place p after all of earlier ranks."""
    counts = torch.tensor([each[: nodes * places] for each in extras]).view(places, nodes, places)[:, :, me]
    in_order = counts.T.reshape(-1)  # by (node, place): global ranks
    starts = (in_order.cumsum(0) - in_order).view(nodes, places).T
    return [list(zip(*each, strict=True)) for each in zip(starts.tolist(), counts.tolist(), strict=True)]


def _handle(nodes: Nodes, first: Delivery, second: Delivery, order: Tensor, member: Tensor) -> TwoHopHandle:
    places, node = nodes.within.size, nodes.node
    inside = first.columns[-1][:, node * places : (node + 1) * places].contiguous()
    to_nodes = in_nodes(member, places)
    hops = (
        _Hop(first.matrix, to_nodes, first.source_rows),
        _Hop(second.matrix, inside, second.source_rows[order], order),
    )
    counts = torch.tensor([each[: nodes.across.size * places] for each in second.extras])
    from_ranks = counts.view(places, nodes.across.size, places)[:, :, nodes.within.me].T.reshape(-1)
    device = member.device
    sources = torch.zeros(len(second.source_rows), 2, dtype=torch.int32, device=device)
    sources[: len(order), 0] = (
        torch.repeat_interleave(torch.arange(len(from_ranks)), from_ranks).int().to(device)
    )
    sources[:, 1] = second.source_rows
    from_nodes = first.matrix[:, node].cumsum(0).int().to(device)
    gbl = from_ranks.cumsum(0).int().to(device)
    tensors = (
        member,
        to_nodes.sum(0, dtype=torch.int32)[:, None],
        member.sum(0, dtype=torch.int32)[:, None],
        from_nodes[:, None],
        from_nodes,
        gbl[:, None],
        gbl,
        sources,
        torch.where(to_nodes, to_nodes.cumsum(0, dtype=torch.int32) - 1, -1),
        torch.where(inside, inside.cumsum(0, dtype=torch.int32) - 1, -1),
    )
    return TwoHopHandle.of(tensors, hops)


__all__ = ["Nodes", "TwoHopHandle", "cached_dispatch", "combine", "dispatch"]
