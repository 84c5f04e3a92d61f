"""Placements close to the bound: replicas of experts chosen and packed together, then evened out by exchanges.

A row is one layer (global), or one node of one layer (hierarchical); all rows are worked on at once:

1. groups go to nodes, heaviest first, and are exchanged until nodes are even; a node may take more groups than another
   where its slots hold them and the layer gains by it;
2. replicas: as few and light as the slots allow (`even_counts`), then slots are given from expert to expert where few
   slots a GPU make that matter (`regive`);
3. replicas go onto GPUs, heaviest first (`pack_apart`), and are exchanged between GPUs (`even_out`).

With several load windows, the worst window counts, each measured in its own mean GPU load.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from .balance import gpu_loads, lower_bound
from .exchange import even_out, separate
from .greedy import Indices, Loads
from .packing import Flags, even_counts, pack_apart, per_replica, shares_of, top_up

GAP: Final = 5e-4  # a row within this of the bound for its replicas is good enough
ROUNDS_MAX: Final = 40  # of exchanges; on model sizes 10 to 30 reach the gap
REGIVE_SIZE_MAX: Final = (
    4  # slots a GPU up to which other replicas can pay; beyond, exchanges reach the bound anyway
)
REGIVE_GAP: Final = 5e-3  # rows that are further than this from equal loads are tried with other replicas
REGIVE_STEPS_MAX: Final = 6
PACKED_SLOTS_MAX: Final = 96  # slots of a row that is packed anew for each change of replicas
PACKED_ROUNDS_MAX: Final = 2
RESTRAINED_MAX: Final = 4
RESTRAINED_PARTS: Final = (0.05, 0.2, 0.4, 0.6, 0.8)
DONORS_MAX: Final = 3
RECEIVERS_MAX: Final = 12


def optimal(loads: npt.NDArray[np.float64], *, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Expert of each slot. With one node, an expert may be anywhere; else each group of experts is on one node.

    Shapes: loads (windows, layers, experts); result (layers, slots).
    """
    windows, layers, experts = loads.shape
    mean = loads.sum(axis=2, keepdims=True) / gpus
    # A layer without load is treated as one with equal loads.
    relative = np.where(mean > 0, loads / np.where(mean > 0, mean, 1), gpus / experts).astype(np.float32)
    if nodes == 1:
        everyone = np.ones((layers, experts), dtype=np.bool_)
        least = np.ones(layers, dtype=np.float32)
        result = place(relative, everyone, least, gpus=gpus, size=slots // gpus).reshape(layers, slots)
    else:
        members = _members(relative, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
        present = (members >= 0).reshape(layers * nodes, -1)
        at = np.maximum(members, 0).reshape(layers, -1)
        on_nodes = np.take_along_axis(relative, at[None], axis=2).reshape(windows, layers * nodes, -1)
        on_nodes = np.where(present, on_nodes, np.float32(0))
        # A layer is as slow as its heaviest node, so the others need not be better than that.
        means = on_nodes.sum(axis=2).max(axis=0).reshape(layers, nodes) * np.float32(nodes / gpus)
        least = np.repeat(means.max(axis=1), nodes)
        placed = place(on_nodes, present, least, gpus=gpus // nodes, size=slots // gpus)
        result = np.take_along_axis(
            members.reshape(layers * nodes, -1), placed.reshape(layers * nodes, -1), axis=1
        ).reshape(layers, slots)
    return result


def better_of(ours: Indices, other: Indices, loads: npt.NDArray[np.float64], *, gpus: int) -> Indices:
    """Of each layer, our placement, or the other where that is better and has no two replicas of an expert on a GPU.

    Where shares are equal, as those of loads like 1/rank, the other may just be luckier.
    Shapes: placements (layers, slots), loads (layers, experts).
    """
    apart = (np.diff(np.sort(other.reshape(len(other), gpus, -1), axis=2), axis=2) != 0).all(axis=(1, 2))
    peaks = [gpu_loads(loads, each, gpus=gpus).max(axis=1) for each in (ours, other)]
    return np.where((apart & (peaks[1] < peaks[0]))[:, None], other, ours)


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
    rows = np.flatnonzero(peak > least * (1 + REGIVE_GAP))
    if not len(rows) or size == 1 or (gpus * size > PACKED_SLOTS_MAX and size > REGIVE_SIZE_MAX):
        return placed
    some, some_least = loads.take(rows, axis=1), least[rows]
    regiven = restrain(some, count[rows], some_least, peak[rows], gpus=gpus)
    regiven = regive(some, regiven, some_least, gpus=gpus)
    changed = (regiven != count[rows]).any(axis=1)
    if changed.any():
        rows = rows[changed]
        again, peak_again = _pack_evenly(
            loads.take(rows, axis=1), regiven[changed], least[rows], gpus=gpus, rounds_max=ROUNDS_MAX
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


def restrain(loads: Loads, count: Indices, least: Loads, peak: Loads, *, gpus: int) -> Indices:
    """Counts of fewer heavy replicas where that lowers the largest load of a row, else the present ones.

    A load T between the least and the present peak is tried: no replica may weigh more than T, and at most (k-1)*gpus
    of them more than T/k, since no GPU can hold k such. For that, experts are split that need the fewest slots.
    """
    worst = loads.max(axis=0)
    size = int(count[0].sum()) // gpus
    best, found = count.copy(), _judge(loads, count, least, gpus=gpus)
    for together in range(2, min(size, RESTRAINED_MAX) + 1):
        for part in RESTRAINED_PARTS:
            limit = least * (1 - part) + peak * part
            tried = _restrained(worst, count, limit, together=together, gpus=gpus)
            peaks = _judge(loads, tried, least, gpus=gpus)
            better = peaks < found * (1 - GAP)
            best[better], found[better] = tried[better], peaks[better]
    return best


def _restrained(loads: Loads, count: Indices, limit: Loads, *, together: int, gpus: int) -> Indices:
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
        rows = rows[peak[rows] > least[rows] * (1 + REGIVE_GAP)]
        if not len(rows):
            break
        tried = _regiven(loads[:, rows].max(axis=0), count[rows], gpus=gpus)
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
    if slots <= PACKED_SLOTS_MAX and slots > 2 * gpus:
        return _pack_evenly(loads, count, least, gpus=gpus, rounds_max=PACKED_ROUNDS_MAX)[1]
    return floor_of(loads, count, gpus=gpus)


def _regiven(loads: Loads, count: Indices, *, gpus: int) -> Indices:
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


def _members(loads: Loads, *, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Experts of each node, (layers, nodes, experts at most) padded with -1: whole groups, loads as even as they get.

    Tried heaviest first as the original does, then evened out, then with as many groups on a node as its slots hold;
    each layer takes what gives it the lower bound of its worst node.
    """
    windows, layers, experts = loads.shape
    group_size = experts // groups
    equal, most = groups // nodes, min(groups, slots // nodes // group_size)
    of_groups = loads.reshape(windows, layers, groups, group_size).sum(axis=3) * np.float32(nodes / gpus)
    best = np.full((layers, nodes, most), -1)
    bound = np.full(layers, np.inf)
    for room, rounds_max in ((equal, 0), (equal, ROUNDS_MAX), (most, ROUNDS_MAX))[
        : 2 if most == equal else 3
    ]:
        plan = _groups_of(of_groups, nodes=nodes, room=room, rounds_max=rounds_max)
        members = _experts_of(plan, group_size)
        found = _worst_bound(loads, members, slots=slots // nodes, gpus=gpus // nodes)
        better = found < bound * (1 - GAP)
        best[better, :, :room], best[better, :, room:] = plan[better], -1
        bound[better] = found[better]
    return _experts_of(best, group_size)


def _groups_of(of_groups: Loads, *, nodes: int, room: int, rounds_max: int) -> Indices:
    """Groups of each node, (layers, nodes, room) padded with -1: a group is a replica, a node a GPU."""
    windows, layers, groups = of_groups.shape
    nothing = np.zeros((windows, layers, nodes * room - groups), dtype=np.float32)
    loads = np.concatenate([of_groups, nothing], axis=2)
    placed = pack_apart(loads, np.ones(loads.shape[1:], dtype=np.int64), gpus=nodes)
    if room > 1:
        goal = np.full(layers, 1 + GAP, dtype=np.float32)
        even_out(placed, shares_of(loads, placed), goal, rounds_max=rounds_max)
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


__all__ = ["better_of", "floor_of", "optimal", "place", "regive"]
