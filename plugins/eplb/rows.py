"""Rows of experts placed on GPUs: replicas chosen, packed and evened out, all rows at once.

A row is one layer, or one node of a layer. Replicas are first as light as the slots allow (`even_counts`). Where GPUs
are not even after that, other numbers of replicas are tried: fewer heavy ones (`restrain`), and slots given from expert
to expert (`regive`).

Arrays: loads (windows, rows, experts) in mean GPU loads; count (rows, experts); least (rows,), the largest GPU load
that is good enough; slots as (rows, gpus, S).
"""

from typing import Final

import numpy as np

from .counts import Flags, even_counts, regiven, restrained
from .exchange import even_out, separate
from .greedy import Indices, Loads
from .packing import floor_of, pack_apart, shares_of

GAP: Final = 5e-4  # a row within this of the bound for its replicas is good enough
ROUNDS_MAX: Final = 40  # of exchanges; on model sizes 10 to 30 reach the gap
RETRY_GAP: Final = 5e-3  # rows that are further than this from the least are tried with other replicas
# Slots a GPU up to which that pays in a large row; with more, exchanges reach the bound anyway.
RETRY_SIZE_MAX: Final = 4
# Slots of a row that is packed to judge a change of replicas; a larger one is judged by its floor, which costs less.
SMALL_ROW: Final = 96
JUDGE_ROUNDS: Final = 1  # of exchanges; without any, packings of small rows say too little
REGIVE_STEPS_MAX: Final = 4  # slots that change hands; more have not been seen to help
TOGETHER_MAX: Final = 2  # k of `restrain`; 3 and 4 gained nothing more
PARTS: Final = (0.1, 0.4, 0.7)  # loads tried, on the way from the least to the present peak


def place(loads: Loads, present: Flags, least: Loads, *, gpus: int, size: int) -> Indices:
    """Expert of each slot of each row; `least` is the largest GPU load of a row that is good enough.

    Shapes: loads (windows, rows, experts) in mean GPU loads, present (rows, experts), least (rows,); result
    (rows, gpus, size).
    """
    rows = len(present)
    placed = np.empty((rows, gpus, size), dtype=np.int64)
    # Where a GPU has a slot for every expert, all GPUs are alike: loads are equal whatever they are.
    alike = present.sum(axis=1) <= size
    for row in np.flatnonzero(alike):
        placed[row] = np.resize(np.flatnonzero(present[row]), size)
    rest = np.flatnonzero(~alike)
    if len(rest):
        placed[rest] = _place_apart(
            loads.take(rest, axis=1), present[rest], least[rest], gpus=gpus, size=size
        )
    return placed


def _place_apart(loads: Loads, present: Flags, least: Loads, *, gpus: int, size: int) -> Indices:
    count = even_counts(loads.max(axis=0), present, slots=gpus * size, gpus=gpus)
    placed, peak = _pack_evenly(loads, count, least, gpus=gpus, rounds_max=ROUNDS_MAX)
    rows = np.flatnonzero(peak > least * (1 + RETRY_GAP))
    if not len(rows) or size == 1 or (gpus * size > SMALL_ROW and size > RETRY_SIZE_MAX):
        return placed
    some, some_least = loads.take(rows, axis=1), least[rows]
    changed_count = restrain(some, count[rows], some_least, peak[rows], gpus=gpus)
    changed_count = regive(some, changed_count, some_least, gpus=gpus)
    changed = (changed_count != count[rows]).any(axis=1)
    if changed.any():
        rows = rows[changed]
        again, peak_again = _pack_evenly(
            loads.take(rows, axis=1), changed_count[changed], least[rows], gpus=gpus, rounds_max=ROUNDS_MAX
        )
        better = peak_again < peak[rows]
        placed[rows[better]] = again[better]
    return placed


def _pack_evenly(
    loads: Loads, count: Indices, least: Loads, *, gpus: int, rounds_max: int
) -> tuple[Indices, Loads]:
    """A placement of these replicas, and its largest GPU load in each row."""
    placed = pack_apart(loads, count, gpus=gpus)
    shares = shares_of(loads, placed)
    separate(placed, shares)
    if placed.shape[2] > 1:
        goal = np.maximum(floor_of(loads, count, gpus=gpus), least) * np.float32(1 + GAP)
        even_out(placed, shares, goal, rounds_max=rounds_max)
    peak: Loads = shares.sum(axis=3).max(axis=(0, 2))
    return placed, peak


def restrain(loads: Loads, count: Indices, least: Loads, peak: Loads, *, gpus: int) -> Indices:
    """Counts of fewer heavy replicas where that lowers the largest load of a row, else the present ones.

    A load T between the least and the present peak is tried: no replica may weigh more than T, and at most (k-1)*gpus
    of them more than T/k, since no GPU can hold k such. For that, experts are split that need the fewest slots.
    """
    worst = loads.max(axis=0)
    size = int(count[0].sum()) // gpus
    best, found = count.copy(), _judge(loads, count, least, gpus=gpus)
    for together in range(2, min(size, TOGETHER_MAX) + 1):
        for part in PARTS:
            limit = least * (1 - part) + peak * part
            tried = restrained(worst, count, limit, together=together, gpus=gpus)
            peaks = _judge(loads, tried, least, gpus=gpus)
            better = peaks < found * (1 - GAP)
            best[better], found[better] = tried[better], peaks[better]
    return best


def regive(loads: Loads, count: Indices, least: Loads, *, gpus: int) -> Indices:
    """Counts after slots were given from expert to expert while that lowers the largest load of a row.

    Donors are the experts that weigh least a replica afterwards; receivers are spread over all loads, since small ones
    matter too: a GPU that has a heavy replica needs light ones beside it. A small row is packed to see what a change
    gives; of a large one, the floor is taken for it.
    """
    count = count.copy()
    rows = np.arange(len(count))
    peak = _judge(loads, count, least, gpus=gpus)
    for _ in range(REGIVE_STEPS_MAX):
        rows = rows[peak[rows] > least[rows] * (1 + RETRY_GAP)]
        if not len(rows):
            break
        tried = regiven(loads[:, rows].max(axis=0), count[rows], gpus=gpus)
        ways = tried.shape[1]
        repeated, goals = np.repeat(loads.take(rows, axis=1), ways, axis=1), np.repeat(least[rows], ways)
        peaks = _judge(repeated, tried.reshape(len(goals), -1), goals, gpus=gpus).reshape(-1, ways)
        best, found = peaks.argmin(axis=1), peaks.min(axis=1)
        better = found < peak[rows] * (1 - GAP)
        rows, best = rows[better], best[better]
        count[rows], peak[rows] = tried[better, best], found[better]
    return count


def _judge(loads: Loads, count: Indices, least: Loads, *, gpus: int) -> Loads:
    slots = int(count[0].sum())
    if slots <= SMALL_ROW and slots > 2 * gpus:
        return _pack_evenly(loads, count, least, gpus=gpus, rounds_max=JUDGE_ROUNDS)[1]
    return floor_of(loads, count, gpus=gpus)


__all__ = ["GAP", "ROUNDS_MAX", "place"]
