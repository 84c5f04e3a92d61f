"""How many replicas each expert gets.

Arrays: loads (rows, experts), count (rows, experts) with equal sums; an expert with count 0 is not in the row.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from .greedy import Indices, Loads

Flags: TypeAlias = npt.NDArray[np.bool_]

BISECTIONS: Final = 20  # finer than any two shares that matter; `top_up` gives out what is left
# What `regiven` tries: all pairs of these. Twice as many receivers gain 0.01 % at half as much time again.
DONORS_MAX: Final = 3
RECEIVERS_MAX: Final = 8


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
    return top_up(loads, _counts_below(loads, present, high, gpus), slots=slots, gpus=gpus)


def _counts_below(loads: Loads, present: Flags, limit: Loads, gpus: int) -> Indices:
    shares = np.ceil(loads / np.maximum(limit, np.finfo(np.float32).tiny)[:, None])
    counts: Indices = np.where(present, np.clip(shares, 1, gpus), 0).astype(np.int64)
    return counts


def top_up(loads: Loads, count: Indices, *, slots: int, gpus: int) -> Indices:
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


def restrained(loads: Loads, count: Indices, limit: Loads, *, together: int, gpus: int) -> Indices:
    """Counts with no replica above the limit and at most (together - 1) * gpus above limit / together, or `count`.

    Shapes: loads and count (rows, experts), limit (rows,) above 0; result (rows, experts). The present counts are the
    result where the slots are too few even for the first condition; the second is met as far as slots allow.
    """
    slots = int(count[0].sum())
    few, many = (
        np.where(count > 0, np.clip(np.ceil(loads / part[:, None]), 1, gpus), 0).astype(np.int64)
        for part in (limit, limit / together)
    )
    heavy = np.where(many > few, few, 0)
    price = np.where(heavy > 0, (many - few) / np.maximum(heavy, 1), np.inf)
    order = np.argsort(price, axis=1, kind="stable")
    heavy, extra = (np.take_along_axis(each, order, axis=1) for each in (heavy, many - few))
    needed = heavy.sum(axis=1, keepdims=True) - (together - 1) * gpus
    split = heavy.cumsum(axis=1) - heavy < needed
    split &= np.where(split, extra, 0).cumsum(axis=1) <= slots - few.sum(axis=1, keepdims=True)
    result = few.copy()
    np.put_along_axis(result, order, np.take_along_axis(few, order, axis=1) + split * extra, axis=1)
    fits = result.sum(axis=1) <= slots
    # What is left makes no further heavy replicas: it goes to experts that are light, or become so.
    share = loads / np.maximum(result + 1, 1)
    calm = np.where(share <= limit[:, None] / together, loads, 0)
    return np.where(
        fits[:, None], top_up(calm, np.where(fits[:, None], result, count), slots=slots, gpus=gpus), count
    )


def regiven(loads: Loads, count: Indices, *, gpus: int) -> Indices:
    """Counts after one slot went from a donor to a receiver. Shapes: (rows, experts); result (rows, ways, experts)."""
    rows, experts = loads.shape
    after = np.where(count > 1, loads / np.maximum(count - 1, 1), np.inf)
    donors = np.argsort(after, axis=1)[:, :DONORS_MAX]
    share = np.where((count > 0) & (count < gpus), loads / np.maximum(count, 1), -1)
    spread = np.unique(np.linspace(0, experts - 1, min(RECEIVERS_MAX, experts)).round().astype(np.int64))
    receivers = np.argsort(-share, axis=1)[:, spread]
    ways = donors.shape[1] * receivers.shape[1]
    donor = np.repeat(donors, receivers.shape[1], axis=1)
    receiver = np.tile(receivers, (1, donors.shape[1]))
    row, way = np.indices((rows, ways))
    # A donor without a second replica, or a receiver that may have no more, leaves the counts as they are.
    allowed = np.isfinite(after[row, donor]) & (share[row, receiver] >= 0) & (donor != receiver)
    tried = np.repeat(count[:, None, :], ways, axis=1)
    tried[row, way, donor] -= allowed
    tried[row, way, receiver] += allowed
    return tried


__all__ = ["Flags", "even_counts", "regiven", "restrained", "top_up"]
