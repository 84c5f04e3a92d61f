"""Read and verify every chunk of this node, and forget tombstones that are not needed any more.

A damaged chunk is taken again from another replica by the data server. The background pass runs at low priority:
after each batch it sleeps several times as long as the batch took.

    S1  A tombstone is forgotten only in a chain whose members are all SERVING, when nothing older than it can still
        arrive (R7 in docs/architecture.md): it was there at a moment that is `TOMBSTONE_AGE_S` ago on the monotonic
        clock. The engine's rounds of sync show what was there; a tombstone's own time is of a clock that may be set.
"""

import asyncio
import logging
import time
from collections import deque
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
TOMBSTONE_AGE_S: Final = 1200.0  # ten times what a client retries one update for, and more than any deadline
FORGET_INTERVAL_S: Final = 300.0  # a look at every record of the index
RECORDS: Final = 1000  # looked at in one call
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
        self._marks: deque[tuple[float, int]] = deque()  # moments, and the engine's round then; oldest first
        self._forgot_s = float("-inf")

    async def run(self) -> None:
        """Scrub and forget tombstones when that is due. Return never."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.forget_tombstones(time.monotonic())
                if time.time() - self._directory.scrubbed_at() >= self.config.scrub_interval_s:
                    await self._scrub_all()
                    self._directory.set_scrubbed_at(time.time())
            except OSError as error:
                log.warning("scrub interrupted: %s; tried again later", error)

    async def chain(self, chain: int, *, repair: bool, rest: float = 0.0) -> ScrubReply:
        """Verify every chunk of a chain. Raises: NotFound if no replica of it is here."""
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

    async def forget_tombstones(self, now_s: float) -> None:
        """Forget what is old enough when the monotonic clock shows `now_s`. Call it periodically."""
        self._marks.append((now_s, await self._engine.quick(self._engine.node.round)))
        assert len(self._marks) < 2 or self._marks[-1] >= self._marks[-2], "S1: clock and rounds grow"
        while len(self._marks) > 1 and now_s - self._marks[1][0] >= TOMBSTONE_AGE_S:
            self._marks.popleft()
        marked_s, round_ = self._marks[0]
        if now_s - marked_s < TOMBSTONE_AGE_S or now_s - self._forgot_s < FORGET_INTERVAL_S:
            return
        self._forgot_s = now_s
        for chain in self._chains().values():
            if all(target.state == SERVING for target in chain.targets):  # S1
                await self._forget(chain.id, round_)

    async def _forget(self, chain: int, round_: int) -> None:
        after: Name | None = None
        while True:
            count, after = await self._engine.run(
                self._engine.node.purge_tombstones, chain, after, round_, RECORDS
            )
            self.counters.tombstones += count
            if after is None:
                return

    def _chains(self) -> dict[int, Chain]:
        """Chains with a replica here."""
        return {
            chain.id: chain
            for chain in self._table.chains.values()
            if any(target.node == self._node for target in chain.targets)
        }


__all__ = ["Counters", "Scrub"]
