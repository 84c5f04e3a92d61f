"""How ranks tell each other that a half of their memory was written, or may be written again.

On the host the transport counts epochs that it is given. On a device counts are kept there, by the kernels that signal
and wait, so that a captured graph goes on counting when it is replayed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from torch import Tensor

from ..failure import CommunicationError
from ..transport.device import DeviceTransport
from ..transport.interface import Span, Transport

READY: Final = 8  # and 9, for the second half: what a rank has sent is there
FREE: Final = 10  # and 11: what was sent has been taken

Spans = Callable[[int], Sequence[Span]]


class Flags(Protocol):
    """Signals to and waits for all ranks that take part."""

    def signal(self, slot: int, epoch: int, spans: Spans) -> None:
        """Tell all others. `spans`: what was written for a peer."""

    def wait(self, slot: int, epoch: int, what: str, costs: Tensor | None = None) -> None:
        """Wait for all others. costs (ranks,) int64: nanoseconds that each was waited for are added."""


class HostFlags:
    """Signals and waits of this thread. A rank that does not come is dropped if `drop` says so, else it is an error."""

    def __init__(self, transport: Transport, inactive: Tensor, *, drop: bool) -> None:
        self._transport, self._inactive, self._drop = transport, inactive, drop

    def signal(self, slot: int, epoch: int, spans: Spans) -> None:
        """As Flags.signal."""
        for peer in self._peers():
            self._transport.signal(peer, slot, epoch, spans=spans(peer))

    def wait(self, slot: int, epoch: int, what: str, costs: Tensor | None = None) -> None:
        """As Flags.wait."""
        for peer in self._peers():
            began = time.monotonic_ns()
            try:
                self._transport.wait(peer, slot, epoch, what=what, fatal=not self._drop)
            except CommunicationError:
                if not self._drop:
                    raise
                self._inactive[peer] = 1
            if costs is not None:
                costs[peer] += time.monotonic_ns() - began

    def _peers(self) -> list[int]:
        masked = self._inactive.tolist()
        return [peer for peer in self._transport.peers if not masked[peer]]


class DeviceFlags:
    """Kernels on the current stream, which count for themselves: the epochs that are given are not looked at."""

    def __init__(self, transport: DeviceTransport, inactive: Tensor, *, drop: bool) -> None:
        self._transport, self._inactive, self._drop = transport, inactive, drop

    def signal(self, slot: int, epoch: int, spans: Spans) -> None:  # noqa: ARG002 (the protocol's)
        """As Flags.signal."""
        self._transport.signal_all(slot, self._inactive)

    def wait(self, slot: int, epoch: int, what: str, costs: Tensor | None = None) -> None:  # noqa: ARG002
        """As Flags.wait. What frees a half is one epoch behind what fills it."""
        less = 1 if slot >= FREE else 0
        self._transport.wait_all(slot, self._inactive, what=what, less=less, drop=self._drop, costs=costs)


__all__ = ["FREE", "READY", "DeviceFlags", "Flags", "HostFlags", "Spans"]
