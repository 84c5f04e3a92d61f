"""How good a placement is: loads of GPUs, and a bound that no placement can beat.

Bound. Let T be the largest GPU load of any placement that splits an expert's load w evenly over its c replicas, with
S slots on each of G GPUs.

B1 T >= sum(w) / G, the mean.
B2 No replica weighs more than T, so c >= ceil(w / T), and at least 1; all c together are S*G.

What B2 demands shrinks as T grows, so the smallest T that meets both is found by bisection.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from .greedy import Indices

Floats: TypeAlias = npt.NDArray[np.float64]

BISECTIONS: Final = 60  # halves the interval below the resolution of float64
ROUNDING: Final = 1e-12  # a replica that weighs exactly the limit must not need one more because of rounding


def gpu_loads(loads: Floats, expert_of: Indices, *, gpus: int) -> Floats:
    """Load of each GPU. Shapes: loads (layers, experts), expert_of (layers, slots); result (layers, gpus)."""
    layers, experts = loads.shape
    count = replica_counts(expert_of, experts=experts)
    share = np.take_along_axis(loads / np.maximum(count, 1), expert_of, axis=1)
    result: Floats = share.reshape(layers, gpus, -1).sum(axis=2)
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


def lower_bound(loads: Floats, *, slots: int | Indices, gpus: int) -> Floats:
    """The largest GPU load that no placement of each layer can go below (see the module's text).

    Shapes: loads (layers, experts), slots one number or one a layer; result (layers,).
    """
    low = loads.sum(axis=1) / gpus
    high = np.maximum(loads.max(axis=1), low)
    return _least(low, high, lambda limit: _at_least(loads, limit).sum(axis=1) <= slots)


def _least(low: Floats, high: Floats, holds: Callable[[Floats], npt.NDArray[np.bool_]]) -> Floats:
    """The smallest limit of each layer, from `low` on, for which the condition holds; it does for `high`."""
    high = np.where(holds(low), low, np.maximum(low, high))
    for _ in range(BISECTIONS if (high > low).any() else 0):
        middle = (low + high) / 2
        enough = holds(middle)
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return high


def _at_least(loads: Floats, limit: Floats) -> Floats:
    """Replicas that each expert needs so that none weighs more than the limit."""
    safe = np.where(limit > 0, limit, 1.0)[:, None]
    needed: Floats = np.maximum(1, np.ceil(loads / safe * (1 - ROUNDING)))
    return needed


__all__ = ["gpu_loads", "lower_bound", "replica_counts", "replica_numbers"]
