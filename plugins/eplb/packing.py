"""Replicas of the experts of a row, and a first placement of them.

As many replicas as make the largest load of one least; then the heaviest replica goes onto the lightest GPU, never
beside one of the same expert.

Arrays: loads (windows, rows, experts) of one or several load windows; count (rows, experts), 0 for an expert that is
not in the row; slots as (rows, gpus, S). A row is a layer, or one node of a layer.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from .greedy import Indices, Loads

Flags: TypeAlias = npt.NDArray[np.bool_]

AVOIDED: Final = 1e6  # above every sum of loads, which are multiples of a GPU's mean
FULL: Final = 1e9  # above AVOIDED: two replicas on one GPU rather than one too many
BISECTIONS: Final = 20  # finer than any two shares that matter; `_top_up` gives out what is left


def even_counts(loads: Loads, present: Flags, *, slots: int, gpus: int) -> Indices:
    """Replicas of each expert such that the largest load a replica is least; none has more replicas than GPUs.

    Shapes: loads and present (rows, experts); result (rows, experts). Limits: as many slots as present experts in each
    row, and no more than experts times GPUs.
    """
    low = loads.sum(axis=1) / slots
    high = np.maximum(loads.max(axis=1), low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = _counts_below(loads, present, middle, gpus).sum(axis=1) <= slots
        high = np.where(fits, middle, high)
        low = np.where(fits, low, middle)
    return _top_up(loads, _counts_below(loads, present, high, gpus), slots=slots, gpus=gpus)


def _counts_below(loads: Loads, present: Flags, limit: Loads, gpus: int) -> Indices:
    shares = np.ceil(loads / np.maximum(limit, np.finfo(np.float32).tiny)[:, None])
    counts: Indices = np.where(present, np.clip(shares, 1, gpus), 0).astype(np.int64)
    return counts


def _top_up(loads: Loads, count: Indices, *, slots: int, gpus: int) -> Indices:
    """Give the slots that are left to the experts with the largest load a replica. Changes and returns `count`."""
    left = slots - count.sum(axis=1)
    share = np.where((count > 0) & (count < gpus), loads / np.maximum(count, 1), -1)
    while len(rows := np.flatnonzero(left > 0)):
        chosen = share[rows].argmax(axis=1)
        count[rows, chosen] += 1
        left[rows] -= 1
        spread = count[rows, chosen]
        share[rows, chosen] = np.where(spread < gpus, loads[rows, chosen] / spread, -1)
    return count


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


__all__ = ["Flags", "even_counts", "pack_apart", "per_replica", "shares_of"]
