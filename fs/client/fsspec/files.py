"""Open files as fsspec's callers expect them: `io`'s buffered objects over a `File`, in C where bytes are small.

A file that is written is either the file itself, as with the built-in `open`, or (in a transaction, or with
`atomic=True`) a hidden one beside it that takes its name when it is complete:

A1  Until `commit` the name is what it was; after `discard` nothing is left.
A2  What replaces a file has its permissions, and its owner where that may be given.
"""

import contextlib
import io
import os
import posixpath
import stat as modes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

from fsspec.asyn import AbstractAsyncStreamedFile
from fsspec.spec import AbstractBufferedFile

from ...errors import AlreadyExists, InvalidArgument, NotFound
from ...tempname import temp_beside
from ..connection import naming
from ..file import File
from ..file_system import FileSystem
from .paths import Info
from .threads import in_thread

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from .file_system import LuciolaFileSystem

READ_BYTES: Final = 16 << 10  # the least that storage nodes read and verify
WRITE_BYTES: Final = 128 << 10
LINKS_MAX: Final = 40  # as the kernel follows


@dataclass(frozen=True)
class Replacement:
    """A hidden file that becomes `path`."""

    path: str
    temporary: str
    exclusive: bool

    @classmethod
    def of(cls, files: FileSystem, path: str, *, exclusive: bool) -> "Replacement":
        """Raises: FileExistsError if `exclusive` and something is there already."""
        if exclusive and _lexists(files, path):
            raise AlreadyExists("something of this name is there", path=path)
        return cls(path, temp_beside(path), exclusive)

    def commit(self, files: FileSystem) -> None:
        """The hidden file takes the name, in one step. Raises: FileExistsError if exclusive; IsADirectoryError."""
        try:
            # Most files are new: then nothing has to be asked.
            with naming(self.path):
                files.connection.client.rename(
                    os.fsencode(self.temporary), os.fsencode(self.path), no_replace=True
                )
        except AlreadyExists:
            if self.exclusive:
                raise
            path, old = destination(files, self.path)
            if old is not None:
                self._take_after(files, old)
            files.rename(self.temporary, path)

    def _take_after(self, files: FileSystem, old: os.stat_result) -> None:
        new = files.lstat(self.temporary)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            # As for `cp -p`: only root gives files away.
            with contextlib.suppress(PermissionError):
                files.chown(self.temporary, old.st_uid, old.st_gid)
        if modes.S_IMODE(new.st_mode) != modes.S_IMODE(old.st_mode):
            files.chmod(self.temporary, modes.S_IMODE(old.st_mode))

    def discard(self, files: FileSystem) -> None:
        with contextlib.suppress(NotFound):
            files.remove(self.temporary)


def destination(files: FileSystem, path: str) -> tuple[str, os.stat_result | None]:
    """Return where writing to `path` goes, and what is there now."""
    for _ in range(LINKS_MAX):
        try:
            status = files.lstat(path)
        except NotFound:
            return path, None
        if not modes.S_ISLNK(status.st_mode):
            return path, status
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), files.readlink(path)))
    raise InvalidArgument("too many links lead to one another", path=path)


def _lexists(files: FileSystem, path: str) -> bool:
    try:
        files.lstat(path)
    except NotFound:
        return False
    return True


class _Opened:
    """What fsspec's files have beyond those of `io`."""

    fs: "LuciolaFileSystem"
    path: str
    blocksize: int

    def __init__(self, fs: "LuciolaFileSystem", raw: File, path: str, blocksize: int) -> None:
        super().__init__(raw, blocksize)  # type: ignore[call-arg]
        self.fs = fs
        self.file = raw
        self.path = path
        self.blocksize = blocksize

    @property
    def size(self) -> int:
        """Bytes in the file as far as this client knows, without what waits in this object's buffer."""
        return self.file.native.length()

    @property
    def details(self) -> Info:
        """As `fs.info`."""
        info: Info = self.fs.info(self.path)
        return info

    def info(self) -> Info:
        return self.details

    @property
    def full_name(self) -> str:
        """The URL."""
        return self.fs.unstrip_protocol(self.path)

    @property
    def loc(self) -> int:
        return self.tell()  # type: ignore[attr-defined,no-any-return]

    def pread_into(self, buffer: "WriteableBuffer", offset: int) -> int:
        """Fill `buffer` from `offset`; return the number of bytes. The position stays, buffers are passed by."""
        return self.file.pread_into(buffer, offset)

    def fsync(self, *, data_only: bool = False) -> None:
        """Everything written survives the loss of power. Raises: the error of an earlier write, once."""
        self.flush()  # type: ignore[attr-defined]
        self.file.fsync(data_only=data_only)


