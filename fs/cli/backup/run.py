"""Take a backup.

Passes over all chunks copy what the backup before did not have, while programs run. When a pass has found little,
updates of clients are held for a moment: the namespace's snapshot is taken, and what has changed since the last pass is
copied. Everything that was acknowledged before that moment is in the backup, and nothing that came after it; so what
caused something that is in it is in it as well.

    P1  Within a hold everything is listed and copied, or nothing counts. If that takes longer than the hold may last,
        updates are released, and another pass follows: it finds less.
    P2  A listing `since` a round of sync shows what was staged after that round had begun. What was pending in the
        listing before is asked for by name; after a change of the chain, or after `MARK_AGE_S`, when removals may have
        been forgotten, everything is listed.
"""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import Busy, CorruptData, Timeout
from ...wire.pb import mgmtd_pb2
from ...wire.pb.meta_pb2 import REGULAR, DumpBatch, Inode
from ...wire.pb.storage_pb2 import ChunkName, ChunkRecord
from .repository import (
    INDEX,
    SCHEMA,
    Manifest,
    PackWriter,
    Place,
    Repository,
    opened,
    sha256_of,
    sync_file,
)
from .source import Got, Mark, Source
from .tree import Tree

READERS: Final = 6  # chunks read at once
COPIED_AT_ONCE: Final = 64  # chunks between two looks at the clock
PASSES_MAX: Final = 8  # before the first hold
ATTEMPTS: Final = 4  # holds
HOLD_SHARE: Final = 0.5  # of a hold that the last pass may have taken: the next one takes less, as a rule
HOLD_MARGIN_S: Final = 0.2  # before a hold ends by itself nothing is begun any more
MARK_AGE_S: Final = 600.0  # half of what a removal is remembered for
SETTLE_TRIES: Final = 10
SETTLE_S: Final = 0.05
MOMENT, NONE = "moment", "none"

Key = tuple[int, int]
State = tuple[int, int, int, int]  # chain version, version, length, CRC32C


class TooLong(Exception):
    """A hold is about to end by itself, or has shown that it was none."""


@dataclass(frozen=True)
class Options:
    """`hold_ms`: how long programs may wait. `consistent`: one moment; else every chunk is of its own."""

    hold_ms: int
    consistent: bool = True
    full: bool = False


@dataclass
class Progress:
    """What a run has done."""

    chunks: int = 0
    bytes: int = 0
    held_ms: int = 0
    passes: int = 0
    holds: int = 0


