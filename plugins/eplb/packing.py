"""A first placement of given replicas: the heaviest onto the lightest GPU, never beside a replica of the same expert.

Arrays: loads (windows, rows, experts) of one or several load windows; count (rows, experts); slots as (rows, gpus, S).
A row is a layer, or one node of a layer.
"""

from typing import Final

import numpy as np

from .greedy import Indices, Loads

AVOIDED: Final = 1e6  # above every sum of loads, which are multiples of a GPU's mean
FULL: Final = 1e9  # above AVOIDED: two replicas on one GPU rather than one too many


def pack_apart(loads: Loads, count: Indices, *, gpus: int) -> Indices:
    """Expert of each slot: replicas from the heaviest on, each onto the GPU that stays lightest in its worst window.

    Shapes: loads (windows, rows, experts), count (rows, experts) with equal sums; result (rows, gpus, S). A GPU gets
    two replicas of one expert only when all others are full or hold one too.
    """
    windows, rows, experts = loads.shape
    slots = int(count[0].sum())
    size = slots // gpus
    flat = np.repeat(np.tile(np.arange(experts), rows), count.ravel()).reshape(rows, slots)
    share = np.take_along_axis(per_replica(loads, count), flat[None], axis=2)
    order = np.argsort(-share.max(axis=0), axis=1, kind="stable")
    expert_at = np.ascontiguousarray(np.take_along_axis(flat, order, axis=1).T)
    share_at = np.ascontiguousarray(np.take_along_axis(share, order[None], axis=2).transpose(2, 0, 1))
    if size == 1:
        return np.ascontiguousarray(expert_at.T)[:, :, None]
    # Replicas of one expert follow one another, so a GPU holds one already exactly if it was its last.
    repeats = np.concatenate([[False], (expert_at[1:] == expert_at[:-1]).any(axis=1)])
    placed = np.empty((rows, gpus, size), dtype=np.int64)
    totals = np.zeros((windows, rows, gpus), dtype=np.float32)
    filled, last = np.zeros((rows, gpus), dtype=np.int64), np.full((rows, gpus), -1)
    row = np.arange(rows)
    for step in range(slots):
        expert, added = expert_at[step], share_at[step]
        worst = totals[0] if windows == 1 else (totals + added[:, :, None]).max(axis=0)
        if repeats[step]:
            worst = worst + (last == expert[:, None]) * np.float32(AVOIDED)
        chosen = worst.argmin(axis=1)
        rank = filled[row, chosen]
        placed[row, chosen, rank] = expert
        last[row, chosen] = expert
        filled[row, chosen] = rank + 1
        totals[:, row, chosen] += added + (rank + 1 == size) * np.float32(FULL)
    return placed


def per_replica(loads: Loads, count: Indices) -> Loads:
    """Load of one replica of each expert. Shapes: (windows, rows, experts), (rows, experts); result as the loads."""
    shares: Loads = np.divide(loads, np.maximum(count, 1), dtype=np.float32)
    return shares


def shares_of(loads: Loads, placed: Indices) -> Loads:
    """Load of each slot.

    Shapes: loads (windows, rows, experts), placed (rows, gpus, S); result (windows, rows, gpus, S).
    """
    windows, rows, experts = loads.shape
    flat = placed.reshape(rows, -1)
    numbered = (flat + np.arange(rows)[:, None] * experts).ravel()
    count = np.bincount(numbered, minlength=rows * experts).reshape(rows, experts)
    share = np.take_along_axis(per_replica(loads, count), flat[None], axis=2)
    return share.reshape(windows, *placed.shape)


def floor_of(loads: Loads, count: Indices, *, gpus: int) -> Loads:
    """A largest GPU load that no placement of these replicas can go below, for each row.

    For any h: the h heaviest replicas are on at most h GPUs, which have their other slots filled with at least the
    lightest ones; so do all GPUs together. For any k: of the (k-1)*gpus + 1 heaviest replicas some GPU has k.
    Shapes: loads (windows, rows, experts), count (rows, experts); result (rows,).
    """
    windows, rows, experts = loads.shape
    slots = int(count[0].sum())
    size = slots // gpus
    flat = np.repeat(np.tile(np.arange(experts), rows), count.ravel()).reshape(rows, slots)
    rising = np.sort(np.take_along_axis(per_replica(loads, count), flat[None], axis=2), axis=2)
    falling = rising[..., ::-1]
    sums = np.concatenate([np.zeros((windows, rows, 1), np.float32), rising.cumsum(axis=2)], axis=2)
    some = np.arange(1, gpus + 1)
    floor = (
        (falling[..., :gpus].cumsum(axis=2) + sums[..., (size - 1) * some]) / some.astype(np.float32)
    ).max(axis=2)
    if size == 2:  # the heaviest beside the lightest, and so on: nothing is better
        floor = (falling[..., :gpus] + rising[..., :gpus]).max(axis=2)
    for together in range(2, size + 1):
        last = (together - 1) * gpus + 1
        heaviest = falling[..., last - together : last].sum(axis=2)
        floor = np.maximum(floor, heaviest + sums[..., size - together])
    result: Loads = floor.max(axis=0)
    return result


__all__ = ["floor_of", "pack_apart", "per_replica", "shares_of"]
