"""Plans for chains that exist: the rules hold afterwards, and no replica moves that need not."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.errors import InvalidArgument
from luciola.mgmtd.balance import NONE, plan
from luciola.mgmtd.placement import Site, place


def carried_out(chains, found):
    """The chains after a plan."""
    after = {chain: list(nodes) for chain, nodes in chains.items()}
    for step in found.steps:
        if step.source != NONE:
            after[step.chain].remove(step.source)
        if step.node != NONE:
            after[step.chain].append(step.node)
    return after


def placed(sites, *, replicas, chains):
    return dict(enumerate(place(sites, replicas=replicas, chains=chains), 1))


def sites_of(nodes, *, racks=0):
    return [Site(node, ("rack", str(node % racks)) if racks else ()) for node in nodes]


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 3), st.integers(8, 40))
def test_new_nodes_get_their_part_with_as_few_moves_as_that_needs(nodes, more, replicas, count):
    replicas = min(replicas, nodes)
    chains = placed(sites_of(range(1, nodes + 1)), replicas=replicas, chains=count)
    every = range(1, nodes + more + 1)
    moved = 0
    for _ in range(replicas + 1):  # a chain has one move in a plan
        found = plan(sites_of(every), chains, replicas=replicas)
        chains = carried_out(chains, found)
        counts = Counter(node for members in chains.values() for node in members)
        assert {node: n for node, n in found.after.items() if n} == dict(counts)
        moved += len(found.steps)
    assert max(counts.values()) - min(counts[node] for node in every) <= 1
    assert moved <= more * -(-count * replicas // (nodes + more)), "what the new ones get"
    assert plan(sites_of(every), chains, replicas=replicas).steps == ()


@settings(max_examples=40)
@given(st.integers(4, 9), st.integers(2, 3), st.integers(4, 30), st.integers(1, 9))
def test_node_that_leaves_is_empty_and_others_keep_what_they_have(nodes, replicas, count, leaving):
    leaving = 1 + leaving % nodes
    chains = placed(sites_of(range(1, nodes + 1)), replicas=replicas, chains=count)
    found = plan(sites_of(range(1, nodes + 1)), chains, replicas=replicas, leaving=[leaving])
    after = carried_out(chains, found)
    assert all(leaving not in members for members in after.values())
    assert all(len(set(members)) == replicas for members in after.values())
    away = sum(leaving in members for members in chains.values())
    assert sum(step.source == leaving for step in found.steps) == away


def test_chains_of_a_node_that_leaves_are_spread_over_pairs_of_others():
    sites = sites_of(range(1, 9))
    chains = placed(sites, replicas=3, chains=10)
    after = carried_out(chains, plan(sites, chains, replicas=3, leaving=[4]))
    met = Counter(pair for members in after.values() for pair in combinations(sorted(members), 2))
    assert max(met.values()) <= 2, "30 meetings of 21 pairs"


def test_copies_are_moved_apart_once_racks_are_known():
    chains = placed(sites_of(range(1, 7)), replicas=2, chains=30)
    found = plan(sites_of(range(1, 7), racks=3), chains, replicas=2)
    after = carried_out(chains, found)
    assert all(len({node % 3 for node in members}) == 2 for members in after.values())
    shared = sum(len({node % 3 for node in members}) == 1 for members in chains.values())
    assert shared > 0
    assert sum(chain in {step.chain for step in found.steps} for chain in chains) >= shared


def test_full_and_absent_nodes_keep_what_they_have_and_get_nothing():
    chains = {1: (1, 2), 2: (1, 2), 3: (1, 2), 4: (1, 2)}
    found = plan(sites_of(range(1, 5)), chains, replicas=2, closed=[2, 4])
    assert found.after == {1: 2, 2: 4, 3: 2}


def test_missing_copies_are_added_and_superfluous_ones_removed():
    found = plan(sites_of(range(1, 4)), {1: (1,), 2: (1, 2, 3), 3: (2, 3)}, replicas=2)
    after = carried_out({1: (1,), 2: (1, 2, 3), 3: (2, 3)}, found)
    assert [len(after[chain]) for chain in (1, 2, 3)] == [2, 2, 2]


def test_balanced_chains_stay_where_they_are():
    chains = placed(sites_of(range(1, 8), racks=3), replicas=3, chains=35)
    assert plan(sites_of(range(1, 8), racks=3), chains, replicas=3).steps == ()


def test_too_few_nodes_are_refused():
    with pytest.raises(InvalidArgument, match="2 replicas need"):
        plan(sites_of([1, 2]), {1: (1, 2)}, replicas=2, leaving=[2])
