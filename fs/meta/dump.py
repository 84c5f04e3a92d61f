"""All of the namespace as of one moment, in batches: what `luciola dump` and backups are made of.

D1  Everything is of one moment: it is read from one snapshot of the store.
D2  Requests are served meanwhile: they have their turn after every slice of a quarter of a millisecond, and a dump
    rests as long as it has worked. A batch is made when the caller has taken the one before: memory does not depend on
    how many there are.
D3  The length of a file that was open for writing is at least what had been acknowledged at that moment, and at most
    what was when its chains were asked, later. Where they cannot be asked, or the file was cut or removed before they
    answered, the stored length stands: what its writers had reported by then. A truncation in progress is shown as
    carried out. With `stored_lengths` no chain is asked: a caller that has the chunks of the same moment knows better
    what they hold.

Inodes come by id, each followed by its attributes and entries. Those without a name are there too: files that are open,
and removed trees, whose lower parts still have names. Not there: sessions, answers to requests, what waits for removal
or in quarantine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Final

from ..clock import Clock
from ..errors import Busy, CorruptData, Error
from ..kv import Engine, Pair
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, DumpBatch, DumpHeader, DumpRecord, Inode
from . import schema
from .allocator import CONTENTS, INODES
from .context import complete_directory
from .lengths import Lengths

log: Final = logging.getLogger("luciola.meta")

FORMAT: Final = 1
SLICE_RECORDS: Final = 64  # of a batch, before requests have their turn: a quarter of a millisecond
BATCH_RECORDS: Final = 256  # a gRPC message costs about as much
BATCH_BYTES: Final = 1 << 20  # 16 of the largest small files, and a slice more: a gRPC message holds 16 MiB
DUMPS_MAX: Final = 4  # at one time: each keeps files of the store from being deleted
MEASURED_MAX: Final = 16  # files whose chains are asked at one time


class Dumps:
    """Dumps of one service."""

    def __init__(self, engine: Engine, clock: Clock, lengths: Lengths) -> None:
        self._engine = engine
        self._clock = clock
        self._lengths = lengths
        self._running = 0

    async def run(self, inode_count: int, *, stored_lengths: bool = False) -> AsyncIterator[DumpBatch]:
        """The namespace as of now; `inode_count` for the header. Raises: Busy if too many are dumped now."""
        if self._running == DUMPS_MAX:
            raise Busy(f"{DUMPS_MAX} dumps are being taken: wait for one of them to end")
        self._running += 1
        try:
            snapshot = Snapshot(self._engine, moment_ns=self._clock.unix_ns(), inode_count=inode_count)
            records = snapshot.records()
            while batch := await self._batch(records):
                yield batch if stored_lengths else await self._finished(batch)
        finally:
            self._running -= 1

    async def _batch(self, records: Iterator[DumpRecord]) -> DumpBatch | None:
        """Return the next records; None if there are no more."""
        batch, size_bytes = DumpBatch(), 0
        while size_bytes < BATCH_BYTES and len(batch.records) < BATCH_RECORDS:
            began_s = self._clock.monotonic()
            taken = list(islice(records, SLICE_RECORDS))
            if not taken:
                break
            batch.records.extend(taken)
            size_bytes += sum(record.ByteSize() for record in taken)
            await self._clock.sleep(self._clock.monotonic() - began_s)
        return batch if batch.records else None

    async def _finished(self, batch: DumpBatch) -> DumpBatch:
        """Return the batch, with the lengths that the chains report for files that were being written (D3)."""
        written = [
            record.inode
            for record in batch.records
            if record.inode.open_for_writing and record.inode.type == REGULAR and not record.inode.is_inline
        ]
        for first in range(0, len(written), MEASURED_MAX):
            await asyncio.gather(*(self._measure(inode) for inode in written[first : first + MEASURED_MAX]))
        return batch

    async def _measure(self, inode: Inode) -> None:
        try:
            measured = await self._lengths.measure(inode, retry=False)
        except Error as error:
            log.warning("dump: measuring inode %d, which is being written, failed: %s", inode.id, error)
            return
        if not self._was_cut(inode):
            inode.length = max(inode.length, measured.length)

    def _was_cut(self, inode: Inode) -> bool:
        """Return whether the file may have lost chunks since the snapshot, or is losing them now."""
        now = self._engine.begin()
        value = now.snapshot_get(schema.inode_key(inode.id))
        if value is None or now.snapshot_get(schema.intent_key(inode.id)) is not None:
            return True
        found = schema.decode_inode(value)
        return (found.content, found.truncate_version) != (inode.content, inode.truncate_version)


class Snapshot:
    """The namespace at the moment when this was made."""

    def __init__(self, engine: Engine, *, moment_ns: int, inode_count: int) -> None:
        kinds = (b"M", b"A", b"I", b"T", b"N", b"S", b"P", b"X", b"D")
        position = engine.version
        pairs = dict(zip(kinds, engine.snapshot([schema.kind_range(kind) for kind in kinds]), strict=True))
        superblock = schema.decode_superblock(dict(pairs[b"M"])[schema.SUPERBLOCK])
        reserved = dict(pairs[b"A"])
        self._header = DumpHeader(
            format=FORMAT,
            cluster=superblock.cluster_id,
            store=superblock.store,
            generation=superblock.generation,
            position=position,
            moment_ns=moment_ns,
            next_inode=schema.decode_next(reserved[schema.allocator_key(INODES)]),
            next_content=schema.decode_next(reserved[schema.allocator_key(CONTENTS)]),
            inode_count=inode_count,
        )
        self._inodes = pairs[b"I"]
        self._times, self._counts = _Rows(pairs[b"T"]), _Rows(pairs[b"N"])
        self._sessions, self._cuts = _Rows(pairs[b"S"]), _Rows(pairs[b"P"])
        self._attributes, self._entries = _Rows(pairs[b"X"]), _Rows(pairs[b"D"])

    def records(self) -> Iterator[DumpRecord]:
        """Header, inodes with what belongs to each, trailer. Call it once. Raises: CorruptData."""
        yield DumpRecord(header=self._header)
        end = DumpRecord()
        trailer = end.trailer
        trailer.SetInParent()
        for key, value in self._inodes:
            inode = self._complete(schema.decode_inode(value))
            if schema.inode_key(inode.id) != key:
                raise CorruptData(f"inode {inode.id} is stored under another number", inode=inode.id)
            yield DumpRecord(inode=inode)
            trailer.inodes += 1
            for pair in self._attributes.of(inode.id):
                yield _attribute(*pair)
                trailer.attributes += 1
            for pair in self._entries.of(inode.id):
                yield _entry(*pair)
                trailer.entries += 1
        yield end

    def _complete(self, inode: Inode) -> Inode:
        """Return the inode as stored, with what is stored beside it."""
        number = inode.id
        if inode.type == DIRECTORY:
            complete_directory(inode, self._times.value_of(number), self._counts.value_of(number))
        elif inode.type == REGULAR:
            inode.open_for_writing = self._sessions.value_of(number) is not None
            value = self._cuts.value_of(number)
            intent = None if value is None else schema.decode_intent(value)
            if intent is not None and intent.content == inode.content:
                inode.length = intent.length
                inode.truncate_version += 1
                inode.open_for_writing = False  # it is as long as that, whatever chunks are left behind it
        return inode


class _Rows:
    """Records of one kind, sorted by the inode that they belong to."""

    def __init__(self, pairs: Iterator[Pair]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def of(self, inode: int) -> Iterator[Pair]:
        """Those of `inode`. Ask for inodes in their order, and read all of one; what belongs to none is passed over."""
        while self._next is not None:
            owner, _ = schema.split_one(self._next[0])
            if owner > inode:
                return
            pair, self._next = self._next, next(self._pairs, None)
            if owner == inode:
                yield pair

    def value_of(self, inode: int) -> bytes | None:
        """Return the last value of `inode`, if there is one."""
        value = None
        for _, value in self.of(inode):  # noqa: B007, the last one is wanted
            pass
        return value


def kind_of(record: DumpRecord) -> str:
    """Return which of its fields a record has; empty if there are none or several."""
    fields = record.ListFields()
    return str(fields[0][0].name) if len(fields) == 1 else ""


def _attribute(key: bytes, value: bytes) -> DumpRecord:
    record = DumpRecord()
    record.attribute.inode, record.attribute.name = schema.split_one(key)
    record.attribute.value = value
    return record


def _entry(key: bytes, value: bytes) -> DumpRecord:
    record = DumpRecord()
    scanned = record.entry
    scanned.parent, _ = schema.split_one(key)
    scanned.entry.CopyFrom(schema.decode_dentry(value))
    return record


__all__ = ["FORMAT", "Dumps", "kind_of"]
