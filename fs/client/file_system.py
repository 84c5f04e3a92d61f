"""The names and attributes of a cluster, with the functions and the manners of `os` and `shutil`.

Paths are `str`, `bytes` or path-like, always from the root: "data/x" is "/data/x". Names come back as `str`, decoded
as `os.fsdecode` does. Errors are those of `luciola.errors`, which are also those of `os`, with `filename` set.
"""

import functools
import io
import os
import stat as modes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from ..closing import Closing
from ..errors import Error, InvalidArgument, IsADirectory, NotADirectory, NotFound
from .attributes import BLOCK_BYTES, DirEntry, stat_result
from .connection import Connection, Parameters, naming
from .file import AnyIO, File
from .layout import Layout
from .ring import Ring
from .watch import Watch, follower_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from .aio import AsyncFileSystem

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_Entry: TypeAlias = tuple[bytes, int, int, tuple[int, ...] | None]  # name, inode, type, attributes

TEXT_BUFFER_BYTES: Final = 128 << 10
SMALL_FILES_MAX: Final = 64  # of one request, as the metadata service limits them
SMALL_FILES_BYTES: Final = 1 << 20


def _name(path: StrPath) -> bytes:
    return os.fsencode(path)


@functools.lru_cache(maxsize=1)
def _umask(_process: int) -> int:
    """As it was when this process first made a file: reading it otherwise would set it for a moment."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _batches(files: Mapping[StrPath, "ReadableBuffer"]) -> Iterator[list[tuple[StrPath, bytes]]]:
    """Yield the files in requests of at most `SMALL_FILES_MAX` files and `SMALL_FILES_BYTES` of data."""
    batch: list[tuple[StrPath, bytes]] = []
    size_bytes = 0
    for path, data in files.items():
        content = bytes(data)
        if batch and (len(batch) == SMALL_FILES_MAX or size_bytes + len(content) > SMALL_FILES_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append((path, content))
        size_bytes += len(content)
    if batch:
        yield batch


class FileSystem(Closing):
    """A cluster's files. Made by `luciola.connect`; may be shared by threads, pickled, and used after fork."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # One at most. `setdefault` is atomic; a forked child could inherit a lock that another thread holds.
        self._aio: dict[None, AsyncFileSystem] = {}

    def __reduce__(self) -> tuple[Callable[[Parameters], "FileSystem"], tuple[Parameters]]:
        return _restore, (self._connection.parameters,)

    def __repr__(self) -> str:
        return f"<luciola.FileSystem of {self._connection.parameters.address!r}>"

    def close(self) -> None:
        """Write back dirty data, and end the session. Files that are still open are closed with it."""
        self._connection.close()

    def flush(self) -> None:
        """Everything written through this file system so far is seen by others. Connects if need be."""
        self._connection.client.flush()

    @property
    def cluster_id(self) -> str:
        return self._connection.client.cluster_id

    @property
    def connection(self) -> Connection:
        """For rings."""
        return self._connection

    @property
    def aio(self) -> "AsyncFileSystem":
        """The same files for asyncio."""
        from .aio import AsyncFileSystem

        return self._aio.get(None) or self._aio.setdefault(None, AsyncFileSystem(self))

    def ring(self, entries: int = 128) -> Ring:
        """Return a ring for that many reads and writes in flight."""
        return Ring(self._connection.client.ring(entries))

    def watch(
        self,
        path: StrPath,
        *,
        after: str | None = None,
        recursive: bool = True,
        manager: str | None = None,
    ) -> Watch:
        """Return the changes below a directory that are committed from now on, or were after the position `after`.

        `recursive`: also of what is below its subdirectories. `manager`: gRPC address of mgmtd, where the cluster was
        named by an address. What is written through this file system is seen once it is flushed.

        Raises: NotFound, NotADirectory, PermissionDenied unless you may list the directory; TooOld if the changes
        after `after` are not known any more; Unsupported where the metadata has no log.
        """
        parameters = self._connection.parameters
        follower = follower_of(
            parameters, os.fsdecode(path), after=after, recursive=recursive, manager=manager
        )
        watch = Watch(parameters, follower)
        try:
            watch.begin()
        except BaseException:
            watch.close()
            raise
        return watch

    # Files.

    def open(  # noqa: PLR0913 (those of the built-in open)
        self,
        path: StrPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        direct: bool = False,
        permissions: int = 0o666,
        layout: Layout | None = None,
    ) -> AnyIO:
        """As the built-in `open`. In binary mode the result is a `File`, unless `buffering` is more than 1.

        `direct`: writes return when every replica has them, and reads see what others have just written.
        `permissions`: of a new file, less the umask. `layout`: of a new file, instead of the directory's.
        """
        binary = "b" in mode
        if binary and (encoding is not None or errors is not None or newline is not None):
            raise ValueError("binary mode takes no encoding, errors or newline")
        if not binary and buffering == 0:
            raise ValueError("text mode cannot be unbuffered")
        file = self._open(path, mode, direct=direct, permissions=permissions, layout=layout)
        if binary and buffering <= 1:
            return file  # type: ignore[return-value]
        buffered = _buffered(file, buffering if buffering > 1 else TEXT_BUFFER_BYTES)
        if binary:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode  # type: ignore[misc]  # as the built-in open does
        return text

    def _open(
        self, path: StrPath, mode: str, *, direct: bool, permissions: int, layout: Layout | None = None
    ) -> File:
        kinds = set(mode) & set("rwax")
        if (
            len(mode) != len(set(mode))
            or set(mode) - set("rwaxbt+")
            or len(kinds) != 1
            or {"b", "t"} <= set(mode)
        ):
            raise ValueError(f"not a mode: {mode!r}")
        kind = kinds.pop()
        update = "+" in mode
        with naming(path):
            native = self._connection.client.open(
                _name(path),
                read=kind == "r" or update,
                write=kind != "r" or update,
                append=kind == "a",
                truncate=kind == "w",
                direct=direct,
                permissions=None if kind == "r" else permissions & ~_umask(os.getpid()),
                exclusive=kind == "x",
                layout=None if layout is None else layout.fields,
            )
            if modes.S_ISDIR(stat_result(native.stat()).st_mode):
                native.close()
                raise IsADirectory("is a directory")
        file = File(native, os.fsdecode(path), mode.replace("t", ""))
        if kind == "a":
            file.seek(0, os.SEEK_END)
        return file

    def read_into(self, path: StrPath, buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fill `buffer` from `offset` of a file; return the number of bytes, fewer only at its end."""
        with self._open(path, "rb", direct=False, permissions=0) as file:
            return file.pread_into(buffer, offset)

    def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        """Return the bytes of a file, all by default."""
        with self._open(path, "rb", direct=False, permissions=0) as file:
            file.seek(offset)
            return file.read(size)

    def write(
        self, path: StrPath, data: "bytes | bytearray | memoryview", *, permissions: int = 0o666
    ) -> int:
        """Make `data` the whole content of a file; return its length."""
        with self._open(path, "wb", direct=False, permissions=permissions) as file:
            return file.write(data)

    def truncate(self, path: StrPath, length: int) -> None:
        """Cut or extend a file to `length` bytes."""
        with naming(path):
            self._connection.client.set_attributes(_name(path), length=_unsigned(length, "a length"))

    # Attributes.

    def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the attributes of a path, as `os.stat`."""
        with naming(path):
            return stat_result(self._connection.client.stat(_name(path), follow=follow_symlinks))

    def lstat(self, path: StrPath) -> os.stat_result:
        """Return the attributes of a path, those of the link itself if it is one."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: StrPath) -> bool:
        """False also for a link that leads nowhere. Raises: what is not about the path itself."""
        return self._mode(path) is not None

    def isdir(self, path: StrPath) -> bool:
        """Return whether the path is a directory, or a link to one."""
        return modes.S_ISDIR(self._mode(path) or 0)

    def isfile(self, path: StrPath) -> bool:
        """Return whether the path is a regular file, or a link to one."""
        return modes.S_ISREG(self._mode(path) or 0)

    def _mode(self, path: StrPath) -> int | None:
        try:
            return self.stat(path).st_mode
        except (NotFound, NotADirectory):
            return None

    def chmod(self, path: StrPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permissions; the file type in `mode` is ignored."""
        with naming(path):
            self._connection.client.set_attributes(
                _name(path), permissions=modes.S_IMODE(mode), follow=follow_symlinks
            )

    def chown(self, path: StrPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """-1 leaves the owner or the group as it is."""
        with naming(path):
            self._connection.client.set_attributes(
                _name(path),
                uid=None if uid == -1 else uid,
                gid=None if gid == -1 else gid,
                follow=follow_symlinks,
            )

    def utime(
        self,
        path: StrPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set the times of access and modification, to now by default."""
        if times is not None and ns is not None:
            raise ValueError("give times or ns, not both")
        if times is not None:
            ns = (int(times[0] * 1e9), int(times[1] * 1e9))
        atime_ns, mtime_ns = (None, None) if ns is None else ns
        with naming(path):
            self._connection.client.set_attributes(
                _name(path),
                atime_ns=atime_ns,
                mtime_ns=mtime_ns,
                times_now=ns is None,
                follow=follow_symlinks,
            )

    def statvfs(self, path: StrPath = "/") -> os.statvfs_result:
        """Space of the cluster; `path` must exist."""
        self.lstat(path)
        capacity, free, inodes = self._connection.client.statfs()
        unit = 4096
        total, left = capacity // unit, free // unit
        return os.statvfs_result((BLOCK_BYTES, unit, total, left, left, inodes + left, left, left, 0, 255))

    # Layouts.

    def layout(self, path: StrPath) -> Layout | None:
        """That of a file, or what a directory hands on; None: it has none of its own (`default_layout`).

        Raises: InvalidArgument for what is neither.
        """
        with naming(path):
            fields = self._connection.client.layout(_name(path))
        return None if fields is None else Layout.of(fields)

    def set_layout(self, path: StrPath, layout: Layout | None) -> None:
        """Change what a directory hands on to files and directories that are made in it; what is None stays.

        With None instead of a layout it hands on the configuration's again. Its owner or root may do this.
        Raises: NotADirectory for a file: its layout is fixed when it is created. InvalidArgument for numbers without
        sense, and for a table that does not exist.
        """
        with naming(path):
            self._connection.client.set_layout(_name(path), None if layout is None else layout.fields)

    def default_layout(self) -> Layout:
        """Return what files get in directories that have no layout of their own."""
        return Layout.of(self._connection.client.default_layout())

    # Directories.

    def listdir(self, path: StrPath = "/") -> list[str]:
        """Return the names in a directory, in their byte order."""
        return [os.fsdecode(name) for name, *_ in self._entries(path, with_attributes=False)]

    def scandir(self, path: StrPath = "/") -> "Listing":
        """Return the entries of a directory, with attributes, a page at a time."""
        entries = self._entries(path, with_attributes=True)
        return Listing(self._entry(os.fsdecode(path), *entry) for entry in entries)

    def _entry(
        self, directory: str, name: bytes, inode: int, file_type: int, attributes: tuple[int, ...] | None
    ) -> DirEntry:
        text = os.fsdecode(name)
        path = os.path.join(directory, text)
        return DirEntry(text, path, inode=inode, file_type=file_type, attributes=attributes, stat=self.stat)

    def _entries(self, path: StrPath, *, with_attributes: bool) -> Iterator[_Entry]:
        client = self._connection.client
        with naming(path):
            fields = client.stat(_name(path))
            status = stat_result(fields)
            if not modes.S_ISDIR(status.st_mode):
                raise NotADirectory("not a directory")
            # The first page at once: errors belong to the call, not to the loop over its result.
            page, more = client.list(status.st_ino, b"", with_attributes=with_attributes)
        return self._pages(path, status.st_ino, page, more=more, with_attributes=with_attributes)

    def _pages(
        self, path: StrPath, inode: int, page: Sequence[_Entry], *, more: bool, with_attributes: bool
    ) -> Iterator[_Entry]:
        yield from page
        while more and page:
            with naming(path):
                page, more = self._connection.client.list(inode, page[-1][0], with_attributes=with_attributes)
            yield from page

    def walk(
        self,
        top: StrPath,
        topdown: bool = True,  # noqa: FBT001, FBT002 (as os.walk)
        onerror: Callable[[OSError], object] | None = None,
        followlinks: bool = False,  # noqa: FBT001, FBT002
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`."""
        path = os.fsdecode(top)
        directories: list[str] = []
        files: list[str] = []
        try:
            for entry in self.scandir(path):
                (directories if entry.is_dir() else files).append(entry.name)
        except Error as error:
            if onerror is not None:
                onerror(error)
            return
        if topdown:
            yield path, directories, files
        for name in directories:
            below = os.path.join(path, name)
            if followlinks or not modes.S_ISLNK(self.lstat(below).st_mode):
                yield from self.walk(below, topdown, onerror, followlinks)
        if not topdown:
            yield path, directories, files

    def mkdir(
        self, path: StrPath, mode: int = 0o777, *, layout: Layout | None = None, umask: int | None = None
    ) -> None:
        """`layout`: what the directory hands on, instead of its parent's. `umask`: instead of the process's."""
        mask = _umask(os.getpid()) if umask is None else umask
        fields = None if layout is None else layout.fields
        with naming(path):
            self._connection.client.mkdir(_name(path), mode & ~mask, layout=fields)

    def create_small(
        self, files: Mapping[StrPath, "ReadableBuffer"], mode: int = 0o666
    ) -> dict[StrPath, Error]:
        """Make new files with their whole contents, many in one request; return the errors of those that were refused.

        A file that exists is refused, and one that is larger than the directory's layout keeps in inodes
        (`Layout.inline_bytes`, 4 KiB by default). Up to 64 files are one step: other clients see all of them or none.
        Raises: Error where the outcome of a whole request is unknown; earlier requests have been carried out.
        """
        permissions = mode & ~_umask(os.getpid())
        refused: dict[StrPath, Error] = {}
        for batch in _batches(files):
            outcomes = self._connection.client.create_small(
                [(_name(path), data) for path, data in batch], permissions
            )
            for (path, _), error in zip(batch, outcomes, strict=True):
                if error is not None:
                    assert isinstance(error, Error), "errors of the service are those of the tree"
                    error.filename = path
                    refused[path] = error
        return refused

    def makedirs(self, path: StrPath, mode: int = 0o777, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Make a directory and those above it. The metadata service makes all that are missing in one step."""
        above = _name(path) if exist_ok else os.path.dirname(_name(path).rstrip(b"/"))
        with naming(path):
            if above.strip(b"/"):
                self._connection.client.mkdir(above, mode & ~_umask(os.getpid()), parents=True)
        if not exist_ok:
            self.mkdir(path, mode)

    def rmdir(self, path: StrPath) -> None:
        """Remove an empty directory."""
        with naming(path):
            self._connection.client.rmdir(_name(path))

    def rmtree(self, path: StrPath, *, ignore_errors: bool = False) -> None:
        """Remove a directory and all that is in it; the metadata service does it. A link is not followed."""
        try:
            with naming(path):
                if not modes.S_ISDIR(self.lstat(path).st_mode):
                    raise NotADirectory("not a directory")
                self._connection.client.remove_tree(_name(path))
        except Error:
            if not ignore_errors:
                raise

    # Names.

    def rename(self, source: StrPath, target: StrPath) -> None:
        """As rename(2): an existing target of the same kind is replaced."""
        with naming(source, target):
            self._connection.client.rename(_name(source), _name(target))

    replace = rename

    def remove(self, path: StrPath) -> None:
        """Remove a name that is not a directory. The inode goes with its last name and its last open file."""
        with naming(path):
            self._connection.client.unlink(_name(path))

    unlink = remove

    def symlink(self, target: StrPath, path: StrPath) -> None:
        """Make `path` a symbolic link to `target`."""
        with naming(target, path):
            self._connection.client.symlink(_name(target), _name(path))

    def readlink(self, path: StrPath) -> str:
        """Return the target of a symbolic link."""
        with naming(path):
            return os.fsdecode(self._connection.client.readlink(_name(path)))

    def link(self, source: StrPath, target: StrPath, *, follow_symlinks: bool = False) -> None:
        """Give the inode of `source` another name."""
        with naming(source, target):
            self._connection.client.link(_name(source), _name(target), follow=follow_symlinks)

    def realpath(self, path: StrPath) -> str:
        """Return the path of a directory without links, "." and ".."."""
        with naming(path):
            return os.fsdecode(self._connection.client.real_path(_name(path)))

    # Extended attributes.

    def getxattr(self, path: StrPath, attribute: StrPath, *, follow_symlinks: bool = True) -> bytes:
        """Return the value of an extended attribute."""
        with naming(path):
            return self._connection.client.get_xattr(_name(path), _name(attribute), follow=follow_symlinks)

    def setxattr(
        self, path: StrPath, attribute: StrPath, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """`flags`: os.XATTR_CREATE or os.XATTR_REPLACE."""
        with naming(path):
            self._connection.client.set_xattr(
                _name(path), _name(attribute), bytes(value), flags=flags, follow=follow_symlinks
            )

    def listxattr(self, path: StrPath, *, follow_symlinks: bool = True) -> list[str]:
        """Return the names of the extended attributes."""
        with naming(path):
            names = self._connection.client.list_xattr(_name(path), follow=follow_symlinks)
        return [os.fsdecode(name) for name in names]

    def removexattr(self, path: StrPath, attribute: StrPath, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute."""
        with naming(path):
            self._connection.client.remove_xattr(_name(path), _name(attribute), follow=follow_symlinks)


class Listing(Closing, Iterator[DirEntry]):
    """What `scandir` returns: an iterator that may be closed, as that of `os`."""

    def __init__(self, entries: Iterator[DirEntry]) -> None:
        self._entries = entries

    def __next__(self) -> DirEntry:
        return next(self._entries)

    def close(self) -> None:
        self._entries = iter(())


def _restore(parameters: Parameters) -> FileSystem:
    return FileSystem(Connection(parameters))


def _unsigned(number: int, what: str) -> int:
    if number < 0:
        raise InvalidArgument(f"{what} is not negative: {number}")
    return number


def _buffered(file: File, size: int) -> io.BufferedRandom | io.BufferedReader | io.BufferedWriter:
    if file.readable() and file.writable():
        return io.BufferedRandom(file, size)
    return io.BufferedReader(file, size) if file.readable() else io.BufferedWriter(file, size)


__all__ = ["FileSystem", "Listing"]
