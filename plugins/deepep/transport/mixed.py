"""Several hosts with several ranks each: those of one host share memory, those of different hosts send messages.

Each rank has one region, which the others of its host map and into which messages from other hosts are received.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store  # torch.distributed hides it from type checkers

from ..failure import CommunicationError
from .interface import NotUsable, Span, Transport
from .members import Members
from .messages import Messages
from .shared_memory import SharedMemory


class Mixed(Transport):
    """Shared memory in a host, messages between hosts."""

    name: ClassVar[str] = "mixed"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(self, near: SharedMemory, far: Messages, neighbours: Sequence[int]) -> None:
        super().__init__(
            far.rank, far.size, num_bytes=far.num_bytes, device=far.device, timeout_s=far.timeout_s
        )
        self._near, self._far = near, far
        self._place = {rank: place for place, rank in enumerate(neighbours)}

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        if device.type != "cpu":
            raise NotUsable(f"tensors are on {device.type}")
        hosts = members.gather(members.host)
        if len(set(hosts)) == members.size:
            raise NotUsable("no two ranks are on one host")
        neighbours = [rank for rank, host in enumerate(hosts) if host == members.host]
        near, problem = None, ""
        try:
            near = SharedMemory.open(
                _Neighbours(members, neighbours), num_bytes, device=device, timeout_s=timeout_s
            )
        except NotUsable as error:
            problem = str(error)
        problems = [each for each in members.gather(problem) if each]
        if near is None or problems:
            if near is not None:
                near.close()
            raise NotUsable(problems[0])
        own = near.buffer(near.rank)
        try:
            far = Messages.open(members, num_bytes, device=device, timeout_s=timeout_s, own=own)
        except NotUsable:
            near.close()
            raise
        return cls(near, far, neighbours)

    def buffer(self, rank: int) -> Tensor:
        """As Transport.buffer."""
        return self._near.buffer(self._place[rank]) if rank in self._place else self._far.buffer(rank)

    def maps(self, rank: int) -> bool:
        """Those of this host."""
        return rank in self._place

    def signal(self, peer: int, slot: int, epoch: int, *, spans: Sequence[Span] = ()) -> None:
        """As Transport.signal."""
        if peer in self._place:
            self._near.signal(self._place[peer], slot, epoch)
        else:
            self._far.signal(peer, slot, epoch, spans=spans)

    def wait(  # noqa: PLR0913 (a wait and how it may end)
        self,
        peer: int,
        slot: int,
        epoch: int,
        *,
        what: str,
        timeout_s: float | None = None,
        fatal: bool = True,
    ) -> None:
        """As Transport.wait."""
        try:
            if peer in self._place:
                place = self._place[peer]
                self._near.wait(place, slot, epoch, what=what, timeout_s=timeout_s, fatal=fatal)
            else:
                self._far.wait(peer, slot, epoch, what=what, timeout_s=timeout_s, fatal=fatal)
        except CommunicationError as error:
            if fatal:
                self.fail(error)
            raise

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail."""
        self._near.fail(error)
        self._far.fail(error)

    def close(self) -> None:
        """As Transport.close."""
        self._far.close()
        self._near.close()


class _Neighbours:
    """Some of the members, while all of them do the same."""

    def __init__(self, members: Members, ranks: Sequence[int]) -> None:
        self._members, self._ranks = members, list(ranks)
        self.rank, self.size = self._ranks.index(members.rank), len(self._ranks)
        self.host = members.host

    def number(self, rank: int) -> int:
        """As all members count."""
        return self._members.number(self._ranks[rank])

    def gather(self, value: object) -> list[object]:
        """As Members.gather: all members call it."""
        values = self._members.gather(value)
        return [values[each] for each in self._ranks]

    def backend(self, device: str) -> str:
        """As Members.backend."""
        return self._members.backend(device)

    def store(self, name: str) -> Store | None:
        """As Members.store."""
        return self._members.store(name)


__all__ = ["Mixed"]
