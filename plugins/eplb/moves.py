"""The way from one placement to another: which experts a GPU lacks, and slots that can stay as they are."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from .greedy import Indices


class Move(NamedTuple):
    """GPU `gpu` lacks `expert` of `layer` and must load it into `slot`; `source_slot` on `source_gpu` holds it now."""

    layer: int
    slot: int
    gpu: int
    expert: int
    source_slot: int
    source_gpu: int


def list_moves(current: Indices, target: Indices, *, gpus: int) -> list[Move]:
    """What each GPU must load to get from one placement to the other, by layer and slot.

    An expert that a GPU already holds, in whichever slot, is no move; nor is its second replica there. Of several GPUs
    that hold an expert, the one that sends least in its layer is the source.
    Shapes: both (layers, slots).
    """
    moves = []
    size = current.shape[1] // gpus
    for layer, (old, new) in enumerate(zip(current.tolist(), target.tolist(), strict=True)):
        holders: dict[int, list[int]] = {}
        for slot, expert in enumerate(old):
            holders.setdefault(expert, []).append(slot)
        held = {(slot // size, expert) for slot, expert in enumerate(old)}
        sent: Counter[int] = Counter()
        for slot, expert in enumerate(new):
            gpu = slot // size
            if (gpu, expert) in held:
                continue
            held.add((gpu, expert))
            source = min(holders[expert], key=lambda each: (sent[each // size], each))
            sent[source // size] += 1
            moves.append(Move(layer, slot, gpu, expert, source, source // size))
    return moves


def count_moves(current: Indices, target: Indices, *, gpus: int) -> Indices:
    """How many moves `list_moves` would list for each layer. Shapes: both (layers, slots); result (layers,)."""
    layers = len(current)
    new = np.sort(target.reshape(layers, gpus, -1), axis=2)
    once = np.diff(new, axis=2, prepend=-1) != 0
    known = np.zeros((layers, gpus, int(max(current.max(), target.max())) + 1), dtype=np.bool_)
    np.put_along_axis(known, current.reshape(layers, gpus, -1), values=True, axis=2)
    moves: Indices = (once & ~np.take_along_axis(known, new, axis=2)).sum(axis=(1, 2))
    return moves


def match_gpus(current: Indices, target: Indices, *, gpus: int, nodes: int = 1) -> Indices:
    """The target with its GPUs renumbered inside each node so that many experts stay: greedily, best matches first.

    Shapes: both (layers, slots), and the result.
    """
    layers, slots = current.shape
    per_node = gpus // nodes
    old, new = (each.reshape(layers * nodes, per_node, -1) for each in (current, target))
    experts = int(max(current.max(), target.max())) + 1
    flags = np.zeros((2, layers * nodes, per_node, experts), dtype=np.float32)
    for index, each in enumerate((old, new)):
        np.put_along_axis(flags[index], each, values=1, axis=2)
    kept = flags[0] @ flags[1].transpose(0, 2, 1)  # experts that stay when GPU i takes what was meant for j
    result = np.empty_like(new)
    row = np.arange(layers * nodes)
    for _ in range(per_node):
        best = kept.reshape(len(row), -1).argmax(axis=1)
        gpu, meant = np.divmod(best, per_node)
        result[row, gpu] = new[row, meant]
        kept[row, gpu] = -1
        kept[row, :, meant] = -1
    return result.reshape(layers, slots)


def keep_slots(current: Indices, target: Indices, *, gpus: int) -> Indices:
    """The target with the slots inside each GPU in such an order that an expert that stays keeps its slot.

    Shapes: both (layers, slots), and the result.
    """
    layers, slots = current.shape
    size = slots // gpus
    result = target.copy().reshape(-1, size)
    for row, (old, new) in enumerate(zip(current.reshape(-1, size), target.reshape(-1, size), strict=True)):
        if not np.array_equal(old, new):
            result[row] = _arranged(old.tolist(), new.tolist())
    return result.reshape(layers, slots)


def _arranged(old: list[int], new: list[int]) -> list[int]:
    arriving = Counter(new)
    arranged: list[int | None] = []
    for expert in old:
        stays = arriving[expert] > 0
        arriving[expert] -= stays
        arranged.append(expert if stays else None)
    rest = iter(sorted(arriving.elements()))
    return [next(rest) if expert is None else expert for expert in arranged]


__all__ = ["Move", "count_moves", "keep_slots", "list_moves", "match_gpus"]
