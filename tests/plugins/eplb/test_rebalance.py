"""What the public functions accept, refuse and say."""

import subprocess
import sys

import pytest
import torch

from eplb_placements import lognormal
from luciola.plugins import eplb
from luciola.plugins.eplb import (
    align,
    gpu_loads,
    imbalance,
    lower_bound,
    moves_between,
    rebalance_experts,
)

WEIGHT = lognormal(2, 12)


@pytest.mark.parametrize("policy", ["reference", "optimal"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(12)}, r"weight must be \(layers, experts\).*not \(12,\)"),
        ({"weight": torch.ones(0, 12)}, r"not \(0, 12\)"),
        ({"weight": torch.ones(1, 1, 1, 12)}, r"not \(1, 1, 1, 12\)"),
        ({"weight": torch.full((2, 12), float("nan"))}, r"finite.*weight\[0, 0\] is nan"),
        ({"weight": torch.full((2, 12), float("inf"))}, "finite"),
        ({"weight": torch.full((2, 12), 1e300, dtype=torch.float64)}, "finite in float32"),
        ({"weight": -torch.eye(12)}, r"not negative: weight\[0, 0\] is -1.0"),
        ({"weight": torch.full((2, 12), 3e38)}, "overflows float32"),
        ({"num_replicas": 18}, r"num_replicas \(18\) must be a multiple of num_gpus \(8\)"),
        ({"num_replicas": 8}, r"num_replicas \(8\) must be at least the number of experts \(12\)"),
        ({"num_replicas": 0}, "num_replicas must be at least 1, not 0"),
        ({"num_groups": -4}, "num_groups must be at least 1, not -4"),
        ({"num_nodes": 0}, "num_nodes must be at least 1, not 0"),
        ({"num_gpus": 0}, "num_gpus must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_placed_is_refused(policy, changes, message):
    arguments = {
        "weight": WEIGHT,
        "num_replicas": 16,
        "num_groups": 4,
        "num_nodes": 2,
        "num_gpus": 8,
    } | changes
    with pytest.raises(ValueError, match=message):
        rebalance_experts(**arguments, policy=policy)


@pytest.mark.parametrize("policy", ["reference", "optimal"])
def test_groups_and_nodes_must_fit_where_they_count(policy):
    with pytest.raises(AssertionError, match=r"experts \(12\) must be"):  # as the original; a ValueError too
        rebalance_experts(WEIGHT, 16, 8, 2, 8, policy=policy)
    with pytest.raises(ValueError, match=r"experts \(12\) must be a multiple of num_groups \(8\)"):
        rebalance_experts(WEIGHT, 16, 8, 2, 8, policy=policy)
    with pytest.raises(ValueError, match=r"num_gpus \(8\) must be a multiple of num_nodes \(3\)"):
        rebalance_experts(WEIGHT, 16, 3, 3, 8, policy=policy)
    rebalance_experts(
        WEIGHT, 16, 5, 2, 8, policy=policy
    )  # no multiple of the nodes: the global policy ignores both


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="real torch tensor, not list"):
        rebalance_experts([[1.0]], 1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"not torch\.complex64"):
        rebalance_experts(torch.ones(1, 1, dtype=torch.complex64), 1, 1, 1, 1)
    with pytest.raises(TypeError, match="float"):
        rebalance_experts(WEIGHT, 16.0, 4, 2, 8)
    with pytest.raises(ValueError, match="policy must be one of reference, optimal, not 'best'"):
        rebalance_experts(WEIGHT, 16, 4, 2, 8, policy="best")
    with pytest.raises(ValueError, match=r"not \(3, 2, 12\)"):
        rebalance_experts(torch.ones(3, 2, 12), 16, 4, 2, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_any_real_dtype_is_taken_as_float32(dtype):
    weight = (WEIGHT * 10).to(dtype).requires_grad_(dtype.is_floating_point)
    for ours, theirs in zip(
        rebalance_experts(weight, 16, 4, 2, 8),
        rebalance_experts(weight.detach().float(), 16, 4, 2, 8),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_loads_are_split_evenly_over_replicas():
    physical = torch.tensor([[0, 1, 0, 2]])
    weight = torch.tensor([[6.0, 1.0, 3.0]])
    assert gpu_loads(weight, physical, 2).tolist() == [[4.0, 6.0]]
    assert imbalance(weight, physical, 2).tolist() == [1.2]
    assert imbalance(torch.zeros(1, 3), physical, 2).tolist() == [1.0]


def test_bound_counts_the_slots_that_heavy_experts_need():
    # 4 GPUs with one slot, 10 for one expert: two replicas of it are all that 4 slots allow, 5 each.
    assert lower_bound(torch.tensor([[10.0, 1.0, 1.0]]), 4, 4).tolist() == pytest.approx([5.0])
    assert lower_bound(torch.tensor([[1.0, 1.0, 1.0]]), 4, 2).tolist() == pytest.approx([1.5])


def test_placements_that_do_not_fit_are_refused():
    weight = torch.ones(1, 3)
    for physical, message in (
        (torch.tensor([[0, 1, 0, 3]]), "0..2, not 3"),
        (torch.tensor([[0, 1, 0, -1]]), "an expert in every slot, not -1"),
        (torch.tensor([[0, 1, 0, 1]]), "layer 0, expert 2 without a slot"),
        (torch.tensor([[0, 1, 2]]), r"slots \(3\) must be a multiple of num_gpus \(2\)"),
        (torch.tensor([[0, 1, 2, 0]] * 2), "2 layers, weight has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            gpu_loads(weight, physical, 2)
    with pytest.raises(TypeError, match="integers"):
        gpu_loads(weight, torch.ones(1, 4), 2)


def test_moves_are_what_gpus_lack():
    current, target = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[1, 0, 1, 2]])
    (move,) = moves_between(current, target, 2)
    assert move == (0, 2, 1, 1, 1, 0)
    assert (move.layer, move.slot, move.gpu, move.expert, move.source_slot, move.source_gpu) == move
    assert align(current, target, 2).tolist() == [[0, 1, 2, 1]]
    with pytest.raises(ValueError, match="same experts"):
        moves_between(current, torch.tensor([[1, 0, 1, 3]]), 2)
    with pytest.raises(ValueError, match="one shape"):
        moves_between(current, target[:, :2], 1)


def test_moves_carry_out_the_target():
    weight = lognormal(4, 32)
    current = rebalance_experts(weight, 48, 1, 1, 8).physical_to_logical_map
    target = align(current, rebalance_experts(weight.flip(-1), 48, 1, 1, 8).physical_to_logical_map, 8)
    held = [[set(gpu) for gpu in layer] for layer in current.view(4, 8, 6).tolist()]
    for move in moves_between(current, target, 8):
        assert current[move.layer, move.source_slot] == move.expert == target[move.layer, move.slot]
        assert (move.gpu, move.source_gpu) == (move.slot // 6, move.source_slot // 6)
        assert move.expert not in held[move.layer][move.gpu]
        held[move.layer][move.gpu].add(move.expert)
    assert all(
        set(gpu) <= held[layer][index]
        for layer, gpus in enumerate(target.view(4, 8, 6).tolist())
        for index, gpu in enumerate(gpus)
    )


def test_describe_and_import_need_neither_torch_nor_numpy():
    code = "import sys, luciola.plugins.eplb as e; e.describe(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert "state" in eplb.describe()
