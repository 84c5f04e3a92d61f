"""Removes what has lost its last name, and the sessions of clients that are gone.

C1  An inode without links stays while a client has it open, and at least `gc_delay_ms`. Nothing is removed in the first
    `gc_delay_ms` of this process, so that readers can register their holds again (`RemovalClock`, A3).
C2  Chunks are removed only when the transaction that made them garbage is on disk, and after `gc_delay_ms`: a reader
    with the old layout of a file that was truncated has seen the new one by then.
    Its record is forgotten only when the removal is on the disks of all replicas. Chunks that a file had, and not
    only might have had, stay for `history_s` besides, measured by the wall clock: a state from before their removal may
    be restored until then. Their record moves from `G` to `H` meanwhile.
C3  Content that an inode refers to is never removed, whatever a record says.
C4  All progress is in the store: after a crash the same records are found again, and every step may be repeated.
C5  A session of a client that mgmtd has not known for `client_session_timeout_ms` ends, after its file's length has
    been read from the chains. While mgmtd is gathering its clients none is unknown.
    So does one whose client left it without a full report (`CloseOne.measure`), or does not know it (`Hold`).
C6  A content that was reserved as a spare is taken from those who might still use it by a transaction of its own
    before its chunks go: a file moves to it or it is collected, never both.
C7  The work for one removed inode does not depend on how many were removed before: every record and every entry of a
    removed directory is read once (`RemovalQueue`). The collector works in slices of `SLICE_S` and rests as long as it
    has worked, so a request waits for at most one slice.
"""

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from ..clock import Clock
from ..config import MetaConfig
from ..errors import Error
from ..ids import ChainId
from ..kv import Engine, Pair, Transaction, run
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode, RemovedContent
from . import schema
from .context import NS_PER_MS
from .inode_counter import InodeCounter
from .quarantine import Quarantine
from .removal_clock import RemovalClock
from .removal_queue import RETRY_S, RemovalQueue
from .requests import Requests
from .sessions import Holds, Writers
from .storage import ChunkRange, Chunks

log: Final = logging.getLogger("luciola.meta")

SLICE_S: Final = 0.0003  # of the event loop: less than a request waits for anyway
SLICE_INODES: Final = 8  # in one transaction, which takes about as long
REST_S: Final = (
    0.001  # the shortest that the event loop can sleep: slices are saved up until they are worth it
)
SLICES: Final = 512  # of one round: a fraction of a second, then sessions and chunks have their turn
ENTRIES: Final = 64  # of a removed directory, read at once
GARBAGE_SLICE: Final = 16  # records of garbage that are read, or deleted, in one slice
RECORDS: Final = 512  # answers to one client deleted in one transaction
PRUNE_INTERVAL_S: Final = 5.0
assert SLICE_S < REST_S, "a rest is worth several slices"


class Membership(Protocol):
    """Which clients the cluster manager knows."""

    async def clients(self) -> Collection[int] | None:
        """None while it cannot say: unreachable, or still gathering."""


class Step(enum.Enum):
    """How far one transaction has brought an orphan."""

    OPEN = 0  # a client has it open
    MORE = 1  # a directory that has entries left
    DONE = 2  # its record is gone


