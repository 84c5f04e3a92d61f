"""Casts, routing made for tests, and sums of bytes."""

import torch
from torch import Tensor

from luciola.plugins.compat.deep_gemm.testing.numeric import count_bytes
from luciola.plugins.deepep.low_latency.quantize import cast_from_fp8, cast_to_fp8
from luciola.plugins.kernels.errors import refuse
from luciola.plugins.kernels.quantize import BLOCK, align, ceil_div
from luciola.plugins.kernels.quantize import calc_diff as difference


def per_token_cast_to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (tokens, n) to (tokens, n) e4m3 and (tokens, ceil(n / 128)) float32."""
    if x.dim() != 2:
        refuse("x", f"of shape {tuple(x.shape)}", "it must have two dimensions")
    missing = -x.shape[1] % BLOCK
    values, scales = cast_to_fp8(torch.nn.functional.pad(x, (0, missing)))
    return values[:, : x.shape[1]].contiguous(), scales


def per_token_cast_back(x_fp8: Tensor, x_scales: Tensor) -> Tensor:
    """BF16 of (tokens, H) e4m3 and its scales, float32 or packed exponents."""
    return cast_from_fp8(x_fp8, x_scales)


def calc_diff(x: Tensor, y: Tensor) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>) of both plus one."""
    return difference(x.double() + 1, y.double() + 1)


def inplace_unique(x: Tensor, num_slots: int) -> None:
    """Each row of x (T, K) keeps one of each number below `num_slots`, most frequent first; the rest becomes -1."""
    assert x.dim() == 2, "rows of numbers"
    is_known = (x >= 0) & (x < num_slots)
    counts = torch.zeros(len(x), num_slots + 1, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, torch.where(is_known, x.long(), num_slots), torch.ones_like(x, dtype=torch.int64))
    found, numbers = counts[:, :num_slots].sort(dim=1, descending=True, stable=True)
    width = min(num_slots, x.shape[1])
    x.fill_(-1)
    x[:, :width] = torch.where(found > 0, numbers, -1)[:, :width].to(x.dtype)


def create_grouped_scores(scores: Tensor, group_idx: Tensor, num_groups: int) -> Tensor:
    """Scores (T, E), zero outside the groups of neighbouring experts that group_idx (T, G) names."""
    tokens, experts = scores.shape
    is_chosen = torch.zeros(tokens, num_groups, dtype=torch.bool, device=scores.device).scatter_(
        1, group_idx, value=True
    )
    grouped = scores.view(tokens, num_groups, experts // num_groups) * is_chosen.unsqueeze(2)
    return grouped.flatten(1)


def hash_tensor(x: Tensor) -> int:
    """A number that differs if a byte differs, most likely."""
    words = x.contiguous().view(torch.uint8).flatten().long()
    return int((words * (torch.arange(len(words), device=x.device) % 65_521 + 1)).sum())


def hash_tensors(*tensors: Tensor) -> int:
    """The same of several."""
    return sum(hash_tensor(each) for each in tensors)


def safe_div(x: float, y: float) -> float:
    """x / y, or 0 if y is."""
    return 0 if y == 0 else x / y


__all__ = [
    "align", "calc_diff", "ceil_div", "count_bytes", "create_grouped_scores", "hash_tensor", "hash_tensors",
    "inplace_unique", "per_token_cast_back", "per_token_cast_to_fp8", "safe_div",
]  # fmt: skip
