"""Counts and orders of routes are those of the specification and of counting by hand."""

import pytest
import torch

from luciola.plugins.deepep.normal import layout, reference, row_ops


def chosen(tokens: int, topk: int, experts: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(
        -1, experts, (tokens, topk), generator=torch.Generator().manual_seed(tokens), dtype=dtype
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("tokens", "topk", "experts", "ranks"), [(0, 3, 8, 4), (1, 1, 1, 1), (67, 9, 24, 8)])
def test_layouts_are_those_of_the_specification(dtype, tokens, topk, experts, ranks) -> None:
    idx = chosen(tokens, topk, experts, dtype)
    found = layout.count(idx, experts, num_ranks=ranks)
    per_rank, per_expert = found.num_tokens_per_rank, found.num_tokens_per_expert
    in_rank = found.is_token_in_rank
    assert torch.equal(in_rank, reference.is_token_in_rank(idx, experts, ranks))
    assert torch.equal(per_rank, in_rank.sum(0, dtype=torch.int32))
    assert torch.equal(per_expert, torch.bincount(idx[idx >= 0], minlength=experts).int())


@pytest.mark.parametrize("wrong", [-2, 8])
def test_what_is_no_expert_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="experts are 0 to 7, or -1 for none"):
        layout.count(torch.tensor([[3, wrong]]), 8, num_ranks=2)


@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
@pytest.mark.parametrize("channels", [1, 4, 10])
def test_heads_number_the_tokens_of_a_rank(tokens, channels) -> None:
    member = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(tokens)) < 0.5
    heads, prefix = layout.heads(member, channels)
    counts = member.cumsum(0)
    assert torch.equal(heads, torch.where(member, counts - 1, -1).int())
    each = -(-tokens // channels)
    ends = [min(number * each, tokens) for number in range(1, channels + 1)]
    wanted = torch.stack([member[:end].sum(0) for end in ends], 1)
    assert torch.equal(prefix, wanted.int())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_rank_keeps_its_own_experts(dtype) -> None:
    idx, weights = chosen(40, 4, 12, dtype), torch.rand(40, 4)
    local, own = layout.own_experts(idx, weights, rank=2, experts_per_rank=3)
    assert local.dtype == dtype
    for got, kept, expert, weight in zip(
        *(each.flatten().tolist() for each in (local, own, idx, weights)), strict=True
    ):
        assert (got, kept) == ((expert - 6, weight) if 6 <= expert < 9 else (-1, 0.0))


def test_tokens_are_sorted_by_expert_in_their_order() -> None:
    idx = chosen(50, 4, 12)
    idx[7, 2], idx[8, 1] = 12, -5  # of no expert
    tokens, counts = layout.by_expert(idx, 12)
    pairs = [(expert, token) for token, row in enumerate(idx.tolist()) for expert in row if 0 <= expert < 12]
    assert tokens.tolist() == [token for _, token in sorted(pairs)]
    assert counts.tolist() == [sum(expert == each for expert, _ in pairs) for each in range(12)]


def test_a_number_that_is_no_expert_counts_as_none() -> None:
    idx = torch.tensor([[0, 7], [8, -3], [5, 99]])
    assert layout.expert_counts(idx, 8).tolist() == [1, 0, 0, 0, 0, 1, 0, 1]
    owner = layout.owners(idx, 8, 4)
    assert owner.tolist() == [[0, 3], [-1, -1], [2, -1]]
    assert layout.members(owner, 4).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_summed_in_order_and_rounded_once(dtype, kernel_device) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(count, 40, generator=generator, device="cpu").to(dtype) for count in (9, 1, 5)]
    places = torch.stack(
        [torch.randint(-1, len(each), (20,), generator=generator, device="cpu") for each in parts], 1
    )
    weights = torch.rand(20, 3, generator=generator, device="cpu")
    for given in (None, weights):
        wanted = torch.zeros(20, 40, device="cpu")
        for token in range(20):
            for p, part in enumerate(parts):
                if places[token, p] >= 0:
                    row = part[places[token, p]].float()
                    wanted[token] += row if given is None else row * given[token, p]
        there = [each.to(kernel_device) for each in parts], places.to(kernel_device)
        got = row_ops.summed(*there, None if given is None else given.to(kernel_device))
        assert torch.equal(got.cpu(), wanted.to(dtype))


def test_sums_on_a_device_read_nothing_on_the_host() -> None:
    """Tensors without memory: an operator whose result has as many rows as a tensor's values say is an error."""
    parts = [torch.empty(count, 40, dtype=torch.bfloat16, device="meta") for count in (9, 0)]
    places = torch.empty(20, 2, dtype=torch.int64, device="meta")
    assert row_ops.summed(parts, places).shape == (20, 40)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.nonzero(places)
