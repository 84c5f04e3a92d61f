"""Placements close to the bound: the policy "optimal".

With several nodes, groups of experts go to nodes, heaviest first, and are exchanged until nodes are even: with equally
many groups on each node, and where that leaves nodes uneven, with as many as its slots hold. Then each node of a layer
is a row; with one node, each layer. In each row

1. each slot beyond the experts goes to the expert with the largest load a replica,
2. the heaviest replica goes onto the lightest GPU with room,
3. GPUs exchange replicas until none holds two of one expert and all are even (`exchange`).

A layer that was placed twice takes the better placement. With several load windows, the worst one counts, each in its
own mean.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from .balance import Floats, gpu_loads, slot_loads
from .exchange import even_out, separate
from .greedy import Indices, Loads, invert, pack

Flags: TypeAlias = npt.NDArray[np.bool_]

GAP: Final = np.float32(5e-4)  # a row within this of the least is good enough


def optimal(loads: Floats, *, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Expert of each slot. With one node, an expert may be anywhere; else each group of experts is on one node.

    Shapes: loads (windows, layers, experts); result (layers, slots).
    """
    relative = _relative(loads, gpus)
    windows, layers, experts = loads.shape
    if nodes == 1:
        everyone = np.broadcast_to(np.arange(experts), (layers, 1, experts))
        return _place_members(relative, everyone, slots=slots, gpus=gpus)
    group_size = experts // groups
    of_groups = relative.reshape(windows, layers, groups, group_size).sum(axis=3) * np.float32(nodes / gpus)
    equal, most = groups // nodes, min(groups, slots // nodes // group_size)
    members, worst = _members(of_groups, group_size, nodes=nodes, room=equal)
    placed = _place_members(relative, members, slots=slots, gpus=gpus)
    if most > equal:
        members, _ = _members(of_groups, group_size, nodes=nodes, room=most)
        # A node without experts would have nothing to put into its slots.
        some = np.flatnonzero((worst > 1 + GAP) & (members.max(axis=2) >= 0).all(axis=1))
        if len(some):
            other = _place_members(relative.take(some, axis=1), members[some], slots=slots, gpus=gpus)
            placed[some] = best_of([placed[some], other], loads.take(some, axis=1), gpus=gpus)
    return placed


def optimal_in_place(loads: Floats, current: Indices, *, gpus: int, nodes: int) -> Indices:
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


def best_of(placements: Sequence[Indices], loads: Floats, *, gpus: int) -> Indices:
    """Of each layer, the placement with the least GPU load in its worst window, the first of equals.

    Shapes: placements (layers, slots), loads (windows, layers, experts).
    """
    relative = _relative(loads, gpus)
    peaks = [gpu_loads(relative, placed, gpus=gpus).max(axis=(0, 2)) for placed in placements]
    chosen: Indices = np.stack(placements)[np.argmin(peaks, axis=0), np.arange(len(placements[0]))]
    return chosen


def has_duplicates(placed: Indices, *, gpus: int) -> Flags:
    """Return whether a GPU holds two replicas of one expert. Shapes: placed (layers, slots); result (layers,)."""
    in_order = np.sort(placed.reshape(len(placed), gpus, -1), axis=2)
    duplicates: Flags = (np.diff(in_order, axis=2) == 0).any(axis=(1, 2))
    return duplicates


def _relative(loads: Floats, gpus: int) -> Loads:
    """Loads in mean GPU loads. A layer without load is treated as one with equal loads."""
    mean = loads.sum(axis=2, keepdims=True) / gpus
    relative = np.where(mean > 0, loads / np.where(mean > 0, mean, 1), gpus / loads.shape[2])
    return relative.astype(np.float32)


