"""Removes what nobody names any more, and the sessions of clients that are gone.

C1  An inode without links stays while anybody has it open, and at least `gc_delay_ms`; after a start of this
service
    also as long, so that readers can register their holds again.
C2  Chunks are removed only when the transaction that made them garbage is on disk, and after `gc_delay_ms`:
whoever
    read the old layout of a file that was truncated has seen the new one by then.
C3  Content that an inode refers to is never removed, whatever a record says.
C4  All progress is in the store: after a crash the same records are found again, and every step may be
repeated.
C5  A session of a client that mgmtd has not known for `client_session_timeout_ms` ends, after its file's
length has
    been read from the chains. While mgmtd is gathering its clients nobody is called unknown.
C6  A content that was reserved as a spare is taken from those who might still use it by a transaction of its own
    before its chunks go: a file moves to it or it is collected, never both.
"""

import asyncio
import enum
import logging
from collections.abc import Collection
from functools import partial
from typing import Final, Protocol

from ..clock import Clock
from ..config import MetaConfig
from ..errors import Error
from ..kv import Engine, Pair, Transaction, run
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode, RemovedContent
from . import schema
from .census import Census
from .quarantine import Quarantine
from .sessions import Holds, Writers
from .storage import Chunks
from .work import NS_PER_MS

log: Final = logging.getLogger("luciola.meta")

ENTRIES: Final = 256  # of a removed directory in one transaction
BREATH: Final = 16  # inodes removed, about a millisecond, before others have a turn
CONCURRENCY: Final = 8  # contents whose chunks are removed at once
RECORDS: Final = 512  # requests of one client forgotten in one round
CLIENTS: Final = 32  # looked at in one round
PRUNE_INTERVAL_S: Final = 5.0


class Membership(Protocol):
    """Which clients the cluster manager knows."""

    async def clients(self) -> Collection[int] | None:
        """None while it cannot say: unreachable, or still gathering."""


class Step(enum.Enum):
    """What became of an inode without links."""

    NONE = 0  # somebody has it open
    PROGRESS = 1
    ERASED = 2


