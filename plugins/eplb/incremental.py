"""Few moves, much balance: the best placement within a budget of expert moves of the present one.

A move loads an expert onto a GPU that lacks it; to change slots inside a GPU costs nothing. Each layer walks away from
its present placement step by step, always relieving its heaviest GPU where that gains most a move:

    exchange  a slot of it and one elsewhere exchange their experts (2 moves)
    share     a slot elsewhere, whose expert has other replicas, takes a further replica of one of its experts (1 move)

All layers walk at once. The walk does not depend on the budget. Beyond its end, the placement of `optimal` is a last,
expensive point. Of each layer's points (moves, largest load), the combination with the least sum of largest loads
within the budget is found exactly, by dynamic programming over layers. So a larger budget is never worse.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .balance import Floats, gpu_loads, lower_bound, replica_counts, slot_loads
from .greedy import Indices
from .moves import count_moves, held_by

GAP: Final = 5e-4  # a layer within this of the bound walks no further
GAIN: Final = 1e-9  # relative; less is rounding
STEPS_MAX: Final = 300  # of a layer; 288 slots on 32 GPUs take 50 to 150


class Point(NamedTuple):
    """A placement of one layer: what it costs to get there, and its largest GPU load."""

    moves: int
    peak: float
    placed: Indices


def rebalance(  # noqa: PLR0913, a placement, its loads and its limits
    loads: Floats, current: Indices, *, gpus: int, nodes: int, budget: int, target: Indices | None
) -> Indices:
    """Expert of each slot, at most `budget` moves away from the current placement.

    Shapes: loads (layers, experts), current (layers, slots), target (layers, slots) a good placement however far.
    """
    placements = [current]
    if budget:
        placements += _walk(loads, current, gpus=gpus, nodes=nodes, steps_max=min(STEPS_MAX, budget))
    if target is not None:
        placements.append(target)
    moves = [count_moves(current, placed, gpus=gpus) for placed in placements]
    peaks = [_peaks(loads, placed, gpus) for placed in placements]
    fronts = []
    for layer in range(len(current)):
        each = zip(moves, peaks, placements, strict=True)
        points = [Point(int(cost[layer]), float(peak[layer]), placed[layer]) for cost, peak, placed in each]
        fronts.append(frontier(points))
    return np.stack(choose(fronts, budget))


def frontier(points: list[Point]) -> list[Point]:
    """The points that no other beats in both moves and peak, by moves."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: each[:2]):
        if not best or point.peak < best[-1].peak * (1 - GAIN):
            best.append(point)
    return best


def choose(fronts: list[list[Point]], budget: int) -> list[Indices]:
    """A placement of each layer: the least sum of peaks within the budget, and of those the fewest moves."""
    budget = min(budget, sum(front[-1].moves for front in fronts))
    least = np.zeros(budget + 1)  # by moves spent at most, over the layers so far
    chosen = np.empty((len(fronts), budget + 1), dtype=np.int64)
    for layer, front in enumerate(fronts):
        sums = np.full((len(front), budget + 1), np.inf)
        for index, point in enumerate(front):
            if point.moves <= budget:
                sums[index, point.moves :] = least[: budget + 1 - point.moves] + point.peak
        chosen[layer] = sums.argmin(axis=0)
        least = sums.min(axis=0)
    left = int(np.flatnonzero(least <= least[-1] * (1 + GAIN))[0])
    result = []
    for layer in range(len(fronts) - 1, -1, -1):
        point = fronts[layer][chosen[layer, left]]
        left -= point.moves
        result.append(point.placed)
    return result[::-1]


def _peaks(loads: Floats, placed: Indices, gpus: int) -> Floats:
    peaks: Floats = gpu_loads(loads, placed, gpus=gpus).max(axis=1)
    return peaks


def _walk(loads: Floats, current: Indices, *, gpus: int, nodes: int, steps_max: int) -> Iterator[Indices]:
    """The placements after each step; a layer that has arrived stays."""
    placed = current.copy()
    goal = lower_bound(loads, slots=current.shape[1], gpus=gpus) * (1 + GAP)
    active = np.flatnonzero(_peaks(loads, placed, gpus) > goal)
    for _ in range(steps_max):
        if not len(active):
            return
        some = placed[active]
        walking = _step(_Layers(loads[active], some, gpus=gpus, nodes=nodes))
        placed[active] = some
        yield placed.copy()
        active = active[walking & (_peaks(loads[active], some, gpus) > goal[active])]


