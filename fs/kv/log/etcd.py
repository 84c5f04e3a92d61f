"""An ordered log in etcd. Below a prefix of its own, such as `luciola/<cluster>/meta/`:

    announced/<name>   what a process says of itself; before `last` in the order of keys, where `bounds` does not look
    claim              the lease's length and the owner; its create revision is the epoch
    ended              why the log has ended, if it has: no process opens or claims it
    identity           the cluster's id: another cluster's log is refused
    last               the position of the last record
    record/<index>     a record; the index in 8 bytes, big endian

An append is one transaction: the claim was created at the record's epoch, and `last` is the position that the record
follows; then put the record and `last`. What is read is read with etcd's consensus, never from one member's memory.
Reads and trims are no transactions: a full etcd (3.4) refuses all of these, whatever they do.

Nothing is kept of what was deleted or overwritten: who creates a claim compacts etcd, and so does who renews it again
and again, and who trims. Compaction is of the whole etcd, so it should not be shared with what needs old revisions.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Final, NewType

from ...errors import (
    AlreadyExists,
    Busy,
    CorruptData,
    Error,
    InvalidArgument,
    MaybeCommitted,
    NoSpace,
    NotFound,
    Unavailable,
)
from ...metrics import Histogram
from ...wire.etcd import Compacted, EtcdClient, changed_at, created_at, delete, has_value, put, read
from ...wire.pb import etcd_pb2 as pb
from ..engine import prefix_end
from .ordered_log import (
    ANNOUNCED_MAX,
    READ_RECORDS_MAX,
    START,
    Bounds,
    Claim,
    Deposed,
    Diverged,
    Ended,
    NotAtEnd,
    OrderedLog,
    Position,
    Record,
    check_announced,
    check_chain,
    check_owner,
    check_position,
)

log = logging.getLogger(__name__)

Revision = NewType("Revision", int)

QUIET_S: Final = 5.0  # a watch that has shown nothing for so long is checked against a read
RENEWALS_KEPT: Final = 256  # revisions of the claim, some hundred bytes each, between two compactions
TRIM_RECORDS: Final = 1000  # deleted in one request, which holds all others up
RESTART_S: Final = 0.1  # between two watches: a member without a leader ends each at once
_INDEX: Final = struct.Struct(">Q")
_LEASE: Final = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class LogChange:
    """The log below `prefix` ends at `last`. It begins again behind `begins`, or is not used any more (None)."""

    prefix: str
    last: Position
    begins: Position | None


class EtcdLog(OrderedLog):
    """One process's access to a log in etcd. `open` makes it; the client is its owner's."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client = client
        prefix_bytes = prefix.encode()
        self._identity = prefix_bytes + b"identity"
        self._announced = prefix_bytes + b"announced/"
        self._claim = prefix_bytes + b"claim"
        self._ended = prefix_bytes + b"ended"
        self._last = prefix_bytes + b"last"
        self._records = prefix_bytes + b"record/"
        self._records_end = prefix_end(self._records)
        self.appends = Histogram()
        self._renewals = 0  # since the last compaction
        self._compaction: asyncio.Task[None] | None = None

    @staticmethod
    async def open(client: EtcdClient, *, prefix: str, cluster: str, create: bool) -> "EtcdLog":
        """Return the log of `cluster` below `prefix`. With `create` it is made if it is not there.

        Raises: NotFound; InvalidArgument if it is another cluster's; Ended; MaybeCommitted, after which it is opened
        again.
        """
        assert prefix.endswith("/"), "keys of other logs do not begin with it"
        opened = EtcdLog(client, prefix)
        found = await opened._identify(cluster.encode(), create=create)
        if found is None:
            raise NotFound(f"etcd has no log at {prefix!r}")
        if found != cluster.encode():
            raise InvalidArgument(f"the log at {prefix!r} is of cluster {found.decode(errors='replace')}")
        ended, _ = await opened._get(opened._ended)
        if ended is not None:
            raise opened._has_ended(ended)
        return opened

    @staticmethod
    async def change(client: EtcdClient, changes: Sequence[LogChange], *, reason: str) -> None:
        """End logs, or have them begin again without their records, all or none. May be repeated.

        Who leads a log, or follows one that has ended, is refused from then on, with `reason`.
        Raises: Busy if a process leads one of them, or it does not end at `last`: nothing is changed; MaybeCommitted.
        """
        conditions, operations = [], []
        for change in changes:
            log = EtcdLog(client, change.prefix)
            conditions += [created_at(log._claim, 0), has_value(log._last, change.last.encode())]
            if change.begins is None:
                operations.append(put(log._ended, reason.encode()))
            else:
                operations.append(put(log._last, change.begins.encode()))
                operations.append(delete(log._records, log._records_end))
                operations.append(delete(log._announced, prefix_end(log._announced)))  # of before
        reply = await client.transact(conditions, operations)
        if reply.succeeded:
            return
        for change in changes:
            last = (await EtcdLog(client, change.prefix).bounds()).last
            if change.begins is None or last != change.begins:
                raise Busy(
                    f"a process leads the log at {change.prefix!r}, or has added to it meanwhile: stop every process "
                    "of this cluster first"
                )

    @staticmethod
    async def remove(client: EtcdClient, *, prefix: str) -> None:
        """Remove the log below `prefix`, if there is one: who leads or follows it is refused from then on."""
        assert prefix.endswith("/"), "keys of other logs do not begin with it"
        await client.delete(prefix.encode(), prefix_end(prefix.encode()))

    @staticmethod
    async def begin(client: EtcdClient, *, prefix: str, cluster: str, position: Position) -> None:
        """Make a log whose first record will follow `position`. May be repeated.

        A log in which nothing was ever kept is what an attempt left that was given up; it is begun again.
        Raises: AlreadyExists if a log is there that was used; InvalidArgument; MaybeCommitted.
        """
        log = EtcdLog(client, prefix)
        found = await log._identify(cluster.encode(), create=False)
        if found is None:
            reply = await client.transact(
                [created_at(log._identity, 0)],
                [put(log._identity, cluster.encode()), put(log._last, position.encode())],
            )
        elif found != cluster.encode():
            raise InvalidArgument(f"the log at {prefix!r} is of cluster {found.decode(errors='replace')}")
        else:
            bounds = await log.bounds()
            if bounds.first <= bounds.last.index or await log.announced() or await log.claim() is not None:
                raise AlreadyExists(f"etcd has a log at {prefix!r}, up to record {bounds.last.index}")
            reply = await client.transact(
                [has_value(log._last, bounds.last.encode()), created_at(log._claim, 0)],
                [put(log._last, position.encode()), delete(log._ended)],
            )
        if not reply.succeeded:
            raise Unavailable(f"another process changes the log at {prefix!r}")

    async def _identify(self, cluster: bytes, *, create: bool) -> bytes | None:
        """Return whose log it is, and make it if there is none and that is wanted."""
        pair, _ = await self._get(self._identity)
        if pair is not None:
            return bytes(pair.value)
        if not create:
            return None
        reply = await self._client.transact(
            [created_at(self._identity, 0)],
            [put(self._identity, cluster), put(self._last, START.encode())],
            [read(self._identity)],
        )
        return cluster if reply.succeeded else bytes(_only(reply.responses[0], self._identity).value)

    # Reading.

    async def bounds(self) -> Bounds:
        reply = await self._client.range(self._last, self._records_end, limit=2)  # and the first record
        if not reply.kvs or reply.kvs[0].key != self._last:
            raise _removed(self._last)
        last = Position.decode(reply.kvs[0].value)
        first = self._index(reply.kvs[1]) if len(reply.kvs) > 1 else last.index + 1
        if not 1 <= first <= last.index + 1:
            raise CorruptData(f"the log ends with record {last.index}, but has record {first}")
        return Bounds(first, last)

    async def read(self, after: Position, *, limit: int = READ_RECORDS_MAX) -> Sequence[Record]:
        records, _ = await self._read(after, limit)
        return records

    async def follow(self, after: Position) -> AsyncGenerator[Sequence[Record]]:
        while True:
            records, revision = await self._read(after, READ_RECORDS_MAX)
            if records:
                after = records[-1].position
                yield records
                continue
            async with aclosing(self._changes(self._records, self._records_end, revision)) as changes:
                async for events in changes:
                    stored = [Record.decode(event.kv.value) for event in events if event.type == pb.Event.PUT]
                    fresh = [record for record in stored if record.index > after.index]
                    if fresh:
                        check_chain(after, fresh)
                        after = fresh[-1].position
                        yield fresh
            await asyncio.sleep(RESTART_S)

    async def _read(self, after: Position, limit: int) -> tuple[list[Record], Revision]:
        """Return the records after a position, and a revision at which they were all, if there are none."""
        assert 0 < limit <= READ_RECORDS_MAX, "an answer is bounded"
        reply = await self._client.range(self._record(after.index), self._records_end, limit=limit + 1)
        revision = Revision(reply.header.revision)
        records = [Record.decode(pair.value) for pair in reply.kvs]
        if records and records[0].index == after.index:  # the log contains the position, or another one
            check_position(after, Bounds(after.index, records[0].position))
            records = records[1:]
        elif not records or records[0].index != after.index + 1:
            check_position(after, await self.bounds())
        check_chain(after, records)
        return records[:limit], revision

    async def _changes(
        self, begin: bytes, end: bytes, revision: Revision
    ) -> AsyncGenerator[Sequence[pb.Event]]:
        """Yield what happens after `revision`; end when that should be compared with a read."""
        async with aclosing(self._client.watch(begin, end, start=revision + 1)) as replies:
            try:
                while True:
                    async with asyncio.timeout(QUIET_S):
                        reply = await anext(replies)
                    if reply.events:
                        yield reply.events
            except Unavailable as error:
                log.info("following the log is interrupted: %s", error)
            except (Compacted, TimeoutError):  # the read comes, or says what is wrong
                return

    # Writing.

    async def append(self, record: Record) -> None:
        begun_s = perf_counter()
        try:
            await self._append(record)
        finally:
            self.appends.observe(perf_counter() - begun_s)

    async def _append(self, record: Record) -> None:
        try:
            reply = await self._client.transact(
                [created_at(self._claim, record.epoch), has_value(self._last, record.after.encode())],
                [put(self._record(record.index), record.encode()), put(self._last, record.position.encode())],
                [read(self._claim), read(self._last)],
            )
        except NoSpace as full:
            return await self._check_stored(record, full)
        if reply.succeeded:
            return None
        claim = _any(reply.responses[0])
        if claim is None or claim.create_revision != record.epoch:
            raise Deposed(f"the claim with epoch {record.epoch} has ended")
        last = Position.decode(_only(reply.responses[1], self._last).value)
        raise NotAtEnd(f"the log ends with record {last.index}: {record.index} does not follow it")

    async def _check_stored(self, record: Record, full: NoSpace) -> None:
        """Return if `record` is stored, else raise `full`.

        The request that fills etcd is executed *and* refused (its quotaApplierV3), so the refusal alone says nothing;
        but what it says has been decided when it is sent.
        """
        try:
            stored = await self.read(record.after, limit=1)
        except Diverged:
            raise
        except Error as error:
            raise MaybeCommitted(f"etcd is full, and record {record.index} may be stored: {error}") from full
        if not stored or stored[0].position != record.position:
            raise full

    async def trim(self, first: int) -> None:
        bounds = await self.bounds()
        if first > bounds.last.index + 1:
            raise InvalidArgument(f"the log ends with record {bounds.last.index}; {first} is beyond it")
        for begin in range(bounds.first, first, TRIM_RECORDS):
            end = min(begin + TRIM_RECORDS, first)
            reply = await self._client.delete(self._record(begin), self._record(end))
            await self._client.compact(reply.header.revision)

    async def announce(self, name: str, value: bytes) -> None:
        check_announced(name, value)
        await self._client.transact([], [put(self._announced + name.encode(), value)])

    async def withdraw(self, name: str) -> None:
        key = self._announced + name.encode()
        await self._client.delete(key, key + b"\0")

    async def announced(self) -> Mapping[str, bytes]:
        reply = await self._client.range(self._announced, prefix_end(self._announced), limit=ANNOUNCED_MAX)
        begin = len(self._announced)
        return {bytes(pair.key[begin:]).decode(): bytes(pair.value) for pair in reply.kvs}

    # Claims.

    async def claim(self) -> Claim | None:
        claim, _ = await self._read_claim()
        return claim

    async def claims(self) -> AsyncGenerator[Claim | None]:
        seen, revision = await self._read_claim()
        yield seen
        while True:
            async with aclosing(self._changes(self._claim, b"", revision)) as changes:
                async for events in changes:
                    for event in events:
                        seen = _decode_claim(event.kv) if event.type == pb.Event.PUT else None
                        yield seen
            await asyncio.sleep(RESTART_S)
            claim, revision = await self._read_claim()
            if claim != seen:
                seen = claim
                yield seen

    async def create_claim(self, owner: str, *, lease_s: float) -> Claim | None:
        check_owner(owner)
        value = _LEASE.pack(lease_s) + owner.encode()
        reply = await self._client.transact(
            [created_at(self._claim, 0), created_at(self._ended, 0)],
            [put(self._claim, value)],
            [read(self._ended)],
        )
        if not reply.succeeded:
            ended = _any(reply.responses[0])
            if ended is not None:
                raise self._has_ended(ended)
            return None
        revision = reply.header.revision
        self._compact_later(Revision(revision))
        return Claim(revision, revision, owner, lease_s)

    async def renew_claim(self, claim: Claim) -> Claim:
        value = _LEASE.pack(claim.lease_s) + claim.owner.encode()
        reply = await self._client.transact([created_at(self._claim, claim.epoch)], [put(self._claim, value)])
        if not reply.succeeded:
            raise Deposed(f"the claim with epoch {claim.epoch} has ended")
        self._renewals += 1
        if self._renewals >= RENEWALS_KEPT:
            self._compact_later(Revision(claim.revision))
        return Claim(claim.epoch, reply.header.revision, claim.owner, claim.lease_s)

    async def end_claim(self, claim: Claim) -> bool:
        reply = await self._client.transact(
            [changed_at(self._claim, claim.revision)], [delete(self._claim)], [read(self._claim)]
        )
        if reply.succeeded:
            return True
        present = _any(reply.responses[0])
        return present is None or present.create_revision != claim.epoch

    async def close(self) -> None:
        if self._compaction is not None:
            self._compaction.cancel()
            await asyncio.gather(self._compaction, return_exceptions=True)

    def _has_ended(self, ended: pb.KeyValue) -> Ended:
        prefix = self._identity.removesuffix(b"identity").decode()
        return Ended(f"the log at {prefix!r} has ended: {ended.value.decode(errors='replace')}")

    async def _read_claim(self) -> tuple[Claim | None, Revision]:
        pair, revision = await self._get(self._claim)
        return None if pair is None else _decode_claim(pair), revision

    async def _get(self, key: bytes) -> tuple[pb.KeyValue | None, Revision]:
        """Return one pair, if it is there, and as of when."""
        reply = await self._client.range(key, limit=1)
        return (reply.kvs[0] if reply.kvs else None), Revision(reply.header.revision)

    def _compact_later(self, revision: Revision) -> None:
        """Compact beside what the caller does, whose lease does not wait for it."""
        if self._compaction is None or self._compaction.done():
            self._renewals = 0
            self._compaction = asyncio.create_task(self._compact(revision), name="etcd-compaction")

    async def _compact(self, revision: Revision) -> None:
        try:
            await self._client.compact(revision)
        except Error as error:  # there will be another time
            log.warning("compacting etcd failed: %s", error)

    def _record(self, index: int) -> bytes:
        return self._records + _INDEX.pack(index)

    def _index(self, pair: pb.KeyValue) -> int:
        (index,) = _INDEX.unpack(pair.key[len(self._records) :])
        return int(index)


def _any(response: pb.ResponseOp) -> pb.KeyValue | None:
    """Return the pair that was read, if it is there."""
    pairs = response.response_range.kvs
    return pairs[0] if pairs else None


def _only(response: pb.ResponseOp, key: bytes) -> pb.KeyValue:
    """Return a pair that every log has. Raises: Diverged."""
    pair = _any(response)
    if pair is None:
        raise _removed(key)
    return pair


def _removed(key: bytes) -> Diverged:
    return Diverged(f"etcd has no key {key!r} any more: the log was removed")


def _decode_claim(pair: pb.KeyValue) -> Claim:
    if len(pair.value) <= _LEASE.size:
        raise CorruptData("the log's claim is too short")
    (lease_s,) = _LEASE.unpack_from(pair.value)
    if not lease_s > 0:
        raise CorruptData(f"the log's claim is for {lease_s} s")
    owner = pair.value[_LEASE.size :].decode(errors="replace")
    return Claim(pair.create_revision, pair.mod_revision, owner, lease_s)


__all__ = ["EtcdLog", "LogChange"]
