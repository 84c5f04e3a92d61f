"""The link between these ranks: the fastest that all of them can use, or the one that is asked for.

The environment of the process is read here and nowhere else; arguments come first.

LUCIOLA_DEEPEP_TRANSPORT       shared-memory, collectives, …: instead of the fastest that all ranks can use
LUCIOLA_DEEPEP_TIMEOUT_S       how long a rank waits for another, 100 by default
"""

import os
from typing import Final

import torch

from ...kernels.errors import BadArgument, refuse
from .bootstrap import Bootstrap, NotUsable, agree
from .collectives import Collectives
from .device import CudaIpc, Symmetric
from .interface import Link
from .segment_header import Fact
from .shared_memory import SharedMemory

AUTO: Final = "auto"
BACKENDS: Final = (Symmetric, CudaIpc, SharedMemory, Collectives)
"""Fastest first; each refuses devices and hosts that it cannot serve."""
TIMEOUT_S: Final = 100.0
"""The original's."""


def transport_name() -> str:
    """The backend that the environment asks for, or AUTO."""
    return os.environ.get("LUCIOLA_DEEPEP_TRANSPORT") or AUTO


def timeout_s() -> float:
    """How long a rank waits for another."""
    text = os.environ.get("LUCIOLA_DEEPEP_TIMEOUT_S") or str(TIMEOUT_S)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        refuse("LUCIOLA_DEEPEP_TIMEOUT_S", repr(text), "it must be a positive number of seconds")
    return value


def open_transport(ranks: Bootstrap, num_bytes: int, *, device: torch.device, name: str = AUTO,
                   timeout_s: float = TIMEOUT_S) -> Link:  # fmt: skip
    """Connect all ranks; all call it with equal arguments.

    Raises: RanksDisagree for different arguments; BadArgument for a name that is not known or cannot be used here.
    """
    names = [each.name for each in BACKENDS]
    if name != AUTO and name not in names:
        refuse("transport", repr(name), f"choose {AUTO} or one of {', '.join(names)}")
    facts: dict[str, Fact] = {"num_bytes": num_bytes, "device": device.type, "transport": name}
    agree(ranks, {**facts, "timeout_s": timeout_s}, phase="opening")
    reasons: list[str] = []
    for backend in BACKENDS:
        if name not in {AUTO, backend.name}:
            continue
        if backend.device_type not in {None, device.type}:
            if name != AUTO:
                reasons.append(f"no {backend.name}: tensors are on {device.type}")
            continue
        try:
            transport: Link = backend.open(ranks, num_bytes, device=device, timeout_s=timeout_s)
        except NotUsable as problem:
            reasons.append(f"no {backend.name}: {problem}")
            continue
        transport.why = "; ".join(reasons)
        return transport
    raise BadArgument(f"these ranks cannot be connected: {'; '.join(reasons)}")


__all__ = ["AUTO", "BACKENDS", "TIMEOUT_S", "open_transport", "timeout_s", "transport_name"]
