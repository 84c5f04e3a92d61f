"""This machine's own files, with the methods of `FileSystem`: what a program gets that names a plain path.

A program written for a cluster then runs on a local directory, or on a mount, without a second branch. Errors are
those of `os`; those of a cluster are subclasses of them. Reads and writes of a `LocalRing` are done by a few threads,
which is what keeps a local disk or a mount busy.
"""

import errno as _errno
import io
import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, Self

from ..errors import InvalidArgument
from .ring import Completion, Operation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrOrBytesPath, WriteableBuffer

THREADS: Final = 8  # of one ring: a disk or a mount gains nothing from more


class LocalFile(io.FileIO):
    """An open local file with the methods of `luciola.File`. `read` returns fewer bytes than asked only at the end."""

    @property
    def native(self) -> NoReturn:
        """Raises: ValueError. A ring of a cluster takes files of that cluster."""
        raise ValueError(f"{self.name!r} is a local file: submit it to a ring of LocalFileSystem")

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all to the end for -1."""
        if size is None or size < 0:
            return self.readall()
        if not self.seekable():
            return super().read(size) or b""
        data = self.pread(size, self.tell())
        self.seek(len(data), os.SEEK_CUR)
        return data

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fills `buffer` from the position on; returns the number of bytes."""
        if not self.seekable():
            return super().readinto(buffer)
        count = self.pread_into(buffer, self.tell())
        self.seek(count, os.SEEK_CUR)
        return count

    def write(self, data: "ReadableBuffer", /) -> int:
        """Writes all of `data`; returns its length."""
        left = _bytes(data)
        count = left.nbytes
        while left:
            left = left[super().write(left) :]
        return count

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; the position stays."""
        left = max(0, os.fstat(self.fileno()).st_size - offset)
        buffer = bytearray(min(size, left))
        count = self.pread_into(buffer, offset)
        return bytes(memoryview(buffer)[:count])

    def pread_into(self, buffer: "WriteableBuffer", offset: int) -> int:
        """Fills `buffer` from `offset`; returns the number of bytes. The position stays."""
        return read_fully(self.fileno(), _bytes(buffer), offset)

    def pwrite(self, data: "ReadableBuffer", offset: int) -> int:
        """Writes all of `data` at `offset` (at the end for a file opened to append). The position stays."""
        if not self.writable():
            raise io.UnsupportedOperation("File not open for writing")
        return write_fully(self.fileno(), _bytes(data), offset)

    def stat(self) -> os.stat_result:
        return os.fstat(self.fileno())

    def fsync(self, *, data_only: bool = False) -> None:
        """Everything written survives the loss of power."""
        (os.fdatasync if data_only else os.fsync)(self.fileno())


def _bytes(data: "ReadableBuffer") -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def read_fully(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fills `buffer` from `offset`; returns the number of bytes, fewer only at the end of the file."""
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_fully(descriptor: int, data: memoryview, offset: int) -> int:
    """Writes all of `data` at `offset`; returns its length."""
    done = 0
    while done < data.nbytes:
        done += os.pwritev(descriptor, [data[done:]], offset + done)
    return done


