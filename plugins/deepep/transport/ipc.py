"""Several processes on one GPU: each maps the memory of all through CUDA's handles, as torch shares storages.

This is for tests. Processes on one GPU take turns on it, so a kernel that waits would keep the one away that it waits
for: they record events, and streams wait for those. That an event was recorded is reported through memory of the host,
where a rank that is lost is noticed too. Between different GPUs there is `symmetric`, or else `collectives`.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from ..failure import CommunicationError
from .device import DeviceTransport, head_bytes
from .interface import SLOTS, NotUsable
from .members import Members
from .shared_memory import SharedMemory
from .symmetric import require_one_host, together


class CudaIpc(DeviceTransport):
    """Memory of one GPU that all ranks share."""

    name: ClassVar[str] = "cuda-ipc"
    device_type: ClassVar[str | None] = "cuda"

    def __init__(  # noqa: PLR0913 (what was opened)
        self,
        members: Members,
        regions: list[Tensor],
        host: SharedMemory,
        events: list[list[Any]],
        *,
        num_bytes: int,
        timeout_s: float,
    ) -> None:
        super().__init__(members, regions, num_bytes=num_bytes, timeout_s=timeout_s)
        self._host = host
        self._events = events
        """By rank and slot."""

    @property
    def spins(self) -> bool:
        """Kernels do not wait."""
        return False

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        require_one_host(members)
        uuids = members.gather(str(torch.cuda.get_device_properties(device).uuid))
        if len(set(uuids)) > 1:
            raise NotUsable("ranks have different GPUs, which this transport does not connect")
        host = SharedMemory.open(members, 1, device=torch.device("cpu"), timeout_s=timeout_s)
        try:
            regions, events = _opened_all(members, head_bytes(members.size) + num_bytes, device)
        except NotUsable:
            host.close()
            raise
        return cls(members, regions, host, events, num_bytes=num_bytes, timeout_s=timeout_s)

    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """As Transport.signal, on the current stream."""
        self.check()
        self._events[self.rank][slot].record()
        self._host.signal(peer, slot, epoch)

    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """As Transport.wait, for the current stream. This thread waits until the peer has recorded."""
        self.check()
        self._host.wait(peer, slot, epoch, what=what, fatal=fatal)
        if epoch > 0:
            torch.cuda.current_stream(self.device).wait_event(self._events[peer][slot])

    def fail(self, error: CommunicationError) -> None:
        """As Link.fail."""
        super().fail(error)
        self._host.fail(error)

    def close(self) -> None:
        """As Link.close."""
        if not self._is_closed:
            super().close()
            self._host.close()


def _opened_all(members: Members, length: int, device: torch.device) -> tuple[list[Tensor], list[list[Any]]]:
    """Regions and events, by rank. Raises: NotUsable on all ranks."""
    own: Tensor = torch.empty(0)
    events: list[Any] = []
    offer: Any = None
    with together(members):
        own = torch.zeros(length, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)
        events = [torch.cuda.Event(interprocess=True) for _ in range(SLOTS)]  # type: ignore[no-untyped-call]
        offer = (reduce_tensor(own), [each.ipc_handle() for each in events])  # type: ignore[no-untyped-call]
    offers = members.gather(offer)
    regions, all_events = [own] * members.size, [events] * members.size
    with together(members):
        for rank, ((rebuild, arguments), handles) in enumerate(offers):
            if rank == members.rank:
                continue  # a process cannot open what it has made
            given = list(arguments)
            given[_DEVICE_AT] = own.device.index  # the same GPU may have another number in each process
            regions[rank] = rebuild(*given)
            all_events[rank] = [
                torch.cuda.Event.from_ipc_handle(device, each)  # type: ignore[no-untyped-call]
                for each in handles
            ]
    return regions, all_events


_DEVICE_AT = 6
"""Of the arguments by which torch opens a shared tensor: the index of its device."""

__all__ = ["CudaIpc"]
