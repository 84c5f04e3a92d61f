"""Exchanges of replicas between pairs of GPUs, all layers at once, until no GPU is much heavier than it must be.

In each round the GPUs of a row are sorted by load; the heavier half is paired with the lighter half, and each pair
whose heavier GPU is above the goal divides its replicas again: by the best of all divisions where GPUs have few slots,
else by the best exchange of two replicas. From round to round the lighter half is shifted, so that each meets all
others. No exchange puts two replicas of one expert on one GPU, and none makes the
heavier of two GPUs heavier: the largest load never rises.

Shapes: placed (rows, gpus, S), shares (windows, rows, gpus, S) in mean GPU loads. A row is a layer, or a node of one.
"""

from functools import cache
from itertools import combinations
from typing import Final

import numpy as np

from .greedy import Indices, Loads

WHOLE_MAX: Final = 5  # slots a GPU up to which all divisions of a pair are tried: 126 for 5, 462 for 6
FORBIDDEN: Final = np.float32(1e9)  # the weight of an exchange that puts two replicas of one expert together
WAYS_MAX: Final = 1 << 22  # exchanges judged in one step, which bounds the memory to some tens of MiB
ROUNDS_MAX: Final = 64  # on model sizes 10 to 30 reach the goal
IDLE_ROUNDS_MAX: Final = 32  # without a lower peak, after which a row is left
GAIN: Final = 1e-6  # in mean GPU loads; less is rounding


def even_out(placed: Indices, shares: Loads, goal: Loads) -> None:
    """Exchange replicas in place until each row's largest load is at most its goal (rows,), or nothing helps."""
    rows, gpus, size = placed.shape
    turns = (gpus + 1) // 2
    idle, best = np.zeros(rows, dtype=np.int64), np.full(rows, np.inf, dtype=np.float32)
    for turn in range(ROUNDS_MAX if gpus > 1 and size > 1 else 0):
        peak = shares.sum(axis=3).max(axis=(0, 2))
        idle = np.where(peak < best - GAIN, 0, idle + 1)
        best = np.minimum(best, peak)
        active = np.flatnonzero((peak > goal) & (idle < IDLE_ROUNDS_MAX))
        if not len(active):
            return
        for part in np.array_split(active, -(-len(active) * turns * size**2 // WAYS_MAX)):
            some_placed, some_shares = placed.take(part, axis=0), shares.take(part, axis=1)
            _round(some_placed, some_shares, goal[part], shift=turn % turns)
            placed[part], shares[:, part] = some_placed, some_shares


def _round(placed: Indices, shares: Loads, goal: Loads, *, shift: int) -> None:
    gpus, size = placed.shape[1:]
    worst = shares.sum(axis=3).max(axis=0)
    order = np.argsort(-worst, axis=1, kind="stable")
    half = gpus // 2
    heavy, light = order[:, :half], np.roll(order[:, half:][:, ::-1], -shift, axis=1)[:, :half]
    row, pair = np.nonzero(np.take_along_axis(worst, heavy, axis=1) > goal[:, None])
    ends = np.stack([row * gpus + heavy[row, pair], row * gpus + light[row, pair]], axis=1)

    flat_placed, flat_shares = placed.reshape(-1, size), shares.reshape(len(shares), -1, size)
    experts = flat_placed[ends].reshape(-1, 2 * size)
    both = flat_shares[:, ends].reshape(-1, len(ends), 2 * size)
    arranged = (_best_division if size <= WHOLE_MAX else _best_exchange)(experts, both)
    flat_placed[ends] = np.take_along_axis(experts, arranged, axis=1).reshape(-1, 2, size)
    flat_shares[:, ends] = np.take_along_axis(both, arranged[None], axis=2).reshape(-1, len(ends), 2, size)


@cache
def _divisions(size: int) -> Indices:
    """All ways to divide the slots of two GPUs, (ways, 2, S), the present one first; the sides are interchangeable."""
    every = range(2 * size)
    sides = [(0, *rest) for rest in combinations(every[1:], size - 1)]
    return np.array([(side, [slot for slot in every if slot not in side]) for side in sides])


def _best_division(experts: Indices, both: Loads) -> Indices:
    """The order of the slots of each pair after the division that makes its heavier GPU lightest.

    Shapes: experts (pairs, 2S), both (windows, pairs, 2S); result (pairs, 2S).
    """
    ways = _divisions(experts.shape[1] // 2)
    peak = both[..., ways].sum(axis=4).max(axis=(0, 3))
    some = np.flatnonzero((np.diff(np.sort(experts, axis=1), axis=1) == 0).any(axis=1))
    duplicates = np.diff(np.sort(experts[some][:, ways], axis=3), axis=3) == 0
    peak[some] += duplicates.sum(axis=(2, 3)) * FORBIDDEN
    best = peak.argmin(axis=1)
    best[peak[np.arange(len(best)), best] > peak[:, 0] - GAIN] = 0
    arranged: Indices = ways[best].reshape(experts.shape)
    return arranged


def _best_exchange(experts: Indices, both: Loads) -> Indices:
    """The same, of all exchanges of a slot of the first GPU with one of the second."""
    pairs, size = len(experts), experts.shape[1] // 2
    given = both[..., :size, None] - both[..., None, size:]
    heavy, light = (each.sum(axis=2)[..., None, None] for each in (both[..., :size], both[..., size:]))
    peak = np.maximum(heavy - given, light + given).max(axis=0)
    duplicates = experts[:, :size, None] == experts[:, None, size:]
    some = np.flatnonzero(duplicates.any(axis=(1, 2)))
    # Slot i may not go where its duplicate is, nor may a duplicate come to i.
    peak[some] += (
        duplicates[some].any(axis=2)[:, :, None] | duplicates[some].any(axis=1)[:, None, :]
    ) * FORBIDDEN
    flat = peak.reshape(pairs, -1)
    best = flat.argmin(axis=1)
    now = np.maximum(heavy, light).max(axis=0)[:, 0, 0]
    pair = np.flatnonzero(flat[np.arange(pairs), best] < now - GAIN)
    mine, other = np.divmod(best[pair], size)
    arranged = np.tile(np.arange(2 * size), (pairs, 1))
    arranged[pair, mine], arranged[pair, size + other] = size + other, mine
    return arranged


def separate(placed: Indices, shares: Loads) -> None:
    """Exchange slots in place until no GPU holds two replicas of one expert, where an exchange can do it.

    The exchange that changes the loads of the two GPUs least is taken.
    """
    in_order = np.sort(placed, axis=2)
    for row, gpu in np.argwhere((np.diff(in_order, axis=2) == 0).any(axis=2)):
        held, weights = placed[row], shares[:, row]
        for slot in range(held.shape[1]):
            expert = held[gpu, slot]
            if expert not in held[gpu, :slot]:
                continue
            allowed = ~(held == expert).any(axis=1)[:, None] & ~np.isin(held, held[gpu])
            if allowed.any():
                change = np.abs(weights - weights[:, gpu, slot][:, None, None]).max(axis=0)
                other, there = divmod(int(np.where(allowed, change, np.inf).argmin()), held.shape[1])
                held[gpu, slot], held[other, there] = held[other, there], expert
                mine = weights[:, gpu, slot].copy()
                weights[:, gpu, slot], weights[:, other, there] = weights[:, other, there], mine


__all__ = ["even_out", "separate"]
