"""Memory that every rank owns and the others reach, and flags that order it.

    transport.buffer(peer)[0:8] = ...                            write into the peer's memory
    transport.signal(peer, slot, epoch, spans=[(0, 8)])          release: it is there for whoever waits for the epoch
    transport.wait(peer, slot, epoch, what="dispatch: tokens")   acquire: what the peer wrote before its signal

    T1  All ranks have regions of equal size, whose bytes are zero at first.
    T2  Flags are epochs: one 64-bit number for each (waiter, signaller, slot), which starts at 0, only grows and is
        never reset. A wait is for "at least".
    T3  A signal releases everything that its rank has written before it, in whichever region; a wait acquires it.
    T4  Every wait ends: with the epoch, or with an error that names rank, phase and peer. A rank whose wait fails tells
        the others why, so that the error of all names the one that is to blame.
    T5  Where `maps(peer)` holds, `buffer(peer)` is the peer's own memory: reads see what it writes. Elsewhere it is an
        outbox, whose bytes travel with the signal that names their spans, to the same offsets in the peer's region;
        they must not be changed before the peer has answered.

Not thread-safe: one thread calls.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

import torch
from torch import Tensor

from ..failure import CommunicationError

SLOTS: Final = 32
"""Flags for each pair of ranks: normal mode has 0 to 7, low-latency mode 8 to 15, calls that are `captured` 16 to 18,
the last is the barrier's."""
BARRIER_SLOT: Final = SLOTS - 1
SPANS_MAX: Final = 15
"""Spans of one signal: what fits into a small message before the bytes."""

Span: TypeAlias = tuple[int, int]
"""Start and length, in bytes, in a region."""


class NotUsable(Exception):
    """This backend cannot connect these ranks. All of them get it together."""


class Transport(ABC):
    """What all backends do."""

    name: ClassVar[str]
    """For the user: as argument, and in `Buffer.transport`."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Whose tensors it is for."""
    signals_alone: ClassVar[bool] = True
    """Whether a signal arrives although its rank does nothing more, and the host can look whether one has."""
    crosses_nodes: ClassVar[bool] = True
    """Whether ranks of some nodes may do what others do not take part in, as dispatch over several nodes does."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.num_bytes = num_bytes
        """Of each region."""
        self.device = device
        """Where the regions are."""
        self.timeout_s = timeout_s
        self.why = ""
        """Why no faster backend was chosen, or nothing."""
        self._barriers = 0

    @abstractmethod
    def buffer(self, rank: int) -> Tensor:
        """The region of a rank as this process reaches it: (num_bytes,) uint8. See T5."""

    @abstractmethod
    def maps(self, rank: int) -> bool:
        """Whether `buffer(rank)` is that rank's own memory."""

    @abstractmethod
    def signal(self, peer: int, slot: int, epoch: int, *, spans: Sequence[Span] = ()) -> None:
        """Tell a peer that this rank has come to an epoch.

        `spans`: what was written into `buffer(peer)` since the last signal. Needed only where it is no own memory, and
        given always, so that callers work with every backend.
        """

    @abstractmethod
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
        """Wait until a peer has come to an epoch. `what`: this rank's phase, for errors.

        `fatal`: a wait that fails is the end of this rank (T4). Otherwise the caller goes on without the peer, where
        `maps(peer)` holds.

        Raises: PeerLost, PeerTimeout; or what the peer had to tell, if it has failed itself.
        """

    @abstractmethod
    def fail(self, error: CommunicationError) -> None:
        """Tell the others why this rank will not come. The transport can then only be closed."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Peers that wait for this rank get PeerLost. May be called again."""

    def barrier(self, *, what: str = "barrier") -> None:
        """Wait until all ranks are here."""
        self._barriers += 1
        for peer in self.peers:
            self.signal(peer, BARRIER_SLOT, self._barriers)
        for peer in self.peers:
            self.wait(peer, BARRIER_SLOT, self._barriers, what=what)

    @property
    def peers(self) -> list[int]:
        """The other ranks, each rank beginning with its successor, so that not all reach for the same one."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    @property
    def all_mapped(self) -> bool:
        """Whether every rank's own memory is reached."""
        return all(self.maps(each) for each in range(self.size))

    def addresses(self) -> Tensor:
        """Where the regions begin, for kernels: (size,) int64 on the transport's device."""
        starts = [self.buffer(each).data_ptr() for each in range(self.size)]
        return torch.tensor(starts, dtype=torch.int64, device=self.device)

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


__all__ = ["BARRIER_SLOT", "SLOTS", "SPANS_MAX", "NotUsable", "Span", "Transport"]
