"""Memory that every rank owns and the others reach, and flags that order it.

    transport.buffer(peer)[0:8] = ...                            write into the peer's memory
    transport.signal(peer, slot, epoch)                          release: it is there for whoever waits for the epoch
    transport.wait(peer, slot, epoch, what="dispatch: tokens")   acquire: what the peer wrote before its signal

    T1  All ranks have regions of equal size, whose bytes are zero at first.
    T2  Flags are epochs: one 64-bit number for each (waiter, signaller, slot), which starts at 0, only grows and is
        never reset. A wait is for "at least".
    T3  A signal releases everything that its rank has written before it, in whichever region; a wait acquires it.
    T4  Every wait ends: with the epoch, or with an error that names rank, phase and peer. A rank whose wait fails
        reports why to the others, so that the error of all names the one that is to blame.

`Link` is what connects ranks at all; `Transport` adds regions and flags. Not thread-safe: one thread calls.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..failure import CommunicationError

SLOTS: Final = 32
"""Flags for each pair of ranks: 0 to 7 are normal mode's and ElasticBuffer's, 8 to 15 low-latency mode's, the last is
the barrier's."""
BARRIER_SLOT: Final = SLOTS - 1


class NotUsable(Exception):
    """This backend cannot connect these ranks. All of them get it together."""


class Link(ABC):
    """Ranks that can exchange tensors of one kind of device."""

    name: ClassVar[str]
    """For the user: as argument, and in `Buffer.transport`."""
    device_type: ClassVar[str | None]
    """Whose tensors it is for; None for any."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.num_bytes = num_bytes
        """Of each region, where there are regions."""
        self.device = device
        self.timeout_s = timeout_s
        self.why = ""
        """Why no faster backend was chosen, or nothing."""
        self._failure: CommunicationError | None = None
        self._is_closed = False

    def _require_usable(self) -> None:
        """Raises: the failure after which it can only be closed; ValueError after that."""
        if self._is_closed:
            raise ValueError("this buffer is closed")
        if self._failure is not None:
            raise self._failure

    @abstractmethod
    def barrier(self, *, what: str = "barrier") -> None:
        """Wait until all ranks are here. Raises: CommunicationError."""

    @abstractmethod
    def fail(self, error: CommunicationError) -> None:
        """Report to the others why this rank will not come. Afterwards it can only be closed."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Peers that wait for this rank get PeerLost. May be called again."""

    @property
    def peers(self) -> list[int]:
        """The other ranks, each rank beginning with its successor, so that not all reach for the same one."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


class Transport(Link):
    """Regions that all ranks of one host map, and flags."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        super().__init__(rank, size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        self._barriers = 0
        self.stopped = torch.zeros(1, dtype=torch.int32, device=device)
        """Not zero once a wait of a kernel ran out: kernels that follow do nothing."""

    @abstractmethod
    def buffer(self, rank: int) -> Tensor:
        """The region of a rank: (num_bytes,) uint8, the same memory in all processes."""

    @abstractmethod
    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """Raise this rank's flag at a peer to an epoch."""

    @abstractmethod
    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """Wait until a peer has come to an epoch. `what`: this rank's phase, for errors.

        `fatal`: a wait that fails is the end of this rank (T4); otherwise the caller goes on without the peer.

        Raises: PeerLost, PeerTimeout; or the failure that the peer has reported.
        """

    def check(self) -> None:
        """Raise what a kernel has recorded since, where kernels wait."""

    def barrier(self, *, what: str = "barrier") -> None:
        """As Link.barrier."""
        self._barriers += 1
        for peer in self.peers:
            self.signal(peer, BARRIER_SLOT, self._barriers)
        for peer in self.peers:
            self.wait(peer, BARRIER_SLOT, self._barriers, what=what)

    def addresses(self) -> Tensor:
        """Where the regions begin, for kernels: (size,) int64 on the transport's device."""
        starts = [self.buffer(each).data_ptr() for each in range(self.size)]
        return torch.tensor(starts, dtype=torch.int64, device=self.device)


__all__ = ["BARRIER_SLOT", "SLOTS", "Link", "NotUsable", "Transport"]
