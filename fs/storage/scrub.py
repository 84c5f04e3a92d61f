"""Reads and verifies every chunk of this node, and forgets tombstones that nobody needs any more.

A damaged chunk is taken again from another replica by the data server. The background pass runs at low priority:
after each batch it sleeps several times as long as the batch took.

    S1  A tombstone is forgotten only in a chain whose members are all SERVING, when no request older than it can
        still arrive (R7 in docs/architecture.md).
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from ..config import StorageConfig
from ..errors import NotFound
from ..wire import RoutingTable
from ..wire.pb.mgmtd_pb2 import SERVING, Chain
from ..wire.pb.storage_pb2 import ChunkName, ChunkRecord, ScrubReply
from .compare import Name
from .directory import Directory
from .engine import Engine

log = logging.getLogger(__name__)

BATCH: Final = 16  # chunks of one call: 16 MiB of usual chunks, a fraction of a second of any disk
REST: Final = 4.0  # a pass takes at most a fifth of the disk's time
TICK_S: Final = 30.0  # how often it is looked at what is due
TOMBSTONE_AGE_S: Final = 600.0  # ten times a client's deadline, five times what a writer's record is kept for
TOMBSTONES_MAX: Final = 10_000  # forgotten in one call
DAMAGED_MAX: Final = 1000  # named in a reply; all are counted and repaired


@dataclass(slots=True)
class Counters:
    """Since the process started."""

    chunks: int = 0
    bytes: int = 0
    damaged: int = 0
    repaired: int = 0
    passes: int = 0
    tombstones: int = 0


class Scrub:
    """Verifies chunks, on request and once per interval."""

    def __init__(
        self, engine: Engine, directory: Directory, table: RoutingTable, *, node: int, config: StorageConfig
    ) -> None:
        self.counters: Final = Counters()
        self.config = config
        self._engine = engine
        self._directory = directory
        self._table = table
        self._node = node

    async def run(self) -> None:
        """Scrubs and forgets tombstones when that is due, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._forget_tombstones()
                if time.time() - self._directory.scrubbed_at() >= self.config.scrub_interval_s:
                    await self._scrub_all()
                    self._directory.set_scrubbed_at(time.time())
            except OSError as error:
                log.warning("scrub is tried again later: %s", error)

    async def chain(self, chain: int, *, repair: bool, rest: float = 0.0) -> ScrubReply:
        """Verifies every chunk of a chain. Raises: NotFound if no replica of it is here."""
        if chain not in self._chains():
            raise NotFound(f"no replica of chain {chain} is on this node", chain=chain)
        reply = ScrubReply()
        after: Name | None = None
        while True:
            started = time.monotonic()
            chunks, size, damaged, repaired, after = await self._engine.run(
                self._engine.node.scrub, chain, after, BATCH, repair
            )
            self._count(chain, chunks, size, damaged, repaired)
            reply.chunks += chunks
            reply.bytes += size
            reply.repaired += repaired
            reply.damaged.extend(
                ChunkRecord(chunk=ChunkName(content=content, index=index), version=version)
                for content, index, version in damaged[: DAMAGED_MAX - len(reply.damaged)]
            )
            if after is None:
                return reply
            await asyncio.sleep(rest * (time.monotonic() - started))

    def _count(
        self, chain: int, chunks: int, size: int, damaged: list[tuple[int, int, int]], repaired: int
    ) -> None:
        self.counters.chunks += chunks
        self.counters.bytes += size
        self.counters.damaged += len(damaged)
        self.counters.repaired += repaired
        for content, index, version in damaged[:BATCH]:
            log.error(
                "chain %d: chunk %x.%d version %d is damaged on this disk", chain, content, index, version
            )

    async def _scrub_all(self) -> None:
        log.info("scrub: begins")
        for chain in sorted(self._chains()):
            if chain in self._chains():
                await self.chain(chain, repair=True, rest=REST)
        self.counters.passes += 1
        log.info("scrub: done; %s", self.counters)

    async def _forget_tombstones(self) -> None:
        before_unix_ms = int((time.time() - TOMBSTONE_AGE_S) * 1000)
        for chain in self._chains().values():
            if all(target.state == SERVING for target in chain.targets):  # S1
                self.counters.tombstones += await self._engine.run(
                    self._engine.node.purge_tombstones, chain.id, before_unix_ms, TOMBSTONES_MAX
                )

    def _chains(self) -> dict[int, Chain]:
        """Chains with a replica here."""
        return {
            chain.id: chain
            for chain in self._table.chains.values()
            if any(target.node == self._node for target in chain.targets)
        }


__all__ = ["Counters", "Scrub"]