class LocalRing:
    """`Ring` for local files. Made by `LocalFileSystem.ring`. May be used by several threads."""

    def __init__(self, entries: int) -> None:
        if entries < 1:
            raise InvalidArgument(f"a ring has at least one entry, not {entries}")
        self.entries = entries
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(min(entries, THREADS), "luciola-local")
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changed = threading.Condition()
        self._taken = 0  # submitted and not drained yet
        self._completed: deque[Completion] = deque()
        weakref.finalize(self, os.close, self._event)

    @property
    def in_flight(self) -> int:
        return self._taken

    def submit(self, operations: Iterable[Operation]) -> int:
        """As `Ring.submit`. Raises: ValueError for a range outside its buffer or a closed file."""
        self._require_own_process()
        jobs = [(_view(operation), operation) for operation in operations]
        with self._changed:
            count = min(len(jobs), self.entries - self._taken)
            self._taken += count
        for view, operation in jobs[:count]:
            # A descriptor of its own, so that a file that is closed meanwhile does no harm.
            self._pool.submit(self._carry_out, os.dup(operation.file.fileno()), view, operation)
        return count

    def _carry_out(self, descriptor: int, view: memoryview, operation: Operation) -> None:
        try:
            move = write_fully if operation.write else read_fully
            result = move(descriptor, view, operation.offset)
        except OSError as error:
            result = -(error.errno or _errno.EIO)
        finally:
            os.close(descriptor)
        with self._changed:
            self._completed.append(Completion(operation.user_data, result))
            if len(self._completed) == 1:
                os.eventfd_write(self._event, 1)
            self._changed.notify_all()

    def drain(
        self, most: int | None = None, *, least: int = 0, timeout_s: float | None = None
    ) -> list[Completion]:
        """As `Ring.drain`."""
        self._require_own_process()
        most = self.entries if most is None else most
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._completed) >= min(least, most, self._taken), timeout=timeout_s
            )
            count = min(most, len(self._completed))
            results = [self._completed.popleft() for _ in range(count)]
            self._taken -= count
            if count and not self._completed:
                os.eventfd_read(self._event)
            self._changed.notify_all()
        return results

    def fileno(self) -> int:
        """A descriptor (eventfd) that is readable while there are results to drain."""
        return self._event

    def close(self) -> None:
        """Waits for what is in flight. Its results may still be drained."""
        if self._process == os.getpid():
            self._pool.shutdown()

    def _require_own_process(self) -> None:
        if self._process != os.getpid():
            raise InvalidArgument(
                "this ring belongs to the process that made it: make one in the child, or start it by spawn"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _view(operation: Operation) -> memoryview:
    """The bytes an operation moves."""
    whole = _bytes(operation.buffer)
    start, length = operation.buffer_offset, operation.length
    if length is None:
        length = whole.nbytes - start
    if start < 0 or length < 0 or start + length > whole.nbytes:
        raise ValueError("the bytes do not lie in the buffer")
    if whole.readonly and not operation.write:
        raise ValueError("the buffer is read-only")
    return whole[start : start + length]


class LocalFileSystem:
    """The files of this machine. May be shared by threads, pickled, and used after fork."""

    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    exists = staticmethod(os.path.exists)
    isdir = staticmethod(os.path.isdir)
    isfile = staticmethod(os.path.isfile)
    realpath = staticmethod(os.path.realpath)
    listdir = staticmethod(os.listdir)
    scandir = staticmethod(os.scandir)
    walk = staticmethod(os.walk)
    mkdir = staticmethod(os.mkdir)
    makedirs = staticmethod(os.makedirs)
    rmdir = staticmethod(os.rmdir)
    rmtree = staticmethod(shutil.rmtree)
    rename = staticmethod(os.rename)
    replace = staticmethod(os.replace)
    remove = staticmethod(os.remove)
    unlink = staticmethod(os.unlink)
    readlink = staticmethod(os.readlink)
    symlink = staticmethod(os.symlink)
    chmod = staticmethod(os.chmod)
    chown = staticmethod(os.chown)
    utime = staticmethod(os.utime)
    truncate = staticmethod(os.truncate)
    statvfs = staticmethod(os.statvfs)
    getxattr = staticmethod(os.getxattr)
    setxattr = staticmethod(os.setxattr)
    listxattr = staticmethod(os.listxattr)
    removexattr = staticmethod(os.removexattr)

    def __repr__(self) -> str:
        return "<luciola.LocalFileSystem>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(  # noqa: PLR0913 (those of FileSystem.open)
        self,
        path: "StrOrBytesPath",
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        direct: bool = False,  # noqa: ARG002 (the kernel keeps local files coherent)
        permissions: int = 0o666,
    ) -> IO[Any]:
        """As `FileSystem.open`: in binary mode the result is a `LocalFile`, unless `buffering` is more than 1."""
        opener = _opener(permissions)
        if "b" in mode and buffering <= 1 and encoding is errors is newline is None:
            return LocalFile(os.fspath(path), mode.replace("b", ""), opener=opener)
        return open(path, mode, buffering, encoding, errors, newline, opener=opener)

    def read_into(self, path: "StrOrBytesPath", buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fills `buffer` from `offset` of a file; returns the number of bytes, fewer only at its end."""
        with self.open(path, "rb") as file:
            return file.pread_into(buffer, offset)  # type: ignore[attr-defined,no-any-return]

    def read(self, path: "StrOrBytesPath", offset: int = 0, size: int = -1) -> bytes:
        """The bytes of a file, all by default."""
        with self.open(path, "rb") as file:
            file.seek(offset)
            data: bytes = file.read(size)
            return data

    def write(self, path: "StrOrBytesPath", data: "ReadableBuffer", *, permissions: int = 0o666) -> int:
        """Makes `data` the whole content of a file; returns its length."""
        with self.open(path, "wb", permissions=permissions) as file:
            return file.write(data)

    def link(self, source: str, target: str, *, follow_symlinks: bool = False) -> None:
        """Gives the inode of `source` another name."""
        os.link(source, target, follow_symlinks=follow_symlinks)

    def ring(self, entries: int = 128) -> LocalRing:
        """A ring for that many reads and writes in flight."""
        return LocalRing(entries)

    def flush(self) -> None:
        """Nothing waits here: the kernel shows what is written at once."""

    def close(self) -> None:
        """Nothing is held."""

    def sync_directory(self, path: str) -> None:
        """The names in a directory survive the loss of power."""
        descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opener(permissions: int) -> Callable[[str, int], int]:
    return lambda path, flags: os.open(path, flags | os.O_CLOEXEC, permissions)


__all__ = ["LocalFile", "LocalFileSystem", "LocalRing"]
