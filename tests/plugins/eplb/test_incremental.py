"""Placements within a budget of moves: what they cost, what they gain, and that more budget is never worse."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_placements import assert_is_a_placement, lognormal, problems
from luciola.plugins.eplb import (
    align,
    gpu_loads,
    lower_bound,
    moves_between,
    rebalance_experts,
    rebalance_incrementally,
)
from luciola.plugins.eplb.incremental import Point, choose, frontier
from luciola.plugins.eplb.moves import count_moves


def total_peak(weight, physical, gpus):
    return float(gpu_loads(weight, physical, gpus).amax(-1).sum())


@settings(max_examples=12, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.sampled_from(["reference", "optimal"]))
def test_any_budget_is_kept_and_more_is_never_worse(problem, seed, policy):
    weight, slots, _, _, gpus = problem
    current = rebalance_experts(*problem, policy=policy).physical_to_logical_map
    now = weight[:, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))]
    peaks = []
    for budget in (0, 1, 2, 5, 10**9):
        placement, moves = rebalance_incrementally(now, current, gpus, budget=budget)
        physical = placement.physical_to_logical_map
        assert_is_a_placement(placement, weight.shape[1], slots)
        assert len(moves) <= budget
        assert moves == moves_between(current, physical, gpus)
        assert budget or torch.equal(physical, current)
        peaks.append(total_peak(now, physical, gpus))
    assert all(more <= less * (1 + 1e-9) for less, more in pairwise(peaks))


def test_experts_that_stay_on_their_gpu_keep_their_slot():
    current = rebalance_experts(lognormal(4, 64), 72, 1, 1, 8).physical_to_logical_map
    placement, moves = rebalance_incrementally(lognormal(4, 64, seed=1), current, 8, budget=20)
    changed = (placement.physical_to_logical_map != current).nonzero().tolist()
    assert changed == [[move.layer, move.slot] for move in moves]
    assert 0 < len(moves) <= 20


@pytest.mark.parametrize(("experts", "slots", "gpus"), [(64, 72, 8), (256, 288, 32)])
def test_a_budget_without_end_ends_close_to_the_bound(experts, slots, gpus):
    """Each step is judged by the loads after it, of the replicas that shrink with it too: none is taken back."""
    current = rebalance_experts(lognormal(4, experts), slots, 1, 1, gpus).physical_to_logical_map
    weight = lognormal(4, experts, seed=1)
    placement, moves = rebalance_incrementally(weight, current, gpus, budget=10**9)
    assert total_peak(weight, placement[0], gpus) <= 1.01 * float(lower_bound(weight, slots, gpus).sum())
    lacking = [  # what each GPU holds now and did not hold: the net of all steps
        len(set(after) - set(before))
        for layers in zip(
            current.view(4, gpus, -1).tolist(), placement[0].view(4, gpus, -1).tolist(), strict=True
        )
        for before, after in zip(*layers, strict=True)
    ]
    assert len(moves) == sum(lacking)


def test_enough_budget_is_as_good_as_a_plan_from_scratch():
    weight = lognormal(6, 128, seed=1)
    current = rebalance_experts(lognormal(6, 128), 144, 1, 1, 16).physical_to_logical_map
    placement, _ = rebalance_incrementally(weight, current, 16, budget=10**6)
    scratch = rebalance_experts(weight, 144, 1, 1, 16, policy="optimal").physical_to_logical_map
    assert total_peak(weight, placement[0], 16) <= total_peak(weight, scratch, 16) * (1 + 1e-6)


def test_a_third_of_the_moves_of_a_new_plan_is_enough():
    weight = lognormal(6, 256, seed=1) * 0.3 + lognormal(6, 256) * 0.7
    current = rebalance_experts(lognormal(6, 256), 288, 1, 1, 32).physical_to_logical_map
    target = rebalance_experts(weight, 288, 1, 1, 32, policy="optimal").physical_to_logical_map
    budget = len(moves_between(current, target, 32)) // 3
    placement, _ = rebalance_incrementally(weight, current, 32, budget=budget)
    assert total_peak(weight, placement[0], 32) < total_peak(weight, target, 32) * 1.01
    assert total_peak(weight, current, 32) > total_peak(weight, target, 32) * 1.1


def test_one_move_takes_the_obvious_replica():
    # GPU 0 is overloaded by expert 0; the second replica of expert 3 on GPU 1 is worth nothing.
    current = torch.tensor([[0, 1, 3, 2, 3, 4]])
    weight = torch.tensor([[8.0, 1.0, 1.0, 0.5, 1.0]])
    placement, moves = rebalance_incrementally(weight, current, 3, budget=1)
    ((layer, slot, gpu, expert, source_slot, source_gpu),) = moves
    assert (layer, expert, source_slot, source_gpu) == (0, 0, 0, 0)
    assert (slot, gpu) in ((2, 1), (4, 2))
    assert placement.expert_count.tolist() == [[2, 1, 1, 1, 1]]


@pytest.mark.parametrize("budget", [3, 40, 10**6])
def test_experts_stay_on_their_node_where_asked(budget):
    current = rebalance_experts(lognormal(4, 64), 96, 8, 2, 8).physical_to_logical_map
    weight = lognormal(4, 64, seed=1)
    placement, moves = rebalance_incrementally(weight, current, 8, budget=budget, num_nodes=2)
    assert moves
    assert all(move.gpu // 4 == move.source_gpu // 4 for move in moves)
    assert total_peak(weight, placement[0], 8) < total_peak(weight, current, 8)


def test_what_does_not_fit_is_refused():
    current, weight = torch.tensor([[0, 1, 2, 0]]), torch.ones(1, 3)
    with pytest.raises(ValueError, match="budget must not be negative, not -1"):
        rebalance_incrementally(weight, current, 2, budget=-1)
    with pytest.raises(ValueError, match="without a slot"):
        rebalance_incrementally(torch.ones(1, 4), current, 2, budget=1)
    with pytest.raises(ValueError, match="in layer 0, 0 is on two"):
        rebalance_incrementally(weight, current, 2, budget=1, num_nodes=2)
    with pytest.raises(ValueError, match=r"num_gpus \(2\) must be a multiple of num_nodes \(3\)"):
        rebalance_incrementally(weight, current, 2, budget=1, num_nodes=3)
    with pytest.raises(TypeError, match="float"):
        rebalance_incrementally(weight, current, 2, budget=1.5)


points = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20)), max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(points, min_size=1, max_size=4), st.integers(0, 30))
def test_the_choice_over_layers_is_the_best_of_all(layers, budget):
    # The "placement" of a point is its own cost and peak.
    fronts = [
        frontier([Point(moves, float(peak), (moves, peak)) for moves, peak in [(0, 20), *layer]])
        for layer in layers
    ]
    chosen = choose(fronts, budget)
    ways = [way for way in product(*fronts) if sum(point.moves for point in way) <= budget]
    best = min((sum(point.peak for point in way), sum(point.moves for point in way)) for way in ways)
    assert (sum(peak for _, peak in chosen), sum(moves for moves, _ in chosen)) == best


def test_counted_moves_are_listed_moves_and_matched_gpus_need_fewer():
    current, target = (
        rebalance_experts(lognormal(5, 32, seed=seed), 48, 1, 1, 8).physical_to_logical_map for seed in (0, 1)
    )
    matched = align(current, target, 8, num_nodes=2)
    for layer, before in zip(
        matched.view(5, 2, 4, 6).tolist(), target.view(5, 2, 4, 6).tolist(), strict=True
    ):
        for ours, theirs in zip(layer, before, strict=True):  # the same GPUs in each node, in another order
            assert sorted(map(sorted, ours)) == sorted(map(sorted, theirs))
    listed = [len(moves_between(current, each, 8)) for each in (target, matched)]
    assert listed == [
        int(count_moves(current.numpy(), each.numpy(), gpus=8).sum()) for each in (target, matched)
    ]
    assert listed[1] < listed[0]
