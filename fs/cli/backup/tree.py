"""The names in a backup: found by path, and as a file system that `luciola cp` can copy from.

An index over the records is made in a temporary database, about 150 bytes an inode under SQLITE_TMPDIR or /var/tmp. It
is used by several threads, which take turns.
"""

import contextlib
import errno
import io
import os
import sqlite3
import stat as modes
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from ...errors import IsADirectory, NotADirectory, NotFound
from ...ids import ROOT_INODE
from ...wire.pb import meta_pb2 as pb
from ...wire.pb.meta_pb2 import DIRECTORY, REGULAR, DumpRecord, Inode
from .repository import PackReader, Place

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DEPTH_MAX: Final = 16_384  # directories above a name, as meta allows
KINDS: Final = {
    pb.REGULAR: modes.S_IFREG,
    pb.DIRECTORY: modes.S_IFDIR,
    pb.SYMLINK: modes.S_IFLNK,
    pb.FIFO: modes.S_IFIFO,
    pb.SOCKET: modes.S_IFSOCK,
    pb.CHAR_DEVICE: modes.S_IFCHR,
    pb.BLOCK_DEVICE: modes.S_IFBLK,
}
INDEX: Final = """
CREATE TEMP TABLE inode (id INTEGER PRIMARY KEY, record INT, content INT);
CREATE TEMP TABLE entry (parent INT, name BLOB, inode INT, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TEMP TABLE attribute (inode INT, name BLOB, value BLOB, PRIMARY KEY (inode, name)) WITHOUT ROWID;
"""
INDEXES: Final = """
CREATE INDEX temp.inode_content ON inode (content);
CREATE INDEX temp.entry_inode ON entry (inode);
"""


def records(base: sqlite3.Connection) -> Iterator[tuple[int, DumpRecord]]:
    """All records of a backup, by number."""
    for number, value in base.execute("SELECT number, bytes FROM record ORDER BY number"):
        yield number, DumpRecord.FromString(value)


def chunks_of(base: sqlite3.Connection, content: int) -> Iterator[tuple[int, Place]]:
    """The chunks of a content that have bytes, by number."""
    query = (
        "SELECT number, pack, offset, length, crc32c FROM chunk WHERE content = ? AND length ORDER BY number"
    )
    for number, *place in base.execute(query, (content,)):
        yield number, Place(*place)


