"""What is dispatched, what arrives, and what a dispatch leaves for combine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from ..transport.segment_header import Fact


@dataclass(frozen=True)
class Tokens:
    """x (T, H); scales (T, S) of FP8; topk_idx and topk_weights (T, K), both or none."""

    x: Tensor
    scales: Tensor | None = None
    topk_idx: Tensor | None = None
    topk_weights: Tensor | None = None

    def columns(self) -> list[Tensor]:
        """Those that are given, in order."""
        return [each for each in (self.x, self.scales, self.topk_idx, self.topk_weights) if each is not None]

    def like(self, columns: Sequence[Tensor]) -> "Tokens":
        """Tokens with these columns where this one has some."""
        assert len(columns) == len(self.columns()), "a column for each"
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


class _Fields(NamedTuple):
    rank_prefix_matrix: Tensor
    channel_prefix_matrix: Tensor
    recv_channel_prefix_matrix: Tensor
    recv_src_idx: Tensor
    is_token_in_rank: Tensor
    send_head: Tensor


class Handle(_Fields):
    """What a dispatch leaves for combine and for dispatches of the same routing; the original's, by its names.

    rank_prefix_matrix (R, R) int32: rows of this and earlier sources (first index) at each rank. channel_prefix_matrix
    (R, C): tokens for each rank in this and earlier channels. recv_channel_prefix_matrix (R, C): where each channel
    begins in each source's rows. recv_src_idx (N,): the row's token at its source. send_head (T, R): the token's number
    among those for the rank, or -1.
    """

    rows_max: int
    """The most rows that any rank has, sent or received."""
    pairs: Tensor
    """(R, R) int64 on the host: (token, expert) pairs of each source (first index) at each rank; empty if the counts
    were not read."""

    @classmethod
    def of(cls, fields: Sequence[Tensor], *, rows_max: int, pairs: Tensor) -> Self:
        """With what the tuple of tensors does not hold."""
        made = cls(*fields)
        made.rows_max, made.pairs = rows_max, pairs
        return made


@dataclass(frozen=True)
class Received:
    """What has arrived. expert_counts: tokens for each expert of this rank, not rounded; empty if not read."""

    tokens: Tokens
    expert_counts: list[int]
    handle: Handle


__all__ = ["Handle", "Received", "Tokens"]
