"""How good a placement is: loads of slots and GPUs, and a bound that no placement can beat.

Bound. Let T be the largest GPU load of any placement that splits an expert's load w evenly over its c replicas, with
S slots on each of G GPUs.

B1 T >= sum(w) / G, the mean.
B2 No replica weighs more than T, so c >= ceil(w / T), and at least 1; all c together are S*G.

What B2 demands shrinks as T grows, so the smallest T that meets both is found by bisection.
"""

from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .greedy import Indices

Floats: TypeAlias = npt.NDArray[np.float64]
_Float = TypeVar("_Float", np.float32, np.float64)

BISECTIONS: Final = 60  # halves the interval below the resolution of float64
ROUNDING: Final = 1e-12  # a replica that weighs exactly the limit must not need one more because of rounding


def slot_loads(loads: npt.NDArray[_Float], expert_of: Indices) -> npt.NDArray[_Float]:
    """Load of each slot.

    Shapes: loads (layers, experts) or (windows, layers, experts), expert_of (layers, slots); result as the loads.
    """
    count = replica_counts(expert_of, experts=loads.shape[-1])
    share: npt.NDArray[_Float] = np.divide(loads, np.maximum(count, 1), dtype=loads.dtype)
    index = expert_of if loads.ndim == 2 else expert_of[None]
    slots: npt.NDArray[_Float] = np.take_along_axis(share, index, axis=-1)
    return slots


def gpu_loads(loads: npt.NDArray[_Float], expert_of: Indices, *, gpus: int) -> npt.NDArray[_Float]:
    """Load of each GPU. Shapes: as `slot_loads`, with GPUs in place of slots in the result."""
    slots = slot_loads(loads, expert_of)
    result: npt.NDArray[_Float] = slots.reshape(*slots.shape[:-1], gpus, -1).sum(axis=-1)
    return result


def replica_counts(expert_of: Indices, *, experts: int) -> Indices:
    """Replicas of each expert. Shapes: expert_of (layers, slots); result (layers, experts)."""
    layers = expert_of.shape[0]
    flat = (expert_of + np.arange(layers)[:, None] * experts).ravel()
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts).astype(np.int64)


def lower_bound(loads: Floats, *, slots: int, gpus: int) -> Floats:
    """The largest GPU load that no placement of each layer can go below (see the module's text).

    Shapes: loads (layers, experts); result (layers,).
    """

    def holds(limit: Floats) -> npt.NDArray[np.bool_]:
        replicas = np.ceil(loads / np.where(limit > 0, limit, 1.0)[:, None] * (1 - ROUNDING))
        fits: npt.NDArray[np.bool_] = np.maximum(replicas, 1).sum(axis=1) <= slots
        return fits

    low = loads.sum(axis=1) / gpus
    high = np.where(holds(low), low, np.maximum(loads.max(axis=1), low))
    for _ in range(BISECTIONS if (high > low).any() else 0):
        middle = (low + high) / 2
        enough = holds(middle)
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return high


__all__ = ["Floats", "gpu_loads", "lower_bound", "replica_counts", "slot_loads"]
