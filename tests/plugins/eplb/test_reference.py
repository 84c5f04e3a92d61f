"""The numpy plan equals the specification bit for bit, and the specification the documented example."""

import pytest
import torch
from hypothesis import given, settings

from eplb_placements import assert_is_a_placement, lognormal, problems
from luciola.plugins.eplb import rebalance_experts
from luciola.plugins.eplb.reference import rebalance_experts as specification

# The example of deepseek-ai/EPLB's README: 2 layers, 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs.
WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHYSICAL = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
COUNT = [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]


@pytest.mark.parametrize("rebalance", [rebalance_experts, specification])
def test_documented_example_gives_the_documented_plan(rebalance):
    physical, logical, count = rebalance(torch.tensor(WEIGHT), 16, 4, 2, 8)
    assert physical.tolist() == PHYSICAL
    assert count.tolist() == COUNT
    assert logical.shape == (2, 12, 2)
    assert logical[0, 5].tolist() == [0, 2]
    assert logical[0, 6].tolist() == [1, -1]
    assert {each.dtype for each in (physical, logical, count)} == {torch.int64}


@settings(max_examples=40, deadline=None)
@given(problems())
def test_plan_equals_the_specification(problem):
    placement = rebalance_experts(*problem)
    for ours, theirs in zip(placement, specification(*problem), strict=True):
        assert torch.equal(ours, theirs)
    assert_is_a_placement(placement, problem[0].shape[1], problem[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["uniform", "lognormal", "integer", "zipf"])
def test_plan_equals_the_specification_on_common_loads(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    nodes, groups, size, per_node, spare = (
        int(torch.randint(low, high, (), generator=generator))
        for low, high in ((1, 4), (1, 4), (1, 9), (1, 5), (0, 3))
    )
    groups *= nodes
    gpus, experts = nodes * per_node, groups * size
    slots = gpus * (-(-experts // gpus) + spare)
    shape = (3, experts)
    weight = {
        "uniform": lambda: torch.rand(shape, generator=generator),
        "lognormal": lambda: torch.randn(shape, generator=generator).exp(),
        "integer": lambda: torch.randint(0, 9, shape, generator=generator),
        "zipf": lambda: 1 / (1 + torch.rand(shape, generator=generator).argsort(-1)).double(),
    }[kind]()
    problem = (weight, slots, groups, nodes, gpus)
    for ours, theirs in zip(rebalance_experts(*problem), specification(*problem), strict=True):
        assert torch.equal(ours, theirs)


def test_plan_equals_the_specification_at_a_model_s_size():
    weight = lognormal(2, 256)
    for problem in ((weight, 288, 8, 4, 32), (weight, 288, 1, 1, 144), (weight, 320, 8, 1, 320)):
        for ours, theirs in zip(rebalance_experts(*problem), specification(*problem), strict=True):
            assert torch.equal(ours, theirs)


def test_strides_of_the_input_do_not_matter_beyond_their_sums():
    weight = lognormal(40, 6).T
    for ours, theirs in zip(
        rebalance_experts(weight, 48, 4, 2, 8), specification(weight, 48, 4, 2, 8), strict=True
    ):
        assert torch.equal(ours, theirs)
