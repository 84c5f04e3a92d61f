"""When a request that changes chunks is void: a moment on the clock of the node that serves it.

A caller that has given a request up must know that it will not be executed later: it may wait in a socket, in a
queue or for a processor, and what the caller does next would then be undone. So it names the moment until which the
request may be begun, on the server's own clock, and continues only when that has passed.

The moment is computed from below: the server read its clock before its reply arrived here, and its clock is at most
`DRIFT` slower than ours. A clock belongs to one life of a process; the next life refuses requests of the one before.
"""

from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from . import methods
from .pb.common_pb2 import Empty
from .pb.storage_pb2 import Expiry
from .rpc import RpcClients

DRIFT: Final = 0.05  # as leases (mgmtd.lease_drift_percent) and the data plane (core/src/net) assume
AGES_MAX: Final = 0.5  # a reading may be so old, in lives of the request: its drift costs little


@dataclass(frozen=True, slots=True)
class Reading:
    """What a server's clock showed, and when its reply had arrived."""

    life: int
    now_ms: int
    received_s: float


class Expiries:
    """Knows the clocks of storage nodes, by address."""

    def __init__(self, clients: RpcClients, clock: Clock) -> None:
        self._clients = clients
        self._clock = clock
        self._readings: dict[str, Reading] = {}

    async def expiry(self, address: str, until_s: float) -> Expiry:
        """Return when our monotonic clock shows `until_s`, at the latest, by the clock of the node at `address`.

        Raises: Unavailable, Timeout.
        """
        life_s = until_s - self._clock.monotonic()
        reading = self._readings.get(address)
        if reading is None or self._clock.monotonic() - reading.received_s > AGES_MAX * life_s:
            reply = await self._clients.call(
                address, methods.Storage.clock, Empty(), timeout_s=max(0.001, life_s)
            )
            reading = Reading(reply.life, reply.now_ms, self._clock.monotonic())
            self._readings[address] = reading
        assert reading.received_s <= self._clock.monotonic(), "the clock was read before now"
        passed_ms = max(0, int((until_s - reading.received_s) * (1 - DRIFT) * 1000))
        return Expiry(life=reading.life, at_ms=reading.now_ms + passed_ms)

    def forget(self, address: str) -> None:
        """Forget a node's clock: the node may have been restarted."""
        self._readings.pop(address, None)


__all__ = ["DRIFT", "Expiries", "Reading"]
