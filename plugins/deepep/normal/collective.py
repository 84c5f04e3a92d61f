"""Dispatch and combine between hosts, by all-to-alls: a rank sends each peer the rows that are for it, and no more.

Counts and facts of all ranks are read by the host before the rows travel. Rows go directly from rank to rank: between
nodes once for each rank that has one of a token's experts, not once for each node.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ...kernels.errors import refuse
from ..transport import segment_header
from ..transport.collectives import Collectives
from ..transport.errors import CommunicationError
from ..transport.segment_header import Fact
from . import layout
from .tokens import Handle, Received, Tokens


class CollectiveDispatcher:
    """As `MappedDispatcher`; the backend chooses how many processors move data."""

    def __init__(self, link: Collectives) -> None:
        self._link, self.me, self.ranks = link, link.rank, link.size

    def dispatch(  # noqa: PLR0913 (what a dispatch has)
        self, tokens: Tokens, member: Tensor, per_expert: Tensor, *, channels: int, num_sms: int,
        rows: int | None = None,
    ) -> Received:  # fmt: skip
        """As MappedDispatcher.dispatch_steps."""
        del num_sms
        facts = {"call": "dispatch", **tokens.facts(), "num_experts": len(per_expert), "channels": channels}
        self._agree(facts, "dispatch")
        numbers, own_channels = layout.heads(member, channels)
        head = torch.cat([own_channels.flatten(), per_expert.to(member.device)])
        heads = self._link.all_gather(head.int(), what="dispatch: counts")
        from_each = heads[:, : self.ranks * channels].view(self.ranks, self.ranks, channels)
        matrix = from_each[:, :, -1].cpu().long()
        experts = heads[:, self.ranks * channels :].cpu().long().view(self.ranks, self.ranks, -1)
        count = int(matrix[:, self.me].sum())
        room = max(count, rows or 0)
        ends = from_each[:, self.me]
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        source_rows = torch.full((room,), -1, dtype=torch.int32, device=member.device)
        fields = (from_each[:, :, -1].cumsum(0).int(), own_channels, starts, source_rows, member, numbers)
        handle = Handle.of(fields, rows_max=room, pairs=experts.sum(2))
        own = torch.arange(len(member), dtype=torch.int32, device=member.device).unsqueeze(1)
        *arrived, tokens_of = self._send([*tokens.columns(), own], handle, "dispatch")
        source_rows[:count] = tokens_of[:, 0]
        found = tokens.like([_padded(each, room) for each in arrived])
        idx, weights = found.topk_idx, found.topk_weights
        if idx is not None:
            idx[count:] = -1
            idx, weights = layout.own_experts(
                idx, weights, rank=self.me, experts_per_rank=len(per_expert) // self.ranks
            )
        if rows is not None and rows < count:
            refuse("num_worst_tokens", rows, f"{count} tokens arrived at rank {self.me}")
        found = Tokens(found.x, found.scales, idx, weights)
        return Received(found, experts[:, self.me].sum(0).tolist(), handle)

    def cached_dispatch(self, tokens: Tokens, handle: Handle, *, num_sms: int) -> Tokens:
        """As MappedDispatcher.cached_dispatch_steps."""
        del num_sms
        self._agree({"call": "cached dispatch", **tokens.facts()}, "cached dispatch")
        arrived = self._send(tokens.columns(), handle, "cached dispatch")
        return tokens.like([_padded(each, len(handle.recv_src_idx)) for each in arrived])

    def combine(
        self, columns: Sequence[Tensor], handle: Handle, bias: Sequence[Tensor], *, num_sms: int
    ) -> list[Tensor]:
        """As MappedDispatcher.combine_steps."""
        del num_sms
        facts: dict[str, Fact] = {"call": "combine", "hidden size": columns[0].shape[1]}
        if len(columns) > 1:
            facts["topk_weights"] = f"of shape (tokens, {columns[1].shape[1]})"
        self._agree(facts, "combine")
        member, sent, came = handle.is_token_in_rank, *self._counts(handle)
        results = []
        for number, column in enumerate(columns):
            back = self._link.all_to_all(column[: sum(came)], came, sent, what="combine: answers")
            total = torch.zeros((len(member), column.shape[1]), dtype=torch.float32, device=column.device)
            for each in () if number else bias:
                total += each
            at = 0
            for rank, count in enumerate(sent):
                total[member[:, rank]] += back[at : at + count]
                at += count
            results.append(total.to(column.dtype))
        return results

    def refuse(self, error: Exception, call: str) -> None:
        """As MappedDispatcher.refuse."""
        with suppress(CommunicationError):  # this rank has an error of its own to raise
            self._agree(segment_header.refusal(error, rank=self.me, call=call), call)

    def rows_of(self, handle: Handle) -> int:
        """As MappedDispatcher.rows_of."""
        return int(handle.rank_prefix_matrix[-1, self.me])

    def _send(self, columns: Sequence[Tensor], handle: Handle, call: str) -> list[Tensor]:
        """The rows for this rank, ordered by (source, token)."""
        sent, came = self._counts(handle)
        rows = torch.nonzero(handle.is_token_in_rank.T)[:, 1]
        return [self._link.all_to_all(each[rows], sent, came, what=f"{call}: tokens") for each in columns]

    def _counts(self, handle: Handle) -> tuple[list[int], list[int]]:
        """Rows to and from each rank."""
        prefix = handle.rank_prefix_matrix.cpu().long()
        matrix = torch.diff(prefix, dim=0, prepend=prefix.new_zeros(1, self.ranks))
        return matrix[self.me].tolist(), matrix[:, self.me].tolist()

    def _agree(self, facts: Mapping[str, Fact], call: str) -> None:
        """Raises: RanksDisagree, on all ranks alike."""
        rows = self._link.all_gather(segment_header.pack(facts).to(self._link.device), what=f"{call}: facts")
        facts_of = {rank: segment_header.unpack(row) for rank, row in enumerate(rows.cpu())}
        segment_header.compare(facts_of, rank=self.me, call=call)


def _padded(column: Tensor, rows: int) -> Tensor:
    missing = rows - len(column)
    return torch.cat([column, column.new_zeros(missing, *column.shape[1:])]) if missing else column


__all__ = ["CollectiveDispatcher"]
