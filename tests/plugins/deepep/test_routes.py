"""Counts and orders of routes that the native module finds are those of torch's operators and of the specification."""

import luciola_core
import numpy as np
import pytest
import torch

from luciola.plugins.deepep import layout, routes
from luciola.plugins.deepep.normal import reference


def chosen(tokens: int, topk: int, experts: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(
        -1, experts, (tokens, topk), generator=torch.Generator().manual_seed(tokens), dtype=dtype
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("tokens", "topk", "experts", "ranks"), [(0, 3, 8, 4), (1, 1, 1, 1), (67, 9, 24, 8)])
def test_layouts_are_those_of_the_specification(dtype, tokens, topk, experts, ranks) -> None:
    idx = chosen(tokens, topk, experts, dtype)
    per_rank, per_expert, in_rank = routes.layout(idx, experts, ranks)
    assert torch.equal(in_rank, reference.is_token_in_rank(idx, experts, ranks))
    assert torch.equal(per_rank, in_rank.sum(0, dtype=torch.int32))
    assert torch.equal(per_expert, torch.bincount(idx[idx >= 0], minlength=experts).int())


@pytest.mark.parametrize("wrong", [-2, 8])
def test_what_is_no_expert_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"expert {wrong} of 8"):
        routes.layout(torch.tensor([[3, wrong]]), 8, 2)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
@pytest.mark.parametrize("channels", [1, 4, 10])
def test_heads_number_the_tokens_of_a_rank(tokens, channels, native) -> None:
    member = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(tokens)) < 0.5
    heads, prefix = layout.heads(member, channels, native=native)
    counts = member.cumsum(0)
    assert torch.equal(heads, torch.where(member, counts - 1, -1).int())
    assert torch.equal(routes.heads(member), heads.long())
    each = -(-tokens // channels)
    ends = [min(number * each, tokens) for number in range(1, channels + 1)]
    wanted = torch.stack([member[:end].sum(0) for end in ends], 1)
    assert torch.equal(prefix, wanted.int())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_rank_keeps_its_own_experts(dtype) -> None:
    idx, weights = chosen(40, 4, 12, dtype), torch.rand(40, 4)
    wanted = layout.local_experts(idx, 2, 3)
    wanted_weights = torch.where(wanted >= 0, weights, 0.0)
    assert (wanted >= 0).any()
    layout.own_experts(idx, weights, rank=2, experts_per_rank=3)
    assert torch.equal(idx, wanted)
    assert torch.equal(weights, wanted_weights)


def test_tokens_are_sorted_by_expert_in_their_order() -> None:
    idx = chosen(50, 4, 12)
    idx[7, 2], idx[8, 1] = 12, -5  # of no expert
    tokens, counts = routes.by_expert(idx, 12)
    pairs = [(expert, token) for token, row in enumerate(idx.tolist()) for expert in row if 0 <= expert < 12]
    assert tokens.tolist() == [token for _, token in sorted(pairs)]
    assert counts.tolist() == [sum(expert == each for expert, _ in pairs) for each in range(12)]


def test_memory_that_holds_no_routes_is_refused() -> None:
    idx = np.zeros((2, 2), np.int64)
    with pytest.raises(BufferError, match="buffers of i64"):
        luciola_core.routes_sort(idx.astype(np.int32), idx, idx)
    with pytest.raises(BufferError, match="contiguous"):
        luciola_core.routes_sort(np.zeros((4, 4), np.int64).T[:, ::2], idx, idx)
    with pytest.raises(ValueError, match="as many weights as experts"):
        luciola_core.routes_keep_own(idx, np.zeros(3, np.float32), 0, 1)
    with pytest.raises(ValueError, match="3 experts on 2 ranks"):
        luciola_core.routes_layout(
            idx, np.zeros((2, 2), np.uint8), np.zeros(2, np.int32), np.zeros(3, np.int32)
        )
    with pytest.raises(BufferError):
        luciola_core.routes_heads(np.zeros((2, 2), np.uint8), np.zeros((1, 2), np.int64))