class Backup:
    """One run."""

    def __init__(self, source: Source, repository: Repository, options: Options) -> None:
        self._source = source
        self._repository = repository
        self._options = options
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="backup")
        self._marks: dict[int, Mark] = {}
        self._pending: dict[
            tuple[int, int, int], None
        ] = {}  # chain, content, number: seen with an update in flight
        self._damaged: dict[tuple[int, int, int], None] = {}
        self.progress = Progress()

    async def take(self) -> Manifest:
        """Take one. Raises: Busy if programs change more than can be copied in a hold; OSError of the directory."""
        with self._repository.locked():
            number, first_pack = self._repository.begin()
            path = self._repository.database(number)
            base_path = None if self._options.full else self._usable()
            if base_path is not None:
                await asyncio.to_thread(shutil.copyfile, base_path, path)
            packs = PackWriter(self._repository, first_pack)
            try:
                with opened(path, create=True) as base:
                    return await self._take(number, path, base, packs, is_new=base_path is None)
            finally:
                self._threads.shutdown(wait=True, cancel_futures=True)
                packs.close()

    def _usable(self) -> Path | None:
        """Return the database of the newest backup, whose packs are there."""
        for number in reversed(self._repository.numbers()):
            try:
                manifest = self._repository.manifest(number)
                self._repository.check_database(manifest)
            except CorruptData:
                continue
            if all(self._repository.pack(pack).exists() for pack in manifest.packs):
                return self._repository.database(number)
        return None

    async def _take(
        self, number: int, path: Path, base: sqlite3.Connection, packs: PackWriter, *, is_new: bool
    ) -> Manifest:
        self._base, self._packs = base, packs
        if is_new:
            base.executescript(SCHEMA)
        else:
            base.executescript("DROP INDEX IF EXISTS chunk_content; DELETE FROM record;")
        await self._prepare()
        names = await self._moment()
        base.executescript(INDEX)
        moment_ns, files = await self._names(names)
        damaged = self._missing()
        base.commit()
        total = base.execute("SELECT COUNT(*), COALESCE(SUM(length), 0) FROM chunk").fetchone()
        needed = base.execute("SELECT pack, SUM(length) FROM chunk WHERE length GROUP BY pack").fetchall()
        base.close()
        await asyncio.to_thread(packs.sync)
        await asyncio.to_thread(sync_file, path)
        manifest = Manifest(
            number=number,
            cluster=self._repository.cluster,
            moment_ns=moment_ns,
            consistency=MOMENT if self._options.consistent else NONE,
            database_bytes=path.stat().st_size,
            database_sha256=await asyncio.to_thread(sha256_of, path),
            packs=dict(needed),
            files=files,
            chunks=total[0],
            bytes=total[1],
            copied_chunks=self.progress.chunks,
            copied_bytes=self.progress.bytes,
            held_ms=self.progress.held_ms,
            damaged=damaged,
        )
        self._repository.finish(manifest)
        return manifest

    # Passes.

    async def _prepare(self) -> None:
        """Pass until one is short enough for a hold."""
        allowed_s = self._options.hold_ms / 1000 * HOLD_SHARE
        for _ in range(PASSES_MAX):
            await self._source.refresh()
            copied, began_s = self.progress.bytes, time.monotonic()
            await self._pass()
            if self.progress.bytes == copied or time.monotonic() - began_s < allowed_s:
                return

    async def _pass(self, deadline_s: float | None = None) -> None:
        """Copy what has changed. Raises: TooLong after `deadline_s`, or if something changes within a hold."""
        self.progress.passes += 1
        for chain in self._source.routing.chains:
            await self._pass_chain(chain, deadline_s)

    async def _pass_chain(self, chain: mgmtd_pb2.Chain, deadline_s: float | None) -> None:
        node, mark, began_s = self._source.head_of(chain), self._marks.get(chain.id), time.monotonic()
        since = 0
        if mark is not None and (mark.node, mark.chain_version) == (node, chain.version):
            since = mark.round if began_s - mark.at_s <= MARK_AGE_S else 0
        asked = [key for key in self._pending if key[0] == chain.id]
        first, after = None, (-1, -1)
        async for reply in self._source.pages(chain.id, node, since):
            first = reply.round if first is None else first
            last = (reply.chunks[-1].chunk.content, reply.chunks[-1].chunk.index) if reply.more else None
            known = self._named(chain.id, reply.chunks) if since else self._between(chain.id, after, last)
            if not since:
                listed = {(each.chunk.content, each.chunk.index) for each in reply.chunks}
                self._forget(chain.id, known.keys() - listed)
            await self._compare(chain, reply.chunks, known, deadline_s)
            after = last or after
        for key in asked:
            await self._settle(chain, node, key, deadline_s)
        assert first is not None, "there is always a first page"
        self._marks[chain.id] = Mark(node, chain.version, first, began_s)

    async def _settle(
        self, chain: mgmtd_pb2.Chain, node: int, key: tuple[int, int, int], deadline_s: float | None
    ) -> None:
        """Ask for a chunk of which an update was pending before (P2). Raises: TooLong if it stays so within a hold."""
        name = ChunkName(content=key[1], index=key[2])
        for _ in range(SETTLE_TRIES):
            record = await self._source.record(chain.id, node, name)
            if record is None or not record.pending:
                break
            await asyncio.sleep(SETTLE_S)
        self._pending.pop(key, None)
        if record is None:
            self._forget(chain.id, [(key[1], key[2])])
            return
        await self._compare(chain, [record], self._named(chain.id, [record]), deadline_s)
        if record.pending and deadline_s is not None:
            raise TooLong

    async def _compare(
        self,
        chain: mgmtd_pb2.Chain,
        records: Iterable[ChunkRecord],
        known: dict[Key, State],
        deadline_s: float | None,
    ) -> None:
        """Copy those that `known` does not have in the same state."""
        changed: list[ChunkRecord] = []
        gone: list[Key] = []
        for listed in records:
            key = listed.chunk.content, listed.chunk.index
            record = listed
            if listed.pending and not listed.version and not listed.pending_version:
                found = await self._of_another(chain, listed)
                if found is None:
                    self._lose(chain.id, key)
                    continue
                record = found
            elif listed.pending:
                self._pending[chain.id, *key] = None
            if record.removed or not record.version:
                gone.append(key)
            elif known.get(key) != (record.chain_version, record.version, record.length, record.crc32c):
                changed.append(record)
            else:
                self._damaged.pop((chain.id, *key), None)
        self._forget(chain.id, gone)
        for first in range(0, len(changed), COPIED_AT_ONCE):
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TooLong
            await self._copy(
                chain.id, changed[first : first + COPIED_AT_ONCE], is_held=deadline_s is not None
            )
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise TooLong

    async def _of_another(self, chain: mgmtd_pb2.Chain, unreadable: ChunkRecord) -> ChunkRecord | None:
        """Return what another replica says of a chunk whose record the head of its chain cannot read."""
        for target in chain.targets[1:]:
            if target.state == mgmtd_pb2.SERVING:
                record = await self._source.record(chain.id, target.node, unreadable.chunk)
                if record is not None and record.version:
                    return record
        return None

    async def _copy(self, chain: int, records: Sequence[ChunkRecord], *, is_held: bool) -> None:
        loop = asyncio.get_running_loop()
        copies = [loop.run_in_executor(self._threads, self._copy_one, chain, record) for record in records]
        rows = []
        for record, (got, place) in zip(records, await asyncio.gather(*copies), strict=True):
            key = chain, record.chunk.content, record.chunk.index
            if got is Got.WHOLE:
                state = record.chain_version, record.version, record.length, record.crc32c
                rows.append((*key, *state, place.pack, place.offset))
                self._damaged.pop(key, None)
                self.progress.chunks += 1
                self.progress.bytes += record.length
            elif got is Got.DAMAGED:
                self._lose(chain, key[1:])
            elif is_held:
                raise TooLong
        self._base.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _copy_one(self, chain: int, record: ChunkRecord) -> tuple[Got, Place]:
        nowhere = Place(0, 0, 0, 0)
        if not record.length:
            return Got.WHOLE, nowhere
        got, data = self._source.read(chain, record)
        if got is not Got.WHOLE:
            return got, nowhere
        pack, offset = self._packs.add(data)
        return got, Place(pack, offset, record.length, record.crc32c)

    # What the database knows.

    def _between(self, chain: int, after: Key, last: Key | None) -> dict[Key, State]:
        query = "SELECT content, number, chain_version, version, length, crc32c FROM chunk WHERE chain = ?"
        bounds: tuple[int, ...] = (chain, *after)
        query += " AND (content, number) > (?, ?)"
        if last is not None:
            query += " AND (content, number) <= (?, ?)"
            bounds = (*bounds, *last)
        return {(row[0], row[1]): row[2:] for row in self._base.execute(query, bounds)}

    def _named(self, chain: int, records: Iterable[ChunkRecord]) -> dict[Key, State]:
        query = "SELECT chain_version, version, length, crc32c FROM chunk"
        query += " WHERE chain = ? AND content = ? AND number = ?"
        found = {}
        for record in records:
            key = record.chunk.content, record.chunk.index
            row = self._base.execute(query, (chain, *key)).fetchone()
            if row is not None:
                found[key] = row
        return found

    def _forget(self, chain: int, keys: Iterable[Key]) -> None:
        """These chunks are not there any more."""
        for key in keys:
            row = (chain, *key)
            self._base.execute("DELETE FROM chunk WHERE chain = ? AND content = ? AND number = ?", row)
            self._damaged.pop(row, None)

    def _lose(self, chain: int, key: Key) -> None:
        """This chunk is there, and no replica can read it."""
        self._forget(chain, [key])
        self._damaged[chain, *key] = None

    # The moment.

    async def _moment(self) -> AsyncGenerator[DumpBatch]:
        """The names of the moment of which the chunks in the database are. Raises: Busy."""
        if not self._options.consistent:
            await self._source.refresh()
            names = await _begun(self._source.dump())
            await self._pass()
            return names
        for _ in range(ATTEMPTS):
            held = await self._try_hold()
            if held is not None:
                return held
            await self._prepare()
        raise Busy(
            f"programs change more than can be copied while they wait {self._options.hold_ms} ms: allow them to wait "
            "longer (--hold-ms), take the backup when less is written, or give up that it is of one moment "
            "(--without-hold)"
        )

    async def _try_hold(self) -> AsyncGenerator[DumpBatch] | None:
        """Copy names and chunks of one moment; return None if the hold did not last (P1)."""
        began_s, names, is_whole = time.monotonic(), None, False
        self.progress.holds += 1
        try:
            until_s = await self._source.hold(self._options.hold_ms)
        except (Busy, Timeout):
            return None
        try:
            names = await _begun(self._source.dump())
            await self._pass(until_s - HOLD_MARGIN_S)
            for key in list(self._pending):
                await self._settle_held(key, until_s - HOLD_MARGIN_S)
            is_whole = True
        except TooLong:
            pass
        finally:
            lasted = await self._source.release()
            self.progress.held_ms = round((time.monotonic() - began_s) * 1000)
        if is_whole and lasted:
            return names
        if names is not None:
            await names.aclose()
        return None

    async def _settle_held(self, key: tuple[int, int, int], deadline_s: float) -> None:
        chain = next(each for each in self._source.routing.chains if each.id == key[0])
        await self._settle(chain, self._source.head_of(chain), key, deadline_s)

    async def _names(self, batches: AsyncGenerator[DumpBatch]) -> tuple[int, int]:
        """Store the names; the moment they are of, and how many files there are. Raises: CorruptData."""
        moment_ns, files, is_ended = 0, 0, False
        async for batch in batches:
            for record in batch.records:
                if record.inode.open_for_writing:
                    self._measure(record.inode)
                moment_ns = moment_ns or record.header.moment_ns
                files += record.inode.type == REGULAR
                is_ended = record.HasField("trailer")
            rows = ((record.SerializeToString(),) for record in batch.records)
            self._base.executemany("INSERT INTO record (bytes) VALUES (?)", rows)
        if not is_ended:
            raise CorruptData("the metadata service ended its dump early: take the backup again")
        return moment_ns, files

    def _measure(self, inode: Inode) -> None:
        """A file that is being written is as long as its chunks, if that was not reported yet."""
        query = "SELECT number, length FROM chunk WHERE content = ? ORDER BY number DESC LIMIT 1"
        last = self._base.execute(query, (inode.content,)).fetchone()
        if inode.type == REGULAR and not inode.is_inline and last is not None:
            inode.length = max(inode.length, last[0] * inode.layout.chunk_bytes + last[1])

    def _missing(self) -> list[str]:
        """Chunks of files that could not be read, in words. What belongs to no file is no loss."""
        if not self._damaged:
            return []
        tree = Tree(self._base)
        missing = []
        for _, content, number in sorted(self._damaged):
            path = tree.path_of_content(content, number)
            if path is not None:
                missing.append(f"{path}: chunk {number} (content {content}) is damaged on every replica")
        return missing


async def _begun(batches: AsyncGenerator[DumpBatch]) -> AsyncGenerator[DumpBatch]:
    """The same, after its first batch has come: the snapshot is taken then."""
    first = await anext(batches)

    async def all_of_them() -> AsyncGenerator[DumpBatch]:
        yield first
        async for batch in batches:
            yield batch

    return all_of_them()


__all__ = ["Backup", "Options", "Progress"]
