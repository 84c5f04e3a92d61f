"""Where the chunks of each content end, as the chains hold them: what a dump of names is compared with.

In a temporary database, 20 bytes a content, under SQLITE_TMPDIR or /var/tmp, as the names of `luciola fsck`.
"""

import sqlite3
from typing import Final, NamedTuple, Self

from ..errors import Unavailable
from ..wire.pb import mgmtd_pb2, storage_pb2
from .mgmtd_client import MgmtdClient, serving_node

BATCH: Final = 4096
SCHEMA: Final = """
PRAGMA cache_size = -65536; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE content (id INTEGER PRIMARY KEY, last INT, bytes INT, chunks INT, owned INT DEFAULT 0);
"""
ADD: Final = """
INSERT INTO content VALUES (?1, ?2, ?3, 1, 0) ON CONFLICT (id) DO UPDATE SET
    chunks = chunks + 1,
    bytes = CASE WHEN excluded.last > last THEN excluded.bytes ELSE bytes END,
    last = max(last, excluded.last);
"""


class Unowned(NamedTuple):
    """Contents that no file has asked for, and their chunks."""

    contents: int
    chunks: int


class ChunkEnds:
    """The last chunk of each content."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("")  # a temporary file
        self._base.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._base.close()

    async def collect(self, manager: MgmtdClient, routing: mgmtd_pb2.Routing) -> None:
        """Read the chunks of every chain from its head. Raises: Unavailable if one has none."""
        without = [chain.id for chain in routing.chains if serving_node(chain) is None]
        if without:
            raise Unavailable(
                f"no replica of chain {', '.join(map(str, without))} serves, and files may be longer there than the "
                "dump says; `luciola chain list` shows what it waits for"
            )
        for chain in routing.chains:
            batch = []
            async for record in manager.chunks(routing, chain.id, serving_node(chain) or 0):
                if not record.removed:
                    batch.append(record)
                if len(batch) == BATCH:
                    self.add(batch)
                    batch.clear()
            self.add(batch)

    def add(self, records: list[storage_pb2.ChunkRecord]) -> None:
        """Chunks that exist."""
        self._base.executemany(
            ADD, ((record.chunk.content, record.chunk.index, record.length) for record in records)
        )

    def end(self, content: int, chunk_bytes: int) -> int:
        """Return where the chunks of the content of a file end, in bytes; 0 if it has none."""
        row = self._base.execute("SELECT last, bytes FROM content WHERE id = ?", (content,)).fetchone()
        if row is None:
            return 0
        self._base.execute("UPDATE content SET owned = 1 WHERE id = ?", (content,))
        return int(row[0]) * chunk_bytes + int(row[1])

    def unowned(self) -> Unowned:
        """Return what `end` was not asked for."""
        row = self._base.execute("SELECT COUNT(*), TOTAL(chunks) FROM content WHERE NOT owned").fetchone()
        return Unowned(int(row[0]), int(row[1]))


__all__ = ["ChunkEnds", "Unowned"]
