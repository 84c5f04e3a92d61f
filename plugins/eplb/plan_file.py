"""A placement as a file: JSON that says for which loads and machines it was made, and what must move.

{"format": "luciola-eplb-plan", "version": 1, "policy": "optimal", "groups": 8, "nodes": 4, "gpus": 32,
 "loads": [layers × experts], "physical_to_logical_map": [layers × slots],
 "moves": [[layer, slot, gpu, expert, source slot, source GPU], …] or null if there was no placement before}
"""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from luciola.client import open_location, replacing
from luciola.errors import CorruptData

from .rebalance import gpu_loads, imbalance, lower_bound

if TYPE_CHECKING:
    from luciola.client import Location

FORMAT: Final = "luciola-eplb-plan"
VERSION: Final = 1


@dataclass(frozen=True)
class Plan:
    """A placement, and what it was made for."""

    policy: str
    groups: int
    nodes: int
    gpus: int
    loads: Tensor  # (layers, experts) float64
    placement: Tensor  # physical_to_logical_map, (layers, slots) int64
    moves: tuple[tuple[int, ...], ...] | None = None  # None: there was no placement before

    @property
    def slots(self) -> int:
        return self.placement.shape[1]

    def encode(self) -> bytes:
        """The bytes of its file: a line a layer."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "policy": self.policy,
            "groups": self.groups,
            "nodes": self.nodes,
            "gpus": self.gpus,
        }
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        parts += [
            f'"loads": {_lines(self.loads.tolist())}',
            f'"physical_to_logical_map": {_lines(self.placement.tolist())}',
            f'"moves": {"null" if self.moves is None else _lines([list(move) for move in self.moves])}',
        ]
        return ("{\n " + ",\n ".join(parts) + "\n}\n").encode()

    def save(self, location: "str | os.PathLike[str] | Location") -> None:
        """Writes the file; it appears complete and durable, or not at all. Raises: OSError."""
        with replacing(*open_location(location)) as writer:
            writer.write(self.encode())

    @classmethod
    def load(cls, location: "str | os.PathLike[str] | Location") -> "Plan":
        """Raises: CorruptData, with the reason, for what is no plan; OSError."""
        file_system, path = open_location(location)
        data = file_system.read(path)
        try:
            return _parse(json.loads(data))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CorruptData(f"not a plan: {error!s:.200}", path=path) from error


def _lines(rows: list[Any]) -> str:
    return "[\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]" if rows else "[]"


def _parse(table: Any) -> Plan:
    if not isinstance(table, dict) or (table.get("format"), table.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"its format is not {FORMAT!r}, version {VERSION}")
    numbers = {name: table[name] for name in ("groups", "nodes", "gpus")}
    if not all(type(number) is int and number > 0 for number in numbers.values()):
        raise ValueError("groups, nodes and gpus are whole numbers from 1 on")
    moves = table["moves"]
    if moves is not None:
        moves = tuple(tuple(int(each) for each in move) for move in moves)
    plan = Plan(
        policy=str(table["policy"]),
        **numbers,
        loads=torch.tensor(table["loads"], dtype=torch.float64),
        placement=torch.tensor(table["physical_to_logical_map"]),
        moves=moves,
    )
    imbalance(plan.loads, plan.placement, plan.gpus)  # raises what is wrong with the numbers
    return plan


@dataclass(frozen=True)
class LayerBalance:
    """How even one layer's GPUs are. Ratios are to the mean GPU load; all are 1 in a layer without load."""

    layer: int
    mean: float
    ratio: float  # of the most loaded GPU
    bound: float  # that no placement can go below
    gpu: int  # the most loaded one
    most_replicas: int  # of one expert
    doubles: int  # slots that hold a second replica of an expert on their GPU


def balance_of(plan: Plan, loads: Tensor) -> list[LayerBalance]:
    """The balance of each layer under `loads`. Raises: ValueError for loads that do not fit the plan."""
    per_gpu = gpu_loads(loads, plan.placement, plan.gpus)
    ratios = imbalance(loads, plan.placement, plan.gpus).tolist()
    bounds = lower_bound(loads, plan.slots, plan.gpus)
    rows = []
    for layer, (row, ratio) in enumerate(zip(per_gpu, ratios, strict=True)):
        mean = float(row.mean())
        placed = plan.placement[layer].reshape(plan.gpus, -1).tolist()
        rows.append(
            LayerBalance(
                layer=layer,
                mean=mean,
                ratio=ratio,
                bound=float(bounds[layer]) / mean if mean else 1.0,
                gpu=int(row.argmax()),
                most_replicas=int(plan.placement[layer].bincount().max()),
                doubles=sum(len(each) - len(set(each)) for each in placed),
            )
        )
    return rows


def experts_in_order(loads: Tensor, slots: int, *, nodes: int = 1) -> Tensor:
    """The placement without balancing: expert i in slot i, and again from the first in the slots that are left.

    With nodes, each has an equal part of the experts, in order, in an equal part of the slots.
    """
    layers, experts = loads.shape
    own = experts // nodes
    node, place = (
        torch.arange(slots).div(slots // nodes, rounding_mode="floor"),
        torch.arange(slots) % (slots // nodes),
    )
    return (node * own + place % own).expand(layers, slots).contiguous()


def bound_nodes(policy: str, *, groups: int, nodes: int) -> int:
    """How many nodes an expert is bound to one of: all where groups are placed on nodes, else one."""
    return 1 if groups % nodes or policy == "optimal-global" else nodes


__all__ = ["LayerBalance", "Plan", "balance_of", "bound_nodes", "experts_in_order"]
