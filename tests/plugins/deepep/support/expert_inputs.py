"""Inputs of all ranks for one call of expert parallelism, from a seed: each rank makes all of them by itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_ranks import Answer


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


def values(answers: list[Answer]) -> list:
    assert [each.message for each in answers] == [""] * len(answers)
    assert [each.status for each in answers] == [0] * len(answers)
    return [each.value for each in answers]


def varied(size: int) -> list[Call]:
    """Every option, uneven tokens, few and many experts, one hot expert, a rank without work."""
    one, two = (3, 0, 1, 5, 2, 4, 0, 6)[:size], (2,) * size
    return [
        Call(1, one, 128, 8, 3),
        Call(2, one, 256, 64, 9, hook=True),
        Call(3, one, 384, 16, 4, fp8=True),
        Call(4, two, 512, 8, 1, fp8=True, round_scale=True, async_finish=True),
        Call(5, one, 1024, 24, 6, fp8=True, round_scale=True, use_ue8m0=True, hook=True),
        Call(6, two, 128, 512, 8, zero_copy=True, dropped=0.0),
        Call(7, one, 256, 16, 5, logfmt=True, hook=True),
        Call(8, one, 24, 16, 2, async_finish=True),
        Call(9, one, 128, 16, 2, hot=True),
        Call(10, one, 128, 16, 7, empty_rank=size - 1, fp8=True),
        Call(11, (0,) * size, 128, 16, 2),
        Call(12, two, 128, 8, 2, dropped=1.0),
    ]
