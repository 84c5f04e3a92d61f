"""Inputs of all ranks for one call of expert parallelism, from a seed: each rank makes all of them, and asks nobody."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Sizes and options of one dispatch and the combine after it. JSON-able."""

    seed: int
    tokens: tuple[int, ...]  # of each rank
    hidden: int
    experts: int
    topk: int
    fp8: bool = False
    round_scale: bool = False
    use_ue8m0: bool = False
    logfmt: bool = False
    hook: bool = False
    zero_copy: bool = False
    async_finish: bool = False
    hot: bool = False  # every token chooses expert 0
    dropped: float = 0.1  # share of routes that are -1
    empty_rank: int = -1  # no expert of this rank is chosen

    @property
    def ranks(self) -> int:
        return len(self.tokens)

    @property
    def max_tokens(self) -> int:
        return max(*self.tokens, 1)


def inputs(call: Call) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """x (T, H) bfloat16, topk_idx (T, K) int64 and weights (T, K) float32 of every rank."""
    generator = torch.Generator().manual_seed(call.seed)
    xs, topks, weights = [], [], []
    local = call.experts // call.ranks
    for tokens in call.tokens:
        xs.append(torch.randn(tokens, call.hidden, generator=generator).to(torch.bfloat16))
        scores = torch.rand(tokens, call.experts, generator=generator)
        if call.hot:
            scores[:, 0] += 1
        if call.empty_rank >= 0:
            scores[:, call.empty_rank * local : (call.empty_rank + 1) * local] -= 2
        value, chosen = scores.topk(call.topk, -1)
        gone = (torch.rand(tokens, call.topk, generator=generator) < call.dropped) | (value < 0)
        topks.append(torch.where(gone, -1, chosen))
        weights.append(torch.rand(tokens, call.topk, generator=generator))
    return xs, topks, weights
