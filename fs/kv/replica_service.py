"""What a process that follows a log serves for others: its checkpoints, and what an administrator asks of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ..errors import InvalidArgument, Unavailable
from ..metrics import Family, Histogram
from ..wire.credentials import Identity
from ..wire.pb import replicas_pb2 as pb
from ..wire.pb.common_pb2 import Empty
from .checkpoint.catalog import Catalog
from .checkpoint.keeper import Keeper
from .checkpoint.remote import CheckpointService
from .engine import Engine
from .metrics import replica_families
from .replica import Replica, Role

HOLD_BACK_MS_MAX: Final = 60_000  # others have begun by then, or will not


class ReplicaService(CheckpointService):
    """Serves `methods.Replicas`. Checkpoints are given at any time, the rest while there is a replica."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.appends: Final = Histogram()  # to the log, of this process
        self._running: tuple[Replica, Keeper] | None = None

    @contextmanager
    def running(self, replica: Replica, keeper: Keeper) -> Iterator[None]:
        """Answer for these inside the block."""
        assert self._running is None, "a process has one replica"
        self._running = replica, keeper
        try:
            yield
        finally:
            self._running = None

    def engine(self) -> Engine | None:
        """Return the local store, which may be behind the log; None while there is no replica."""
        return None if self._running is None else self._running[0].applied.engine

    async def families(self) -> Sequence[Family]:
        """Return metrics of the replica; none while there is no replica."""
        if self._running is None:
            return ()
        replica, _ = self._running
        return await replica_families(replica, self.catalog.newest(), self.appends)

    async def state(self, _request: Empty, _identity: Identity) -> pb.ReplicaState:
        return self._state()

    async def make_checkpoint(self, _request: Empty, _identity: Identity) -> pb.ReplicaState:
        _, keeper = self._require()
        await keeper.make_now()
        return self._state()

    async def hold_back(self, request: pb.HoldBackRequest, _identity: Identity) -> pb.ReplicaState:
        if request.duration_ms > HOLD_BACK_MS_MAX:
            raise InvalidArgument(f"a replica holds back for at most {HOLD_BACK_MS_MAX} ms")
        replica, _ = self._require()
        replica.hold_back(request.duration_ms / 1000)
        return self._state()

    def _require(self) -> tuple[Replica, Keeper]:
        if self._running is None:
            raise Unavailable("this process is not able to follow the log yet")
        return self._running

    def _state(self) -> pb.ReplicaState:
        replica, keeper = self._require()
        return pb.ReplicaState(
            position=replica.applied.position.index,
            checkpoint=keeper.newest.index,
            leads=replica.role is Role.PRIMARY,
        )


__all__ = ["HOLD_BACK_MS_MAX", "ReplicaService"]
