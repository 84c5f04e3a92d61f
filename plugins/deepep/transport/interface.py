"""Memory that every rank owns and the others reach, and flags that order it.

    transport.buffer(peer)[0:8] = ...                            write into the peer's memory
    transport.signal(peer, slot, epoch)                          release: visible to the rank that waits for the epoch
    transport.wait(peer, slot, epoch, what="dispatch: tokens")   acquire: what the peer wrote before its signal

    T1  All ranks have regions of equal size, whose bytes are zero at first.
    T2  Flags are epochs: one 64-bit number for each (waiter, signaller, slot), which starts at 0, only grows and is
        never reset. A wait is for "at least".
    T3  A signal releases everything that its rank has written before it, in whichever region; a wait acquires it.
    T4  Every wait ends: with the epoch, or with an error that names rank, phase and peer. A rank whose wait fails
        reports why to the others, so that the error of all names the one that is to blame.

`Link` is what connects ranks at all; `Transport` adds regions and flags. Not thread-safe: one thread calls.
"""

import time
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from torch import Tensor

from .errors import CommunicationError, PeerTimeout

SLOTS: Final = 32
"""Flags for each pair of ranks: 0 to 7 are normal mode's and ElasticBuffer's, 8 to 15 low-latency mode's, the last is
the barrier's."""
BARRIER_SLOT: Final = SLOTS - 1


class Link(ABC):
    """Ranks that can exchange tensors of one kind of device."""

    name: ClassVar[str]
    """For the user: as argument, and in `Buffer.transport`."""
    device_type: ClassVar[str | None]
    """Whose tensors it is for; None for any."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        assert 0 <= rank < size, "one of the ranks"
        self.rank, self.size, self.device, self.timeout_s = rank, size, device, timeout_s
        self.num_bytes = num_bytes
        """Of each region, where there are regions."""
        self.why = ""
        """Why no faster backend was chosen, or ""."""
        self._failure: CommunicationError | None = None
        self._is_closed = False

    def _require_usable(self) -> None:
        """Raises: the failure after which it can only be closed; ValueError after that."""
        if self._is_closed:
            raise ValueError("this buffer is closed")
        if self._failure is not None:
            raise self._failure

    @abstractmethod
    def fail(self, error: CommunicationError) -> None:
        """Report to the others why this rank will not come. Afterwards it can only be closed."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Peers that wait for this rank get PeerLost. May be called again."""

    def _timeout(self, peer: int, what: str) -> PeerTimeout:
        """The error of a wait for this peer that ran out."""
        text = f"timeout: rank {peer} did not come within {self.timeout_s:g} s"
        return PeerTimeout(text, rank=self.rank, phase=what, peer=peer)

    @property
    def peers(self) -> list[int]:
        """The other ranks, each rank beginning with its successor, so that not all reach for the same one."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


class Transport(Link):
    """Regions that all ranks of one host map, and flags."""

    compares: ClassVar[bool] = False
    """Whether the host waits and regions are its memory: there all ranks compare what they call with."""

    def __init__(
        self, rank: int, size: int, *, num_bytes: int, device: torch.device, timeout_s: float
    ) -> None:
        super().__init__(rank, size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        self._sent_epochs, self._waited_epochs = [0] * SLOTS, [0] * SLOTS
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

        `fatal`: a wait that fails is the end of this rank (T4); otherwise the caller continues without the peer.
        Raises: PeerLost, PeerTimeout; or the failure that the peer has reported.
        """

    def signal_all(self, slot: int, inactive: Tensor | None = None) -> None:
        """Raise the flags at all other ranks to the next epoch of this slot, which this process counts.

        inactive (ranks,) int32: ranks that take no part.
        """
        self._sent_epochs[slot] += 1
        for peer in self._active_peers(inactive):
            self.signal(peer, slot, self._sent_epochs[slot])

    def wait_all(  # noqa: PLR0913 (a wait and its variants)
        self, slot: int, what: str, *, less: int = 0, inactive: Tensor | None = None, drop: bool = False,
        costs: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Wait for the next epoch of this slot, or `less` before it, of all other ranks.

        `drop`: a rank that does not come is marked in `inactive`. costs (ranks,) int64 grow by the nanoseconds that
        each rank was waited for.
        """
        assert inactive is not None or not drop, "a rank is dropped by its mark"
        self.skip_wait(slot)
        for peer in self._active_peers(inactive):
            began = time.monotonic_ns()
            try:
                self.wait(peer, slot, self._waited_epochs[slot] - less, what=what, fatal=not drop)
            except CommunicationError:
                if inactive is None or not drop:
                    raise
                inactive[peer] = 1
            if costs is not None:
                costs[peer] += time.monotonic_ns() - began

    def skip_wait(self, slot: int) -> None:
        """Count a `wait_all` without waiting."""
        self._waited_epochs[slot] += 1

    def check(self) -> None:
        """Raise what a kernel has recorded since, where kernels wait."""

    def barrier(self, *, what: str = "barrier") -> None:
        """Wait until all ranks are here. Raises: CommunicationError."""
        self.signal_all(BARRIER_SLOT)
        self.wait_all(BARRIER_SLOT, what)

    def addresses(self) -> Tensor:
        """Where the regions begin, for kernels: (size,) int64 on the transport's device."""
        starts = [self.buffer(each).data_ptr() for each in range(self.size)]
        return torch.tensor(starts, dtype=torch.int64, device=self.device)

    def _active_peers(self, inactive: Tensor | None) -> list[int]:
        masked = [0] * self.size if inactive is None else inactive.tolist()
        return [peer for peer in self.peers if not masked[peer]]


__all__ = ["BARRIER_SLOT", "SLOTS", "Link", "Transport"]
