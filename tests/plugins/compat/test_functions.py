"""What the packages have beside the plugins' own names."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from luciola.plugins.compat import eplb
from luciola.plugins.compat.deep_ep.utils import comm, envs
from luciola.plugins.compat.dualpipe import DualPipeV, WeightGradStore
from luciola.plugins.compat.dualpipe.utils import run_backward
from luciola.plugins.kernels.errors import BadCall

# Of EPLB's README; the result is what the original gives for it.
WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHYSICAL = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
COUNT = [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]


def test_eplb_and_the_steps_that_it_is_made_of_give_the_originals_plan():
    weight = torch.tensor(WEIGHT)
    physical, logical, count = eplb.rebalance_experts(weight, 16, 4, 2, 8)
    assert (physical.tolist(), count.tolist()) == (PHYSICAL, COUNT)
    by_steps = eplb.rebalance_experts_hierarchical(weight, 16, 4, 2, 8)
    assert (by_steps[0].tolist(), by_steps[2].tolist()) == (PHYSICAL, COUNT)
    # The replica number of a slot is its place in the other map.
    for layer, experts in enumerate(PHYSICAL):
        for slot, expert in enumerate(experts):
            assert logical[layer, expert, by_steps[1][layer, slot]] == slot


def test_packing_and_replication_are_greedy():
    packs, ranks = eplb.balanced_packing(torch.tensor([[3.0, 9, 1, 7]]), 2)
    assert (packs.tolist(), ranks.tolist()) == ([[1, 0, 0, 1]], [[1, 0, 1, 0]])  # 9; 7; 3 onto 7; 1 onto 9
    experts, replicas, count = eplb.replicate_experts(torch.tensor([[6.0, 10, 1]]), 5)
    assert experts.tolist() == [[0, 1, 2, 1, 0]]  # 10 is halved, then 6 is the heaviest
    assert (replicas.tolist(), count.tolist()) == ([[0, 0, 0, 1, 1]], [[2, 2, 1]])
    assert eplb.inverse(torch.tensor([[2, 0, 1]])).tolist() == [[1, 2, 0]]


class Product(torch.autograd.Function):
    """A product that puts its weight gradient off, as users of the original write it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors

        def add():
            found = grad.T @ x
            weight.grad = found if weight.grad is None else weight.grad + found

        if WeightGradStore.enabled:
            WeightGradStore.put(add)
        else:
            add()
        return grad @ weight, None


class Stage(nn.Module):
    pairs = 0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(Product.apply(x, self.weight))

    @classmethod
    def overlapped_forward_backward(
        cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ):
        Stage.pairs += 1
        outputs0 = module0(*inputs0)
        loss0 = criterion0(outputs0, *labels0) if criterion0 is not None else None
        if loss1 is not None:
            loss1.backward()
            loss1.detach_()
        else:
            run_backward(outputs1, output_grads1)
        return [outputs0], loss0


def test_a_program_for_dualpipe_with_its_own_layer_and_hook_trains_as_without_a_pipeline():
    torch.manual_seed(5)
    stages = [Stage(), Stage()]
    x, labels = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    losses, _ = DualPipeV(stages).step(x, num_chunks=4, criterion=nn.functional.mse_loss, labels=(labels,))
    wanted = []
    weights = [each.weight.detach().clone().requires_grad_() for each in stages]
    for chunk in range(4):
        rows = slice(2 * chunk, 2 * chunk + 2)
        y = torch.tanh(torch.tanh(x[rows] @ weights[0].T) @ weights[1].T)
        wanted.append((y - labels[rows]).square().mean())
        wanted[-1].backward()
    assert Stage.pairs > 0
    assert torch.allclose(losses, torch.stack(wanted), atol=1e-14)
    for stage, weight in zip(stages, weights, strict=True):
        assert torch.allclose(stage.weight.grad, weight.grad, atol=1e-13)


def test_backward_of_nothing_that_needs_a_gradient_does_nothing():
    leaf = torch.ones(2, requires_grad=True)
    run_backward((torch.ones(2), 3 * leaf), (torch.ones(2), torch.tensor([1.0, 2.0])))
    run_backward((torch.ones(2),), (torch.ones(2),))
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3, 6]


def test_checks_of_deep_ep_say_what_is_wrong(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        envs.check_nvlink_connections(dist.group.WORLD)  # no GPU, or one: nothing to connect
        with pytest.raises(BadCall, match="nccl backend"):
            comm.get_nccl_comm_handle(dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    comm.destroy_all_managed_nccl_comm()
    envs.check_torch_deterministic()
    torch.use_deterministic_algorithms(mode=True)
    try:
        with pytest.raises(BadCall, match="fill_uninitialized_memory = False"):
            envs.check_torch_deterministic()
    finally:
        torch.use_deterministic_algorithms(mode=False)
