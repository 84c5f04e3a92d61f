"""EPLB's module, over `luciola.plugins.eplb`: its function, and the steps that it is made of."""

import numpy as np
import torch
from torch import Tensor

from luciola.plugins.eplb import rebalance_experts
from luciola.plugins.eplb.greedy import Indices, Loads, hierarchical, pack, replicate


def balanced_packing(weight: Tensor, num_packs: int) -> tuple[Tensor, Tensor]:
    """Pack the items of each row into packs of equal size and about equal weight: pack of each item, rank in it.

    Shapes: weight (rows, items), items a multiple of num_packs; results (rows, items) int64.
    """
    packs, ranks = pack(_loads(weight), num_packs)
    return _tensor(packs), _tensor(ranks)


def replicate_experts(weight: Tensor, num_phy: int) -> tuple[Tensor, Tensor, Tensor]:
    """Replicate experts until `num_phy` slots are filled: expert of each slot, its replica number, replicas an expert.

    Shapes: weight (rows, experts), num_phy at least experts; results (rows, num_phy) twice, (rows, experts), int64.
    """
    experts, replicas, count = replicate(_loads(weight), num_phy)
    return _tensor(experts), _tensor(replicas), _tensor(count)


def rebalance_experts_hierarchical(
    weight: Tensor, num_physical_experts: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pack groups onto nodes, replicate in each node, pack onto its GPUs.

    Shapes: weight (layers, experts); results: expert of each slot and its replica number (layers, slots), replicas of
    each expert (layers, experts), int64.
    """
    loads = weight.float().cpu()
    groups = loads.reshape(len(loads), num_groups, -1).sum(-1)
    experts, replicas, count = hierarchical(
        loads.numpy(), groups.numpy(), slots=num_physical_experts, nodes=num_nodes, gpus=num_gpus
    )
    return _tensor(experts), _tensor(replicas), _tensor(count)


def inverse(perm: Tensor) -> Tensor:
    """The inverse of the permutation in each row."""
    return perm.argsort(-1)


def _loads(weight: Tensor) -> Loads:
    return weight.float().cpu().numpy()


def _tensor(array: Indices) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


__all__ = [
    "balanced_packing", "inverse", "rebalance_experts", "rebalance_experts_hierarchical", "replicate_experts",
]  # fmt: skip
