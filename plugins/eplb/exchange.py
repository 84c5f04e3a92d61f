"""Exchanges of replicas between pairs of GPUs, all layers at once, until no GPU is much heavier than it must be.

In each round the GPUs of a row are sorted by load; the heavier half is paired with the lighter half, and each pair
whose heavier GPU is above the goal divides its replicas anew: by the best of all divisions where GPUs have few slots,
else by the best exchange of two replicas. From round to round the lighter half is shifted, so that each meets all
others. No exchange puts two replicas of one expert on one GPU, and none makes the heavier of two GPUs heavier: the
largest load never rises.
"""

from functools import cache
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from .greedy import Indices, Loads

WHOLE_MAX: Final = 5  # slots a GPU up to which all divisions of a pair are tried: 126 for 5, 462 for 6
FORBIDDEN: Final = np.float32(1e9)  # the weight of a division that puts two replicas of one expert together
WAYS_MAX: Final = 1 << 22  # exchanges judged in one step, which bounds the memory to some tens of MiB
PATIENCE: Final = (
    16  # rounds without a lower peak after which a row is left; 100 gain 0.03 % at twice the time
)
GAIN: Final = 1e-6  # in mean GPU loads; less is rounding


class Divisions(NamedTuple):
    """All ways to divide the slots of two GPUs, the present one first; a GPU's sides are interchangeable.

    order (ways, 2S): the slots afterwards. given (2S, ways): 1 for what the first gives away, -1 for what it gets.
    together (S*S, ways): 1 where slot i of the first and j of the second end on one GPU.
    """

    order: Indices
    given: Loads
    together: Loads


@cache
def divisions(size: int) -> Divisions:
    """The divisions of two GPUs of `size` slots each."""
    every = range(2 * size)
    sides = [(0, *rest) for rest in combinations(every[1:], size - 1)]
    order = np.array([[*side, *(slot for slot in every if slot not in side)] for side in sides])
    first = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(first, order[:, :size], values=True, axis=1)
    given = np.concatenate([~first[:, :size], -first[:, size:].astype(np.float32)], axis=1)
    together = (first[:, :size, None] == first[:, None, size:]).reshape(len(order), -1)
    return Divisions(order, given.T.astype(np.float32), together.T.astype(np.float32))