@dataclass(slots=True)
class Effects:
    """What one transaction of the collector may have stored, over all attempts at it."""

    erased: set[int] = field(default_factory=set)
    orphans: list[bytes] = field(default_factory=list)  # keys of new records, due at once
    garbage: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Removal:
    """One attempt at one transaction of the collector."""

    txn: Transaction
    effects: Effects
    before_ms: int  # what is dated so is due
    steps: list[Step] = field(default_factory=list)
    emptied: dict[int, bytes] = field(default_factory=dict)  # directory → the last name that was taken out


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
        requests: Requests,
        inode_counter: InodeCounter,
        removal_clock: RemovalClock,
        membership: Membership,
        session_timeout_s: float,
        history_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self.config = config
        self._chunks = chunks
        self._quarantine = quarantine
        self._writers = writers
        self._holds = holds
        self._requests = requests
        self._inode_counter = inode_counter
        self._removal_clock = removal_clock
        self._membership = membership
        self._session_timeout_s = session_timeout_s
        self._orphans = RemovalQueue(engine, clock, b"O")
        self._garbage = RemovalQueue(engine, clock, schema.GARBAGE)
        self._kept = RemovalQueue(engine, clock, schema.KEPT)
        self._history_ms = int(history_s * 1000)
        # The wall clock's time is read once: one that is set forwards must not end what is kept.
        self._unix_ms_at_0 = clock.unix_ns() // NS_PER_MS - int(clock.monotonic() * 1000)
        self._emptied: dict[int, bytes] = {}  # removed directory → names up to here are out of it
        self._progress: dict[
            tuple[ChainId, int], int
        ] = {}  # of a large content: chunks before this one are gone
        self._away: dict[
            ChainId, float
        ] = {}  # chains that could not be asked, and until when they are left alone
        self._slice_began_s = 0.0
        self._worked_s = 0.0
        self._unknown_since: dict[int, float] = {}
        self._pruned_s = float("-inf")

    @property
    def _batch(self) -> int:
        return max(2, self.config.gc_batch)

    async def round(self) -> int:
        """Take one look at everything. Returns how much was done: 0 if there is nothing to do now."""
        await self._removal_clock.extend()
        done = await self.prune()
        done += await self.end_abandoned()
        done += await self.collect_orphans()
        done += await self.collect_garbage()
        done += await self._quarantine.collect()
        done += await self.forget_requests()
        return done

    # Inodes without a name.

    async def collect_orphans(self) -> int:
        """Remove inodes without links that no client has open. Returns how many steps were made."""
        if not self._is_ready():
            return 0
        due = deque(key for key, _ in self._orphans.take(self._batch, before_ms=self._before_ms()))
        done = 0
        self._slice_began_s = self._clock.monotonic()
        for _ in range(SLICES):
            batch = self._closed(due)
            if not batch:
                break
            removal = await self._remove_inodes(batch)
            for key, step in zip(batch, removal.steps, strict=False):
                done += step is not Step.OPEN
                if step is Step.DONE:
                    self._orphans.done(key)
                elif step is Step.MORE:
                    due.append(key)
            due.extendleft(reversed(batch[len(removal.steps) :]))
            await self._pace()
        for key in due:
            self._orphans.put_off(key, self._clock.monotonic())
        return done

    def _closed(self, due: deque[bytes]) -> list[bytes]:
        """Return the next records of `due` whose inodes no client has open; the others wait in the queue."""
        batch: list[bytes] = []
        while due and len(batch) < SLICE_INODES:
            key = due.popleft()
            if not self._is_open(schema.split_two(key)[1]):
                batch.append(key)
        return batch

    def _is_open(self, inode: int) -> bool:
        return inode in self._holds or inode in self._writers

    async def _remove_inodes(self, batch: Sequence[bytes]) -> Removal:
        """Remove inodes, as many of the batch as fit one slice, in one transaction."""
        effects = Effects()

        def attempt(txn: Transaction) -> Removal:
            txn.may_use_reserve = True
            removal = Removal(txn, effects, self._before_ms())
            until_s = self._clock.monotonic() + SLICE_S
            for key in batch:
                removal.steps.append(self._remove_one(removal, key))
                if self._clock.monotonic() > until_s:
                    break
            return removal

        removal = await run(self._engine, attempt, clock=self._clock)
        self._emptied |= removal.emptied
        look = self._engine.begin()
        for number in effects.erased:
            if look.snapshot_get(schema.inode_key(number)) is None:  # else its attempt was not carried out
                self._inode_counter.removed(number)
                self._emptied.pop(number, None)
        for key in effects.orphans:
            self._orphans.add(key)
        for key in effects.garbage:
            self._garbage.add(key)
        return removal

    def _remove_one(self, removal: Removal, key: bytes) -> Step:
        txn = removal.txn
        number = schema.split_two(key)[1]
        value = txn.get(schema.inode_key(number))
        inode = None if value is None else schema.decode_inode(value)
        if inode is not None and not inode.link_count:
            if inode.type == DIRECTORY and self._empty(removal, inode):
                return Step.MORE
            if not self._erase(removal, inode):
                return Step.OPEN
        txn.delete(key)
        return Step.DONE

    def _empty(self, removal: Removal, directory: Inode) -> bool:
        """Take the next entries out of a removed directory, where no new ones come in. False: there are none."""
        txn = removal.txn
        after = self._emptied.get(directory.id, b"")
        pairs = txn.get_range(*schema.entry_range(directory.id, after=after), limit=ENTRIES)
        until_s = self._clock.monotonic() + SLICE_S
        for key, value in pairs:
            entry = schema.decode_entry(value)
            txn.delete(key)
            txn.delete(schema.cookie_key(directory.id, entry.cookie))
            _, removal.emptied[directory.id] = schema.split_one(key)
            self._unlink(removal, entry.inode)
            if self._clock.monotonic() > until_s:
                break
        return bool(pairs)

    def _unlink(self, removal: Removal, number: int) -> None:
        """Take a link off an inode, and erase one without any unless it is open or is a directory."""
        value = removal.txn.get(schema.inode_key(number))
        if value is None:
            return
        inode = schema.decode_inode(value)
        if not inode.link_count:  # records of a damaged dump: `luciola fsck` reports them
            log.error("inode %d: an entry names it, and it has no links left; the entry is removed", number)
            return
        inode.link_count = 0 if inode.type == DIRECTORY else inode.link_count - 1
        if not inode.link_count:
            if inode.type != DIRECTORY and not self._is_open(number) and self._erase(removal, inode):
                return
            orphan = schema.orphan_key(removal.before_ms - 1, number)
            removal.txn.put(orphan, b"")
            removal.effects.orphans.append(orphan)
        inode.ctime_ns = self._clock.unix_ns()
        inode.change = self._removal_clock.next_change(inode.change)
        removal.txn.put(schema.inode_key(number), schema.encode_inode(inode))

    def _erase(self, removal: Removal, inode: Inode) -> bool:
        """Remove the inode's records; its chunks become garbage that is due at once. False if a client writes it."""
        txn = removal.txn
        assert not inode.link_count, "C1: an inode with a name stays"
        assert self._is_ready(), "C1: readers have had time to register what they hold"
        if txn.get_range(*schema.session_range(inode.id), limit=1):
            return False
        txn.delete(schema.inode_key(inode.id))
        removal.effects.erased.add(inode.id)
        if inode.type == DIRECTORY:
            txn.delete(schema.time_key(inode.id))
            txn.delete(schema.subdirectories_key(inode.id))
        if inode.type == REGULAR and not inode.is_inline:
            txn.delete(schema.intent_key(inode.id))
            garbage = schema.garbage_key(removal.before_ms - 1, inode.content)
            removed_unix_ms = self._clock.unix_ns() // NS_PER_MS
            txn.put(garbage, schema.encode_garbage(inode, removed_unix_ms, length=inode.length))
            removal.effects.garbage.append(garbage)
        if txn.snapshot_range(*schema.attribute_range(inode.id), limit=1):
            txn.delete_range(*schema.attribute_range(inode.id))
        return True

    # Chunks.

    async def collect_garbage(self) -> int:
        """Remove the chunks of contents without an inode. Returns how many records were dealt with."""
        if not self._is_ready():
            return 0
        due = self._garbage.take(self._batch, before_ms=self._before_ms())
        due, moved = await self._keep(due)
        due += self._kept.take(self._batch, before_ms=self._kept_since_ms())
        if not due:
            return moved
        await self._engine.sync()  # C2
        waits: dict[bytes, int] = {}  # record → chains that still hold chunks of its content
        by_chain: dict[ChainId, dict[ChunkRange, bytes]] = {}
        spares: list[bytes] = []
        for number, (key, value) in enumerate(due):
            if number % GARBAGE_SLICE == GARBAGE_SLICE - 1:
                await self._pace()
            try:
                record = schema.decode_garbage(value)
                if record.spare:
                    spares.append(key)
                    continue
                chains = self._chains_of(record)
            except Error as error:
                log.warning("garbage collection of content %d deferred: %s", schema.split_two(key)[1], error)
                continue
            waits[key] = len(chains)
            for chain in chains:
                if self._is_away(chain):  # the record stays for it; the others need not wait
                    continue
                chunks = ChunkRange(record.content, self._progress.get((chain, record.content), 0))
                by_chain.setdefault(chain, {})[chunks] = key
        for key in spares:
            await run(self._engine, partial(_give_up, key=key), clock=self._clock)
            self._garbage.put_off(key, self._clock.monotonic())
        await asyncio.gather(*(self._remove_on(chain, keys, waits) for chain, keys in by_chain.items()))
        forgotten = await self._forget_garbage([key for key, count in waits.items() if not count])
        return moved + len(spares) + forgotten

    async def _keep(self, due: Sequence[Pair]) -> tuple[list[Pair], int]:
        """Put aside what a state may be restored with; return the others, and how many were put aside (C2)."""
        if not self._history_ms:
            return list(due), 0
        others: list[Pair] = []
        kept: list[tuple[Pair, bytes]] = []
        for pair in due:
            try:
                record = schema.decode_garbage(pair[1])
            except Error:  # reported by who removes
                record = RemovedContent(spare=True)
            if record.spare or record.removed_unix_ms < self._kept_since_ms():
                others.append(pair)
            else:
                kept.append((pair, schema.kept_key(record.removed_unix_ms, record.content)))
        for first in range(0, len(kept), GARBAGE_SLICE):
            batch = kept[first : first + GARBAGE_SLICE]
            await run(self._engine, partial(_move, batch=batch), clock=self._clock)
            for (key, _), moved_to in batch:
                self._garbage.done(key)
                self._kept.add(moved_to)
            await self._pace()
        return others, len(kept)

    def _kept_since_ms(self) -> int:
        """Return the moment of the wall clock from which on removed contents are kept."""
        return max(0, self._unix_ms_at_0 + int(self._clock.monotonic() * 1000) - self._history_ms)

    def _queue_of(self, key: bytes) -> RemovalQueue:
        return self._kept if key.startswith(schema.KEPT) else self._garbage

    def _chains_of(self, record: RemovedContent) -> Sequence[ChainId]:
        """Return the chains whose chunks of the content are to be removed. Raises: Unavailable."""
        value = self._engine.begin().snapshot_get(schema.inode_key(record.inode))
        if value is not None and schema.decode_inode(value).content == record.content:  # C3
            log.error("content %d of inode %d is in use; its chunks stay", record.content, record.inode)
            return ()
        return self._chunks.holders(record.layout, record.length)

    async def _remove_on(
        self, chain: ChainId, keys: dict[ChunkRange, bytes], waits: dict[bytes, int]
    ) -> None:
        """Remove chunks of one chain, and take the chain off the records that have no more there."""
        removals = list(keys)
        try:
            left = await self._chunks.remove(chain, removals)
        except Error as error:
            if error.retryable or len(removals) == 1:
                log.warning("garbage collection on chain %d deferred: %s", chain, error)
                if error.retryable:
                    self._away[chain] = self._clock.monotonic() + RETRY_S
                return
            for removal, key in keys.items():  # one of them fails: the others must not wait for it
                await self._remove_on(chain, {removal: key}, waits)
            return
        unfinished = {each.content: each.first for each in left}
        for removal, key in keys.items():
            first = unfinished.get(removal.content)
            if first is None:
                waits[key] -= 1
                assert waits[key] >= 0, "a chain is taken off a record once"
                self._progress.pop((chain, removal.content), None)
            else:
                self._progress[chain, removal.content] = first
                self._queue_of(key).put_off(key, self._clock.monotonic())

    def _is_away(self, chain: ChainId) -> bool:
        """Return whether the chain could not be asked a moment ago."""
        until_s = self._away.get(chain)
        if until_s is None:
            return False
        if until_s > self._clock.monotonic():
            return True
        del self._away[chain]
        return False

    async def _forget_garbage(self, keys: Sequence[bytes]) -> int:
        """Delete records of contents whose chunks are gone, durably."""
        for first in range(0, len(keys), GARBAGE_SLICE):
            batch = keys[first : first + GARBAGE_SLICE]
            await run(self._engine, partial(_delete, keys=batch), clock=self._clock)
            for key in batch:
                self._queue_of(key).done(key)
            await self._pace()
        return len(keys)

    # Turns.

    def _is_ready(self) -> bool:
        """Return whether this process has run for long enough to know what is open (C1), and how old records are."""
        return self._removal_clock.age_ms() >= self.config.gc_delay_ms

    def _before_ms(self) -> int:
        """Removals dated before this moment are due."""
        assert self._is_ready(), "what earlier processes dated has no age yet"
        return self._removal_clock.now_ms() - self.config.gc_delay_ms

    async def _pace(self) -> None:
        """End a slice: let requests go first, and rest as long as the collector has worked (C7)."""
        self._worked_s += self._clock.monotonic() - self._slice_began_s
        rest_s = self._worked_s if self._worked_s >= REST_S else 0.0
        self._worked_s -= rest_s
        await self._clock.sleep(rest_s)
        self._slice_began_s = self._clock.monotonic()

    # Sessions of clients that are gone.

    async def prune(self) -> int:
        """End what clients have open that the cluster manager has not known for long; how many sessions."""
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
        silent = self._requests.silent_outside(known, now_s=now_s, for_s=self.config.idempotence_ms / 1000)
        absent |= silent
        self._unknown_since = {client: self._unknown_since.get(client, now_s) for client in absent}
        gone = {c for c, since_s in self._unknown_since.items() if now_s - since_s >= self._session_timeout_s}
        for client in gone:
            self._holds.forget(client)
        self._requests.end(gone & silent)
        return await self._end_sessions(
            (inode, session) for inode, session, client in sessions if client in gone
        )

    async def end_abandoned(self) -> int:
        """End the sessions that their clients have left without a full report; how many."""
        return await self._end_sessions(self._writers.abandoned)

    async def _end_sessions(self, sessions: Iterable[tuple[int, int]]) -> int:
        """End up to `gc_batch` sessions, those aside whose chains are away; how many."""
        ended = 0
        self._slice_began_s = self._clock.monotonic()
        for number, (inode, session) in enumerate(sessions, 1):
            ended += await self._end_session(inode, session)
            if ended >= self._batch:
                break
            if number % GARBAGE_SLICE == 0:
                await self._pace()
        return ended

    async def _end_session(self, number: int, session: int) -> bool:
        value = self._engine.begin().snapshot_get(schema.inode_key(number))
        inode = None if value is None else schema.decode_inode(value)
        try:
            length = 0
            if inode is not None and inode.type == REGULAR and not inode.is_inline:
                if any(self._is_away(chain) for chain in self._chunks.chains(inode.layout)):
                    return False
                length = await self._chunks.end(inode.layout, inode.content, retry=False)
            settled = await run(
                self._engine, lambda txn: self._settle(txn, inode, session, length, number), clock=self._clock
            )
        except Error as error:
            log.warning("ending a write session of inode %d deferred: %s", number, error)
            if "chain" in error.fields:
                self._away[ChainId(int(error.fields["chain"]))] = self._clock.monotonic() + RETRY_S
            return False
        if settled:
            self._writers.remove(number, session)
        return settled

    def _settle(self, txn: Transaction, seen: Inode | None, session: int, length: int, number: int) -> bool:
        """End the session, if the file is still the one that was measured."""
        txn.may_use_reserve = True
        value = txn.get(schema.inode_key(number))
        inode = None if value is None else schema.decode_inode(value)
        if inode is not None and seen is not None:
            same = (inode.content, inode.truncate_version, inode.is_inline)
            if same != (seen.content, seen.truncate_version, seen.is_inline):
                return False
            if not inode.is_inline:  # the client may have written more than it has reported
                inode.change = self._removal_clock.next_change(inode.change)
                if length > inode.length:
                    inode.length = length
                    inode.mtime_ns = inode.ctime_ns = self._clock.unix_ns()
                txn.put(schema.inode_key(number), schema.encode_inode(inode))
        txn.delete(schema.session_key(number, session))
        return True

    # Answers to clients that are gone.

    async def forget_requests(self) -> int:
        """Delete some of the answers that such a client has left behind; how many."""
        left = self._requests.left_behind(limit=RECORDS)
        if left is None:
            return 0
        client, slots = left
        keys = [schema.reservation_key(client), *(schema.record_key(client, slot) for slot in slots)]
        try:
            await run(self._engine, partial(_delete, keys=keys), clock=self._clock)
        except BaseException:
            self._requests.still_there(client, slots)
            raise
        return len(slots)


def _move(txn: Transaction, *, batch: Sequence[tuple[Pair, bytes]]) -> None:
    """Store each record under its other key, unless it is not there any more."""
    txn.may_use_reserve = True
    for (key, value), moved_to in batch:
        if txn.get(key) is not None:
            txn.delete(key)
            txn.put(moved_to, value)


def _give_up(txn: Transaction, *, key: bytes) -> bool:
    """Withdraw this spare content from its claimant; when that is on disk, its chunks are removed (C2, C6)."""
    value = txn.get(key)
    if value is None:
        return False
    txn.may_use_reserve = True
    record = schema.decode_garbage(value)
    record.spare = False
    txn.put(key, record.SerializeToString())
    return True


def _delete(txn: Transaction, *, keys: Collection[bytes]) -> None:
    txn.may_use_reserve = True
    for key in keys:
        txn.delete(key)


__all__ = ["Collector", "Membership"]
