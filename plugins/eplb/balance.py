"""How good a placement is: loads of GPUs, and a bound that no placement can beat.

Bound. Let T be the largest GPU load of any placement that splits an expert's load evenly over its replicas. Then
T >= total / gpus (the mean), and every replica weighs at most T, so expert e has at least ceil(load_e / T) replicas;
there are `slots` of them: sum_e max(1, ceil(load_e / T)) <= slots. The smallest T that obeys both is the bound.
Two replicas of one expert on one GPU do not help it: they weigh together what they weigh.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from .greedy import Indices

BISECTIONS: Final = 60  # halves the interval below the resolution of float64


def gpu_loads(loads: npt.NDArray[np.float64], expert_of: Indices, *, gpus: int) -> npt.NDArray[np.float64]:
    """Load of each GPU. Shapes: loads (layers, experts), expert_of (layers, slots); result (layers, gpus)."""
    layers, experts = loads.shape
    count = replica_counts(expert_of, experts=experts)
    share = np.take_along_axis(loads / np.maximum(count, 1), expert_of, axis=1)
    result: npt.NDArray[np.float64] = share.reshape(layers, gpus, -1).sum(axis=2)
    return result


def replica_counts(expert_of: Indices, *, experts: int) -> Indices:
    """Replicas of each expert. Shapes: expert_of (layers, slots); result (layers, experts)."""
    layers = expert_of.shape[0]
    flat = (expert_of + np.arange(layers)[:, None] * experts).ravel()
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts).astype(np.int64)


def replica_numbers(expert_of: Indices) -> Indices:
    """Replica number of each slot: replicas of an expert are numbered by their slot. Shapes: (layers, slots)."""
    order = np.argsort(expert_of, axis=1, kind="stable")
    in_order = np.take_along_axis(expert_of, order, axis=1)
    place = np.broadcast_to(np.arange(expert_of.shape[1]), expert_of.shape)
    starts = np.diff(in_order, axis=1, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    result = np.empty_like(expert_of)
    np.put_along_axis(result, order, place - first, axis=1)
    return result


def lower_bound(loads: npt.NDArray[np.float64], *, slots: int, gpus: int) -> npt.NDArray[np.float64]:
    """The largest GPU load that no placement of each layer can go below (see the module's text).

    Shapes: loads (layers, experts); result (layers,).
    """
    low = loads.sum(axis=1) / gpus
    high = np.maximum(loads.max(axis=1), low)
    high = np.where(_replicas_needed(loads, low) <= slots, low, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = _replicas_needed(loads, middle) <= slots
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return high


def _replicas_needed(loads: npt.NDArray[np.float64], limit: npt.NDArray[np.float64]) -> Indices:
    safe = np.where(limit > 0, limit, 1.0)[:, None]
    # A replica that weighs exactly the limit must not need one more because of rounding.
    needed: Indices = np.maximum(1, np.ceil(loads / safe * (1 - 1e-12))).sum(axis=1).astype(np.int64)
    return needed


__all__ = ["gpu_loads", "lower_bound", "replica_counts", "replica_numbers"]
