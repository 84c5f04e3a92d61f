"""Cutting chunks off a file, in an order that survives a crash.

    1  the intent is stored, and on disk       key P: (content, length)
    2  the chunks go, chain by chain, durably  may be repeated
    3  one transaction sets the length, makes `truncate_version` grow and removes the intent

Power loss after 3 must not bring back what 2 removed: a file that is extended later would show old bytes, not zeros.
From 1 to 3 requests about this file wait (`RetryAfterWait`), so no reply shows the old length of a file that has
lost bytes already. After a crash, or when a chain could not be reached, the intent is carried out
by `resume`. Writers that report a length in between are asked to wait too; then their report is of an older
`truncate_version`, and the chains are asked (length.py, L2 and L3).

    T1  Step 3 comes only when no request of step 2, from whatever process, can be executed any more: it would remove
        what is written afterwards. `StorageControl` promises that for this process; what a process before this one
        has sent is void `REQUEST_LIFE_S` after this one began.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ..clock import Clock
from ..errors import Busy, Error
from ..kv import Durability, Engine, Transaction, run
from ..wire.pb.meta_pb2 import REGULAR, Inode
from . import schema
from .removal_clock import RemovalClock
from .schema import TruncateIntent
from .storage import REQUEST_LIFE_S, Chunks

log: Final = logging.getLogger("luciola.meta")

DRIFT: Final = 0.05  # by which the clock of the process before may have been slower
WAIT_S: Final = 10.0  # then the caller gets Busy, and tries again
PAGE: Final = 1000
assert WAIT_S > REQUEST_LIFE_S / (1 - DRIFT), (
    "a caller can wait until requests of an earlier process are void (T1)"
)


class Truncations:
    """Truncations in progress, by inode."""

    def __init__(self, engine: Engine, chunks: Chunks, clock: Clock, removal_clock: RemovalClock) -> None:
        self._engine = engine
        self._removal_clock = removal_clock
        self._chunks = chunks
        self._clock = clock
        self._pending: dict[int, asyncio.Event | None] = {}  # None: no request has waited yet
        self._locks: dict[int, asyncio.Lock] = {}
        self._waiting: dict[int, int] = {}  # who holds a lock or waits for it
        self._inherited: set[int] = set()  # what an earlier process had begun
        self._inherited_until_s = 0.0

    def load(self) -> None:
        """Read from the store what a crash has left."""
        self._inherited_until_s = self._clock.monotonic() + REQUEST_LIFE_S / (1 - DRIFT)
        begin, end = schema.kind_range(b"P")
        while pairs := self._engine.begin().snapshot_range(begin, end, limit=PAGE):
            for key, _ in pairs:
                self._pending[schema.split_one(key)[0]] = None
                self._inherited.add(schema.split_one(key)[0])
            begin = pairs[-1][0] + b"\x00"

    def __contains__(self, inode: object) -> bool:
        return inode in self._pending

    async def wait(self, inode: int) -> None:
        """Return when no truncation of `inode` is in progress; one that a crash has left is carried out.

        Raises: Busy if that takes too long; Unavailable if chains cannot be reached.
        """
        if inode not in self._locks:
            await self._resume(inode)
        if inode not in self._pending:
            return
        event = self._pending[inode]
        if event is None:
            event = self._pending[inode] = asyncio.Event()
        try:
            async with asyncio.timeout(WAIT_S):
                await event.wait()
        except TimeoutError as error:
            raise Busy("the file is being truncated", inode=inode) from error

    @asynccontextmanager
    async def truncate(self, inode: int, length: int) -> AsyncIterator[TruncateIntent | None]:
        """Steps 1 and 2; inside, the caller does step 3, and if it does not, it is done for it.

        None if the file has no chunks any more. Raises: Unavailable; the intent is then carried out later.
        """
        async with self._alone(inode):
            if inode in self._pending:
                await self._carry_out(inode)
            intent = await self._intend(inode, length)
            if intent is None:
                yield None
                return
            await self._remove(inode, intent)
            try:
                yield intent
            finally:
                await self._complete(inode)

    async def resume(self) -> None:
        """Carry out what is pending and not being worked on."""
        for inode in [inode for inode in self._pending if inode not in self._locks]:
            try:
                await self._resume(inode)
            except Error as error:
                log.warning("truncation of inode %d is still pending: %s", inode, error)

    async def _resume(self, inode: int) -> None:
        async with self._alone(inode):
            if inode in self._pending:
                await self._carry_out(inode)

    @asynccontextmanager
    async def _alone(self, inode: int) -> AsyncIterator[None]:
        """One at a time works on an inode's chunks."""
        lock = self._locks.get(inode)
        if lock is None:
            lock = self._locks[inode] = asyncio.Lock()
        self._waiting[inode] = self._waiting.get(inode, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[inode] -= 1
            assert self._waiting[inode] >= 0, "who waits is counted"
            if not self._waiting[inode]:
                del self._waiting[inode], self._locks[inode]

    async def _intend(self, inode: int, length: int) -> TruncateIntent | None:
        def store(txn: Transaction) -> TruncateIntent | None:
            value = txn.get(schema.inode_key(inode))
            found = None if value is None else schema.decode_inode(value)
            if found is None or found.type != REGULAR or found.is_inline:
                return None
            txn.may_use_reserve = True
            txn.put(schema.intent_key(inode), schema.encode_intent(found.content, length))
            return TruncateIntent(found.content, length)

        assert length >= 0, "a length is not negative"
        assert self._locks[inode].locked(), "one at a time works on an inode's chunks"
        self._pending.setdefault(inode, None)
        try:
            intent = await run(self._engine, store, durability=Durability.SYNC, clock=self._clock)
        except BaseException:
            failed = self._engine.failure is not None  # what it shows is not what it has stored
            if not failed and self._engine.begin().snapshot_get(schema.intent_key(inode)) is None:
                self._release(inode)
            raise
        if intent is None:
            self._release(inode)
        return intent

    async def _remove(self, inode: int, intent: TruncateIntent) -> None:
        value = self._engine.begin().snapshot_get(schema.inode_key(inode))
        if value is not None:
            await self._chunks.truncate(schema.decode_inode(value).layout, intent.content, intent.length)

    async def _carry_out(self, inode: int) -> None:
        value = self._engine.begin().snapshot_get(schema.intent_key(inode))
        if value is not None:
            await self._engine.sync()  # its request may have been cancelled before that
            await self._remove(inode, schema.decode_intent(value))
        if inode in self._inherited:  # T1
            await self._clock.sleep(max(0.0, self._inherited_until_s - self._clock.monotonic()))
            self._inherited.discard(inode)
        await self._complete(inode)

    async def _complete(self, inode: int) -> None:
        """Step 3, unless it is done."""
        assert inode not in self._inherited, "T1: requests of an earlier process are void first"
        assert self._locks[inode].locked(), "one at a time works on an inode's chunks"

        def finish(txn: Transaction) -> None:
            value = txn.get(schema.intent_key(inode))
            if value is None:
                return
            txn.may_use_reserve = True
            txn.delete(schema.intent_key(inode))
            stored = txn.get(schema.inode_key(inode))
            if stored is not None:
                self._shorten(txn, schema.decode_inode(stored), schema.decode_intent(value))

        await run(self._engine, finish, clock=self._clock)
        self._release(inode)

    def _shorten(self, txn: Transaction, inode: Inode, intent: TruncateIntent) -> None:
        if inode.content != intent.content:
            return
        assert inode.type == REGULAR, "only regular files are truncated"
        inode.length = intent.length
        inode.truncate_version += 1
        inode.change = self._removal_clock.next_change(inode.change)
        inode.mtime_ns = inode.ctime_ns = self._clock.unix_ns()
        txn.put(schema.inode_key(inode.id), schema.encode_inode(inode))

    def _release(self, inode: int) -> None:
        event = self._pending.pop(inode, None)
        if event is not None:
            event.set()


__all__ = ["Truncations"]