class Tree:
    """The names in a backup's database."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base
        self._lock = threading.Lock()
        base.executescript(INDEX)
        for number, record in records(base):
            match _kind(record):
                case "inode":
                    inode = record.inode
                    base.execute("INSERT INTO temp.inode VALUES (?, ?, ?)", (inode.id, number, inode.content))
                case "entry":
                    parent, entry = record.entry.parent, record.entry.entry
                    base.execute("INSERT INTO temp.entry VALUES (?, ?, ?)", (parent, entry.name, entry.inode))
                case "attribute":
                    owner, name, value = record.attribute.inode, record.attribute.name, record.attribute.value
                    base.execute("INSERT INTO temp.attribute VALUES (?, ?, ?)", (owner, name, value))
        base.executescript(INDEXES)

    def inode(self, number: int) -> Inode:
        """Raises: NotFound."""
        query = (
            "SELECT record.bytes FROM temp.inode JOIN record ON record.number = temp.inode.record "
            "WHERE temp.inode.id = ?"
        )
        row = self._row(query, number)
        if row is None:
            raise NotFound(f"no inode {number} in the backup")
        return DumpRecord.FromString(row[0]).inode

    def find(self, path: str) -> Inode:
        """Return what a path from the root names; symbolic links are not followed. Raises: NotFound, NotADirectory."""
        inode = self.inode(ROOT_INODE)
        for name in filter(None, os.fsencode(path).split(b"/")):
            if inode.type != DIRECTORY:
                raise NotADirectory("not a directory in the backup", path=path)
            row = self._row("SELECT inode FROM temp.entry WHERE parent = ? AND name = ?", inode.id, name)
            if row is None:
                raise NotFound("not in the backup", path=path)
            inode = self.inode(row[0])
        return inode

    def entries(self, directory: int) -> list[tuple[bytes, int]]:
        """Return the names in a directory, and their inodes."""
        with self._lock:
            query = "SELECT name, inode FROM temp.entry WHERE parent = ? ORDER BY name"
            return self._base.execute(query, (directory,)).fetchall()

    def attributes(self, inode: int) -> dict[bytes, bytes]:
        """Extended attributes."""
        with self._lock:
            return dict(
                self._base.execute("SELECT name, value FROM temp.attribute WHERE inode = ?", (inode,))
            )

    def chunk(self, content: int, number: int) -> Place | None:
        """Return where one chunk is stored; None for a hole."""
        query = "SELECT pack, offset, length, crc32c FROM chunk WHERE content = ? AND number = ? AND length"
        row = self._row(query, content, number)
        return None if row is None else Place(*row)

    def path_of_content(self, content: int, chunk: int) -> str | None:
        """Return a path of the file that has that chunk of a content; None if no file has."""
        row = self._row("SELECT id FROM temp.inode WHERE content = ?", content)
        if row is None:
            return None
        inode = self.inode(row[0])
        if inode.type != REGULAR or inode.is_inline or chunk * inode.layout.chunk_bytes >= inode.length:
            return None
        names: list[bytes] = []
        number = inode.id
        while number != ROOT_INODE and len(names) < DEPTH_MAX:
            row = self._row("SELECT parent, name FROM temp.entry WHERE inode = ?", number)
            if row is None:
                return f"inode {inode.id}, which has no name"
            number = row[0]
            names.append(row[1])
        return "/" + os.fsdecode(b"/".join(reversed(names)))

    def _row(self, query: str, *parameters: int | bytes) -> sqlite3.Row | None:
        with self._lock:
            cursor = self._base.cursor()
            cursor.row_factory = sqlite3.Row
            row: sqlite3.Row | None = cursor.execute(query, parameters).fetchone()
        return row


def _kind(record: DumpRecord) -> str:
    """Return which field the record has: it has one."""
    return record.ListFields()[0][0].name


@dataclass(frozen=True)
class Entry:
    """What `scandir` yields."""

    name: str
    inode: Inode

    def stat(self, *, follow_symlinks: bool = True) -> SimpleNamespace:  # noqa: ARG002, of os.DirEntry
        return _status(self.inode)


class BackupFiles:
    """The side of a copy that reads from a backup. Paths are from the root that was backed up."""

    def __init__(self, tree: Tree, packs: PackReader) -> None:
        self._tree = tree
        self._packs = packs

    def lstat(self, path: str) -> SimpleNamespace:
        return _status(self._tree.find(path))

    def listdir(self, path: str) -> list[str]:
        return [os.fsdecode(name) for name, _ in self._tree.entries(self._tree.find(path).id)]

    @contextlib.contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[Entry]]:
        entries = self._tree.entries(self._tree.find(path).id)
        yield (Entry(os.fsdecode(name), self._tree.inode(inode)) for name, inode in entries)

    def open(self, path: str, mode: str) -> "BackupFile":
        assert mode == "rb", "a backup is read"
        inode = self._tree.find(path)
        if inode.type != REGULAR:
            raise IsADirectory("not a file", path=path)
        return BackupFile(inode, self._tree, self._packs)

    def readlink(self, path: str) -> bytes:
        return self._tree.find(path).symlink_target

    def listxattr(self, path: str, /) -> list[str]:
        return [os.fsdecode(name) for name in self._tree.attributes(self._tree.find(path).id)]

    def getxattr(self, path: str, attribute: str, /) -> bytes:
        value = self._tree.attributes(self._tree.find(path).id).get(os.fsencode(attribute))
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
        return value


class BackupFile(io.RawIOBase):
    """A file in a backup, read from its beginning."""

    def __init__(self, inode: Inode, tree: Tree, packs: PackReader) -> None:
        super().__init__()
        self._inode, self._tree, self._packs = inode, tree, packs
        self._offset = 0
        self._number, self._bytes = -1, b""

    def readable(self) -> bool:
        return True

    def readinto(self, data: "WriteableBuffer", /) -> int:
        """Fill `data`; fewer bytes at the end of the file. Raises: CorruptData."""
        buffer = memoryview(data)
        count = min(len(buffer), self._inode.length - self._offset)
        done = 0
        while done < count:
            found = self._data(self._offset + done, count - done)
            buffer[done : done + len(found)] = found
            done += len(found)
        self._offset += count
        return count

    def _data(self, offset: int, count: int) -> bytes:
        """At least one byte from `offset` on."""
        if self._inode.is_inline:
            found = self._inode.inline_data[offset : offset + count]
            return found or bytes(count)
        size = self._inode.layout.chunk_bytes
        number, begin = divmod(offset, size)
        if number != self._number:
            place = self._tree.chunk(self._inode.content, number)
            self._number, self._bytes = number, b"" if place is None else self._packs.read(place)
        count = min(count, size - begin)
        found = self._bytes[begin : begin + count]
        return found or bytes(count)


def _status(inode: Inode) -> SimpleNamespace:
    return SimpleNamespace(
        st_mode=KINDS[inode.type] | inode.permissions,
        st_size=inode.length,
        st_nlink=inode.link_count,
        st_uid=inode.uid,
        st_gid=inode.gid,
        st_dev=0,
        st_ino=inode.id,
        st_rdev=inode.device,
        st_atime_ns=inode.atime_ns,
        st_mtime_ns=inode.mtime_ns,
    )


__all__ = ["BackupFile", "BackupFiles", "Tree", "chunks_of", "records"]
