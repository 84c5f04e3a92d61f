"""Which transport connects these ranks: the fastest that all of them can use, or the one that is asked for."""

from typing import Final

import torch

from ...kernels.errors import BadArgument, refuse
from .collectives import Collectives
from .interface import Link, NotUsable
from .ipc import CudaIpc
from .members import Members, agree
from .shared_memory import SharedMemory
from .symmetric import Symmetric

AUTO: Final = "auto"
BACKENDS: Final = (Symmetric, CudaIpc, SharedMemory, Collectives)
"""Fastest first; each refuses devices and hosts that it cannot serve."""


def open_transport(members: Members, num_bytes: int, *, device: torch.device, name: str = AUTO,
                   timeout_s: float = 100.0) -> Link:  # fmt: skip
    """Connect all ranks; all call it with equal arguments.

    Raises: RanksDisagree for different arguments; BadArgument for a name that is not known or cannot be used here.
    """
    names = [each.name for each in BACKENDS]
    if name != AUTO and name not in names:
        refuse("transport", repr(name), f"choose {AUTO} or one of {', '.join(names)}")
    facts = {"num_bytes": num_bytes, "device": device.type, "transport": name, "timeout_s": timeout_s}
    agree(members, facts, phase="opening")
    reasons: list[str] = []
    for backend in BACKENDS:
        if name not in {AUTO, backend.name}:
            continue
        if backend.device_type not in {None, device.type}:
            if name != AUTO:
                reasons.append(f"no {backend.name}: tensors are on {device.type}")
            continue
        try:
            transport: Link = backend.open(members, num_bytes, device=device, timeout_s=timeout_s)
        except NotUsable as problem:
            reasons.append(f"no {backend.name}: {problem}")
            continue
        transport.why = "; ".join(reasons)
        return transport
    raise BadArgument(f"these ranks cannot be connected: {'; '.join(reasons)}")


__all__ = ["AUTO", "BACKENDS", "open_transport"]
