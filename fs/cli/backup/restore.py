"""Filling an empty cluster from a backup.

R1  The namespace is closed from the first record until everything has been written, made durable and compared
    (fs/meta/load.py): a restore that breaks off is seen, and the same command begins it again.
R2  Files get contents and layouts of this cluster, however many chains and nodes it has. What an attempt that broke off
    had written belongs to no file, and `luciola fsck --repair` removes it.
R3  Bytes are checked before they are written, and what every replica then lists is compared with them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ...client.chunks import crc32c
from ...errors import CorruptData, Unsupported
from ...meta.layout import chain_of
from ...wire import methods
from ...wire.methods import Method, Reply, Request
from ...wire.pb import meta_pb2 as pb
from ...wire.pb import mgmtd_pb2
from ...wire.pb.meta_pb2 import REGULAR, DumpRecord, Inode
from ..mgmtd_client import MgmtdClient, address_of
from .repository import PackReader, Place, Repository, opened
from .source import Source
from .tree import chunks_of, records

WRITERS: Final = 6  # chunks written at once
RECORDS: Final = 256  # a request
RECORD_BYTES: Final = 1 << 20
CALL_S: Final = 300.0  # a request with many files waits for ids and for a disk
Row = tuple[int, int, int, int, int]  # chain, content, number, length, CRC32C
EXPECTED: Final = """
CREATE TABLE expected (
    chain INT, content INT, number INT, length INT, crc32c INT, PRIMARY KEY (chain, content, number)) WITHOUT ROWID;
