"""Flags by which all ranks of a mode tell each other how far they are: each signal and wait is for the next epoch.

On a device the counts are kept there, by the kernels that signal and wait, so that a captured graph goes on counting
when it is replayed. Elsewhere this process counts.
"""

import time

import torch
from torch import Tensor

from ..failure import CommunicationError
from .device import DeviceTransport
from .interface import SLOTS, Transport


class HostFlags:
    """Signals and waits of this thread. A rank that does not come is dropped if `drop` says so, else it is an error.

    inactive (ranks,) int32: marks ranks that take no part.
    """

    def __init__(self, transport: Transport, inactive: Tensor, *, drop: bool) -> None:
        self._transport, self._inactive, self._drop = transport, inactive, drop
        self._sent, self._waited = [0] * SLOTS, [0] * SLOTS

    def signal(self, slot: int) -> None:
        """The next epoch of this slot, to all others."""
        self._sent[slot] += 1
        for peer in self._peers():
            self._transport.signal(peer, slot, self._sent[slot])

    def wait(self, slot: int, what: str, *, less: int = 0, costs: Tensor | None = None) -> None:
        """Wait for the next epoch of this slot, or `less` before it, of all others.

        costs (ranks,) int64: nanoseconds that each was waited for are added.
        """
        self.skip(slot)
        for peer in self._peers():
            began = time.monotonic_ns()
            try:
                self._transport.wait(peer, slot, self._waited[slot] - less, what=what, fatal=not self._drop)
            except CommunicationError:
                if not self._drop:
                    raise
                self._inactive[peer] = 1
            if costs is not None:
                costs[peer] += time.monotonic_ns() - began

    def skip(self, slot: int) -> None:
        """Count a wait without making it."""
        self._waited[slot] += 1

    def _peers(self) -> list[int]:
        masked = self._inactive.tolist()
        return [peer for peer in self._transport.peers if not masked[peer]]


class DeviceFlags:
    """The same by kernels, on the current stream."""

    def __init__(self, transport: DeviceTransport, inactive: Tensor, *, drop: bool) -> None:
        self._transport, self._inactive, self._drop = transport, inactive, drop

    def signal(self, slot: int) -> None:
        """As HostFlags.signal."""
        self._transport.signal_all(slot, self._inactive)

    def wait(self, slot: int, what: str, *, less: int = 0, costs: Tensor | None = None) -> None:
        """As HostFlags.wait."""
        self._transport.wait_all(slot, self._inactive, what=what, less=less, drop=self._drop, costs=costs)


def open_flags(
    transport: Transport, inactive: Tensor | None = None, *, drop: bool = False
) -> HostFlags | DeviceFlags:
    """The flags of a transport: by kernels where these can wait."""
    if inactive is None:
        inactive = torch.zeros(transport.size, dtype=torch.int32, device=transport.device)
    if isinstance(transport, DeviceTransport) and transport.spins:
        return DeviceFlags(transport, inactive, drop=drop)
    return HostFlags(transport, inactive.cpu() if not drop else inactive, drop=drop)


__all__ = ["DeviceFlags", "HostFlags", "open_flags"]
