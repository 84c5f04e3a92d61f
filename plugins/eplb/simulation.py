"""What each way of balancing would have done over a series of loads, and what it would have moved.

A plan is made from the loads of one moment and meets those of the next, as in service. Every way starts with the
experts in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .plan_file import bound_nodes, experts_in_order, settled
from .rebalance import (
    Policy,
    imbalance,
    lower_bound,
    moves_between,
    rebalance_experts,
    rebalance_incrementally,
)

Replan = Callable[[Tensor, Tensor], Tensor]
"""(loads, current placement) -> placement"""


@dataclass(frozen=True)
class Machine:
    """What the experts are placed on."""

    replicas: int
    groups: int
    nodes: int
    gpus: int

    @property
    def bound_nodes(self) -> int:
        """How many nodes an expert is bound to one of."""
        return bound_nodes("optimal", groups=self.groups, nodes=self.nodes)

    def in_order(self, loads: Tensor) -> Tensor:
        """Where everything starts."""
        return experts_in_order(loads, self.replicas, nodes=self.bound_nodes)


@dataclass(frozen=True)
class Outcome:
    """One way over the whole series. Balance: largest over mean GPU load, of the loads that a plan met."""

    name: str
    balance: float  # mean over layers and moments
    worst: float
    moves: int  # in all
    most_moves: int  # in one moment


def play(series: Sequence[Tensor], machine: Machine, budgets: Sequence[int] = ()) -> list[Outcome]:
    """All ways over `series`, tensors (layers, experts) of one shape, at least two.

    Budgets are moves a moment, all layers together. Raises: ValueError for loads that do not fit.
    """
    if len(series) < 2:
        raise ValueError("a series has at least two moments: plans are made from one and meet the next")
    if len({tuple(loads.shape) for loads in series}) > 1:
        raise ValueError(
            f"loads of one shape, not {', '.join(str(tuple(loads.shape)) for loads in series[:4])}"
        )
    first = _anew(machine, "optimal")(series[0], machine.in_order(series[0]))
    ways: dict[str, Replan] = {"no balancing": lambda _, current: current, "first plan": lambda _, __: first}
    policies: tuple[Policy, ...] = ("reference", "optimal")
    for policy in policies:
        ways[policy] = _anew(machine, policy)
    ways |= {f"at most {budget} moves": _within(machine, budget) for budget in budgets}
    return [*(_play(name, replan, series, machine) for name, replan in ways.items()), _bound(series, machine)]


def _anew(machine: Machine, policy: Policy) -> Replan:
    def replan(loads: Tensor, current: Tensor) -> Tensor:
        placement = rebalance_experts(
            loads, machine.replicas, machine.groups, machine.nodes, machine.gpus, policy=policy
        )
        target = placement.physical_to_logical_map
        return settled(current, target, gpus=machine.gpus, nodes=machine.bound_nodes)

    return replan


def _within(machine: Machine, budget: int) -> Replan:
    def replan(loads: Tensor, current: Tensor) -> Tensor:
        placement, _ = rebalance_incrementally(
            loads, current, machine.gpus, budget=budget, num_nodes=machine.bound_nodes
        )
        return placement.physical_to_logical_map

    return replan


def _play(name: str, replan: Replan, series: Sequence[Tensor], machine: Machine) -> Outcome:
    current = machine.in_order(series[0])
    ratios, moves = [], []
    for known, met in pairwise(series):
        after = replan(known, current)
        moves.append(len(moves_between(current, after, machine.gpus)))
        ratios.append(imbalance(met, after, machine.gpus))
        current = after
    all_ratios = torch.stack(ratios)
    return Outcome(name, float(all_ratios.mean()), float(all_ratios.max()), sum(moves), max(moves))


def _bound(series: Sequence[Tensor], machine: Machine) -> Outcome:
    ratios = []
    for met in series[1:]:
        mean = met.sum(-1) / machine.gpus
        bound = lower_bound(met, machine.replicas, machine.gpus)
        ratios.append(torch.where(mean > 0, bound / torch.where(mean > 0, mean, 1.0), 1.0))
    all_ratios = torch.stack(ratios)
    return Outcome("bound", float(all_ratios.mean()), float(all_ratios.max()), 0, 0)


__all__ = ["Machine", "Outcome", "play"]
