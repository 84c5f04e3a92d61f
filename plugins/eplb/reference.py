"""The specification: the plan of deepseek-ai/EPLB in plain torch. Slow; tests and benchmarks compare with it.

An expert's load is split evenly over its replicas; all arithmetic is float32. The original sorts without keeping the
order of equal loads; here equal loads keep the order of their index.

Source: deepseek-ai/EPLB, README and semantics.
"""

import torch
from torch import Tensor


def rebalance_experts(
    weight: Tensor, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `luciola.plugins.eplb.rebalance_experts`, for inputs that it accepts."""
    weight = weight.float().cpu()
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    layers, experts = weight.shape
    group_size, per_node = experts // num_groups, num_replicas // num_nodes

    # Experts are renumbered so that those of one node are neighbours.
    node_of, rank_of = pack(weight.reshape(layers, num_groups, group_size).sum(-1), num_nodes)
    first = (node_of * (num_groups // num_nodes) + rank_of) * group_size
    renumbered = (first.unsqueeze(-1) + torch.arange(group_size)).flatten(-2)
    original = renumbered.argsort(-1)

    on_nodes = weight.gather(-1, original).view(layers * num_nodes, experts // num_nodes)
    expert_of, replica_of, count = replicate(on_nodes, per_node)
    gpu_of, rank_of = pack((on_nodes / count).gather(-1, expert_of), num_gpus // num_nodes)
    order = (gpu_of * (num_replicas // num_gpus) + rank_of).argsort(-1)

    start = torch.arange(num_nodes).repeat(layers).unsqueeze(-1) * (experts // num_nodes)
    numbered = (expert_of.gather(-1, order) + start).view(layers, num_replicas)
    physical = original.gather(-1, numbered)
    replica = replica_of.gather(-1, order).view(layers, num_replicas)
    most = int(count.max())
    logical = torch.full((layers, experts * most), -1, dtype=torch.int64)
    logical.scatter_(-1, physical * most + replica, torch.arange(num_replicas).repeat(layers, 1))
    return physical, logical.view(layers, experts, most), count.view(layers, experts).gather(-1, renumbered)


def pack(loads: Tensor, packs: int) -> tuple[Tensor, Tensor]:
    """Pack of each item and its rank there: each item, the heaviest first, goes to the lightest pack with room."""
    rows, items = loads.shape
    size = items // packs
    pack_of = torch.arange(items).repeat(rows, 1)
    rank_of = torch.zeros_like(pack_of)
    if size == 1:
        return pack_of, rank_of
    order = loads.sort(dim=-1, descending=True, stable=True).indices
    for row in range(rows):
        totals = [torch.tensor(0.0)] * packs
        filled = [0] * packs
        for item in order[row]:
            chosen = min((each for each in range(packs) if filled[each] < size), key=totals.__getitem__)
            pack_of[row, item] = chosen
            rank_of[row, item] = filled[chosen]
            totals[chosen] = totals[chosen] + loads[row, item]
            filled[chosen] += 1
    return pack_of, rank_of


def replicate(loads: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Expert and replica number of each slot, and replicas of each expert.

    Each slot beyond the experts goes to the expert with the largest load a replica.
    """
    rows, experts = loads.shape
    expert_of = torch.arange(slots).repeat(rows, 1)
    replica_of = torch.zeros_like(expert_of)
    count = torch.ones(rows, experts, dtype=torch.int64)
    every_row = torch.arange(rows)
    for slot in range(experts, slots):
        chosen = (loads / count).max(-1).indices
        expert_of[:, slot] = chosen
        replica_of[:, slot] = count[every_row, chosen]
        count[every_row, chosen] += 1
    return expert_of, replica_of, count


__all__ = ["pack", "rebalance_experts", "replicate"]
