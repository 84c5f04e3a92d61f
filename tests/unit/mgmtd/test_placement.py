"""Balance of placements: members, positions, pairs."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.errors import InvalidArgument
from luciola.mgmtd.placement import (
    Site,
    copies_in_domain,
    default_chains,
    pair_bound,
    pairs_of,
    place_aside,
    weights_of,
)
from luciola.mgmtd.placement import place as place_sites

SHAPES = [
    (nodes, replicas, chains)
    for nodes in range(1, 10)
    for replicas in range(1, min(nodes, 4) + 1)
    for chains in sorted({1, nodes, nodes + 1, 3 * nodes, default_chains(nodes, replicas)})
]


def place(nodes, *, replicas, chains):
    """Over nodes that are alike."""
    return place_sites([Site(node) for node in nodes], replicas=replicas, chains=chains)


def spread(counts) -> int:
    return max(counts) - min(counts)


@pytest.mark.parametrize(("nodes", "replicas", "chains"), SHAPES)
def test_members_and_positions_are_balanced(nodes, replicas, chains):
    names = [1000 + 7 * index for index in range(nodes)]
    placed = place(names, replicas=replicas, chains=chains)
    assert len(placed) == chains
    assert all(len(set(chain)) == len(chain) == replicas for chain in placed)
    members = Counter(node for chain in placed for node in chain)
    assert spread([members[name] for name in names]) <= 1
    for position in range(replicas):
        at = Counter(chain[position] for chain in placed)
        uneven = 0 if chains % nodes == 0 else 1
        assert spread([at[name] for name in names]) <= uneven, f"position {position}"


@pytest.mark.parametrize(("nodes", "replicas", "chains"), SHAPES)
def test_pairs_are_balanced(nodes, replicas, chains):
    placed = place(range(1, nodes + 1), replicas=replicas, chains=chains)
    pairs = pairs_of(placed)
    bound = pair_bound(nodes, replicas, chains)
    # Where the number of chains is no multiple of the nodes, the bound is not always possible.
    assert max(pairs.values(), default=0) <= bound + (chains % nodes != 0)
    assert sum(pairs.values()) == chains * replicas * (replicas - 1) // 2


@pytest.mark.parametrize(("nodes", "replicas"), [(3, 2), (4, 2), (4, 3), (5, 2), (5, 3), (6, 3), (7, 3)])
def test_default_number_of_chains_lets_every_pair_meet_equally(nodes, replicas):
    placed = place(range(nodes), replicas=replicas, chains=default_chains(nodes, replicas))
    assert len(placed) >= 8
    pairs = pairs_of(placed)
    assert len(pairs) == nodes * (nodes - 1) // 2
    assert spread(pairs.values()) == 0


def test_same_question_has_the_same_answer():
    assert place([3, 1, 2], replicas=2, chains=9) == place([1, 2, 3, 3], replicas=2, chains=9)


def test_many_nodes_are_placed_in_bounded_time():
    placed = place(range(60), replicas=3, chains=240)
    assert spread(Counter(node for chain in placed for node in chain).values()) == 0
    assert max(pairs_of(placed).values()) <= 2


@pytest.mark.parametrize(
    ("nodes", "replicas", "chains", "message"),
    [
        (2, 3, 1, "3 replicas need"),
        (0, 1, 1, "1 replicas need"),
        (3, 0, 1, "replicas must be"),
        (9, 7, 1, "replicas must be"),
        (3, 2, 0, "chains must be"),
        (3, 2, 100_001, "chains must be"),
    ],
)
def test_impossible_placements_are_refused(nodes, replicas, chains, message):
    with pytest.raises(InvalidArgument, match=message):
        place(range(nodes), replicas=replicas, chains=chains)


def test_default_chains_are_bounded():
    for nodes in range(1, 200):
        for replicas in range(1, 7):
            chains = default_chains(nodes, replicas)
            assert chains % nodes == 0
            assert 8 <= chains <= 16 * max(nodes, 1) or nodes == 1


@st.composite
def clusters(draw):
    """Sites in domains, with weights; replicas; chains."""
    racks = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    sites = [
        Site(100 * rack + number, ("rack", str(rack)), draw(st.sampled_from([1, 4, 8, 16])))
        for rack, count in enumerate(racks, 1)
        for number in range(count)
    ]
    return sites, draw(st.integers(1, min(4, len(sites)))), draw(st.integers(1, 40))


@given(clusters())
def test_no_domain_has_more_copies_than_it_must_and_numbers_follow_weights(cluster):
    sites, replicas, chains = cluster
    placed = place_sites(sites, replicas=replicas, chains=chains)
    assert [len(set(chain)) for chain in placed] == [replicas] * chains
    domain = {site.node: site.domain for site in sites}
    share = copies_in_domain(Counter(domain.values()).values(), replicas)
    for chain in placed:
        assert max(Counter(domain[node] for node in chain).values()) <= share
    if len(set(domain.values())) >= replicas:
        assert share == 1
    counts = Counter(node for chain in placed for node in chain)
    for one in sites:
        for other in sites:
            if one.domain == other.domain and one.weight >= other.weight:
                assert counts[one.node] >= counts[other.node] - 1, "who is larger has not less"
    assert place_sites(list(reversed(sites)), replicas=replicas, chains=chains) == placed


def test_a_node_of_twice_the_size_gets_twice_the_chains():
    sites = [Site(1, weight=2), *(Site(node) for node in range(2, 6))]
    counts = Counter(node for chain in place_sites(sites, replicas=2, chains=30) for node in chain)
    assert counts == {1: 20, 2: 10, 3: 10, 4: 10, 5: 10}


def test_a_large_table_is_placed_in_a_process_of_its_own_as_here():
    sites = [Site(node, ("rack", str(node % 7))) for node in range(40)]
    aside = asyncio.run(place_aside(sites, replicas=3, chains=700))
    assert aside == place_sites(sites, replicas=3, chains=700)
    with pytest.raises(InvalidArgument, match="3 replicas need"):
        asyncio.run(place_aside(sites[:2], replicas=3, chains=700))


def test_disks_that_are_nearly_alike_have_the_same_weight():
    assert weights_of([1000, 990, 500, 3]) == [16, 16, 8, 1]
    assert weights_of([1000, 0]) == [1, 1]
