"""The specification of `ElasticBuffer`: what one process computes that has the inputs of all ranks.

Lists have an entry for each rank. Plain loops, in the order in which the results are defined. What comes without
expansion is what `deepep/reference.py` says of normal mode.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ...kernels.quantize import align

Answer: TypeAlias = tuple[int, int, int]
"""Source rank, token, k."""


def expanded(
    topk_idx: Sequence[Tensor], rank: int, *, num_experts: int, alignment: int
) -> tuple[list[Answer | None], list[int]]:
    """What each expanded row of `rank` is of, None in gaps; and where the real rows of each of its experts end."""
    local = num_experts // len(topk_idx)
    rows: list[Answer | None] = []
    ends = []
    for expert in range(rank * local, (rank + 1) * local):
        for source, chosen in enumerate(topk_idx):
            for token, experts in enumerate(chosen.tolist()):
                rows += [(source, token, k) for k, each in enumerate(experts) if each == expert]
        ends.append(len(rows))
        rows += [None] * (align(len(rows), alignment) - len(rows))
    return rows, ends


def metadata(
    topk_idx: Sequence[Tensor],
    rank: int,
    *,
    num_experts: int,
    tokens_max: int,
    rows: Sequence[Answer | None] = (),
) -> list[list[int]]:
    """`EPHandle.recv_src_metadata`; `rows` of `expanded`, if the result is."""
    local = num_experts // len(topk_idx)
    place = {answer: row for row, answer in enumerate(rows) if answer is not None}
    result = []
    for source, chosen in enumerate(topk_idx):
        for token, experts in enumerate(chosen.tolist()):
            here = [k for k, each in enumerate(experts) if each >= 0 and each // local == rank]
            if here:
                places = [place.get((source, token, k), -1) for k in range(len(experts))]
                result.append([source * tokens_max + token, source * len(experts) + here[-1], *places])
    return result


def reduced(y: Tensor, experts: Sequence[int], rank: int, local: int) -> Tensor:
    """What a rank sends back for one token: its rows of y (K, H) in the order of k, rounded once."""
    total = torch.zeros(y.shape[1], dtype=torch.float32)
    for k, each in enumerate(experts):
        if each >= 0 and each // local == rank:
            total += y[k]
    return total.to(y.dtype)


def combined(
    y: Tensor,
    topk_idx: Tensor,
    *,
    num_experts: int,
    ranks: int,
    bias: Sequence[Tensor] = (),
    reduce_first: bool = True,
) -> Tensor:
    """What the source gets back, if y (T, K, H) are the answers of its tokens' experts."""
    local = num_experts // ranks
    result = y.new_empty(len(y), y.shape[2])
    for token, experts in enumerate(topk_idx.tolist()):
        total = torch.zeros(y.shape[2], dtype=torch.float32)
        for each in bias:
            total += each[token]
        for k, expert in enumerate(experts):
            rank = expert // local
            is_last = all(other < 0 or other // local != rank for other in experts[k + 1 :])
            if expert >= 0 and not reduce_first:
                total += y[token, k]
            elif expert >= 0 and is_last:
                total += reduced(y[token], experts, rank, local)
        result[token] = total
    return result


__all__ = ["Answer", "combined", "expanded", "metadata", "reduced"]
