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


__all__ = ["Move", "keep_slots", "list_moves"]
