"""What the buffer of DeepEP 2 must give, by torch and the process group alone: plain loops, nothing of the plugin's."""

import math
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from .envs import get_global_seed

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
    given = [*values, topk_idx, *([] if topk_weights is None else [topk_weights])]
    packed = [
        (each.cpu().contiguous().view(torch.uint8), each.dtype) for each in given
    ]  # pickle does not know FP8
    inputs: list[Any] = [None] * ranks
    dist.all_gather_object(inputs, packed)
    first = rank * (num_experts // ranks)
    own = range(first, first + num_experts // ranks)
    columns: list[list[Tensor]] = [[] for _ in given]
    numbers: list[int] = []
    from_each = []
    for source, those in enumerate(inputs):
        tensors = [data.view(dtype) for data, dtype in those]
        before = len(numbers)
        for token, experts in enumerate(tensors[len(values)].tolist()):
            if any(expert in own for expert in experts):
                numbers.append(source * num_max_tokens_per_rank + token)
                for column, tensor in zip(columns, tensors, strict=True):
                    column.append(tensor[token])
        from_each.append(len(numbers) - before)
    came = [
        (torch.stack(column) if column else like.new_empty(0, *like.shape[1:]).cpu()).to(topk_idx.device)
        for column, like in zip(columns, given, strict=True)
    ]
    idx = came[len(values)]
    local = torch.where((idx >= own.start) & (idx < own.stop), idx - own.start, -1)
    return (
        (came[0], came[1]) if isinstance(x, tuple) else came[0],
        local,
        None if topk_weights is None else came[-1],
        torch.tensor(numbers, dtype=torch.int32, device=topk_idx.device),
        torch.tensor(from_each, dtype=torch.int32),
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
        y = _reduced(y, topk_idx, local)
    if reduce_in_scaleup:
        y = _reduced(y, topk_idx, local * num_scaleup_ranks)
    start = torch.zeros(len(y), y.shape[2], dtype=torch.float32, device=y.device)
    for each in () if bias is None else bias if isinstance(bias, tuple) else (bias,):
        start += each
    return ordered_accumulate(y, start)


def _reduced(y: Tensor, topk_idx: Tensor, experts: int) -> Tensor:
    """Sums over the k whose experts are in one group of so many, at the last of them; zero elsewhere."""
    result = torch.zeros_like(y)
    for token, chosen in enumerate(topk_idx.tolist()):
        groups: dict[int, list[int]] = {}
        for k, expert in enumerate(chosen):
            if expert >= 0:
                groups.setdefault(expert // experts, []).append(k)
        for ks in groups.values():
            result[token, ks[-1]] = ordered_accumulate(y[token, ks][None])[0]
    return result


__all__ = ["combine", "dispatch", "generate_pre_combine_data", "ordered_accumulate"]
