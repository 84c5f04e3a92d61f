"""One of several manager processes, which have equal stores: at any time one of them manages the cluster.

The replica (kv/replica.py) says when this process leads: a term. Each term has a new `Service`, as after a start of the
process: chains are frozen and no lease is granted until the storage nodes have reported, or the leases of earlier terms
have run out (model.py, L3, L7). Between terms every request is refused, and its caller asks the next manager.

    T1  a term answers nothing once another process may lead: the service asks the lease on the log before each reply. A
        lease that a node got was granted before the next term began to count (L3)
    T2  what is in memory (heartbeats, client sessions, versions of routing) ends with its term; versions of a term are
        above those of all terms before (store.py E1, routing.py P1)
    T3  a standby reports itself to the primary, as every other process does
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from ..clock import Clock
from ..errors import Error, InvalidArgument, Unavailable
from ..kv import Engine
from ..kv.replica import PrimaryEngine
from ..wire import RpcClients, methods
from ..wire.current_service import CurrentService
from ..wire.pb import mgmtd_pb2 as pb
from .service import Service, Settings
from .store import Store, last_primary

log = logging.getLogger("luciola.mgmtd")

REPORT_INTERVAL_S: Final = 1.0  # of a standby: nothing waits for it
REPORT_TIMEOUT_S: Final = 2.0
LEAVE_S: Final = 1.0  # to store what only this process knows: without it the next one hears it from the nodes


class Terms:
    """Serves each term of this process. `settings` says who it is, `create`: its log may be a new cluster's.

    `local` returns the local store, if there is one: a standby knows from it who is primary.
    """

    def __init__(
        self, settings: Settings, local: Callable[[], Engine | None], *, clock: Clock, create: bool
    ) -> None:
        assert settings.sole, "the lease on the log decides, not the one in the store"
        self.current = CurrentService(methods.Mgmtd, self._refusal)
        self._settings = settings
        self._local = local
        self._clock = clock
        self._create = create
        self._service: Service | None = None  # of the current term, or the last one

    async def serve(self, engine: PrimaryEngine) -> None:
        """Serve one term, until it is cancelled; return when the store cannot be used for now.

        Raises: what an operator has to act on: ConfigError, CorruptData.
        """
        await self.finish()
        self._service = service = self._new_service(engine)
        self.current.service = service
        log.info("mgmtd %d serves, epoch %d", self._settings.node.id, engine.epoch)
        try:
            await service.run()
        except Error as error:
            if not error.retryable:
                raise
            log.warning("the term of epoch %d ends: %s", engine.epoch, error)
        finally:
            self.current.service = None
            service.end_term()

    @property
    def service(self) -> Service | None:
        """What serves the current term; None between terms."""
        return None if self.current.service is None else self._service

    async def leave(self) -> None:
        """Answer nothing more, and store what only this process knows, before it ends its term."""
        self.current.service = None
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                if self._service is not None:
                    await self._service.finish_writes()
                    await self._service.keep_engines()

    async def finish(self) -> None:
        """Return when no term stores anything any more; call it after the last has ended."""
        if self._service is not None:
            await self._service.finish_writes()

    async def report(self, clients: RpcClients, managers: str) -> NoReturn:
        """Send heartbeats while another process is primary (T3).

        Raises: InvalidArgument when another process has taken this one's place.
        """
        sequence = 0
        while True:
            if self.current.service is None:
                sequence += 1
                adopted = self._settings.adopted
                request = pb.HeartbeatRequest(
                    node=self._settings.node.to_pb(),
                    sequence=sequence,
                    config=None if adopted is None else adopted.state(),
                )
                try:
                    reply = await clients.call(
                        managers, methods.Mgmtd.heartbeat, request, timeout_s=REPORT_TIMEOUT_S
                    )
                    if adopted is not None:
                        adopted.heard(reply.config_version)
                except InvalidArgument:
                    raise
                except Error as error:
                    log.debug("reporting to the primary failed: %s", error)
            await self._clock.sleep(REPORT_INTERVAL_S)

    def _new_service(self, engine: PrimaryEngine) -> Service:
        store = Store(engine, cluster_id=self._settings.cluster_id, create=self._create)
        return Service(store, self._settings, is_leased=self._lease_of(engine), clock=self._clock)

    def _lease_of(self, engine: PrimaryEngine) -> Callable[[], bool]:
        """Return what says whether no other process can be primary (T1)."""
        return lambda: engine.is_leased

    def _refusal(self) -> Unavailable:
        primary, local = None, self._local()
        if local is not None:
            with suppress(Error):
                primary = last_primary(local)
        if primary is None or primary.holder == self._settings.node.incarnation:
            return Unavailable("this manager is a standby", primary="", primary_lane="")
        return Unavailable(
            "this manager is a standby", primary=primary.grpc_address, primary_lane=primary.lane_address
        )


__all__ = ["Terms"]
