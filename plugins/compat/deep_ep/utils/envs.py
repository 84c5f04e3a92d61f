"""Ranks of a run, their seeds, and checks of the machine that DeepEP makes before it communicates."""

import random
import socket
from typing import Any

import torch
import torch.distributed as dist

from luciola.plugins.deepep import get_logical_domain_size, get_physical_domain_size
from luciola.plugins.kernels.errors import BadCall
from luciola.plugins.kernels.ranks import join

_seed = [0]


def init_dist(
    local_rank: int, num_local_ranks: int, seed: int | None = None
) -> tuple[int, int, dist.ProcessGroup]:
    """Join the processes of a run: (rank, number of ranks, group of all).

    Where is said as `kernels.ranks.join` reads it; with GPUs, numbers are bfloat16 by default, as the original has it.
    """
    joined = join(local_rank, num_local_ranks)
    if torch.cuda.is_available():
        torch.set_default_dtype(torch.bfloat16)
    if seed is not None:
        init_seed(seed + joined[0])
    return joined


def init_seed(seed: int) -> None:
    """Of all generators."""
    _seed[:] = [seed]
    random.seed(seed)
    torch.manual_seed(seed)


def get_global_seed() -> int:
    """The last one that `init_seed` was given, or 0."""
    return _seed[0]


def dist_print(*values: object, once_in_node: bool = False, **options: Any) -> None:
    """`print`, on one rank of all if `once_in_node`; then wait for all ranks."""
    if not once_in_node or dist.get_rank() == 0:
        print(*values, **{"flush": True, **options})  # noqa: T201 (what it is for)
    dist.barrier()


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
    "check_nvlink_connections", "check_torch_deterministic", "dist_print", "get_global_seed",
    "get_logical_domain_size", "get_physical_domain_size", "init_dist", "init_seed",
]  # fmt: skip
