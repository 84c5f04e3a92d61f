"""Scores of experts that load one rank more, for test programs.

Rank 0 gets `ratio` times the tokens of each other rank. Scores are on the current GPU, if there is one.
"""

from typing import Final

import torch
from torch import Tensor

from luciola.plugins.kernels.errors import refuse
from luciola.plugins.kernels.quantize import ceil_div

CHOSEN_FROM: Final = 0.9
"""Scores of the experts that a token shall have are above this, all others below."""
FACTOR_MAX: Final = 100.0
FACTOR_STEPS: Final = 20
"""Halvings of the range in which a factor is looked for: to 0.0001."""


def get_unbalanced_scores(  # noqa: PLR0913 (the original's)
    num_tokens: int,
    num_experts: int,
    num_ranks: int,
    num_topk: int,
    ratio: float,
    precise: bool,  # noqa: FBT001
) -> Tensor:
    """Scores (T, E) float32, whose `topk` over the experts is as unbalanced as `ratio` says.

    `precise`: the ranks but the first get equally many tokens, to one; a token's experts are then spread over its ranks
    more evenly than chance would. Otherwise scores are uniform, those of rank 0 up to a factor that comes as near to
    the ratio as it can: rank 0 cannot get more than all tokens.

    Raises: BadArgument, also if no token may have so few ranks as the ratio asks for.
    """
    if num_ranks < 1 or num_experts < 1 or num_experts % num_ranks:
        refuse("num_experts", num_experts, f"it must be a multiple of the {num_ranks} ranks")
    if not 1 <= num_topk <= num_experts:
        refuse("num_topk", num_topk, f"it must be 1 to {num_experts}")
    if ratio < 1:
        refuse("ratio", ratio, "it must be at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = torch.rand(num_tokens, num_experts, dtype=torch.float32, device=device)
    if num_ranks == 1 or num_tokens == 0:
        return scores
    by_rank = scores.view(num_tokens, num_ranks, -1)
    if not precise:
        return _scaled(by_rank, _factor(by_rank, num_topk, ratio)).flatten(1)
    quotas = _quotas(_ranks_of_tokens(by_rank, num_topk, ratio), num_topk)
    places = by_rank.argsort(dim=2, descending=True).argsort(dim=2)
    chosen = places < quotas.unsqueeze(2)
    high = 1 - (1 - CHOSEN_FROM) * torch.rand_like(by_rank)
    return torch.where(chosen, high, by_rank * CHOSEN_FROM).flatten(1)


def _ranks_of_tokens(scores: Tensor, topk: int, ratio: float) -> Tensor:
    """Which ranks each token goes to: (T, R) bool. As many as by chance, if the ratio allows that many."""
    tokens, ranks, local = scores.shape
    most = min(topk, ranks, int((ranks - 1) / ratio) + 1)
    if most < ceil_div(topk, local):
        refuse(
            "ratio", ratio, f"{topk} experts need {ceil_div(topk, local)} ranks, and it leaves a token {most}"
        )
    widths = _reached(scores, topk).sum(1).clamp(max=most)
    total = int(widths.sum())
    must = widths == ranks
    share = min(max(round(total * ratio / (ranks - 1 + ratio)), int(must.sum())), tokens)
    first = (torch.rand(tokens, device=scores.device) + must).topk(share)[1]
    result = torch.zeros(tokens, ranks, dtype=torch.bool, device=scores.device)
    result[first, 0] = True
    # The other ranks are dealt out in a circle, each token taking the next ones.
    wanted = widths - result[:, 0].long()
    begins = wanted.cumsum(0) - wanted
    order = torch.randperm(ranks - 1, device=scores.device)
    result[:, 1:] = (order - begins.unsqueeze(1)) % (ranks - 1) < wanted.unsqueeze(1)
    return result[torch.randperm(tokens, device=scores.device)]


def _quotas(is_there: Tensor, topk: int) -> Tensor:
    """Of `topk` experts, how many each rank of a token has: equally many, to one."""
    widths = is_there.sum(1, keepdim=True)
    keys = torch.rand(is_there.shape, device=is_there.device) + is_there
    places = keys.argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(is_there, topk // widths + (places < topk % widths), 0)


def _factor(scores: Tensor, topk: int, ratio: float) -> float:
    """By which rank 0's scores are to be larger, for these very scores."""
    low, high = 1.0, FACTOR_MAX
    for _ in range(FACTOR_STEPS if ratio > 1 else 0):
        middle = (low + high) / 2
        counts = _reached(_scaled(scores, middle), topk).sum(0)
        if int(counts[0]) * (len(counts) - 1) > ratio * int(counts[1:].sum()):
            high = middle
        else:
            low = middle
    return low


def _scaled(scores: Tensor, factor: float) -> Tensor:
    result = scores.clone()
    result[:, 0] *= factor
    return result


def _reached(scores: Tensor, topk: int) -> Tensor:
    """Which ranks own one of the best experts of a token: (T, R) bool."""
    tokens, ranks, local = scores.shape
    owners = scores.flatten(1).topk(topk, dim=1, sorted=False)[1] // local
    result = torch.zeros(tokens, ranks, dtype=torch.bool, device=scores.device)
    return result.scatter_(1, owners, value=True)


__all__ = ["get_unbalanced_scores"]
