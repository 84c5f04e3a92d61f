"""Loads and sizes for the tests of placements."""

import torch
from hypothesis import strategies as st


@st.composite
def problems(draw):
    """(weight, slots, groups, nodes, GPUs): ties and zeros as often as not, one expert and one GPU too."""
    nodes = draw(st.integers(1, 3))
    groups = nodes * draw(st.integers(1, 3))
    experts = groups * draw(st.integers(1, 5))
    gpus = nodes * draw(st.integers(1, 4))
    slots = gpus * (-(-experts // gpus) + draw(st.integers(0, 4)))
    if draw(st.booleans()):
        nodes = groups + 1  # groups are no multiple of nodes: the global policy
    load = st.one_of(st.integers(0, 3), st.floats(0, 1e6, width=32))
    row = st.lists(load, min_size=experts, max_size=experts)
    weight = torch.tensor(draw(st.lists(row, min_size=1, max_size=3)), dtype=torch.float32)
    return weight, slots, groups, nodes, gpus


def lognormal(*shape, seed=0):
    """Loads whose logarithm is normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).exp()


def assert_is_a_placement(placement, experts, slots):
    """The three maps agree, and every expert has a slot."""
    physical, logical, count = placement
    layers = len(physical)
    assert physical.shape == (layers, slots)
    assert count.shape == (layers, experts)
    assert logical.shape == (layers, experts, int(count.max()))
    assert {each.dtype for each in placement} == {torch.int64}
    for layer in range(layers):
        held = [
            [slot for slot in range(slots) if physical[layer, slot] == expert] for expert in range(experts)
        ]
        assert count[layer].tolist() == [len(each) for each in held]
        assert all(held)
        for expert in range(experts):
            row = logical[layer, expert].tolist()
            assert sorted(slot for slot in row if slot >= 0) == held[expert]
            assert row[len(held[expert]) :] == [-1] * (len(row) - len(held[expert]))


__all__ = ["assert_is_a_placement", "lognormal", "problems"]
