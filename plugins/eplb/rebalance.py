"""What users call: placements from loads, and measures of placements. Tensors in, tensors out, inputs checked.

A placement is named by its `physical_to_logical_map` (layers, slots): the expert of each slot. GPU g owns the slots
g*S to (g+1)*S - 1 with S = slots / num_gpus, and node n the GPUs n*G to (n+1)*G - 1 with G = num_gpus / num_nodes.
"""

from collections.abc import Mapping
from operator import index
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..kernels.errors import BadCall
from . import balance, incremental
from .balance import Floats
from .greedy import Indices, hierarchical, invert
from .moves import Move, held_by, keep_slots, list_moves, match_gpus
from .optimal import best_of, has_duplicates, optimal, optimal_in_place

Policy = Literal["reference", "optimal"]
POLICIES: Final = get_args(Policy)


class Placement(NamedTuple):
    """Where the replicas are; int64 on the CPU. As a tuple it is what deepseek-ai/EPLB returns.

    physical_to_logical_map (layers, slots): expert of each slot. logical_to_physical_map (layers, experts, X): slots of
    each expert's replicas, padded with -1; X is the largest count. expert_count (layers, experts): replicas.
    """

    physical_to_logical_map: Tensor
    logical_to_physical_map: Tensor
    expert_count: Tensor