def _step(layers: "_Layers") -> npt.NDArray[np.bool_]:
    """Change each layer in place by one step, and return where there was one."""
    runner_up = np.sort(layers.per_gpu, axis=1)[:, -2:][:, 0]
    heaviest = layers.heavy_load[:, 0]
    choices = (layers.exchange(), layers.share())
    # What counts is the gain a move until the next GPU is the heaviest; of equals, what relieves this one more.
    gains = np.stack(
        [
            (heaviest - np.maximum(each.peak, runner_up)) / len(each.slots) + 1e-3 * (heaviest - each.peak)
            for each in choices
        ]
    )
    helps = np.stack([each.peak < heaviest * (1 - GAIN) for each in choices])
    best = np.where(helps, gains, -np.inf).argmax(axis=0)
    for kind, choice in enumerate(choices):
        mine = np.flatnonzero((best == kind) & helps[kind])
        for slot, expert in zip(choice.slots, choice.experts, strict=True):
            layers.placed[mine, slot[mine]] = expert[mine]
    stepped: npt.NDArray[np.bool_] = np.logical_or.reduce(helps, axis=0)
    return stepped


class _Choice(NamedTuple):
    """The best change of one kind in each layer: slots, their new experts, and the load that it leaves."""

    peak: Floats
    slots: tuple[Indices, ...]
    experts: tuple[Indices, ...]


class _Layers:
    """What the kinds of steps need to know of the layers. S is the number of slots a GPU."""

    def __init__(self, loads: Floats, placed: Indices, *, gpus: int, nodes: int) -> None:
        at = np.take_along_axis
        slots, experts, size = placed.shape[1], loads.shape[1], placed.shape[1] // gpus
        self.placed, self.layer = placed, np.arange(len(placed))
        self.per_gpu = gpu_loads(loads, placed, gpus=gpus)
        count = replica_counts(placed, experts=experts)
        gpu = np.arange(slots) // size
        self.slot_load = slot_loads(loads, placed)
        self.load = self.per_gpu[:, gpu]  # of the GPU of each slot
        held = held_by(placed, experts=experts, gpus=gpus)

        heavy = self.per_gpu.argmax(axis=1)
        self.heavy_load = self.per_gpu.max(axis=1, keepdims=True)
        near = gpu * nodes // gpus == (heavy * nodes // gpus)[:, None]  # slots of the heaviest GPU's node
        self.mine = heavy[:, None] * size + np.arange(size)
        self.my_experts = at(placed, self.mine, axis=1)
        self.my_load = at(self.slot_load, self.mine, axis=1)
        self.my_load_shared = at(loads / (count + 1), self.my_experts, axis=1)  # with one replica more
        # arrives[layer, i, slot]: the GPU of the slot may take the expert of slot i of the heaviest GPU.
        self.arrives = near[:, None, :] & ~held[self.layer[:, None, None], gpu, self.my_experts[:, :, None]]
        self.unheld = near & ~held[self.layer[:, None], heavy[:, None], placed]
        self.spare = at(count, placed, axis=1) > 1
        more = loads / np.maximum(count - 1, 1) - loads / np.maximum(count, 1)
        self.without = self._other_load() + at(more, placed, axis=1)

    def _other_load(self) -> Floats:
        """Load of the heaviest GPU with another replica of each slot's expert; undefined where there is none."""
        at = np.take_along_axis
        order = np.lexsort((self.load, self.placed), axis=1)
        load, expert = at(self.load, order, axis=1), at(self.placed, order, axis=1)
        place = np.arange(load.shape[1]) + np.zeros_like(order)
        ends = np.diff(expert, axis=1, append=-1) != 0
        end = np.minimum.accumulate(np.where(ends, place, load.shape[1])[:, ::-1], axis=1)[:, ::-1]
        other = np.where(ends, np.maximum(end - 1, 0), end)  # the heaviest of the run, or the one before it
        result = np.empty_like(load)
        np.put_along_axis(result, order, at(load, other, axis=1), axis=1)
        return result

    def exchange(self) -> _Choice:
        """The best exchange of a slot of the heaviest GPU with one elsewhere."""
        given = self.my_load[:, :, None] - self.slot_load[:, None, :]
        peak = np.maximum(self.heavy_load[:, :, None] - given, self.load[:, None, :] + given)
        peak, index, slot = self._best(peak, self.arrives & self.unheld[:, None, :])
        experts = self.my_experts[self.layer, index], self.placed[self.layer, slot]
        return _Choice(peak, (slot, self.mine[self.layer, index]), experts)

    def share(self) -> _Choice:
        """The best further replica of an expert of the heaviest GPU, in a slot elsewhere."""
        peak = (self.load - self.slot_load)[:, None, :] + self.my_load_shared[:, :, None]
        lighter = (self.heavy_load - self.my_load + self.my_load_shared)[:, :, None]
        peak = np.maximum(np.maximum(peak, lighter), self.without[:, None, :])
        peak, index, slot = self._best(peak, self.arrives & self.spare[:, None, :])
        return _Choice(peak, (slot,), (self.my_experts[self.layer, index],))

    def _best(self, peak: Floats, allowed: npt.NDArray[np.bool_]) -> tuple[Floats, Indices, Indices]:
        """The least peak of each layer, and where it is: slot of the heaviest GPU, slot elsewhere."""
        flat = np.where(allowed, peak, np.inf).reshape(len(peak), -1)
        best = flat.argmin(axis=1)
        return flat[self.layer, best], *np.divmod(best, peak.shape[2])


__all__ = ["Point", "choose", "frontier", "rebalance"]
