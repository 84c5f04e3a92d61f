"""Placements close to the bound: the policies "optimal" and "optimal-global".

Hierarchical: groups go to nodes, heaviest first, and are exchanged until nodes are even; a node may take more groups
than another where its slots hold them and the layer gains by it. Then each node of each layer is a row.
Global: each layer is one row. In a row, replicas are chosen and packed (`packing`), and exchanged between GPUs until
these are even (`exchange`). With several load windows the worst one counts, each in its own mean GPU load.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from .balance import gpu_loads, lower_bound
from .exchange import even_out, separate
from .greedy import Indices, Loads
from .packing import Flags, even_counts, pack_apart, shares_of

GAP: Final = 5e-4  # a row within this of the least is good enough
ROUNDS_MAX: Final = 40  # of exchanges; on model sizes 10 to 30 reach the gap


def optimal(loads: npt.NDArray[np.float64], *, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Expert of each slot. With one node, an expert may be anywhere; else each group of experts is on one node.

    Shapes: loads (windows, layers, experts); result (layers, slots).
    """
    relative = _relative(loads, gpus)
    if nodes == 1:
        everyone = np.broadcast_to(np.arange(loads.shape[2]), (loads.shape[1], 1, loads.shape[2]))
        return _place_members(relative, everyone, slots=slots, gpus=gpus)
    members = _members(relative, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    return _place_members(relative, members, slots=slots, gpus=gpus)


def optimal_in_place(loads: npt.NDArray[np.float64], current: Indices, *, gpus: int, nodes: int) -> Indices:
    """Expert of each slot, where each expert stays on the node that has it now.

    Shapes: loads (layers, experts), current and result (layers, slots).
    """
    layers, slots = current.shape
    members = np.full((layers * nodes, slots // nodes), -1)
    for row, held in enumerate(current.reshape(layers * nodes, -1)):
        experts = np.unique(held)
        members[row, : len(experts)] = experts
    members = members.reshape(layers, nodes, -1)
    return _place_members(_relative(loads[None], gpus), members, slots=slots, gpus=gpus)


def _relative(loads: npt.NDArray[np.float64], gpus: int) -> Loads:
    """Loads in mean GPU loads. A layer without load is treated as one with equal loads."""
    mean = loads.sum(axis=2, keepdims=True) / gpus
    relative: Loads = np.where(mean > 0, loads / np.where(mean > 0, mean, 1), gpus / loads.shape[2]).astype(
        np.float32
    )
    return relative


def _place_members(loads: Loads, members: Indices, *, slots: int, gpus: int) -> Indices:
    """Expert of each slot when the experts of each node are `members` (layers, nodes, experts), padded with -1."""
    windows, layers, _ = loads.shape
    nodes = members.shape[1]
    rows = members.reshape(layers * nodes, -1)
    present = rows >= 0
    at = np.maximum(members, 0).reshape(1, layers, -1)
    held = np.take_along_axis(loads, at, axis=2).reshape(windows, *rows.shape)
    on_nodes = np.where(present, held, np.float32(0))
    # A layer is as slow as its heaviest node, so the others need not be better than that.
    means = on_nodes.sum(axis=2).max(axis=0).reshape(layers, nodes) * np.float32(nodes / gpus)
    least = np.repeat(means.max(axis=1), nodes)
    placed = _place(on_nodes, present, least, gpus=gpus // nodes, size=slots // gpus)
    return np.take_along_axis(rows, placed.reshape(layers * nodes, -1), axis=1).reshape(layers, slots)


def _place(loads: Loads, present: Flags, least: Loads, *, gpus: int, size: int) -> Indices:
    """Expert of each slot of each row; `least` is the largest GPU load of a row that is good enough.

    Shapes: loads (windows, rows, experts) in mean GPU loads, present (rows, experts), least (rows,); result
    (rows, gpus, size).
    """
    placed = np.empty((len(present), gpus, size), dtype=np.int64)
    # Where a GPU has a slot for every expert, all GPUs are alike: loads are equal whatever they are.
    alike = present.sum(axis=1) <= size
    for row in np.flatnonzero(alike):
        placed[row] = np.resize(np.flatnonzero(present[row]), size)
    rest = np.flatnonzero(~alike)
    if len(rest):
        some = loads.take(rest, axis=1)
        count = even_counts(some.max(axis=0), present[rest], slots=gpus * size, gpus=gpus)
        apart = pack_apart(some, count, gpus=gpus)
        shares = shares_of(some, apart)
        separate(apart, shares)
        if size > 1:
            even_out(apart, shares, least[rest] * np.float32(1 + GAP), rounds_max=ROUNDS_MAX)
        placed[rest] = apart
    return placed


def better_of(ours: Indices, other: Indices, loads: npt.NDArray[np.float64], *, gpus: int) -> Indices:
    """Of each layer, our placement, or the other where that is better and has no two replicas of an expert on a GPU.

    Where shares are equal, as those of loads like 1/rank, the other may just be luckier.
    Shapes: placements (layers, slots), loads (layers, experts).
    """
    apart = (np.diff(np.sort(other.reshape(len(other), gpus, -1), axis=2), axis=2) != 0).all(axis=(1, 2))
    peaks = [gpu_loads(loads, each, gpus=gpus).max(axis=1) for each in (ours, other)]
    return np.where((apart & (peaks[1] < peaks[0]))[:, None], other, ours)


def _members(loads: Loads, *, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Experts of each node, (layers, nodes, experts at most) padded with -1: whole groups, loads as even as they get.

    Tried with equal numbers of groups, then with as many on a node as its slots hold; each layer takes what gives it
    the lower bound of its worst node.
    """
    windows, layers, experts = loads.shape
    group_size = experts // groups
    equal, most = groups // nodes, min(groups, slots // nodes // group_size)
    of_groups = loads.reshape(windows, layers, groups, group_size).sum(axis=3) * np.float32(nodes / gpus)
    best = np.full((layers, nodes, most), -1)
    bound = np.full(layers, np.inf)
    for room in (equal, most)[: 1 + (most > equal)]:
        plan = _groups_of(of_groups, nodes=nodes, room=room)
        members = _experts_of(plan, group_size)
        found = _worst_bound(loads, members, slots=slots // nodes, gpus=gpus // nodes)
        # A node without experts would have nothing to put into its slots.
        occupied = plan.max(axis=2).min(axis=1) >= 0
        better = occupied & (found < bound * (1 - GAP))
        best[better, :, :room], best[better, :, room:] = plan[better], -1
        bound[better] = found[better]
    return _experts_of(best, group_size)


def _groups_of(of_groups: Loads, *, nodes: int, room: int) -> Indices:
    """Groups of each node, (layers, nodes, room) padded with -1: a group is a replica, a node a GPU."""
    windows, layers, groups = of_groups.shape
    nothing = np.zeros((windows, layers, nodes * room - groups), dtype=np.float32)
    loads = np.concatenate([of_groups, nothing], axis=2)
    placed = pack_apart(loads, np.ones(loads.shape[1:], dtype=np.int64), gpus=nodes)
    if room > 1:
        goal = np.full(layers, 1 + GAP, dtype=np.float32)
        even_out(placed, shares_of(loads, placed), goal, rounds_max=ROUNDS_MAX)
    return np.where(placed < groups, placed, -1)


def _experts_of(plan: Indices, group_size: int) -> Indices:
    layers, nodes, _ = plan.shape
    experts = plan[..., None] * group_size + np.arange(group_size)
    # Padding last, so that it can be cut off where no node needs it.
    return -np.sort(-np.where(plan[..., None] >= 0, experts, -1).reshape(layers, nodes, -1), axis=2)


def _worst_bound(loads: Loads, members: Indices, *, slots: int, gpus: int) -> npt.NDArray[np.float64]:
    windows, layers, _ = loads.shape
    _, nodes, most = members.shape
    at = np.maximum(members, 0).reshape(layers, -1)
    held = np.take_along_axis(loads, at[None], axis=2).reshape(windows, layers, nodes, most)
    on_nodes = np.where(members >= 0, held, 0).astype(np.float64).reshape(-1, most)
    # The bound counts a replica for each of the `most` experts; those that are not there need no slot.
    absent = np.tile((members < 0).sum(axis=2).ravel(), windows)
    bounds = lower_bound(on_nodes, slots=slots + absent, gpus=gpus)
    worst: npt.NDArray[np.float64] = bounds.reshape(windows, layers, nodes).max(axis=(0, 2))
    return worst


__all__ = ["better_of", "optimal", "optimal_in_place"]