class Collector:
    """Call `round` again and again."""

    def __init__(  # noqa: PLR0913, what it watches over
        self,
        engine: Engine,
        clock: Clock,
        config: MetaConfig,
        *,
        chunks: Chunks,
        quarantine: Quarantine,
        writers: Writers,
        holds: Holds,
        census: Census,
        membership: Membership,
        session_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._config = config
        self._chunks = chunks
        self._quarantine = quarantine
        self._writers = writers
        self._holds = holds
        self._census = census
        self._membership = membership
        self._session_timeout_s = session_timeout_s
        self._started_s = clock.monotonic()
        self._cursors: dict[bytes, bytes] = {}
        self._unknown_since: dict[int, float] = {}
        self._pruned_s = float("-inf")

    async def round(self) -> int:
        """One look at everything; how much was done, 0 if there is nothing to do now."""
        done = await self.prune()
        done += await self.collect_orphans()
        done += await self.collect_garbage()
        done += await self._quarantine.collect()
        await self.forget_requests()
        return done

    # Inodes without a name.

    async def collect_orphans(self) -> int:
        """Removes inodes without links that nobody has open; how many steps were made."""
        if self._clock.monotonic() - self._started_s < self._config.gc_delay_ms / 1000:
            return 0
        done = 0
        for number, (key, _) in enumerate(self._due(b"O")):
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)  # requests come first
            removed_ms, inode = schema.split_two(key)
            if inode in self._holds or inode in self._writers:
                continue
            step = await run(
                self._engine, partial(self._bury, number=inode, removed_ms=removed_ms), clock=self._clock
            )
            done += step is not Step.NONE
            if step is Step.ERASED:
                self._census.removed(inode)
        return done

    def _bury(self, txn: Transaction, *, number: int, removed_ms: int) -> "Step":
        txn.may_use_reserve = True
        value = txn.get(schema.inode_key(number))
        if value is None and txn.get(schema.orphan_key(removed_ms, number)) is None:
            return Step.ERASED  # by the attempt before this one, whose outcome was unknown
        inode = None if value is None else schema.decode_inode(value)
        if inode is None or inode.link_count:
            txn.delete(schema.orphan_key(removed_ms, number))
            return Step.PROGRESS
        if inode.type == DIRECTORY and self._empty(txn, inode, removed_ms):
            return Step.PROGRESS
        if txn.get_range(*schema.session_range(number), limit=1):
            return Step.NONE
        self._erase(txn, inode, removed_ms)
        return Step.ERASED

    def _empty(self, txn: Transaction, directory: Inode, removed_ms: int) -> bool:
        """Takes some entries out of a removed directory; False if there are none."""
        pairs = txn.get_range(*schema.entry_range(directory.id), limit=ENTRIES)
        for key, entry in pairs:
            txn.delete(key)
            number = schema.decode_entry(entry).inode
            value = txn.get(schema.inode_key(number))
            if value is None:
                continue
            inode = schema.decode_inode(value)
            inode.link_count = 0 if inode.type == DIRECTORY else inode.link_count - 1
            inode.ctime_ns = self._clock.unix_ns()
            inode.change += 1
            if not inode.link_count:
                txn.put(schema.orphan_key(removed_ms, number), b"")
            txn.put(schema.inode_key(number), schema.encode_inode(inode))
        return bool(pairs)

    def _erase(self, txn: Transaction, inode: Inode, removed_ms: int) -> None:
        txn.delete(schema.orphan_key(removed_ms, inode.id))
        txn.delete(schema.inode_key(inode.id))
        if inode.type == DIRECTORY:
            txn.delete(schema.time_key(inode.id))
            txn.delete(schema.subdirectories_key(inode.id))
        if inode.type == REGULAR and not inode.is_inline:
            txn.delete(schema.cut_key(inode.id))
            garbage = schema.encode_garbage(inode, removed_ms, length=inode.length)
            txn.put(schema.garbage_key(removed_ms, inode.content), garbage)
        if txn.snapshot_range(*schema.attribute_range(inode.id), limit=1):
            txn.delete_range(*schema.attribute_range(inode.id))

    # Chunks.

    async def collect_garbage(self) -> int:
        """Removes the chunks of contents that are nobody's; how many contents."""
        due = self._due(b"G")
        if not due:
            return 0
        await self._engine.sync()  # C2
        slots = asyncio.Semaphore(CONCURRENCY)

        async def collect(key: bytes, value: bytes) -> bool:
            async with slots:
                return await self._collect_content(key, value)

        return sum(await asyncio.gather(*(collect(key, value) for key, value in due)))

    async def _collect_content(self, key: bytes, value: bytes) -> bool:
        try:
            record = schema.decode_garbage(value)
            if record.spare:
                return await run(self._engine, partial(_give_up, key=key), clock=self._clock)
            if self._is_in_use(record):
                log.error("content %d of inode %d is in use; its chunks stay", record.content, record.inode)
            else:
                await self._chunks.remove(record.layout, record.content, record.length)
        except Error as error:
            log.warning("chunks of content %d cannot be removed now: %s", schema.split_two(key)[1], error)
            return False
        await run(self._engine, lambda txn: _delete(txn, key), clock=self._clock)
        return True

    def _is_in_use(self, record: RemovedContent) -> bool:
        value = self._engine.begin().snapshot_get(schema.inode_key(record.inode))
        return value is not None and schema.decode_inode(value).content == record.content

    # Sessions of clients that are gone.

    async def prune(self) -> int:
        """Ends what clients have open that the cluster manager has not known for long; how many sessions."""
        now_s = self._clock.monotonic()
        if now_s - self._pruned_s < PRUNE_INTERVAL_S:
            return 0
        self._pruned_s = now_s
        known = await self._membership.clients()
        if known is None:
            self._unknown_since.clear()
            return 0
        sessions = self._writers.of_clients_outside(known)
        absent = {client for _, _, client in sessions} | {c for c in self._holds.clients if c not in known}
        self._unknown_since = {client: self._unknown_since.get(client, now_s) for client in absent}
        gone = {c for c, since_s in self._unknown_since.items() if now_s - since_s >= self._session_timeout_s}
        for client in gone:
            self._holds.forget(client)
        ended = 0
        for inode, session, client in sessions:
            if client in gone:
                ended += await self._end_session(inode, session)
        return ended

    async def _end_session(self, number: int, session: int) -> bool:
        value = self._engine.begin().snapshot_get(schema.inode_key(number))
        inode = None if value is None else schema.decode_inode(value)
        try:
            length = 0
            if inode is not None and inode.type == REGULAR and not inode.is_inline:
                length = await self._chunks.end(inode.layout, inode.content)
            settled = await run(
                self._engine, lambda txn: self._settle(txn, inode, session, length, number), clock=self._clock
            )
        except Error as error:
            log.warning("a dead client's session of inode %d stays for now: %s", number, error)
            return False
        if settled:
            self._writers.remove(number, session)
        return settled

    def _settle(self, txn: Transaction, seen: Inode | None, session: int, length: int, number: int) -> bool:
        """Ends the session, if the file is still the one that was measured."""
        txn.may_use_reserve = True
        value = txn.get(schema.inode_key(number))
        inode = None if value is None else schema.decode_inode(value)
        if inode is not None and seen is not None:
            same = (inode.content, inode.truncate_version, inode.is_inline)
            if same != (seen.content, seen.truncate_version, seen.is_inline):
                return False
            if not inode.is_inline and length > inode.length:
                inode.length = length
                inode.change += 1
                inode.mtime_ns = inode.ctime_ns = self._clock.unix_ns()
                txn.put(schema.inode_key(number), schema.encode_inode(inode))
        txn.delete(schema.session_key(number, session))
        return True

    # Requests that have been answered long ago.

    async def forget_requests(self) -> int:
        """Forgets answers older than `idempotence_ms`, of some clients at a time; how many."""
        limit_ms = self._clock.unix_ns() // NS_PER_MS - self._config.idempotence_ms
        begin, end = schema.kind_range(b"R")
        cursor = self._cursors.get(b"R", begin)
        old: list[bytes] = []
        for _ in range(CLIENTS):
            # A client's sequences grow with time: behind the first young answer all are young.
            pairs = self._engine.begin().snapshot_range(cursor, end, limit=RECORDS if not old else 1)
            if not pairs:
                cursor = begin
                break
            client = schema.split_two(pairs[0][0])[0]
            mine = [
                key
                for key, value in pairs
                if schema.split_two(key)[0] == client and schema.decode_record(value)[0] < limit_ms
            ]
            old += mine
            if len(mine) == len(pairs):
                cursor = mine[-1] + b"\x00"
                break
            cursor = schema.records_end(client)
        self._cursors[b"R"] = cursor
        if old:
            await run(self._engine, lambda txn: _delete(txn, *old), clock=self._clock)
        return len(old)

    # Walking through records.

    def _due(self, kind: bytes) -> list[Pair]:
        """The next records that are older than the delay."""
        limit_ms = self._clock.unix_ns() // NS_PER_MS - self._config.gc_delay_ms
        pairs = self._page(kind, self._config.gc_batch)
        due = [pair for pair in pairs if schema.split_two(pair[0])[0] <= limit_ms]
        if len(due) < len(pairs):
            self._cursors.pop(kind, None)  # the rest is younger
        return due

    def _page(self, kind: bytes, limit: int) -> list[Pair]:
        """The next records of a kind; from the first again after the last."""
        begin, end = schema.kind_range(kind)
        pairs = list(self._engine.begin().snapshot_range(self._cursors.get(kind, begin), end, limit=limit))
        if len(pairs) < limit:
            self._cursors.pop(kind, None)
        else:
            self._cursors[kind] = pairs[-1][0] + b"\x00"
        return pairs


def _give_up(txn: Transaction, *, key: bytes) -> bool:
    """Nobody may claim this spare content any more; when that is on disk, its chunks are removed (C2, C6)."""
    value = txn.get(key)
    if value is None:
        return False
    txn.may_use_reserve = True
    record = schema.decode_garbage(value)
    record.spare = False
    txn.put(key, record.SerializeToString())
    return True


def _delete(txn: Transaction, *keys: bytes) -> None:
    txn.may_use_reserve = True
    for key in keys:
        txn.delete(key)


__all__ = ["Collector", "Membership"]
