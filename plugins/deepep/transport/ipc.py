"""GPUs of one host: each process maps the memory of all through CUDA's handles, as torch shares storages.

Between GPUs, kernels raise flags and wait for them (`device`). Processes on one GPU take turns on it, so a kernel that
waits there would keep the one away that it waits for: they record events, and streams wait for those. That an event was
recorded is told through memory of the host, where a rank that is lost is noticed too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from ..failure import CommunicationError
from .device import DeviceTransport, head_bytes
from .interface import SLOTS, NotUsable, Span
from .members import Members
from .shared_memory import SharedMemory

_DEVICE_AT: Final = 6
"""Of the arguments by which torch opens a shared tensor: the index of its device."""


class CudaIpc(DeviceTransport):
    """Memory of the GPUs of one host."""

    name: ClassVar[str] = "cuda-ipc"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

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
        """By rank and slot, if ranks share a GPU; else none, and kernels raise flags."""

    @property
    def spins(self) -> bool:
        """Whether kernels wait, and counts are kept on the device."""
        return not self._events

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        if device.type != "cuda":
            raise NotUsable(f"tensors are on {device.type}")
        host = SharedMemory.open(members, 1, device=torch.device("cpu"), timeout_s=timeout_s)
        try:
            regions, events = _opened_all(members, head_bytes(members.size) + num_bytes, device)
        except NotUsable:
            host.close()
            raise
        return cls(members, regions, host, events, num_bytes=num_bytes, timeout_s=timeout_s)

    def signal(self, peer: int, slot: int, epoch: int, *, spans: Sequence[Span] = ()) -> None:
        """As Transport.signal, on the current stream."""
        if self.spins:
            super().signal(peer, slot, epoch, spans=spans)
            return
        self.check()
        self._events[self.rank][slot].record()
        self._host.signal(peer, slot, epoch)

    def wait(  # noqa: PLR0913
        self,
        peer: int,
        slot: int,
        epoch: int,
        *,
        what: str,
        timeout_s: float | None = None,
        fatal: bool = True,
    ) -> None:
        """As Transport.wait, for the current stream. With events, this thread waits until the peer has recorded."""
        if self.spins:
            super().wait(peer, slot, epoch, what=what, timeout_s=timeout_s, fatal=fatal)
            return
        self.check()
        self._host.wait(peer, slot, epoch, what=what, timeout_s=timeout_s, fatal=fatal)
        if epoch > 0:
            torch.cuda.current_stream(self.device).wait_event(self._events[peer][slot])

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail."""
        super().fail(error)
        self._host.fail(error)

    def close(self) -> None:
        """As Transport.close. Waits until all have left: the owner's memory goes when it is freed here."""
        if not self._is_closed:
            super().close()
            self._host.close()


def _opened_all(members: Members, length: int, device: torch.device) -> tuple[list[Tensor], list[list[Any]]]:
    """Regions and, if ranks share a GPU, events, by rank. Raises: NotUsable on all ranks."""
    own, uuid = torch.empty(0), ""
    with _problems(members):
        own = torch.zeros(length, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)
        uuid = str(torch.cuda.get_device_properties(device).uuid)
    shared = len(set(members.gather(uuid))) < members.size
    events: list[Any] = []
    offer: Any = None
    with _problems(members):
        events = [_new_event() for _ in range(SLOTS if shared else 0)]
        offer = (uuid, reduce_tensor(own), [each.ipc_handle() for each in events])  # type: ignore[no-untyped-call]
    offers = members.gather(offer)
    regions, all_events = [own] * members.size, [events] * members.size if shared else []
    with _problems(members):
        for rank, (theirs, memory, handles) in enumerate(offers):
            if rank == members.rank:
                continue  # a process cannot open what it has made
            regions[rank] = _opened(theirs, *memory)
            if shared:
                all_events[rank] = [_opened_event(device, handle) for handle in handles]
    return regions, all_events


@contextmanager
def _problems(members: Members) -> Iterator[None]:
    """What goes wrong on one rank inside is NotUsable on all."""
    problem = ""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        problem = f"rank {members.rank}: {error!s:.200}"
    problems = [each for each in members.gather(problem) if each]
    if problems:
        raise NotUsable(problems[0])


def _opened(uuid: str, rebuild: Callable[..., Tensor], arguments: Sequence[Any]) -> Tensor:
    here = [str(torch.cuda.get_device_properties(each).uuid) for each in range(torch.cuda.device_count())]
    if uuid not in here:
        raise LookupError(
            f"GPU {uuid} is not visible to this process: give all processes all GPUs of the host"
        )
    given = list(arguments)
    given[_DEVICE_AT] = here.index(uuid)
    return rebuild(*given)


def _new_event() -> Any:
    return torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]


def _opened_event(device: torch.device, handle: bytes) -> Any:
    return torch.cuda.Event.from_ipc_handle(device, handle)  # type: ignore[no-untyped-call]


__all__ = ["CudaIpc"]
