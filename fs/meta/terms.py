"""One of several processes of the metadata service, which have equal stores: at any time one of them serves.

The replica (kv/replica.py) says when this process leads: a term. Each term builds a new service over the
store, as after a start of the process. Between terms every request is refused; its client asks the next primary, with
the same sequence number, and gets the answer that the first attempt got, if that was carried out (execution.py, S1).

    M1  at most one process serves, and only under its lease: the engine of a term refuses everything else
    M2  what is derived from the store (allocators, sessions, truncations, what the collector knows) ends with its term
    M3  no request to a storage node is begun after the lease under which it was sent (control.py, G2)
    M4  a term is published, by a heartbeat, when it serves, with an epoch above those before: clients call the newest
        one, and report to it what they hold
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from ..clock import Clock
from ..config import ClusterConfig
from ..errors import Error, Unavailable
from ..ids import EMBEDDED_EPOCH, STANDBY_EPOCH
from ..kv.replica import PrimaryEngine
from ..tasks import first_end
from ..wire.current_service import CurrentService
from ..wire.pb.mgmtd_pb2 import Node, StoreMark
from .admission import admit_store, mark_of
from .background import collect, configure, resume_truncations
from .bootstrap import build
from .cluster import Cluster
from .collector import Collector
from .committed_replies import committed
from .dependencies import Dependencies
from .feed import Feed
from .layout import Placer
from .moments import Moments
from .schema import Superblock
from .service import MetaService
from .storage import StorageControl

log: Final = logging.getLogger("luciola.meta")


def standby() -> Unavailable:
    """Return what a process that is not the primary answers."""
    return Unavailable("this metadata service is a standby: another one serves, or will in a moment")


@dataclass(frozen=True)
class Settings:
    """What a term needs besides its engine. `control` makes the access to storage nodes, given the end of the lease."""

    config: ClusterConfig
    cluster_id: str
    placer: Placer
    control: Callable[[Callable[[], float]], StorageControl]
    create: bool = False


class Terms:
    """Serves each term of this process. `node` is how mgmtd knows it; its epoch changes with the role."""

    def __init__(  # noqa: PLR0913, what it serves with, and how it is published
        self,
        settings: Settings,
        current: CurrentService,
        cluster: Cluster,
        node: Node,
        clock: Clock,
        *,
        accept_loss: bool = False,
    ) -> None:
        assert node.epoch == STANDBY_EPOCH, "a process begins as a standby"
        self._current = current
        self._node = node
        self._settings = settings
        self._cluster = cluster
        self._clock = clock
        self._accept_loss = accept_loss  # by the first term: what later ones find was accepted by it
        self._mark: Callable[[], StoreMark | None] | None = None
        self.service: MetaService | None = None  # of the current term
        self._config = settings.config.meta  # as it is now
        self._collecting: tuple[Collector, Dependencies] | None = None

    def configure(self, config: ClusterConfig) -> None:
        """Use the hot keys of `config` from now on, in later terms too."""
        self._config = config.meta
        if self._collecting is not None:
            configure(*self._collecting, self._config)

    def mark(self) -> StoreMark | None:
        """Return how far the store has come; of a standby nothing is said: it may be behind."""
        return None if self._mark is None else self._mark()

    async def serve(self, engine: PrimaryEngine) -> None:
        """Serve one term, until it is cancelled; return when the store, or what it needs, cannot be used for now.

        Raises: what an operator has to act on: ConfigError, CorruptData.
        """
        try:
            await self._serve(engine)
        except Error as error:
            if not error.retryable:
                raise
            log.warning("the term of epoch %d ends: %s", engine.epoch, error)

    async def _serve(self, engine: PrimaryEngine) -> None:
        def position() -> int:
            return engine.position

        superblock = await admit_store(
            engine,
            position,
            self._cluster,
            cluster_id=self._settings.cluster_id,
            clock=self._clock,
            create=self._settings.create,
            accept_loss=self._accept_loss,
        )
        self._accept_loss = False
        service, collector, dependencies = await self._build(engine)
        self._collecting = collector, dependencies
        self.configure(replace(self._settings.config, meta=self._config))
        feed = service.feed = self._feed(engine)
        try:
            self._current.service = self._answering(service, engine)
            self.service = service
            self._mark = partial(_leased_mark, engine, superblock)
            self._publish(EMBEDDED_EPOCH + engine.epoch)
            log.info("meta %d serves, epoch %d", self._node.id, engine.epoch)
            await first_end(
                collect(collector, dependencies, self._clock),
                resume_truncations(dependencies, self._clock),
                *([Moments(engine, self._clock).run()] if self._settings.config.metadata.history_s else []),
            )
        finally:
            self._current.service = self._mark = self.service = self._collecting = None
            feed.close()
            self._publish(STANDBY_EPOCH)

    async def _build(self, engine: PrimaryEngine) -> tuple[MetaService, Collector, Dependencies]:
        """Make everything that lasts for one term (M2)."""
        settings = self._settings
        return await build(
            engine,
            settings.control(lambda: engine.leased_until_s),
            self._cluster,
            config=self._config,
            clock=self._clock,
            cluster_id=settings.cluster_id,
            session_timeout_s=settings.config.mgmtd.client_session_timeout_ms / 1000,
            history_s=settings.config.metadata.history_s,
            placer=settings.placer,
            create=False,
        )

    def _feed(self, engine: PrimaryEngine) -> Feed:
        return Feed(engine)

    def _answering(self, service: MetaService, engine: PrimaryEngine) -> object:
        """Return what answers requests: nothing leaves before what it has seen is in the log."""
        return committed(service, engine)

    def _publish(self, epoch: int) -> None:
        assert epoch != EMBEDDED_EPOCH, "M4: terms differ from a service that is alone"
        self._node.epoch = epoch
        self._cluster.hurry()


def _leased_mark(engine: PrimaryEngine, superblock: Superblock) -> StoreMark | None:
    """Return how far the store has come; nothing once another process may have continued it."""
    return mark_of(superblock, lambda: engine.position) if engine.is_leased else None


__all__ = ["Settings", "Terms", "standby"]
