"""Ranks of a run, their seeds, and checks of the machine that DeepEP makes before it communicates."""

import socket
from typing import Any

import torch
import torch.distributed as dist

from luciola.plugins.deepep import get_logical_domain_size, get_physical_domain_size
from luciola.plugins.deepep.testing import dist_print, get_global_seed, init_dist, init_seed
from luciola.plugins.kernels.errors import BadCall


def check_nvlink_connections(group: dist.ProcessGroup) -> None:
    """Make sure that the GPUs of the group's ranks on this host can reach one another's memory. All ranks must call.

    Ranks without a GPU have nothing to check. Raises: BadCall, with the two GPUs.
    """
    mine = (socket.gethostname(), torch.cuda.current_device() if torch.cuda.is_available() else None)
    everyone: list[tuple[str, int | None]] = [mine] * group.size()
    dist.all_gather_object(everyone, mine, group)
    here = sorted({gpu for host, gpu in everyone if host == mine[0] and gpu is not None})
    for gpu in here:
        if mine[1] is not None and gpu != mine[1] and not torch.cuda.can_device_access_peer(mine[1], gpu):
            raise BadCall(
                f"GPUs {mine[1]} and {gpu} cannot reach each other's memory: use one of them, or NCCL"
            )


def check_torch_deterministic() -> None:
    """Make sure that torch does not fill new memory on its own, on another stream than the one that uses it.

    Raises: BadCall if it does.
    """
    deterministic: Any = torch.utils.deterministic  # it has no types
    if torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:
        raise BadCall(
            "deterministic algorithms fill new memory on the current stream, under what is received: "
            "set torch.utils.deterministic.fill_uninitialized_memory = False"
        )


__all__ = [
    "check_nvlink_connections",
    "check_torch_deterministic",
    "dist_print",
    "get_global_seed",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "init_dist",
    "init_seed",
]
