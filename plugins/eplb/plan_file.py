"""A placement as a file: JSON that says for which machine it was made.

{"format": "luciola-eplb-plan", "version": 1, "policy": "optimal", "groups": 8, "nodes": 4, "gpus": 32,
 "physical_to_logical_map": [layers × slots]}
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from luciola.client import open_location, replacing
from luciola.errors import CorruptData

from .rebalance import checked_map

if TYPE_CHECKING:
    from luciola.client import Location

FORMAT: Final = {"format": "luciola-eplb-plan", "version": 1}


@dataclass(frozen=True)
class Plan:
    """A placement, and what it was made for."""

    policy: str
    groups: int
    nodes: int
    gpus: int
    physical_to_logical_map: Tensor  # (layers, slots) int64

    def save(self, location: "str | os.PathLike[str] | Location") -> None:
        """Write the file, which appears complete and durable, or not at all. Raises: OSError."""
        table = {**FORMAT, **asdict(self), "physical_to_logical_map": self.physical_to_logical_map.tolist()}
        with replacing(*open_location(location)) as writer:
            writer.write(json.dumps(table).encode())

    @classmethod
    def load(cls, location: "str | os.PathLike[str] | Location") -> "Plan":
        """Read and check a file. Raises: CorruptData, with the reason; OSError."""
        file_system, path = open_location(location)
        data = file_system.read(path)
        try:
            return _parse(json.loads(data))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CorruptData(f"not a plan: {error!s:.200}", path=path) from error


def _parse(table: Any) -> Plan:
    if not isinstance(table, dict) or {key: table.get(key) for key in FORMAT} != FORMAT:
        raise ValueError(f"its format is not {FORMAT['format']!r}, version {FORMAT['version']}")
    numbers = {name: table[name] for name in ("groups", "nodes", "gpus")}
    if not all(type(number) is int and number > 0 for number in numbers.values()):
        raise ValueError("groups, nodes and gpus are whole numbers from 1 on")
    placement = torch.tensor(table["physical_to_logical_map"])
    checked_map(placement, numbers["gpus"])
    return Plan(str(table["policy"]), **numbers, physical_to_logical_map=placement)


__all__ = ["Plan"]