def even_out(placed: Indices, shares: Loads, goal: Loads, *, rounds_max: int) -> None:
    """Exchange replicas in place until each row's largest load is at most its goal, or nothing helps any more.

    Shapes: placed (rows, gpus, S), shares (windows, rows, gpus, S) in mean GPU loads, goal (rows,).
    """
    rows, gpus, size = placed.shape
    turns = (gpus + 1) // 2
    idle, best = np.zeros(rows, dtype=np.int64), np.full(rows, np.inf, dtype=np.float32)
    for turn in range(rounds_max if gpus > 1 else 0):
        peak = shares.sum(axis=3).max(axis=(0, 2))
        idle = np.where(peak < best - GAIN, 0, idle + 1)
        best = np.minimum(best, peak)
        active = np.flatnonzero((peak > goal) & (idle < PATIENCE))
        if not len(active):
            return
        for part in np.array_split(active, -(-len(active) * turns * size**2 // WAYS_MAX)):
            some_placed, some_shares = placed.take(part, axis=0), shares.take(part, axis=1)
            _round(some_placed, some_shares, goal[part], shift=turn % turns)
            placed[part], shares[:, part] = some_placed, some_shares


def _round(placed: Indices, shares: Loads, goal: Loads, *, shift: int) -> None:
    gpus, size = placed.shape[1:]
    loads = shares.sum(axis=3)
    worst = loads.max(axis=0)
    order = np.argsort(-worst, axis=1, kind="stable")
    half = gpus // 2
    heavy, light = order[:, :half], np.roll(order[:, half:][:, ::-1], -shift, axis=1)[:, :half]
    row, pair = np.nonzero(np.take_along_axis(worst, heavy, axis=1) > goal[:, None])
    first, second = row * gpus + heavy[row, pair], row * gpus + light[row, pair]

    flat_placed, flat_shares = placed.reshape(-1, size), shares.reshape(len(shares), -1, size)
    experts = np.concatenate([flat_placed[first], flat_placed[second]], axis=1)
    both = np.concatenate([flat_shares[:, first], flat_shares[:, second]], axis=2)
    arranged = (_best_division if size <= WHOLE_MAX else _best_exchange)(experts, both)
    experts = np.take_along_axis(experts, arranged, axis=1)
    both = np.take_along_axis(both, arranged[None], axis=2)
    flat_placed[first], flat_placed[second] = experts[:, :size], experts[:, size:]
    flat_shares[:, first], flat_shares[:, second] = both[..., :size], both[..., size:]


def _best_division(experts: Indices, both: Loads) -> Indices:
    """The order of the slots of each pair after the division that makes its heavier GPU lightest."""
    size = experts.shape[1] // 2
    ways = divisions(size)
    peak = _peaks(both, both @ ways.given)
    twins = (experts[:, :size, None] == experts[:, None, size:]).reshape(len(experts), -1)
    some = np.flatnonzero(twins.any(axis=1))
    peak[some] += twins[some].astype(np.float32) @ ways.together * FORBIDDEN
    best = peak.argmin(axis=1)
    best[peak[np.arange(len(best)), best] > peak[:, 0] - GAIN] = 0
    arranged: Indices = ways.order[best]
    return arranged


def _best_exchange(experts: Indices, both: Loads) -> Indices:
    """The same, of all exchanges of a slot of the first GPU with one of the second."""
    windows, pairs, slots = both.shape
    size = slots // 2
    given = (both[..., :size, None] - both[..., None, size:]).reshape(windows, pairs, -1)
    peak = _peaks(both, given)
    twins = experts[:, :size, None] == experts[:, None, size:]
    some = np.flatnonzero(twins.any(axis=(1, 2)))
    # Slot i may not go where its twin is, nor may a twin come to i.
    kept = twins[some].any(axis=2)[:, :, None] | twins[some].any(axis=1)[:, None, :]
    peak[some] += kept.reshape(len(some), size * size) * FORBIDDEN
    best = peak.argmin(axis=1)
    changed = (
        peak[np.arange(pairs), best] < _peaks(both, np.zeros((windows, pairs, 1), np.float32))[:, 0] - GAIN
    )
    mine, other = np.divmod(best, size)
    arranged = np.tile(np.arange(slots), (pairs, 1))
    pair = np.flatnonzero(changed)
    arranged[pair, mine[pair]], arranged[pair, size + other[pair]] = size + other[pair], mine[pair]
    return arranged


def _peaks(both: Loads, given: Loads) -> Loads:
    """The heavier of two GPUs in its worst window after the first gave `given` (windows, pairs, ways) to the second."""
    size = both.shape[2] // 2
    first, second = both[..., :size].sum(axis=2)[..., None], both[..., size:].sum(axis=2)[..., None]
    peaks: Loads = (np.abs(given - (first - second) / 2) + (first + second) / 2).max(axis=0)
    return peaks


def separate(placed: Indices, shares: Loads) -> None:
    """Exchange slots in place until no GPU holds two replicas of one expert, where an exchange can do it.

    The exchange that changes the loads of the two GPUs least is taken. Shapes: as in `even_out`.
    """
    in_order = np.sort(placed, axis=2)
    for row, gpu in np.argwhere((np.diff(in_order, axis=2) == 0).any(axis=2)):
        held = placed[row]
        for slot in range(held.shape[1]):
            expert = held[gpu, slot]
            if expert not in held[gpu, :slot]:
                continue
            allowed = ~(held == expert).any(axis=1)[:, None] & ~np.isin(held, held[gpu])
            if allowed.any():
                weights = shares[:, row]
                change = np.abs(weights - weights[:, gpu, slot][:, None, None]).max(axis=0)
                other, there = divmod(int(np.where(allowed, change, np.inf).argmin()), held.shape[1])
                held[gpu, slot], held[other, there] = held[other, there], expert
                mine = weights[:, gpu, slot].copy()
                weights[:, gpu, slot], weights[:, other, there] = weights[:, other, there], mine


__all__ = ["Divisions", "divisions", "even_out", "separate"]