def rebalance_experts(  # noqa: PLR0913, the original's arguments
    weight: Tensor,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    policy: Policy = "reference",
) -> Placement:
    """Place the replicas of every layer's experts on GPUs so that their loads are even.

    `weight` (layers, experts): loads of experts, any dtype, taken as float32. `num_replicas`: slots in all, a multiple
    of `num_gpus`. If `num_groups` is a multiple of `num_nodes`, each group of experts stays on one node (hierarchical);
    otherwise groups and nodes do not matter (global).

    Policies: "reference" is the plan of deepseek-ai/EPLB; where that depends on an unstable sort of equal loads, it is
    the stable one. A layer without any load gives all its spare slots to its first expert, as there.
    "optimal" comes close to `lower_bound`: it puts no two replicas of an expert on one GPU where an expert has no more
    replicas than GPUs, and may give nodes different numbers of groups. It also takes several load windows (windows,
    layers, experts) and makes the worst one good, each window measured in its own mean.

    Raises: ValueError when the input cannot be placed, with the value and what is allowed, and AssertionError too where
    the original raises that (sizes that do not fit); TypeError for a weight that is no real tensor.
    Source: deepseek-ai/EPLB; checked against `reference.py`.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    _check_positive(
        {"num_replicas": num_replicas, "num_groups": num_groups, "num_nodes": num_nodes, "num_gpus": num_gpus}
    )
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    loads = _loads(weight, windows=policy == "optimal")
    experts = loads.shape[-1]
    _check_divides("num_gpus", num_gpus, "num_nodes", num_nodes)
    _check_divides("experts", experts, "num_groups", num_groups)
    _check_slots(num_replicas, experts=experts, gpus=num_gpus)
    sizes = {"slots": num_replicas, "nodes": num_nodes, "gpus": num_gpus}
    if policy == "optimal":
        windows = _wide(loads.reshape(-1, *loads.shape[-2:]))
        expert_of = optimal(windows, **sizes, groups=num_groups)
    if loads.dim() == 2:
        # Not on a contiguous copy: the order in which torch adds up depends on the strides.
        groups = loads.reshape(len(loads), num_groups, experts // num_groups).sum(-1)
        original = hierarchical(loads.numpy(), groups.numpy(), **sizes)
        if policy == "reference":
            return _placement(*original)
        # Where shares are equal, as those of loads like 1/rank, the original may just be luckier.
        usable = np.where(has_duplicates(original[0], gpus=num_gpus)[:, None], expert_of, original[0])
        expert_of = best_of([expert_of, usable], windows, gpus=num_gpus)
    return _numbered(expert_of, experts=experts)


def rebalance_incrementally(
    weight: Tensor, physical_to_logical_map: Tensor, num_gpus: int, *, budget: int, num_nodes: int = 1
) -> tuple[Placement, list[Move]]:
    """The best placement within `budget` expert moves of the present one, over all layers, and those moves.

    A move loads an expert onto a GPU that lacks it; an expert that stays on its GPU keeps its slot. The best is the
    least sum over layers of the largest GPU load. A larger budget is never worse; no budget gives the same placement.
    With `num_nodes`, an expert stays on the node that has it.
    Shapes: weight (layers, experts), physical_to_logical_map (layers, slots).
    Raises: ValueError for a negative budget, a map that does not fit the weights or leaves an expert without a slot,
    and with `num_nodes` for an expert on several nodes.
    """
    loads, current = _loads_and_map(weight, physical_to_logical_map, num_gpus)
    if index(budget) < 0:
        raise ValueError(f"budget must not be negative, not {budget}")
    _check_positive({"num_nodes": num_nodes})
    _check_divides("num_gpus", num_gpus, "num_nodes", num_nodes)
    _check_homes(current, num_nodes)
    target: Indices | None = None
    if budget:
        best = optimal_in_place(loads, current, gpus=num_gpus, nodes=num_nodes)
        target = match_gpus(current, best, gpus=num_gpus, nodes=num_nodes)
    chosen = incremental.rebalance(
        loads, current, gpus=num_gpus, nodes=num_nodes, budget=budget, target=target
    )
    expert_of = keep_slots(current, chosen, gpus=num_gpus)
    return _numbered(expert_of, experts=loads.shape[1]), list_moves(current, expert_of, gpus=num_gpus)


def gpu_loads(weight: Tensor, physical_to_logical_map: Tensor, num_gpus: int) -> Tensor:
    """Load of each GPU, (layers, num_gpus) float64: an expert's load is split evenly over its replicas.

    Raises: ValueError for a map that does not fit the weights or leaves an expert without a slot.
    """
    loads, expert_of = _loads_and_map(weight, physical_to_logical_map, num_gpus)
    return torch.from_numpy(balance.gpu_loads(loads, expert_of, gpus=num_gpus))


def imbalance(weight: Tensor, physical_to_logical_map: Tensor, num_gpus: int) -> Tensor:
    """Largest over mean GPU load of each layer, (layers,) float64; 1 where a layer has no load."""
    per_gpu = gpu_loads(weight, physical_to_logical_map, num_gpus)
    mean = per_gpu.mean(-1)
    return torch.where(mean > 0, per_gpu.amax(-1) / torch.where(mean > 0, mean, 1.0), 1.0)


def lower_bound(weight: Tensor, num_replicas: int, num_gpus: int) -> Tensor:
    """Largest GPU load of each layer that no placement can go below, (layers,) float64. Proof: `balance.py`."""
    loads = _loads(weight)
    _check_positive({"num_replicas": num_replicas, "num_gpus": num_gpus})
    _check_slots(num_replicas, experts=loads.shape[1], gpus=num_gpus)
    return torch.from_numpy(balance.lower_bound(_wide(loads), slots=num_replicas, gpus=num_gpus))


def align(current: Tensor, target: Tensor, num_gpus: int, *, num_nodes: int | None = None) -> Tensor:
    """The target placement with slots inside each GPU so ordered that an expert that stays there keeps its slot.

    With `num_nodes`, GPUs are first renumbered inside each node so that many experts stay where they are; 1 for
    placements that do not care for nodes.
    Both are physical_to_logical_maps (layers, slots), and so is the result.
    """
    old, new = _two_maps(current, target, num_gpus)
    if num_nodes is not None:
        _check_positive({"num_nodes": num_nodes})
        _check_divides("num_gpus", num_gpus, "num_nodes", num_nodes)
        new = match_gpus(old, new, gpus=num_gpus, nodes=num_nodes)
    return torch.from_numpy(keep_slots(old, new, gpus=num_gpus))


def moves_between(current: Tensor, target: Tensor, num_gpus: int) -> list[Move]:
    """The experts that each GPU must load to get from one placement to the other, by layer and slot.

    An expert that a GPU already holds is no move, in any slot there (`align` keeps slots). Of several GPUs that
    hold an expert, the one that sends least in its layer is the source.
    """
    return list_moves(*_two_maps(current, target, num_gpus), gpus=num_gpus)


def _numbered(expert_of: Indices, *, experts: int) -> Placement:
    """The placement whose replicas are numbered by their slots."""
    order = np.argsort(expert_of, axis=1, kind="stable")
    count = balance.replica_counts(expert_of, experts=experts)
    first = np.take_along_axis(count.cumsum(axis=1) - count, expert_of, axis=1)  # in that order
    return _placement(expert_of, invert(order) - first, count)


def _placement(expert_of: Indices, replica_of: Indices, count: Indices) -> Placement:
    layers, slots = expert_of.shape
    logical = np.full((layers, count.shape[1], int(count.max())), -1, dtype=np.int64)
    logical[np.arange(layers)[:, None], expert_of, replica_of] = np.arange(slots)
    return Placement(torch.from_numpy(expert_of), torch.from_numpy(logical), torch.from_numpy(count))


def _wide(loads: Tensor) -> Floats:
    wide: Floats = loads.double().numpy()
    return wide


def _loads(weight: Tensor, *, windows: bool = False) -> Tensor:
    """The loads as float32 on the CPU, checked; with `windows`, there may be a dimension before the layers."""
    if not isinstance(weight, Tensor) or weight.is_complex():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a real torch tensor, not {kind}")
    if weight.dim() not in ((2, 3) if windows else (2,)) or 0 in weight.shape:
        shape = "(layers, experts) or (windows, layers, experts)" if windows else "(layers, experts)"
        raise ValueError(f"weight must be {shape}, all at least 1, not {tuple(weight.shape)}")
    loads = weight.detach().float().cpu()
    bad = ~(loads >= 0) | loads.isinf()
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"weight must be finite in float32 and not negative: weight{list(place)} is {weight[place].item()}"
        )
    if bool(loads.sum(-1).isinf().any()):
        raise ValueError(
            "weight is too large: the sum of a layer overflows float32; divide all loads by one number"
        )
    return loads


def _loads_and_map(weight: Tensor, expert_of: Tensor, gpus: int) -> tuple[Floats, Indices]:
    """Loads and a complete placement of them, checked."""
    loads = _loads(weight)
    layers, experts = loads.shape
    placed = checked_map(expert_of, gpus)
    if len(placed) != layers:
        raise ValueError(f"physical_to_logical_map has {len(placed)} layers, weight has {layers}")
    if placed.max() >= experts:
        raise ValueError(f"physical_to_logical_map must name experts 0..{experts - 1}, not {placed.max()}")
    missing = np.argwhere(balance.replica_counts(placed, experts=experts) == 0)
    if len(missing):
        layer, expert = missing[0]
        raise ValueError(f"physical_to_logical_map leaves layer {layer}, expert {expert} without a slot")
    return _wide(loads), placed


def _two_maps(current: Tensor, target: Tensor, gpus: int) -> tuple[Indices, Indices]:
    old, new = checked_map(current, gpus), checked_map(target, gpus)
    if old.shape != new.shape:
        raise ValueError(f"placements must have one shape, not {old.shape} and {new.shape}")
    for layer, (before, after) in enumerate(zip(old, new, strict=True)):
        if set(before.tolist()) != set(after.tolist()):
            raise ValueError(f"placements must hold the same experts: layer {layer} does not")
    return old, new


def checked_map(expert_of: Tensor, gpus: int) -> Indices:
    """A physical_to_logical_map as an array, checked as far as it can be without loads."""
    _check_positive({"num_gpus": gpus})
    if not isinstance(expert_of, Tensor) or expert_of.is_floating_point() or expert_of.is_complex():
        kind = expert_of.dtype if isinstance(expert_of, Tensor) else type(expert_of).__name__
        raise TypeError(f"physical_to_logical_map must be a torch tensor of integers, not {kind}")
    if expert_of.dim() != 2 or 0 in expert_of.shape:
        raise ValueError(
            f"physical_to_logical_map must be (layers, slots), both at least 1, not {tuple(expert_of.shape)}"
        )
    _check_divides("slots", expert_of.shape[1], "num_gpus", gpus)
    placed: Indices = expert_of.cpu().numpy().astype(np.int64)
    if placed.min() < 0:
        raise ValueError(f"physical_to_logical_map must name an expert in every slot, not {placed.min()}")
    return placed


def _check_positive(sizes: Mapping[str, int]) -> None:
    for name, value in sizes.items():
        if index(value) < 1:
            raise BadCall(f"{name} must be at least 1, not {value}")


def _check_divides(what: str, value: int, part: str, divisor: int) -> None:
    if value % divisor:
        raise BadCall(f"{what} ({value}) must be a multiple of {part} ({divisor})")


def _check_homes(placed: Indices, nodes: int) -> None:
    homes = held_by(placed, experts=int(placed.max()) + 1, gpus=nodes).sum(axis=1)
    if len(twice := np.argwhere(homes > 1)):
        layer, expert = twice[0]
        raise BadCall(
            f"with num_nodes {nodes} each expert must be on one node: in layer {layer}, {expert} is on two"
        )


def _check_slots(slots: int, *, experts: int, gpus: int) -> None:
    _check_divides("num_replicas", slots, "num_gpus", gpus)
    if slots < experts:
        raise BadCall(f"num_replicas ({slots}) must be at least the number of experts ({experts})")


__all__ = [
    "Placement", "Policy", "align", "checked_map", "gpu_loads", "imbalance", "lower_bound", "moves_between",
    "rebalance_experts", "rebalance_incrementally",
]  # fmt: skip
