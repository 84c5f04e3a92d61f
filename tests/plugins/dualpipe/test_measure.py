"""Costs of real stages: what is counted is exact, what is timed is only compared where it must differ by much."""

import pytest
import torch
from torch import Tensor, nn

from luciola.plugins.dualpipe import Linear, WeightGradStore, best_schedule
from luciola.plugins.dualpipe.measure import measure_costs


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width, bias=False)
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Paired(Stage):
    calls: list[tuple[bool, bool]] = []  # noqa: RUF012 - one for all, emptied by the test

    @staticmethod
    def overlapped_forward_backward(
        module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ):
        Paired.calls.append((criterion0 is not None, loss1 is not None))
        output = module0(*inputs0)
        loss = criterion0(output, *labels0) if criterion0 else None
        if loss1 is not None:
            loss1.backward()
        else:
            torch.autograd.backward(outputs1, output_grads1)
        return [output], loss


def square(output: Tensor, label: Tensor) -> Tensor:
    return (output - label).square().mean()


def test_sizes_are_counted() -> None:
    stages = [Stage(8), Stage(8), Stage(8)]
    x, label = torch.randn(5, 8), torch.randn(5, 8)
    costs = measure_costs(stages, [x], criterion=square, labels=[label], tries=1)
    assert costs.parameters == [4 * 4 * 64] * 3
    assert list(costs.activation)[:2] == [5 * 8 * 4] * 2, "a linear layer keeps its input"
    assert list(costs.activation)[2] >= 2 * 5 * 8 * 4, "and the criterion keeps a difference"
    assert costs.stages == 3
    assert all(each.linear.weight.grad is None for each in stages)


def test_weight_gradients_are_put_off_for_one_of_two_backwards() -> None:
    done: list[bool] = []

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            late = WeightGradStore.enabled
            if late:
                WeightGradStore.put(lambda: done.append(late))
            else:
                done.append(late)
            return grad * 2

    class Module(Stage):
        def forward(self, x: Tensor) -> Tensor:
            return Late.apply(super().forward(x))

    x = torch.randn(4, 8)
    costs = measure_costs([Module(8)], [x], criterion=square, labels=[x], tries=3)
    assert done == [False, True] * 3
    assert costs.overlap is None
    assert not WeightGradStore.enabled
    with pytest.raises(RuntimeError):
        WeightGradStore.pop()


def test_pairs_are_timed_with_the_hook_of_the_stages() -> None:
    Paired.calls.clear()
    x = torch.randn(4, 8)
    costs = measure_costs([Paired(8), Paired(8)], [x], criterion=square, labels=[x], tries=1)
    assert Paired.calls == [(False, True), (True, False)]
    assert len(list(costs.overlap)) == 2


def test_several_tensors_and_none_may_cross_a_border() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
            return self.linear(x), None, torch.ones(3)

    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, nothing: None, more: Tensor) -> Tensor:
            assert nothing is None
            assert not more.requires_grad
            return self.linear(x) * more.sum()

    x = torch.randn(4, 8)
    assert measure_costs([Fork(), Join()], [x], criterion=square, labels=[x], tries=1).stages == 2


def test_measured_costs_lead_to_a_plan() -> None:
    x = torch.randn(16, 32)
    costs = measure_costs([Stage(32) for _ in range(4)], [x], criterion=square, labels=[x], tries=2)
    best = best_schedule(costs, ranks=2, chunks=8)
    assert best.timeline is not None
    assert best.timeline.makespan > 0


def test_no_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage and one try, not 0 and 7"):
        measure_costs([], [], criterion=square)
