"""Which token goes where, counted from the experts that each token has chosen.

A number that is no expert counts as none everywhere; `check_indices` refuses it on a CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.checks import check_contiguous
from ...kernels.errors import refuse
from ...kernels.layers import uses_kernels


@dataclass(frozen=True)
class DispatchLayout:
    """num_tokens_per_rank (R,) and num_tokens_per_expert (E,), int32; is_token_in_rank (T, R) bool. A token counts once
    for each rank, however many of its experts the rank owns.
    """

    num_tokens_per_rank: Tensor
    num_tokens_per_expert: Tensor
    is_token_in_rank: Tensor


def count(topk_idx: Tensor, num_experts: int, *, num_ranks: int) -> DispatchLayout:
    """Count the tokens of each rank and expert. Shapes: topk_idx (T, K), -1 for no expert."""
    check_experts(num_experts, num_ranks)
    check_indices(topk_idx, num_experts)
    if uses_kernels(topk_idx):
        from . import launch

        per_rank, per_expert, in_rank = launch.layout(topk_idx, num_experts, num_ranks)
    else:
        in_rank = members(owners(topk_idx, num_experts, num_ranks), num_ranks)
        per_rank, per_expert = in_rank.sum(0, dtype=torch.int32), expert_counts(topk_idx, num_experts)
    return DispatchLayout(per_rank, per_expert, in_rank)


def owners(topk_idx: Tensor, num_experts: int, ranks: int) -> Tensor:
    """The rank of each expert, -1 for none: (T, K) int64."""
    assert num_experts % ranks == 0, "each rank owns the same number of experts"
    idx = topk_idx.long()
    return torch.where(_are_experts(idx, num_experts), idx // (num_experts // ranks), -1)


def members(owner: Tensor, ranks: int) -> Tensor:
    """(T, R): whether the token goes there. Shapes: owner (T, K), -1 for none."""
    result = torch.zeros(len(owner), ranks + 1, dtype=torch.bool, device=owner.device)
    return result.scatter_(1, torch.where(owner >= 0, owner, ranks), value=True)[:, :ranks].contiguous()


def expert_counts(topk_idx: Tensor, num_experts: int) -> Tensor:
    """(E,) int32: how many tokens have chosen each expert."""
    idx = topk_idx.long().reshape(-1)
    idx = torch.where(_are_experts(idx, num_experts), idx, num_experts)
    found = torch.zeros(num_experts + 1, dtype=torch.int32, device=idx.device)
    return found.scatter_add_(0, idx, torch.ones_like(idx, dtype=torch.int32))[:-1]


def own_experts(
    topk_idx: Tensor, weights: Tensor | None, *, rank: int, experts_per_rank: int
) -> tuple[Tensor, Tensor | None]:
    """Numbers among the experts of `rank`, -1 for those of other ranks, and weights, 0 for those."""
    local = topk_idx - rank * experts_per_rank
    idx = torch.where(_are_experts(local, experts_per_rank), local, -1)
    return idx, None if weights is None else torch.where(idx >= 0, weights, 0.0)


def heads(member: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Which number each token has among those for a rank, or -1, and how many go to it from each channel and those
    before it: equal parts of the tokens, the last ones shorter or empty, as the original has them.

    Shapes: member (T, R) bool; results (T, R) and (R, channels), int32.
    """
    counts = member.cumsum(0, dtype=torch.int32)
    before = torch.cat([counts.new_zeros(1, member.shape[1]), counts])
    ends = torch.arange(1, channels + 1, device=member.device) * -(-len(member) // channels)
    return torch.where(member, counts - 1, -1), before[ends.clamp(max=len(member))].T.contiguous()


def by_expert(topk_idx: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The tokens of each expert in turn, in their order, and how many each has (E,); int64."""
    flat = topk_idx.reshape(-1).long()
    places = torch.nonzero(_are_experts(flat, num_experts)).view(-1)
    chosen = flat[places]
    order = places[chosen.argsort(stable=True)]
    return order // topk_idx.shape[1], torch.bincount(chosen, minlength=num_experts)


def check_experts(num_experts: int, num_ranks: int) -> None:
    """Each rank owns the same number of experts."""
    if num_experts <= 0 or num_experts % num_ranks:
        refuse("num_experts", num_experts, f"it must be a multiple of the {num_ranks} ranks")


def check_indices(topk_idx: Tensor, num_experts: int, *, tokens: int | None = None) -> None:
    """Expert numbers, or -1, of (tokens, top-k). On a GPU, where others count as none, numbers are not checked."""
    check_contiguous("topk_idx", topk_idx, (tokens, None), (torch.int64, torch.int32))
    if topk_idx.numel() and topk_idx.device.type == "cpu":
        least, most = (int(each) for each in topk_idx.aminmax())
        if least < -1 or most >= num_experts:
            refuse("topk_idx", f"{least} to {most}", f"experts are 0 to {num_experts - 1}, or -1 for none")


def _are_experts(idx: Tensor, num_experts: int) -> Tensor:
    return (idx >= 0) & (idx < num_experts)


__all__ = [
    "DispatchLayout", "by_expert", "check_experts", "check_indices", "count", "expert_counts", "heads",
    "members", "own_experts", "owners",
]  # fmt: skip
