"""What the original's `deep_ep.utils.refs` offers to its tests, by torch and the process group alone."""

import math
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ..layout import local_experts
from ..testing import get_global_seed
from .routing import are_masters, members, owners

PRIME: Final = 131_071
"""By which numbers of answers are spread over the seeds."""


def dispatch(
    x: Tensor | tuple[Tensor, Tensor],
    topk_idx: Tensor,
    topk_weights: Tensor | None,
    num_max_tokens_per_rank: int,
    num_experts: int,
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Tensor | None, Tensor, Tensor]:
    """Rows as they come, ordered by (source rank, token): x, local experts or -1, weights as they were given, source
    rank · num_max_tokens_per_rank + token, and rows from each rank.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    values = x if isinstance(x, tuple) else (x,)
    inputs: list[Any] = [None] * ranks
    dist.all_gather_object(inputs, [_packed(each) for each in (*values, topk_idx, topk_weights)])
    inputs = [[None if each is None else each[0].view(each[1]) for each in those] for those in inputs]
    local = num_experts // ranks
    here = [torch.nonzero(members(owners(each[-2], local), ranks)[:, rank]).view(-1) for each in inputs]

    def of_all(column: int) -> Tensor:
        return torch.cat([each[column][rows] for each, rows in zip(inputs, here, strict=True)]).to(
            topk_idx.device
        )

    numbers = [source * num_max_tokens_per_rank + rows for source, rows in enumerate(here)]
    came = tuple(of_all(column) for column in range(len(values)))
    return (
        came if isinstance(x, tuple) else came[0],  # type: ignore[return-value]
        local_experts(of_all(-2), rank, local),
        None if topk_weights is None else of_all(-1),
        torch.cat(numbers).int().to(topk_idx.device),
        torch.tensor([len(each) for each in here], dtype=torch.int32),
    )


def generate_pre_combine_data(
    src_token_global_idx: Tensor, num_max_tokens_per_rank: int, num_topk: int, hidden: int
) -> Tensor:
    """Answers (N, K, H) bfloat16 of tokens by their numbers: waves of a frequency for each, which differ everywhere."""
    device = src_token_global_idx.device
    seeds = dist.get_world_size() * num_max_tokens_per_rank * num_topk
    numbers = src_token_global_idx.long()[:, None] * num_topk + torch.arange(num_topk, device=device)
    frequency = ((numbers * PRIME % seeds).float() + 1) / seeds
    channels = torch.arange(1, hidden + 1, device=device, dtype=torch.float32)
    return torch.sin(frequency[:, :, None] * channels + math.sin(get_global_seed())).to(torch.bfloat16)


def ordered_accumulate(data: Tensor, initial_value: Tensor | None = None) -> Tensor:
    """initial_value (N, H) + Σ over k of data (N, K, H), in this order in float32; of data's type."""
    total = torch.zeros(len(data), data.shape[2], dtype=torch.float32, device=data.device)
    if initial_value is not None:
        total += initial_value
    for k in range(data.shape[1]):
        total += data[:, k]
    return total.to(data.dtype)


def combine(  # noqa: PLR0913 (the original's)
    y: Tensor,
    topk_idx: Tensor,
    num_scaleout_ranks: int,
    num_scaleup_ranks: int,
    num_experts: int,
    bias: Tensor | tuple[Tensor, Tensor] | None,
    reduce_in_local: bool,  # noqa: FBT001
    reduce_in_scaleup: bool,  # noqa: FBT001
) -> Tensor:
    """Answers y (T, K, H) of one rank's tokens, summed in a rank first, then in a group of ranks, as is said."""
    assert reduce_in_local or not reduce_in_scaleup, "a group sums what its ranks have summed"
    local = num_experts // (num_scaleout_ranks * num_scaleup_ranks)
    if reduce_in_local:
        y = _reduced(y, owners(topk_idx, local))
    if reduce_in_scaleup:
        y = _reduced(y, owners(topk_idx, local * num_scaleup_ranks))
    biases = () if bias is None else bias if isinstance(bias, tuple) else (bias,)
    start = torch.zeros(len(y), y.shape[2], dtype=torch.float32, device=y.device)
    for each in biases:
        start += each
    return ordered_accumulate(y, start)


def _packed(x: Tensor | None) -> tuple[Tensor, torch.dtype] | None:
    """Pickle does not know FP8."""
    return None if x is None else (x.cpu().contiguous().view(torch.uint8), x.dtype)


def _reduced(y: Tensor, group: Tensor) -> Tensor:
    """Sums over each group of a token, at its last k; zero elsewhere."""
    result = torch.zeros_like(y)
    last = are_masters(group)
    for k in range(y.shape[1]):
        inside = (group == group[:, k, None]) & last[:, k, None]
        result[:, k] = ordered_accumulate(torch.where(inside[:, :, None], y, 0.0))
    return result


__all__ = ["combine", "dispatch", "generate_pre_combine_data", "ordered_accumulate"]