def _place_members(loads: Loads, members: Indices, *, slots: int, gpus: int) -> Indices:
    """Expert of each slot when the experts of each node are `members` (layers, nodes, experts), padded with -1."""
    windows, layers, _ = loads.shape
    nodes = members.shape[1]
    rows = members.reshape(layers * nodes, -1)
    present = rows >= 0
    held = np.take_along_axis(loads, np.maximum(members, 0).reshape(1, layers, -1), axis=2)
    on_nodes = np.where(present, held.reshape(windows, *rows.shape), np.float32(0))
    # A layer is as slow as its heaviest node, so the others need not be better than that.
    means = on_nodes.sum(axis=2).max(axis=0).reshape(layers, nodes) * np.float32(nodes / gpus)
    goal = np.repeat(means.max(axis=1), nodes) * (1 + GAP)
    placed = _place(on_nodes, present, goal, gpus=gpus // nodes, size=slots // gpus)
    return np.take_along_axis(rows, placed.reshape(len(rows), -1), axis=1).reshape(layers, slots)


def _place(loads: Loads, present: Flags, goal: Loads, *, gpus: int, size: int) -> Indices:
    """Expert of each slot of each row; a row whose largest GPU load is at most its goal is good enough.

    Shapes: loads (windows, rows, experts), present (rows, experts), goal (rows,); result (rows, gpus, size).
    """
    placed = np.empty((len(present), gpus, size), dtype=np.int64)
    # Where a GPU has a slot for every expert, all GPUs are alike, and so are their loads.
    alike = present.sum(axis=1) <= size
    for row in np.flatnonzero(alike):
        placed[row] = np.resize(np.flatnonzero(present[row]), size)
    rest = np.flatnonzero(~alike)
    if len(rest):
        some = loads.take(rest, axis=1)
        count = replicate_apart(some.max(axis=0), present[rest], slots=gpus * size, gpus=gpus)
        experts = np.tile(np.arange(count.shape[1]), len(rest))
        expert_of = np.repeat(experts, count.ravel()).reshape(len(rest), -1)
        packed, shares = _packed(expert_of, slot_loads(some, expert_of), gpus)
        separate(packed, shares)
        even_out(packed, shares, goal[rest])
        placed[rest] = packed
    return placed


def replicate_apart(loads: Loads, present: Flags, *, slots: int, gpus: int) -> Indices:
    """Replicas of each expert: the largest load a replica is least, and none has more replicas than there are GPUs.

    Shapes: loads and present (rows, experts); result (rows, experts), 0 where an expert is not present.
    """
    count = present.astype(np.int64)
    left = slots - count.sum(axis=1)
    assert ((left >= 0) & (slots <= gpus * count.sum(axis=1))).all(), "each expert has 1 to `gpus` slots"
    share = np.where(present, loads, -1)
    while len(rows := np.flatnonzero(left > 0)):
        chosen = share[rows].argmax(axis=1)
        count[rows, chosen] += 1
        left[rows] -= 1
        replicas = count[rows, chosen]
        share[rows, chosen] = np.where(replicas < gpus, loads[rows, chosen] / replicas, -1)
    return count


def _packed(items: Indices, shares: Loads, bins: int) -> tuple[Indices, Loads]:
    """Items (rows, items) and their shares (windows, rows, items), heaviest first into the lightest of equal bins."""
    rows, count = items.shape
    bin_of, rank_of = pack(shares.max(axis=0), bins)
    order = invert(bin_of * (count // bins) + rank_of)
    return (
        np.take_along_axis(items, order, axis=1).reshape(rows, bins, -1),
        np.take_along_axis(shares, order[None], axis=2).reshape(len(shares), rows, bins, -1),
    )


def _members(of_groups: Loads, group_size: int, *, nodes: int, room: int) -> tuple[Indices, Loads]:
    """Experts of each node, at most `room` groups of them: packed as replicas are on GPUs, then exchanged.

    Shapes: of_groups (windows, layers, groups) in mean node loads; results (layers, nodes, experts at most), padded
    with -1, and the largest node load (layers,).
    """
    windows, layers, groups = of_groups.shape
    nothing = np.zeros((windows, layers, nodes * room - groups), dtype=np.float32)
    items = np.broadcast_to(np.arange(nodes * room), (layers, nodes * room))
    plan, shares = _packed(items, np.concatenate([of_groups, nothing], axis=2), nodes)
    even_out(plan, shares, np.full(layers, 1 + GAP))
    experts = np.where(plan < groups, plan * group_size, -group_size)[..., None] + np.arange(group_size)
    return np.maximum(experts, -1).reshape(layers, nodes, -1), shares.sum(axis=3).max(axis=(0, 2))


__all__ = ["best_of", "has_duplicates", "optimal", "optimal_in_place"]
