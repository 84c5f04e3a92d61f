"""The plan of deepseek-ai/EPLB, bit for bit where it is defined, in numpy: all layers and nodes at once.

An expert's load is split evenly over its replicas. Hierarchical: groups of experts are packed onto nodes, experts are
replicated inside each node, replicas are packed onto the node's GPUs. Global: the same with one group and one node.

All arithmetic is float32, as the original's. Where the original's order of equal loads depends on an unstable sort,
this is the stable order: equal items keep the order of their index.

Source: deepseek-ai/EPLB, README and semantics; checked against `reference.py`.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Loads: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]


def pack(loads: Loads, packs: int) -> tuple[Indices, Indices]:
    """Pack items into `packs` packs of equal size, the next heaviest onto the lightest pack with room.

    Shapes: loads (rows, items), items a multiple of packs; results (rows, items): pack of each item, rank in it.
    Cost: a step an item, each over all rows at once.
    """
    rows, items = loads.shape
    size = items // packs
    if size == 1:
        place = np.broadcast_to(np.arange(items, dtype=np.int64), loads.shape).copy()
        return place, np.zeros_like(place)
    order = np.argsort(-loads, axis=-1, kind="stable")
    heaviest_first = np.take_along_axis(loads, order, axis=1)
    totals = np.zeros((rows, packs), dtype=np.float32)
    filled = np.zeros((rows, packs), dtype=np.int64)
    pack_of = np.empty((rows, items), dtype=np.int64)
    rank_of = np.empty((rows, items), dtype=np.int64)
    row = np.arange(rows)
    for step in range(items):
        chosen = totals.argmin(axis=1)
        item = order[:, step]
        rank = filled[row, chosen]
        pack_of[row, item] = chosen
        rank_of[row, item] = rank
        filled[row, chosen] = rank + 1
        totals[row, chosen] += heaviest_first[:, step]
        # A full pack is as heavy as infinity; its true total is no longer needed.
        full = rank + 1 == size
        totals[row[full], chosen[full]] = np.inf
    return pack_of, rank_of


def replicate(loads: Loads, slots: int) -> tuple[Indices, Indices, Indices]:
    """Give each of the slots beyond the experts to the expert with the largest load a replica.

    Shapes: loads (rows, experts); results: expert of each slot (rows, slots), its replica number (rows, slots),
    replicas of each expert (rows, experts). Cost: slots - experts steps, each over all rows at once.
    """
    rows, experts = loads.shape
    expert_of = np.empty((rows, slots), dtype=np.int64)
    replica_of = np.zeros((rows, slots), dtype=np.int64)
    expert_of[:, :experts] = np.arange(experts)
    count = np.ones((rows, experts), dtype=np.int64)
    share = loads.copy()
    row = np.arange(rows)
    for slot in range(experts, slots):
        chosen = share.argmax(axis=1)
        expert_of[:, slot] = chosen
        replica_of[:, slot] = count[row, chosen]
        count[row, chosen] += 1
        share[row, chosen] = loads[row, chosen] / count[row, chosen].astype(np.float32)
    return expert_of, replica_of, count


def hierarchical(
    loads: Loads, group_loads: Loads, *, slots: int, nodes: int, gpus: int
) -> tuple[Indices, Indices, Indices]:
    """Expert and replica number of each slot, and replicas of each expert.

    `group_loads` are the sums of the loads of each group; the caller adds them up, because the order of a float32 sum
    is part of the result.
    Shapes: loads (layers, experts), group_loads (layers, groups); results (layers, slots), (layers, slots),
    (layers, experts).
    """
    layers, experts = loads.shape
    groups = group_loads.shape[1]
    group_size, groups_per_node = experts // groups, groups // nodes

    # Experts are renumbered so that those of one node are neighbours.
    node_of, rank_in_node = pack(group_loads, nodes)
    first = (node_of * groups_per_node + rank_in_node) * group_size
    renumbered = (first[:, :, None] + np.arange(group_size)).reshape(layers, experts)
    original = invert(renumbered)

    on_nodes = np.take_along_axis(loads, original, axis=1).reshape(layers * nodes, experts // nodes)
    expert_of, replica_of, count = replicate(on_nodes, slots // nodes)
    per_replica: Loads = np.divide(on_nodes, count, dtype=np.float32)
    share = np.take_along_axis(per_replica, expert_of, axis=1)
    gpu_of, rank_of = pack(share, gpus // nodes)
    order = invert(gpu_of * (slots // gpus) + rank_of)

    expert_of = np.take_along_axis(expert_of, order, axis=1).reshape(layers, nodes, -1)
    expert_of = (expert_of + np.arange(nodes)[:, None] * (experts // nodes)).reshape(layers, slots)
    replica_of = np.take_along_axis(replica_of, order, axis=1).reshape(layers, slots)
    count = np.take_along_axis(count.reshape(layers, experts), renumbered, axis=1)
    return np.take_along_axis(original, expert_of, axis=1), replica_of, count


def invert(order: Indices) -> Indices:
    """The inverse of the permutation in each row."""
    inverse = np.empty_like(order)
    np.put_along_axis(inverse, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return inverse


__all__ = ["Indices", "Loads", "hierarchical", "invert", "pack", "replicate"]
