"""GPUs of one host that reach each other over NVLink: torch's symmetric memory."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final, Self

import torch

from .device import DeviceTransport, head_bytes
from .interface import NotUsable
from .members import GroupMembers, Members

NATIVE_ATOMICS: Final = 3
"""CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED of the CUDA driver."""


class Symmetric(DeviceTransport):
    """Regions of `torch.distributed._symmetric_memory`."""

    name: ClassVar[str] = "symmetric-memory"
    device_type: ClassVar[str | None] = "cuda"

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them.

        Nothing is shared before all ranks are known to be on one host, with a GPU each, whose atomic operations reach
        all others: flags are such.
        """
        require_one_host(members)
        uuids = members.gather(str(torch.cuda.get_device_properties(device).uuid))
        if len(set(uuids)) < members.size:
            raise NotUsable("ranks share a GPU")
        with together(members):
            visible = [
                str(torch.cuda.get_device_properties(each).uuid) for each in range(torch.cuda.device_count())
            ]
            own_index = torch.cuda.current_device() if device.index is None else device.index
            require_atomics(own_index, uuids, visible, _has_atomics)
            if not isinstance(members, GroupMembers):
                raise TypeError("a communicator of MPI is no torch.distributed process group")
        assert isinstance(members, GroupMembers), "it was looked at"
        length = head_bytes(members.size) + num_bytes
        own = torch.empty(0)
        with together(members):
            from torch.distributed import _symmetric_memory

            own = _symmetric_memory.empty(length, dtype=torch.uint8, device=device)
            own.zero_()
            torch.cuda.synchronize(device)
        regions = []
        with together(members):
            shared = _symmetric_memory.rendezvous(own, members.group.group_name)
            regions = [
                own if rank == members.rank else shared.get_buffer(rank, (length,), torch.uint8)
                for rank in range(members.size)
            ]
        return cls(members, regions, num_bytes=num_bytes, timeout_s=timeout_s)


def require_one_host(members: Members) -> None:
    """Raises: NotUsable on all ranks, if they are on several hosts."""
    hosts = len(set(members.gather(members.host)))
    if hosts > 1:
        raise NotUsable(f"ranks are on {hosts} hosts, or in several containers")


@contextmanager
def together(members: Members) -> Iterator[None]:
    """An operating error of one rank inside becomes NotUsable on all."""
    problem = ""
    try:
        yield
    except (ImportError, OSError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        problem = f"rank {members.rank}: {error!s:.200}"
    problems = [each for each in members.gather(problem) if each]
    if problems:
        raise NotUsable(problems[0])


def require_atomics(
    own: int, uuids: Sequence[str], visible: Sequence[str], has_atomics: Callable[[int, int], bool]
) -> None:
    """GPU `own` reaches the memory of the GPUs `uuids` by atomic operations, if these are among the `visible` ones.

    Raises: LookupError for GPUs that this process does not see, RuntimeError without atomic operations.
    """
    for uuid in uuids:
        if uuid not in visible:
            raise LookupError(
                f"GPU {uuid} is not visible: give all processes all GPUs (CUDA_VISIBLE_DEVICES)"
            )
        peer = visible.index(uuid)
        if peer != own and not has_atomics(own, peer):
            raise RuntimeError(
                f"GPU {own} has no atomic operations on the memory of GPU {peer}: no NVLink between"
            )


def _has_atomics(own: int, peer: int) -> bool:
    """As the driver says."""
    found = ctypes.c_int(0)
    driver = ctypes.CDLL("libcuda.so.1")
    return (
        not driver.cuDeviceGetP2PAttribute(ctypes.byref(found), NATIVE_ATOMICS, own, peer) and found.value > 0
    )


__all__ = ["Symmetric", "require_atomics", "require_one_host", "together"]
