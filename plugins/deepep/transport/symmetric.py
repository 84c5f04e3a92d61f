"""GPUs that reach each other over NVLink: torch's symmetric memory, which also spans hosts of one NVLink domain."""

from typing import ClassVar, Self

import torch

from .device import DeviceTransport, head_bytes
from .interface import NotUsable
from .members import GroupMembers, Members


class Symmetric(DeviceTransport):
    """Regions of `torch.distributed._symmetric_memory`."""

    name: ClassVar[str] = "symmetric-memory"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        if device.type != "cuda":
            raise NotUsable(f"tensors are on {device.type}")
        if not isinstance(members, GroupMembers):
            raise NotUsable("a communicator of MPI is no torch.distributed process group")
        uuids = members.gather(str(torch.cuda.get_device_properties(device).uuid))
        if len(set(uuids)) < members.size:
            raise NotUsable("ranks share a GPU")
        length, problem = head_bytes(members.size) + num_bytes, ""
        try:
            from torch.distributed import _symmetric_memory

            own = _symmetric_memory.empty(length, dtype=torch.uint8, device=device)
            own.zero_()
            torch.cuda.synchronize(device)
        except (ImportError, RuntimeError) as error:
            problem = f"rank {members.rank}: {error!s:.200}"
        problems = [each for each in members.gather(problem) if each]
        if problems:
            raise NotUsable(problems[0])
        regions = []
        try:
            shared = _symmetric_memory.rendezvous(own, members.group.group_name)
            regions = [
                own if rank == members.rank else shared.get_buffer(rank, (length,), torch.uint8)
                for rank in range(members.size)
            ]
        except RuntimeError as error:
            problem = f"rank {members.rank} cannot map the memory of all: {error!s:.200}"
        problems = [each for each in members.gather(problem) if each]
        if problems:
            raise NotUsable(problems[0])
        return cls(members, regions, num_bytes=num_bytes, timeout_s=timeout_s)


__all__ = ["Symmetric"]
