"""This machine's own files, with the methods of `FileSystem`: what a program gets that names a plain path.

A program written for a cluster then runs on a local directory, or on a mount, without a second branch. Errors are
those of `os`; those of a cluster are subclasses of them.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from ..closing import Closing
from .file import AnyIO
from .local_ring import LocalRing, bytes_of, read_fully, write_fully

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrOrBytesPath, StrPath, WriteableBuffer


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
        """Fill `buffer` from the position on; return the number of bytes."""
        if not self.seekable():
            return super().readinto(buffer)
        count = self.pread_into(buffer, self.tell())
        self.seek(count, os.SEEK_CUR)
        return count

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of `data`; return its length."""
        left = bytes_of(data)
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
        """Fill `buffer` from `offset`; return the number of bytes. The position stays."""
        return read_fully(self.fileno(), bytes_of(buffer), offset)

    def pwrite(self, data: "ReadableBuffer", offset: int) -> int:
        """Write all of `data` at `offset` (at the end for a file opened to append). The position stays."""
        if not self.writable():
            raise io.UnsupportedOperation("File not open for writing")
        return write_fully(self.fileno(), bytes_of(data), offset)

    def stat(self) -> os.stat_result:
        return os.fstat(self.fileno())

    def fsync(self, *, data_only: bool = False) -> None:
        """Everything written survives the loss of power."""
        (os.fdatasync if data_only else os.fsync)(self.fileno())


class LocalListing(Iterator[os.DirEntry[str]], Protocol):
    """What `os.scandir` returns."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def close(self) -> None: ...


class LocalFileSystem(Closing):
    """The files of this machine. May be shared by threads, pickled, and used after fork."""

    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    exists = staticmethod(os.path.exists)
    isdir = staticmethod(os.path.isdir)
    isfile = staticmethod(os.path.isfile)
    realpath = staticmethod(os.path.realpath)
    listdir = staticmethod(os.listdir)
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

    @staticmethod
    def scandir(path: "StrPath" = ".") -> "LocalListing":
        """As `os.scandir`, whose overloads a plain reference would lose."""
        return os.scandir(path)

    def __repr__(self) -> str:
        return "<luciola.LocalFileSystem>"

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
    ) -> AnyIO:
        """As `FileSystem.open`: in binary mode the result is a `LocalFile`, unless `buffering` is more than 1."""
        opener = _opener(permissions)
        if "b" in mode and buffering <= 1 and encoding is errors is newline is None:
            return LocalFile(os.fspath(path), mode.replace("b", ""), opener=opener)
        return open(path, mode, buffering, encoding, errors, newline, opener=opener)

    def read_into(self, path: "StrOrBytesPath", buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fill `buffer` from `offset` of a file; return the number of bytes, fewer only at its end."""
        with self.open(path, "rb") as file:
            return file.pread_into(buffer, offset)  # type: ignore[attr-defined,no-any-return]

    def read(self, path: "StrOrBytesPath", offset: int = 0, size: int = -1) -> bytes:
        """Return the bytes of a file, all by default."""
        with self.open(path, "rb") as file:
            file.seek(offset)
            data: bytes = file.read(size)
            return data

    def write(self, path: "StrOrBytesPath", data: "ReadableBuffer", *, permissions: int = 0o666) -> int:
        """Make `data` the whole content of a file; return its length."""
        with self.open(path, "wb", permissions=permissions) as file:
            return file.write(data)

    def link(self, source: str, target: str, *, follow_symlinks: bool = False) -> None:
        """Give the inode of `source` another name."""
        os.link(source, target, follow_symlinks=follow_symlinks)

    def ring(self, entries: int = 128) -> LocalRing:
        """Return a ring for that many reads and writes in flight."""
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
