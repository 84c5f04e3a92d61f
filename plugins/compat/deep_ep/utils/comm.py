"""Raw NCCL communicators, for programs that hand one to a library of their own.

Nothing of ours needs them. A communicator is always torch's: with `force_new_comm` that of a new group.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from luciola.plugins.kernels.errors import BadCall

_made: dict[int, dist.ProcessGroup] = {}


@dataclass(frozen=True)
class NCCLCommHandle:
    """A communicator's address, and whether it belongs to a group that was made for it."""

    nccl_comm: int
    managed: bool

    def get(self) -> int:
        """The address."""
        return self.nccl_comm


def get_nccl_comm_handle(group: dist.ProcessGroup, force_new_comm: bool = False) -> NCCLCommHandle:  # noqa: FBT001, FBT002 (the original's)
    """The communicator of the group, made now if it has none yet. All ranks must call.

    Raises: BadCall if the group has no NCCL backend.
    """
    if "nccl" not in str(dist.get_backend_config(group)):
        raise BadCall("get_nccl_comm_handle needs a group with the nccl backend")
    if force_new_comm:
        made = dist.new_group(dist.get_process_group_ranks(group), backend="nccl")
        assert isinstance(made, dist.ProcessGroup), "this rank is one of the group's"
        group = made
    # A communicator is made by the group's first collective.
    dist.all_reduce(torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device())), group=group)
    backend: Any = group._get_backend(torch.device("cuda"))  # noqa: SLF001
    handle = NCCLCommHandle(backend._comm_ptr(), force_new_comm)  # noqa: SLF001
    if force_new_comm:
        _made[handle.nccl_comm] = group
    return handle


def destroy_all_managed_nccl_comm() -> None:
    """Destroy the groups that `force_new_comm` has made. All ranks must call."""
    while _made:
        dist.destroy_process_group(_made.popitem()[1])


__all__ = ["NCCLCommHandle", "destroy_all_managed_nccl_comm", "get_nccl_comm_handle"]
