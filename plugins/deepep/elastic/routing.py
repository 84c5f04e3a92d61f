"""Where rows go and come from, as numbers of rows. -1 stands for none everywhere.

The rows that a rank has for a source are ordered by token, or, one row for each expert, by (expert, token, k); what
comes back is ordered by (rank, such a row). A token's answer from a rank counts at the last k that the rank owns: its
master, which says in which order answers are summed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.quantize import align


def owners(topk_idx: Tensor, experts_per_rank: int) -> Tensor:
    """The rank of each expert: (T, K) int64."""
    idx = topk_idx.long()
    return torch.where(idx >= 0, idx // experts_per_rank, -1)


def are_masters(owner: Tensor) -> Tensor:
    """(T, K): whether no later k is of the same rank."""
    same = owner[:, :, None] == owner[:, None, :]
    later = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=owner.device).triu(1)
    return (owner >= 0) & ~(same & later).any(2)


def members(owner: Tensor, ranks: int) -> Tensor:
    """(T, R): whether the token goes there."""
    result = torch.zeros(len(owner), ranks + 1, dtype=torch.bool, device=owner.device)
    return result.scatter_(1, torch.where(owner >= 0, owner, ranks), value=True)[:, :ranks].contiguous()


def slots(owner: Tensor, member: Tensor) -> Tensor:
    """(T, K): the token's number among those for its rank."""
    numbers = member.long().cumsum(0) - 1
    return torch.where(owner >= 0, numbers.gather(1, owner.clamp(min=0)), -1)


def answers(owner: Tensor, member: Tensor) -> Tensor:
    """(T, K): which row of those that come back, one for each token and rank, is from the rank of each k."""
    starts = member.sum(0).cumsum(0) - member.sum(0)
    return torch.where(owner >= 0, slots(owner, member) + starts[owner.clamp(min=0)], -1)


def answers_of_experts(topk_idx: Tensor) -> Tensor:
    """(T, K): the same, if one row comes back for each token and k."""
    return _sorted_places(topk_idx.long().reshape(-1)).view(topk_idx.shape)


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
        counts = torch.bincount(flat[flat >= 0], minlength=experts)
        rounded = (counts + alignment - 1) // alignment * alignment
        shift = (rounded.cumsum(0) - rounded) - (counts.cumsum(0) - counts)
        places = _sorted_places(flat)
        places = torch.where(flat >= 0, places + shift[flat.clamp(min=0)], -1).view(local_idx.shape)
        return cls(places, rounded.cumsum(0) - rounded + counts, counts.tolist())

    def rows(self, alignment: int) -> int:
        """Of the layout, the gap behind the last expert included."""
        return sum(align(each, alignment) for each in self.counts)


def expanded_rows_max(tokens: int, topk: int, experts: int, alignment: int) -> int:
    """As many as the layout can have."""
    return align(tokens * min(topk, experts) + (alignment - 1) * experts, alignment)


def _sorted_places(flat: Tensor) -> Tensor:
    """The place of each number if they were sorted; equal ones stay in order, negative ones have none."""
    order = torch.where(flat >= 0, flat, torch.iinfo(torch.int64).max).argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(flat), device=flat.device))
    return torch.where(flat >= 0, places, -1)


__all__ = [
    "Expansion",
    "answers",
    "answers_of_experts",
    "are_masters",
    "expanded_rows_max",
    "members",
    "owners",
    "slots",
]
