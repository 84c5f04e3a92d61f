"""Scores that load one rank more than the others: the checks and the tolerances of the original's test of them."""

from itertools import product

import pytest
import torch

from luciola.plugins.compat.deep_ep.utils.gate import get_unbalanced_scores

SHAPES = [each for each in product((2, 8), (1, 8), (1, 6), (1.0, 2.0, 4.0)) if each[2] <= each[0] * each[1]]


def tokens_of_ranks(tokens, experts, ranks, topk, ratio, *, precise):
    scores = get_unbalanced_scores(tokens, experts, ranks, topk, ratio, precise)
    assert (scores.shape, scores.dtype) == ((tokens, experts), torch.float32)
    owners = torch.topk(scores, topk, dim=-1, largest=True, sorted=False)[1] // (experts // ranks)
    return torch.nn.functional.one_hot(owners, ranks).any(1).sum(0)


def is_possible(ranks, local, topk, ratio):
    """The original's: not fewer ranks than hold the experts, not more than the ratio leaves a token."""
    return max(1, -(-topk // local)) <= min(topk, ranks, int((ranks - 1) / ratio) + 1)


def test_ratio_and_inequality_are_the_originals() -> None:
    seen, tokens = 0, 1500
    for ranks, local, topk, ratio in SHAPES:
        if not is_possible(ranks, local, topk, ratio):
            with pytest.raises(ValueError, match="ratio"):
                get_unbalanced_scores(tokens, ranks * local, ranks, topk, ratio, 1)
            continue
        torch.manual_seed(seen)
        counts = sum(tokens_of_ranks(tokens, ranks * local, ranks, topk, ratio, precise=1) for _ in range(2))
        least = max(int(counts[1:].min()), 1)
        if least > 150:  # below, one token more a call is more than the tolerance
            assert abs(int(counts[0]) / least - ratio) / ratio < 0.1, (ranks, local, topk, ratio, counts)
            assert int(counts[1:].max()) / least < 1.02, (ranks, local, topk, ratio, counts)
            seen += 1
    assert seen > 8


@pytest.mark.parametrize(("ratio", "topk"), [(1.0, 8), (2.0, 2), (4.0, 1)])
def test_random_scores_come_near_the_ratio(ratio, topk) -> None:
    torch.manual_seed(7)
    counts = tokens_of_ranks(3000, 64, 8, topk, ratio, precise=False)
    assert abs(float(counts[0] / counts[1:].float().mean()) / ratio - 1) < 0.05


def test_one_rank_and_no_tokens_are_served() -> None:
    assert tokens_of_ranks(5, 8, 1, 3, 2.0, precise=True).tolist() == [5]
    assert tokens_of_ranks(0, 8, 2, 3, 1.0, precise=True).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((4, 9, 2, 1, 1.0, True), "num_experts"), ((4, 8, 2, 9, 1.0, True), "num_topk"), ((4, 8, 2, 1, 0.5, 0), "ratio")],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, word) -> None:
    with pytest.raises(ValueError, match=word):
        get_unbalanced_scores(*arguments)