class Reader(_Opened, io.BufferedReader):
    """A file opened to read. May be pickled: it is opened again, at the same position."""

    def __init__(self, fs: "LuciolaFileSystem", raw: File, path: str, blocksize: int) -> None:
        super().__init__(fs, raw, path, blocksize)
        self._lock = threading.Lock()

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all to the end for -1. What is as large as the buffer does not pass through it."""
        if size is None or size < self.blocksize:
            return super().read(size)
        with self._lock:
            position = self.tell()
            data = self.file.pread(size, position)
            self.seek(position + len(data))
            return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position. The end is that of the file when it was opened, or as this client has seen it since."""
        if whence == os.SEEK_END:
            return super().seek(self.size + offset)
        return super().seek(offset, whence)

    def __reduce__(
        self,
    ) -> tuple[Callable[["LuciolaFileSystem", str, int, int], "Reader"], tuple[object, ...]]:
        return _reopen, (self.fs, self.path, self.blocksize, self.tell())


def _reopen(fs: "LuciolaFileSystem", path: str, blocksize: int, position: int) -> Reader:
    file: Reader = fs.open(path, "rb", block_size=blocksize)
    file.seek(position)
    return file


class _Written(_Opened):
    """A file that is written, in place or aside. `flush` shows others what was written, as that of `File`."""

    _replacement: Replacement | None = None
    _commits = False  # at `close`
    _settled = False  # committed or discarded
    _closing = False

    def write_aside(self, replacement: Replacement, *, commits: bool) -> Self:
        """This file, which is open on a hidden name, takes its own later: at `close` if `commits`."""
        self._replacement = replacement
        self._commits = commits
        return self

    @property
    def autocommit(self) -> bool:
        """Whether what is written is seen without `commit`."""
        return self._replacement is None

    def flush(self) -> None:
        super().flush()  # type: ignore[misc]
        if not self._closing:
            self.file.flush()

    def close(self) -> None:
        """A file opened with `atomic=True` takes its name now."""
        if self.closed:  # type: ignore[attr-defined]
            return
        self._closing = True
        try:
            super().close()  # type: ignore[misc]
        except BaseException:
            self.discard()
            raise
        if self._commits:
            self.commit()

    def commit(self) -> None:
        """The file takes its name. Nothing to do for one that has it from the start."""
        self._commits = False
        self.close()
        if self._replacement is not None and not self._settled:
            self._settled = True
            try:
                self._replacement.commit(self.fs.files)
            except BaseException:
                self._replacement.discard(self.fs.files)
                raise
            self.fs.invalidate_cache(self.path)

    def discard(self) -> None:
        """What was written is thrown away. Raises: ValueError for a file that was not written aside."""
        if self._replacement is None:
            if self._closing:
                return
            raise ValueError(
                f"{self.path!r} is written in place: open it in a transaction or with atomic=True"
            )
        if self._settled:
            return
        self._settled, self._commits = True, False
        with contextlib.suppress(OSError):
            self.close()
        self._replacement.discard(self.fs.files)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._commits:
            self.discard()
        self.close()

    def __del__(self) -> None:
        # A file that was never closed counts as incomplete.
        self._commits = False
        super().__del__()  # type: ignore[misc]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.path!r} is open for writing and cannot be pickled")


class Writer(_Written, io.BufferedWriter):
    """A file opened to write."""


class Updater(_Written, io.BufferedRandom):
    """A file opened to read and write."""


OpenFile = Reader | Writer | Updater


def wrapped(fs: "LuciolaFileSystem", raw: File, path: str, block_size: int | None) -> OpenFile:
    """Return the buffered object for a file just opened."""
    if not raw.writable():
        return Reader(fs, raw, path, block_size or READ_BYTES)
    return (Updater if raw.readable() else Writer)(fs, raw, path, block_size or WRITE_BYTES)


class CachedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file read through one of fsspec's caches, because its opener has asked for it (`cache_type`)."""

    def __init__(self, fs: "LuciolaFileSystem", raw: File, path: str, **options: object) -> None:
        self._raw = raw
        super().__init__(fs, path, "rb", size=raw.native.length(), **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._raw.pread(end - start, start)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class AsyncStream(AbstractAsyncStreamedFile):  # type: ignore[misc]
    """What `open_async` gives: a file with a position, for asyncio."""

    def __init__(self, fs: "LuciolaFileSystem", file: OpenFile, path: str, mode: str) -> None:
        super().__init__(fs, path, mode, size=file.size)
        self._file = file

    async def _fetch_range(self, start: int, end: int) -> bytes:
        return await in_thread(self._file.file.pread, end - start, start)

    async def _upload_chunk(self, final: bool = False) -> bool:  # noqa: FBT001, FBT002, ARG002 (fsspec's)
        await in_thread(self._file.write, self.buffer.getvalue())
        return True

    async def close(self) -> None:
        if not self.closed:
            await super().close()
            await in_thread(self._file.close)

    async def __aenter__(self) -> Self:
        return self

    def __del__(self) -> None:
        if not self.closed:
            self._file.close()


__all__ = [
    "AsyncStream",
    "CachedFile",
    "OpenFile",
    "Replacement",
    "Updater",
    "Writer",
    "destination",
    "wrapped",
]
