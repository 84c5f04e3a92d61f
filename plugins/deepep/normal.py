"""Dispatch and combine among the ranks of one node: one exchange each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .exchange import Delivery, Exchange
from .layout import channel_limits, heads, own_experts
from .notes import Fact


@dataclass(frozen=True)
class Tokens:
    """What is dispatched: x (T, H); scales (T, S) of FP8; topk_idx and topk_weights (T, K), both or none."""

    x: Tensor
    scales: Tensor | None = None
    topk_idx: Tensor | None = None
    topk_weights: Tensor | None = None

    def columns(self) -> list[Tensor]:
        """Those that are there, in order."""
        return [each for each in (self.x, self.scales, self.topk_idx, self.topk_weights) if each is not None]

    def like(self, columns: Sequence[Tensor]) -> "Tokens":
        """Tokens with these columns where this one has some."""
        given = iter(columns)
        fields = (self.x, self.scales, self.topk_idx, self.topk_weights)
        return Tokens(*(None if each is None else next(given) for each in fields))  # type: ignore[arg-type]

    def facts(self) -> dict[str, Fact]:
        """What must be equal on all ranks."""
        facts: dict[str, Fact] = {"hidden size": self.x.shape[1], "dtype of x": str(self.x.dtype)}
        if self.scales is not None:
            facts["scales"] = f"{self.scales.dtype} of shape (tokens, {self.scales.shape[1]})"
        if self.topk_idx is not None:
            facts["topk_idx"] = f"{self.topk_idx.dtype} of shape (tokens, {self.topk_idx.shape[1]})"
        if self.topk_weights is not None:
            facts["topk_weights"] = "given"
        return facts


class Handle(NamedTuple):
    """What a dispatch leaves for combine and for dispatches of the same routing; the original's, by its names.

    rank_prefix_matrix (R, R) int32: rows of this and earlier sources (first index) at each rank. channel_prefix_matrix
    (R, C): tokens for each rank in this and earlier channels. recv_channel_prefix_matrix (R, C): where each channel
    begins in each source's rows. recv_src_idx (N,): the row's token at its source. send_head (T, R): the token's number
    among those for the rank, or -1.
    """

    rank_prefix_matrix: Tensor
    channel_prefix_matrix: Tensor
    recv_channel_prefix_matrix: Tensor
    recv_src_idx: Tensor
    is_token_in_rank: Tensor
    send_head: Tensor


class SizedHandle(Handle):
    """A handle that knows how many rows any rank has at most, sent or received: nobody needs to be asked."""

    rows_max: int


@dataclass(frozen=True)
class Received:
    """What has come. expert_counts: tokens for each expert of this rank, before they are aligned."""

    tokens: Tokens
    expert_counts: list[int]
    handle: Any


def dispatch(  # noqa: PLR0913 (what a dispatch has)
    exchange: Exchange,
    tokens: Tokens,
    is_token_in_rank: Tensor,
    num_tokens_per_expert: Sequence[int],
    *,
    channels: int,
    rows: int | None = None,
) -> Received:
    """Tokens to the ranks of their experts. `rows`: of the result, if it shall not depend on what comes."""
    facts = {"call": "dispatch", **tokens.facts(), "num_experts": len(num_tokens_per_expert)}
    came = exchange.deliver(
        facts, tokens.columns(), is_token_in_rank, extra=num_tokens_per_expert, rows=rows, phase="dispatch"
    )
    received = finish(
        tokens.like(came.columns), came.extras, exchange, int(came.matrix[:, exchange.me].sum())
    )
    return Received(*received, _handle(exchange.me, came, is_token_in_rank, channels))


def cached_dispatch(exchange: Exchange, tokens: Tokens, handle: Handle) -> Tokens:
    """Tokens where those of an earlier dispatch went."""
    facts = {"call": "cached dispatch", **tokens.facts()}
    rows = len(handle.recv_src_idx)
    came = exchange.deliver(
        facts, tokens.columns(), handle.is_token_in_rank, rows=rows, phase="cached dispatch"
    )
    return tokens.like(came.columns)


def combine(
    exchange: Exchange, columns: Sequence[Tensor], handle: Handle, bias: Sequence[Tensor]
) -> list[Tensor]:
    """Rows, and weights if there are two columns, back to where their tokens are from."""
    prefix = handle.rank_prefix_matrix.cpu().long()
    matrix = torch.diff(prefix, dim=0, prepend=prefix.new_zeros(1, prefix.shape[1]))
    return exchange.collect(
        combine_facts(columns), columns, handle.is_token_in_rank,
        matrix=matrix, source_rows=handle.recv_src_idx, bias=bias, phase="combine",
    )  # fmt: skip


def combine_facts(columns: Sequence[Tensor]) -> dict[str, Fact]:
    """What must be equal on all ranks."""
    facts: dict[str, Fact] = {"call": "combine", "hidden size": columns[0].shape[1]}
    if len(columns) > 1:
        facts["topk_weights"] = f"of shape (tokens, {columns[1].shape[1]})"
    return facts


def finish(
    tokens: Tokens, extras: Sequence[Sequence[int]], exchange: Exchange, count: int
) -> tuple[Tokens, list[int]]:
    """Expert numbers as this rank counts them, weights of its own experts alone, and the counts of its experts.

    `extras`: tokens for each expert of all, in parts. Rows from `count` on have no token.
    """
    transport = exchange.transport
    each = len(extras[0]) // transport.size
    own = slice(transport.rank * each, (transport.rank + 1) * each)
    counts = [sum(column) for column in zip(*(part[own] for part in extras), strict=True)]
    idx, weights = tokens.topk_idx, tokens.topk_weights
    if idx is not None:
        idx[count:] = -1
        idx, weights = own_experts(idx, weights, rank=transport.rank, experts_per_rank=each)
    return Tokens(tokens.x, tokens.scales, idx, weights), counts


def _handle(me: int, came: Delivery, member: Tensor, channels: int) -> Handle:
    device = member.device
    numbers, prefix = heads(member, channels)
    starts, at = [], 0
    for count, tokens in zip(came.matrix[:, me].tolist(), came.tokens, strict=True):
        rows = came.source_rows[at : at + count]
        firsts = torch.tensor(channel_limits(tokens, channels)[:-1], dtype=torch.int32, device=device)
        starts.append(torch.searchsorted(rows, firsts, out_int32=True))
        at += count
    handle = SizedHandle(
        came.matrix.cumsum(0).int().to(device),
        prefix,
        torch.stack(starts),
        came.source_rows,
        member,
        numbers,
    )
    handle.rows_max = max(*came.tokens, int(came.matrix.sum(0).max()))
    return handle


__all__ = [
    "Handle",
    "Received",
    "SizedHandle",
    "Tokens",
    "cached_dispatch",
    "combine",
    "combine_facts",
    "dispatch",
    "finish",
]
