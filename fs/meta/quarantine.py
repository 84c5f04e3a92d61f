"""Contents that no file names, found by `luciola fsck --repair`: their chunks wait before they are removed.

Q1  Chunks are removed after the due time only, and only if no inode names their content then. A wall clock that is set
    forwards does not end a quarantine: what this process recorded must have waited on its monotonic clock too, and
    for what an earlier one recorded this process must have run for `SETTLE_S`, in which a wrong clock is noticed.
Q2  No new file gets a content that is or was in quarantine: the allocator is moved beyond it, in the store, before
    the record is written. So the inodes that are read for Q1 cannot be joined by another one.
Q3  All progress is in the store: after a crash the same records are found again, and every step may be repeated.

The records are part of the namespace: a namespace that is put back from a backup brings its own quarantine, and with
it no memory of what the replaced one wanted to remove.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from ..clock import Clock
from ..errors import Error, InvalidArgument
from ..ids import ChainId
from ..kv import Durability, Engine, Transaction, run
from ..wire.pb.meta_pb2 import QuarantinedContent
from . import schema
from .allocator import Allocator
from .context import NS_PER_MS
from .storage import ChunkRange, Chunks

log: Final = logging.getLogger("luciola.meta")

CONTENTS_MAX: Final = 1024  # of one request: one transaction of about 64 KiB
CHAINS_MAX: Final = 4096  # of one content: more than any stripe
DELAY_MS_MAX: Final = 366 * 24 * 3600 * 1000
CONTENT_MAX: Final = (1 << 62) - 1  # ids beyond must be left for new files
DUE_MAX: Final = 16_384  # contents looked at in one round, which reads every inode once
INODES_PAGE: Final = 256  # about a millisecond, before requests have a turn
SETTLE_S: Final = 3600.0
REMOVALS_MAX: Final = (
    64  # contents removed in one round: other collection has its turn after a second of disk syncs
)
RETRY_S: Final = 60.0  # after a chain could not be asked: a round costs a read of every inode


class Quarantine:
    """What waits, and what is removed when its time has come."""

    def __init__(self, engine: Engine, clock: Clock, *, contents: Allocator, chunks: Chunks) -> None:
        self._engine = engine
        self._clock = clock
        self._contents = contents
        self._chunks = chunks
        self._retry_s = float("-inf")
        self._started_s = clock.monotonic()
        self._unnamed: deque[tuple[bytes, QuarantinedContent]] = (
            deque()
        )  # due, and in no inode (Q2: it stays so)
        self._away: set[int] = set()  # chains that could not be asked since `_unnamed` was filled
        self._due_s: dict[int, float] = {}  # due time on the wall clock → on this process's monotonic clock

    async def add(self, found: Sequence[QuarantinedContent], delay_ms: int) -> None:
        """Record contents whose chunks are to be removed in `delay_ms`. Raises: InvalidArgument."""
        if len(found) > CONTENTS_MAX:
            raise InvalidArgument(f"at most {CONTENTS_MAX} contents in one request")
        if delay_ms > DELAY_MS_MAX:
            raise InvalidArgument(f"quarantine lasts at most {DELAY_MS_MAX} ms")
        for each in found:
            if not 0 < each.content <= CONTENT_MAX or not 0 < len(each.chains) <= CHAINS_MAX:
                raise InvalidArgument(f"content {each.content}: not a content with its chains")
        if not found:
            return
        await self._contents.skip_past(max(each.content for each in found))  # Q2
        assert self._contents.upcoming > max(each.content for each in found), (
            "Q2: no new file gets such a content"
        )
        due_ms = self._clock.unix_ns() // NS_PER_MS + delay_ms
        self._due_s[due_ms] = self._clock.monotonic() + delay_ms / 1000

        def record(txn: Transaction) -> None:
            for each in found:
                stored = QuarantinedContent(
                    content=each.content, chains=each.chains, chunks=each.chunks, due_unix_ms=due_ms
                )
                txn.put(schema.quarantine_key(due_ms, each.content), stored.SerializeToString())

        await run(self._engine, record, durability=Durability.SYNC, clock=self._clock)

    async def release(self, found: Sequence[QuarantinedContent]) -> None:
        """Take contents out of quarantine; chunks that were not removed stay. Raises: InvalidArgument."""
        if len(found) > CONTENTS_MAX:
            raise InvalidArgument(f"at most {CONTENTS_MAX} contents in one request")
        keys = [schema.quarantine_key(each.due_unix_ms, each.content) for each in found]
        await self._forget(keys)

    def look_again(self) -> None:
        """Forget which contents no inode names: inodes are about to come that Q2 does not know of."""
        self._unnamed.clear()
        self._retry_s = float("-inf")

    async def collect(self) -> int:
        """Remove the chunks of some contents that are due; how many left quarantine."""
        if not self._unnamed and self._clock.monotonic() >= self._retry_s:
            await self._find_due()
        if self._unnamed:
            await (
                self._engine.sync()
            )  # no inode names them, also when commits that are not stored yet are lost
        done = []
        for _ in range(min(REMOVALS_MAX, len(self._unnamed))):
            key, content = self._unnamed.popleft()
            if await self._remove(key, content):
                done.append(key)
            else:
                self._retry_s = self._clock.monotonic() + RETRY_S
        await self._forget(done)
        return len(done)

    async def _find_due(self) -> None:
        """Queue what is due and in no inode; what a file names leaves quarantine (Q1)."""
        self._away.clear()
        begin, _ = schema.kind_range(schema.QUARANTINE)
        now_ms = self._clock.unix_ns() // NS_PER_MS
        end = schema.quarantine_key(now_ms + 1, 0)
        due = {
            key: schema.decode_quarantined(value)
            for key, value in self._engine.begin().snapshot_range(begin, end, limit=DUE_MAX)
            if self._has_waited(schema.split_two(key)[0])
        }
        if not due:
            return
        named = await self._named({each.content for each in due.values()})
        kept = [key for key, each in due.items() if each.content in named]
        for key in kept:
            log.warning("content %d left quarantine: a file names it; its chunks stay", due[key].content)
        for start in range(0, len(kept), CONTENTS_MAX):
            await self._forget(kept[start : start + CONTENTS_MAX])
        self._unnamed.extend((key, each) for key, each in due.items() if each.content not in named)

    def _has_waited(self, due_ms: int) -> bool:
        wanted_s = self._due_s.get(due_ms, self._started_s + SETTLE_S)
        return self._clock.monotonic() >= wanted_s

    async def _remove(self, key: bytes, content: QuarantinedContent) -> bool:
        """Remove a content from all its chains that can be asked; whether it is gone, or was released."""
        if self._engine.begin().snapshot_get(key) is None:  # released meanwhile
            return True
        assert self._has_waited(schema.split_two(key)[0]), "Q1: chunks are removed after the due time"
        for chain in content.chains:
            if chain not in self._away:
                await self._remove_from(ChainId(chain), content.content)
        if not self._away.isdisjoint(content.chains):
            return False
        log.info("content %d: %d chunks of no file were removed", content.content, content.chunks)
        return True

    async def _remove_from(self, chain: ChainId, content: int) -> None:
        left: Sequence[ChunkRange] = [ChunkRange(content, 0)]
        try:
            while left:
                left = await self._chunks.remove(chain, left)
        except Error as error:
            log.warning("removal of quarantined content %d from chain %d deferred: %s", content, chain, error)
            self._away.add(chain)

    async def _named(self, contents: set[int]) -> set[int]:
        """Those of `contents` that inodes name. Cost: a read of every inode."""
        found: set[int] = set()
        begin, end = schema.kind_range(schema.INODES)
        while pairs := self._engine.begin().snapshot_range(begin, end, limit=INODES_PAGE):
            found.update(contents & {schema.decode_inode(value).content for _, value in pairs})
            begin = pairs[-1][0] + b"\x00"
            await asyncio.sleep(0)
        return found

    async def _forget(self, keys: Sequence[bytes]) -> None:
        if not keys:
            return

        def delete(txn: Transaction) -> None:
            txn.may_use_reserve = True
            for key in keys:
                txn.delete(key)

        await run(self._engine, delete, clock=self._clock)


__all__ = ["CONTENTS_MAX", "CONTENT_MAX", "Quarantine"]
