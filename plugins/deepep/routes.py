"""Counts, orders and numbers of routes, on the CPU: one call of the native module each, as loops over tokens say them.

Expert numbers are int64 or int32, of shape (tokens, k), -1 for none.
"""

from typing import Any

import luciola_core
import torch
from torch import Tensor


def layout(topk_idx: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens for each rank (R,) and expert (E,), int32, and whether a token goes to a rank (T, R).

    Raises: ValueError for what is no expert.
    """
    in_rank = torch.empty(len(topk_idx), num_ranks, dtype=torch.bool)
    per_rank, per_expert = (torch.empty(each, dtype=torch.int32) for each in (num_ranks, num_experts))
    luciola_core.routes_layout(
        _numbers(topk_idx.long()),
        _numbers(in_rank.view(torch.uint8)),
        _numbers(per_rank),
        _numbers(per_expert),
    )
    return per_rank, per_expert, in_rank


def heads(member: Tensor) -> Tensor:
    """The number of each token among those for a rank, or -1: (T, R) int64."""
    numbers = torch.empty(member.shape, dtype=torch.int64)
    luciola_core.routes_heads(_numbers(member.contiguous().view(torch.uint8)), _numbers(numbers))
    return numbers


def heads_and_channels(member: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """`heads`, and how many tokens go to a rank from each channel and those before it: (R, channels) int32.

    Channels are equal parts of the tokens, the last ones shorter or empty.
    """
    numbers = torch.empty(member.shape, dtype=torch.int64)
    prefix = torch.empty(member.shape[1], channels, dtype=torch.int32)
    luciola_core.routes_heads(
        _numbers(member.contiguous().view(torch.uint8)), _numbers(numbers), _numbers(prefix)
    )
    return numbers, prefix


def keep_own(topk_idx: Tensor, weights: Tensor | None, *, first: int, owned: int) -> None:
    """Counts experts from `first` on, in place; those outside the `owned` that follow become -1, and weigh nothing."""
    numbers = topk_idx.long()
    luciola_core.routes_keep_own(
        _numbers(numbers), None if weights is None else _numbers(weights), first, owned
    )
    if topk_idx.dtype != torch.int64:
        topk_idx.copy_(numbers)


def by_expert(topk_idx: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The tokens of each expert in turn, in their order, and how many each has (E,); int64. Others are left out."""
    tokens = torch.empty(topk_idx.numel(), dtype=torch.int64)
    counts = torch.empty(num_experts, dtype=torch.int64)
    count = luciola_core.routes_sort(_numbers(topk_idx.long()), _numbers(tokens), _numbers(counts))
    return tokens[:count], counts


def _numbers(x: Tensor) -> Any:
    return x.numpy()


__all__ = ["by_expert", "heads", "heads_and_channels", "keep_own", "layout"]
