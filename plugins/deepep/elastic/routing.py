"""Where rows go and come from, as numbers of rows. -1 stands for none everywhere.

A token's answer from a rank counts at the last k that the rank owns: its master, which says in which order answers are
summed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.quantize import align
from ..normal.tokens import Handle


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


__all__ = [
    "Expansion",
    "are_masters",
    "expanded_rows_max",
    "order_of_experts",
    "order_of_ranks",
]
