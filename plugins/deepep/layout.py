"""Which token goes where, counted from the experts that each token has chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.errors import BadType, refuse
from ..kernels.layers import layer_for


@dataclass(frozen=True)
class DispatchLayout:
    """num_tokens_per_rank (R,), num_tokens_per_rdma_rank (nodes,) and num_tokens_per_expert (E,), int32;
    is_token_in_rank (T, R) bool. A token counts once for each rank and node, however many of its experts are there.
    """

    num_tokens_per_rank: Tensor
    num_tokens_per_rdma_rank: Tensor | None
    num_tokens_per_expert: Tensor
    is_token_in_rank: Tensor


def count(topk_idx: Tensor, num_experts: int, *, num_ranks: int, ranks_per_node: int) -> DispatchLayout:
    """Shapes: topk_idx (T, K), -1 for no expert."""
    check_experts(num_experts, num_ranks)
    check_indices(topk_idx, num_experts)
    if layer_for(topk_idx) == "triton":
        from . import launch

        per_rank, per_expert, in_rank = launch.layout(topk_idx, num_experts, num_ranks)
    else:
        per_rank, per_expert, in_rank = _count(topk_idx, num_experts, num_ranks)
    in_node = in_nodes(in_rank, ranks_per_node)
    per_node = in_node.sum(0, dtype=torch.int32) if num_ranks > ranks_per_node else None
    return DispatchLayout(per_rank, per_node, per_expert, in_rank)


def _count(topk_idx: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    idx = topk_idx.long()
    rank = torch.where(idx >= 0, idx // (num_experts // num_ranks), num_ranks)
    in_rank = torch.zeros(len(idx), num_ranks + 1, dtype=torch.bool, device=idx.device)
    in_rank = in_rank.scatter_(1, rank, value=True)[:, :num_ranks].contiguous()
    return (
        in_rank.sum(0, dtype=torch.int32),
        torch.bincount(idx[idx >= 0], minlength=num_experts).int(),
        in_rank,
    )


def in_nodes(is_token_in_rank: Tensor, ranks_per_node: int) -> Tensor:
    """Shapes: is_token_in_rank (T, R); result (T, R / ranks_per_node)."""
    tokens, ranks = is_token_in_rank.shape
    return is_token_in_rank.view(tokens, ranks // ranks_per_node, ranks_per_node).any(2)


def local_experts(topk_idx: Tensor, rank: int, experts_per_rank: int) -> Tensor:
    """Numbers among the experts of `rank`; -1 for those of other ranks."""
    local = topk_idx - rank * experts_per_rank
    return torch.where((topk_idx >= 0) & (local >= 0) & (local < experts_per_rank), local, -1)


def check_experts(num_experts: int, num_ranks: int) -> None:
    """Each rank owns the same number of experts."""
    if num_experts <= 0 or num_experts % num_ranks:
        refuse("num_experts", num_experts, f"it must be a multiple of the {num_ranks} ranks")


def check_indices(topk_idx: Tensor, num_experts: int) -> None:
    """Expert numbers, or -1."""
    if topk_idx.dtype not in {torch.int64, torch.int32}:
        raise BadType(f"topk_idx is {topk_idx.dtype}; it must be torch.int64 or torch.int32")
    if topk_idx.dim() != 2 or not topk_idx.is_contiguous():
        refuse(
            "topk_idx",
            f"of shape {tuple(topk_idx.shape)} and strides {topk_idx.stride()}",
            "it must be a contiguous (tokens, top-k)",
        )
    if topk_idx.numel() and topk_idx.device.type == "cpu":
        least, most = (int(each) for each in topk_idx.aminmax())
        if least < -1 or most >= num_experts:
            refuse("topk_idx", f"{least} to {most}", f"experts are 0 to {num_experts - 1}, or -1 for none")


__all__ = ["DispatchLayout", "check_experts", "check_indices", "count", "in_nodes", "local_experts"]
