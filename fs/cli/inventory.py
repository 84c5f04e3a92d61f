"""The names of a cluster in a temporary database, for `luciola fsck`: memory stays bounded however many there are.

About 150 bytes of disk an inode, under SQLITE_TMPDIR or /var/tmp; removed with the connection. What was found of
contents without a file outlives `clear`, so that rounds can be compared.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self

from ..ids import ROOT_INODE
from ..wire.pb import meta_pb2

CACHE_KIB: Final = 64 << 10  # of pages; the rest is in the temporary file
DEPTH_MAX: Final = 16_384  # directories above a name, as meta allows
UNSIGNED_MAX: Final = (1 << 63) - 1  # of an integer in SQLite

SCHEMA: Final = """
CREATE TABLE inode (
    id INTEGER PRIMARY KEY, type INT, links INT, parent INT, content INT, length INT, layout BLOB, writing INT);
CREATE TABLE entry (parent INT, name BLOB, inode INT, type INT, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE removed (content INTEGER PRIMARY KEY, inode INT, layout BLOB);
CREATE TABLE quarantined (content INTEGER PRIMARY KEY);
"""
INDEXES: Final = """
CREATE INDEX entry_inode ON entry (inode);
CREATE INDEX inode_content ON inode (content) WHERE content != 0;
CREATE INDEX removed_inode ON removed (inode);
"""
ORPHANS: Final = """
CREATE TABLE orphan (content INT, chain INT, chunks INT, round INT, PRIMARY KEY (content, chain)) WITHOUT ROWID;
"""
CLEAR: Final = "DROP TABLE inode; DROP TABLE entry; DROP TABLE removed; DROP TABLE quarantined;"


class Owner(NamedTuple):
    """What a content belongs to. `inode` 0: it waits for removal. `length` None: not known, or not to be checked."""

    inode: int
    layout: meta_pb2.Layout | None
    length: int | None
    writing: bool


class Inventory:
    """Inodes, entries and removed contents of one moment; contents of no file of several."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("")  # a temporary file
        self._base.executescript(
            f"PRAGMA cache_size = -{CACHE_KIB}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        )
        self._base.executescript(SCHEMA + ORPHANS)
        self.removed_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._base.close()

    # Filling.

    def clear(self) -> None:
        """Forget all names."""
        self._base.executescript(CLEAR + SCHEMA)
        self.removed_count = 0

    def add_inodes(self, inodes: Iterable[meta_pb2.Inode]) -> None:
        self._base.executemany(
            "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    inode.id,
                    inode.type,
                    inode.link_count,
                    inode.parent,
                    inode.content if inode.type == meta_pb2.REGULAR else 0,
                    inode.length,
                    inode.layout.SerializeToString() if inode.content else None,
                    inode.open_for_writing,
                )
                for inode in inodes
            ),
        )

    def add_entries(self, entries: Iterable[meta_pb2.ScannedDentry]) -> None:
        self._base.executemany(
            "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)",
            ((each.parent, each.entry.name, each.entry.inode, each.entry.type) for each in entries),
        )

    def add_removed(self, records: Iterable[meta_pb2.RemovedContent]) -> None:
        for record in records:
            self.removed_count += not record.spare
            self._base.execute(
                "INSERT OR REPLACE INTO removed VALUES (?, ?, ?)",
                (record.content, record.inode, record.layout.SerializeToString()),
            )

    def add_quarantined(self, records: Iterable[meta_pb2.QuarantinedContent]) -> None:
        self._base.executemany(
            "INSERT OR REPLACE INTO quarantined VALUES (?)", ((record.content,) for record in records)
        )

    def finish(self) -> None:
        """Make the indexes: call it when all names of a round are there."""
        self._base.executescript(INDEXES)

    # Asking.

    def counts(self) -> tuple[int, int]:
        """Numbers of inodes and of entries."""
        (inodes,) = self._base.execute("SELECT COUNT(*) FROM inode").fetchone()
        (entries,) = self._base.execute("SELECT COUNT(*) FROM entry").fetchone()
        return inodes, entries

    def has_root(self) -> bool:
        return self._base.execute("SELECT 1 FROM inode WHERE id = ?", (ROOT_INODE,)).fetchone() is not None

    def entries_without_directory(self) -> Iterator[tuple[int, bytes]]:
        """(parent, name) of entries whose directory has no inode."""
        yield from self._base.execute(
            "SELECT e.parent, e.name FROM entry e LEFT JOIN inode p ON p.id = e.parent WHERE p.id IS NULL"
        )

    def entries_with_wrong_inode(self) -> Iterator[tuple[int, bytes, int, int, int | None, int | None]]:
        """(parent, name, inode, type, the inode's type or None, its parent) where they do not fit together."""
        yield from self._base.execute(
            "SELECT e.parent, e.name, e.inode, e.type, i.type, i.parent "
            "FROM entry e LEFT JOIN inode i ON i.id = e.inode "
            "WHERE i.id IS NULL OR i.type != e.type OR (i.type = ? AND i.parent != e.parent)",
            (meta_pb2.DIRECTORY,),
        )

    def link_counts(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(inode, type, its link count, entries that lead to it, subdirectories), where they may not agree.

        Inodes without a name that are open, or wait for removal, are left out.
        """
        yield from self._base.execute(
            "SELECT * FROM (SELECT i.id, i.type, i.links, "
            "  (SELECT COUNT(*) FROM entry e WHERE e.inode = i.id) AS named, "
            "  CASE i.type WHEN ?1 THEN "
            "    (SELECT COUNT(*) FROM entry e WHERE e.parent = i.id AND e.type = ?1) ELSE 0 END AS below "
            "  FROM inode i WHERE i.links != 0 AND i.id NOT IN (SELECT inode FROM removed)) "
            "WHERE links != CASE type WHEN ?1 THEN 2 + below ELSE named END "
            "  OR (type = ?1 AND named > 1) OR (named = 0 AND id != ?2)",
            (meta_pb2.DIRECTORY, ROOT_INODE),
        )

    def owner(self, content: int) -> Owner | None:
        """Return what the chunks of `content` belong to; None if to nothing."""
        if content > UNSIGNED_MAX:
            return None
        row = self._base.execute(
            "SELECT id, layout, length, links, writing FROM inode WHERE content = ? AND content != 0",
            (content,),
        ).fetchone()
        if row is not None:
            inode, layout, length, links, writing = row
            # One without a name is open still; the length of what its writer has not reported does not matter.
            return Owner(inode, _layout(layout), length if links else None, bool(writing))
        row = self._base.execute("SELECT layout FROM removed WHERE content = ?", (content,)).fetchone()
        if row is not None:
            return Owner(0, _layout(row[0]), None, writing=False)
        row = self._base.execute("SELECT 1 FROM quarantined WHERE content = ?", (content,)).fetchone()
        return None if row is None else Owner(0, None, None, writing=False)

    def path_of(self, inode: int) -> str:
        """Return a path of an inode, or its number if no entry leads to it."""
        names: list[bytes] = []
        at = inode
        while at != ROOT_INODE and len(names) < DEPTH_MAX:
            row = self._base.execute("SELECT parent, name FROM entry WHERE inode = ?", (at,)).fetchone()
            if row is None:
                return f"inode {inode}"
            at, name = row
            names.append(name)
        return "/" + "/".join(os.fsdecode(name) for name in reversed(names))

    # Contents of no file.

    def note_orphan(self, content: int, chain: int, chunks: int, *, round_number: int) -> None:
        """Chunks of no file: of the first round, or again of a later one."""
        if round_number == 0:
            self._base.execute(
                "INSERT OR REPLACE INTO orphan VALUES (?, ?, ?, 0)",
                (min(content, UNSIGNED_MAX), chain, chunks),
            )
        else:
            self._base.execute(
                "UPDATE orphan SET chunks = ?, round = ? WHERE content = ? AND chain = ?",
                (chunks, round_number, min(content, UNSIGNED_MAX), chain),
            )

    def drop_orphans(self, *, round_number: int) -> None:
        """Forget those that were not seen again in this round."""
        self._base.execute("DELETE FROM orphan WHERE round < ?", (round_number,))

    def orphans(self) -> Iterator[meta_pb2.QuarantinedContent]:
        """Contents of no file with their chains, by number."""
        rows = self._base.execute("SELECT content, chain, chunks FROM orphan ORDER BY content, chain")
        found: meta_pb2.QuarantinedContent | None = None
        for content, chain, chunks in rows:
            if found is None or found.content != content:
                if found is not None:
                    yield found
                found = meta_pb2.QuarantinedContent(content=content)
            found.chains.append(chain)
            found.chunks += chunks
        if found is not None:
            yield found

    def orphan_counts(self) -> tuple[int, int]:
        """Numbers of contents and of chunks that belong to no file."""
        row = self._base.execute("SELECT COUNT(DISTINCT content), TOTAL(chunks) FROM orphan").fetchone()
        return int(row[0]), int(row[1])


def _layout(stored: bytes | None) -> meta_pb2.Layout | None:
    return None if stored is None else meta_pb2.Layout.FromString(stored)


__all__ = ["Inventory", "Owner"]
