"""Normal mode's specification: what one process computes that has the inputs of all ranks.

Every function takes lists with an entry for each rank and returns such lists. Plain loops, in the order in which the
results are defined.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_token_in_rank(topk_idx: Tensor, num_experts: int, ranks: int) -> Tensor:
    """(T, R): whether one of the token's experts is there."""
    result = torch.zeros(len(topk_idx), ranks, dtype=torch.bool)
    for token, experts in enumerate(topk_idx.tolist()):
        for expert in experts:
            if expert >= 0:
                result[token, expert // (num_experts // ranks)] = True
    return result


def sources(member: Sequence[Tensor], rank: int) -> list[tuple[int, int]]:
    """(source rank, token) of each row that `rank` receives, in order."""
    return [
        (source, token)
        for source, each in enumerate(member)
        for token in torch.nonzero(each[:, rank]).view(-1).tolist()
    ]


def dispatched(rows: Sequence[Tensor], member: Sequence[Tensor], rank: int) -> Tensor:
    """What `rank` receives of rows (T, …)."""
    found = [rows[source][token] for source, token in sources(member, rank)]
    return torch.stack(found) if found else rows[0].new_empty((0, *rows[0].shape[1:]))


def received_experts(
    topk_idx: Sequence[Tensor], topk_weights: Sequence[Tensor], member: Sequence[Tensor], rank: int, *,
    num_experts: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Expert numbers as `rank` counts them, and their weights; -1 and 0 for experts of other ranks."""
    each = num_experts // len(member)
    idx, weights = dispatched(topk_idx, member, rank), dispatched(topk_weights, member, rank)
    mine = (idx >= rank * each) & (idx < (rank + 1) * each)
    return torch.where(mine, idx - rank * each, -1), torch.where(mine, weights, 0.0)


def expert_counts(
    topk_idx: Sequence[Tensor], rank: int, *, num_experts: int, alignment: int = 1
) -> list[int]:
    """Tokens for each expert of `rank`, rounded up."""
    each = num_experts // len(topk_idx)
    chosen = torch.cat([part.reshape(-1) for part in topk_idx])
    counts = [int((chosen == rank * each + expert).sum()) for expert in range(each)]
    return [-(-count // alignment) * alignment for count in counts]


def combined(
    rows: Sequence[Tensor], member: Sequence[Tensor], rank: int, *, bias: Sequence[Tensor] = ()
) -> Tensor:
    """What `rank` gets back for its tokens: bias + Σ over ranks, in float32, in the order of ranks."""
    tokens, ranks = member[rank].shape
    place = [{key: row for row, key in enumerate(sources(member, peer))} for peer in range(ranks)]
    result = rows[0].new_empty((tokens, *rows[0].shape[1:]))
    for token in range(tokens):
        total = torch.zeros(rows[0].shape[1:], dtype=torch.float32)
        for each in bias:
            total += each[token]
        for peer in range(ranks):
            if member[rank][token, peer]:
                total += rows[peer][place[peer][rank, token]]
        result[token] = total
    return result


__all__ = ["combined", "dispatched", "expert_counts", "is_token_in_rank", "received_experts", "sources"]
