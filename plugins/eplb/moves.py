"""The way from one placement to another: which experts a GPU lacks, and slots that can stay as they are.

Shapes: placements (layers, slots).
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .greedy import Indices


class Move(NamedTuple):
    """GPU `gpu` lacks `expert` of `layer` and must load it into `slot`; `source_slot` on `source_gpu` holds it now."""

    layer: int
    slot: int
    gpu: int
    expert: int
    source_slot: int
    source_gpu: int


def held_by(placed: Indices, *, experts: int, gpus: int) -> npt.NDArray[np.bool_]:
    """Return whether a GPU holds an expert. Shapes: result (layers, gpus, experts)."""
    held = np.zeros((len(placed), gpus, experts), dtype=np.bool_)
    np.put_along_axis(held, placed.reshape(len(placed), gpus, -1), values=True, axis=2)
    return held


def list_moves(current: Indices, target: Indices, *, gpus: int) -> list[Move]:
    """List what each GPU must load to get from one placement to the other, by layer and slot.

    An expert that a GPU already holds, in whichever slot, is no move; nor is its second replica there. Of several GPUs
    that hold an expert, the one that sends least in its layer is the source.
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
    """Count the moves that `list_moves` would list for each layer, (layers,)."""
    experts = int(max(current.max(), target.max())) + 1
    old, new = (held_by(each, experts=experts, gpus=gpus) for each in (current, target))
    moves: Indices = (new & ~old).sum(axis=(1, 2))
    return moves


def match_gpus(current: Indices, target: Indices, *, gpus: int, nodes: int = 1) -> Indices:
    """The target with its GPUs renumbered inside each node so that many experts stay: greedily, best matches first."""
    per_node, experts = gpus // nodes, int(max(current.max(), target.max())) + 1
    on_nodes = [each.reshape(len(current) * nodes, -1) for each in (current, target)]
    old, new = (held_by(each, experts=experts, gpus=per_node).astype(np.float32) for each in on_nodes)
    kept = old @ new.transpose(0, 2, 1)  # experts that stay when GPU i takes what was meant for j
    meant_for = on_nodes[1].reshape(len(kept), per_node, -1)
    result = np.empty_like(meant_for)
    row = np.arange(len(kept))
    for _ in range(per_node):
        gpu, meant = np.divmod(kept.reshape(len(row), -1).argmax(axis=1), per_node)
        result[row, gpu] = meant_for[row, meant]
        kept[row, gpu] = -1
        kept[row, :, meant] = -1
    return result.reshape(current.shape)


def keep_slots(current: Indices, target: Indices, *, gpus: int) -> Indices:
    """The target with the slots inside each GPU in such an order that an expert that stays keeps its slot."""
    size = current.shape[1] // gpus
    result = target.copy().reshape(-1, size)
    for row, (old, new) in enumerate(zip(current.reshape(-1, size), target.reshape(-1, size), strict=True)):
        if not np.array_equal(old, new):
            result[row] = _arranged(old.tolist(), new.tolist())
    return result.reshape(current.shape)


def _arranged(old: list[int], new: list[int]) -> list[int]:
    arriving = Counter(new)
    arranged: list[int | None] = []
    for expert in old:
        stays = arriving[expert] > 0
        arriving[expert] -= stays
        arranged.append(expert if stays else None)
    rest = iter(sorted(arriving.elements()))
    return [next(rest) if expert is None else expert for expert in arranged]


__all__ = ["Move", "count_moves", "held_by", "keep_slots", "list_moves", "match_gpus"]