"""


@dataclass
class Report:
    """What was restored. `again`: an earlier attempt had broken off."""

    backup: int
    files: int = 0
    chunks: int = 0
    bytes: int = 0
    replicas: int = 0
    again: bool = False


class Restore:
    """One run."""

    def __init__(self, manager: MgmtdClient, source: Source, repository: Repository, number: int) -> None:
        self._manager = manager
        self._source = source
        self._repository = repository
        self._expected = sqlite3.connect("")  # a temporary file
        self._expected.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + EXPECTED)
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="restore")
        self.report = Report(number)

    async def run(self, *, advance: Callable[[int], None]) -> Report:
        """Restore into the cluster. Raises: NotEmpty, CorruptData, and any error of the cluster."""
        number = self.report.backup
        manifest = self._repository.manifest(number)
        await asyncio.to_thread(self._repository.check_database, manifest)
        await self._source.refresh()
        try:
            with opened(self._repository.database(number)) as base, PackReader(self._repository) as packs:
                trailer, load = await self._fill(base, packs, advance)
            await asyncio.to_thread(self._source.sync_chains)
            await self._compare()
            request = pb.FinishLoadRequest(load=load, trailer=trailer)
            await self._call_meta(methods.Meta.finish_load, request)
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._expected.close()
        return self.report

    async def _fill(
        self, base: sqlite3.Connection, packs: PackReader, advance: Callable[[int], None]
    ) -> tuple[pb.DumpTrailer, int]:
        """Return all names, and the chunks of each file when it has its place; the trailer, and the load's name."""
        header, trailer, load = pb.DumpHeader(), pb.DumpTrailer(), 0
        for batch in _batches(base):
            if batch[0].HasField("header"):
                header = batch.pop(0).header
                reply = await self._call_meta(
                    methods.Meta.begin_load, pb.BeginLoadRequest(header=header, new_contents=True)
                )
                load, self.report.again = reply.load, reply.again
            if batch and batch[-1].HasField("trailer"):
                trailer = batch.pop().trailer
            if batch:
                await self._load(load, batch, base, packs, advance)
        return trailer, load

    async def _load(
        self,
        load: int,
        batch: list[DumpRecord],
        base: sqlite3.Connection,
        packs: PackReader,
        advance: Callable[[int], None],
    ) -> None:
        contents: dict[int, int] = {}
        for record in batch:
            if record.inode.type == REGULAR:
                contents[record.inode.id] = record.inode.content
                record.inode.content = 0
        chunk_bytes = {record.inode.id: record.inode.layout.chunk_bytes for record in batch}
        reply = await self._call_meta(methods.Meta.load, pb.LoadRequest(load=load, records=batch))
        for inode in reply.placed:
            self.report.files += 1
            if inode.is_inline:
                continue
            if inode.layout.chunk_bytes != chunk_bytes[inode.id]:
                raise Unsupported(f"inode {inode.id} was given chunks of another size than it has")
            await self._write_file(inode, chunks_of(base, contents[inode.id]), packs, advance)

    async def _write_file(
        self,
        inode: Inode,
        chunks: Iterator[tuple[int, Place]],
        packs: PackReader,
        advance: Callable[[int], None],
    ) -> None:
        """The chunks of a file, a few at a time."""
        table = self._table(inode.layout)
        writes: set[asyncio.Future[Row]] = set()
        rows: list[Row] = []

        def write(chain: int, number: int, place: Place, length: int) -> Row:
            data = packs.read(place)[:length]  # bytes behind the end of the file are not part of it
            self._source.write(chain, inode.content, number, data)
            return chain, inode.content, number, length, crc32c(data)

        loop = asyncio.get_running_loop()
        for number, place in chunks:
            length = min(place.length, inode.length - number * inode.layout.chunk_bytes)
            if length <= 0:
                continue
            chain = chain_of(inode.layout, table, number)
            writes.add(loop.run_in_executor(self._threads, write, chain, number, place, length))
            if len(writes) == 2 * WRITERS:
                done, writes = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
                rows += [each.result() for each in done]
            self.report.chunks += 1
            self.report.bytes += length
            advance(length)
        rows += await asyncio.gather(*writes)
        self._expected.executemany("INSERT INTO expected VALUES (?, ?, ?, ?, ?)", rows)

    def _table(self, layout: pb.Layout) -> list[int]:
        for table in self._source.routing.tables:
            if (table.id, table.version) == (layout.table, layout.table_version):
                return list(table.chains)
        raise Unsupported(f"routing has no table {layout.table} of version {layout.table_version}")

    async def _compare(self) -> None:
        """Every replica has what was written (R3). Raises: CorruptData."""
        await self._source.refresh()
        for chain in self._source.routing.chains:
            count = self._expected.execute(
                "SELECT COUNT(*) FROM expected WHERE chain = ?", (chain.id,)
            ).fetchone()[0]
            for target in chain.targets:
                if target.state == mgmtd_pb2.SERVING:
                    found = await self._equal(chain.id, target.node)
                    self.report.replicas += found
                    if found != count:
                        raise CorruptData(
                            f"{count - found} of {count} chunks that were written to chain {chain.id} are not on node "
                            f"{target.node}, or differ: run the same command again"
                        )

    async def _equal(self, chain: int, node: int) -> int:
        """Return how many chunks of a chain a node has as they were written."""
        query = "SELECT COUNT(*) FROM expected WHERE chain = ? AND content = ? AND number = ?"
        query += " AND length = ? AND crc32c = ?"
        count = 0
        async for reply in self._source.pages(chain, node):
            for each in reply.chunks:
                if each.version and not each.removed and not each.pending:
                    key = chain, each.chunk.content, each.chunk.index, each.length, each.crc32c
                    count += self._expected.execute(query, key).fetchone()[0]
        return count

    async def _call_meta(self, method: Method[Request, Reply], request: Request) -> Reply:
        address = address_of(self._source.routing, mgmtd_pb2.NODE_META)
        return await self._manager.clients.call(address, method, request, timeout_s=CALL_S)


def _batches(base: sqlite3.Connection) -> Iterator[list[DumpRecord]]:
    batch: list[DumpRecord] = []
    size = 0
    for _, record in records(base):
        batch.append(record)
        size += record.ByteSize()
        if len(batch) == RECORDS or size >= RECORD_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


__all__ = ["Report", "Restore"]
