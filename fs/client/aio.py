"""The same files for asyncio: bytes move through a ring whose eventfd the event loop watches, and nothing waits for
a thread except names and attributes, which go to the loop's executor.

    data = await fs.aio.read("/a")
    async with await fs.aio.open("/b", "rb") as file:
        count = await file.read_into(buffer, offset)
    names = await fs.aio.listdir("/")            # any method of FileSystem that is not about open files
"""

import asyncio
import functools
import os
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Self, TypeVar

from .file import File
from .file_system import FileSystem, StrPath
from .ring import Operation, Ring
from .watch import AsyncWatch, follower_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

ENTRIES: Final = 256  # operations of one event loop in flight; more wait their turn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class _LoopRing:
    """A ring that one event loop watches."""

    def __init__(self, file_system: FileSystem, loop: asyncio.AbstractEventLoop) -> None:
        self._ring: Ring = file_system.ring(ENTRIES)
        self._room = asyncio.Semaphore(ENTRIES)
        self._loop = weakref.ref(loop)
        loop.add_reader(self._ring.fileno(), self._on_ready)

    async def run(self, operation: Operation) -> int:
        """Carry out one operation; return its bytes. Raises: OSError."""
        async with self._room:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            taken = self._ring.submit([operation._replace(user_data=future)])
            assert taken == 1, "the semaphore has as many places as the ring"
            # The ring uses the buffer until the end: a cancelled caller waits for it.
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait([future])
                raise

    def _on_ready(self) -> None:
        for done in self._ring.drain():
            future = done.user_data
            if future.cancelled():
                continue
            try:
                future.set_result(done.moved)
            except OSError as error:
                future.set_exception(error)

    def close(self) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._ring.fileno())
        self._ring.close()


class AsyncFile:
    """An open file without a position. Made by `AsyncFileSystem.open`."""

    def __init__(self, file_system: "AsyncFileSystem", file: File) -> None:
        self._file_system = file_system
        self.file = file

    async def read_into(self, buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fill `buffer` from `offset`; return the number of bytes, fewer only at the end of the file."""
        return await self._file_system.run(Operation(self.file, offset, buffer))

    async def read(self, size: int = -1, offset: int = 0) -> bytes:
        """Up to `size` bytes from `offset`, all by default."""
        left = max(0, self.file.stat().st_size - offset)
        buffer = bytearray(left if size < 0 else min(size, left))
        count = await self.read_into(buffer, offset) if buffer else 0
        return bytes(memoryview(buffer)[:count])

    async def write(self, data: "ReadableBuffer", offset: int) -> int:
        """Write all of `data` at `offset`; every replica has it afterwards."""
        return await self._file_system.run(Operation(self.file, offset, data, write=True))

    async def flush(self) -> None:
        """Write back buffered bytes, as `File.flush`."""
        await _in_thread(self.file.flush)

    async def fsync(self, *, data_only: bool = False) -> None:
        """Write back and make durable on every replica, as `File.fsync`."""
        await _in_thread(functools.partial(self.file.fsync, data_only=data_only))

    async def truncate(self, length: int) -> None:
        """Cut or extend the file to `length` bytes."""
        await _in_thread(functools.partial(self.file.truncate, length))

    async def close(self) -> None:
        """Write back buffered bytes and close the file."""
        await _in_thread(self.file.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _in_executor(
    method: Callable[Concatenate[FileSystem, Parameters], Result],
) -> Callable[Concatenate["AsyncFileSystem", Parameters], Coroutine[object, None, Result]]:
    """Return the coroutine function that does what a method of FileSystem does."""

    @functools.wraps(method)
    async def call(
        self: "AsyncFileSystem", /, *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        return await _in_thread(functools.partial(method, self._file_system, *arguments, **named))

    return call


class AsyncFileSystem:
    """`FileSystem.aio`. May be used by several event loops; each gets its own ring."""

    stat = _in_executor(FileSystem.stat)
    lstat = _in_executor(FileSystem.lstat)
    exists = _in_executor(FileSystem.exists)
    isdir = _in_executor(FileSystem.isdir)
    isfile = _in_executor(FileSystem.isfile)
    chmod = _in_executor(FileSystem.chmod)
    chown = _in_executor(FileSystem.chown)
    utime = _in_executor(FileSystem.utime)
    truncate = _in_executor(FileSystem.truncate)
    statvfs = _in_executor(FileSystem.statvfs)
    listdir = _in_executor(FileSystem.listdir)
    mkdir = _in_executor(FileSystem.mkdir)
    create_small = _in_executor(FileSystem.create_small)
    makedirs = _in_executor(FileSystem.makedirs)
    rmdir = _in_executor(FileSystem.rmdir)
    rmtree = _in_executor(FileSystem.rmtree)
    rename = _in_executor(FileSystem.rename)
    replace = _in_executor(FileSystem.replace)
    remove = _in_executor(FileSystem.remove)
    unlink = _in_executor(FileSystem.unlink)
    symlink = _in_executor(FileSystem.symlink)
    readlink = _in_executor(FileSystem.readlink)
    link = _in_executor(FileSystem.link)
    realpath = _in_executor(FileSystem.realpath)
    getxattr = _in_executor(FileSystem.getxattr)
    setxattr = _in_executor(FileSystem.setxattr)
    listxattr = _in_executor(FileSystem.listxattr)
    removexattr = _in_executor(FileSystem.removexattr)
    layout = _in_executor(FileSystem.layout)
    set_layout = _in_executor(FileSystem.set_layout)
    default_layout = _in_executor(FileSystem.default_layout)
    flush = _in_executor(FileSystem.flush)

    def __init__(self, file_system: FileSystem) -> None:
        self._file_system = file_system
        self._rings: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopRing] = (
            weakref.WeakKeyDictionary()
        )

    async def open(
        self, path: StrPath, mode: str = "rb", *, direct: bool = False, permissions: int = 0o666
    ) -> AsyncFile:
        """Open a file, in binary."""
        if "b" not in mode:
            raise ValueError("asynchronous files are binary: add 'b' to the mode")
        file = await _in_thread(
            functools.partial(self._file_system.open, path, mode, direct=direct, permissions=permissions)
        )
        assert isinstance(file, File), "binary files are not wrapped"
        return AsyncFile(self, file)

    async def read_into(self, path: StrPath, buffer: "WriteableBuffer", offset: int = 0) -> int:
        """Fill `buffer` from `offset` of a file; return the number of bytes, fewer only at its end."""
        async with await self.open(path) as file:
            return await file.read_into(buffer, offset)

    async def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        """Return the bytes of a file, all by default."""
        async with await self.open(path) as file:
            return await file.read(size, offset)

    async def write(self, path: StrPath, data: "ReadableBuffer", *, permissions: int = 0o666) -> int:
        """Make `data` the whole content of a file; return its length."""
        async with await self.open(path, "wb", permissions=permissions) as file:
            return await file.write(data, 0) if memoryview(data).nbytes else 0

    async def watch(
        self, path: StrPath, *, after: str | None = None, recursive: bool = True, manager: str | None = None
    ) -> AsyncWatch:
        """As `FileSystem.watch`: `async with await fs.aio.watch(path) as watch: async for change in watch: …`."""
        parameters = self._file_system.connection.parameters
        follower = follower_of(
            parameters, os.fsdecode(path), after=after, recursive=recursive, manager=manager
        )
        watch = AsyncWatch(parameters, follower)
        try:
            await watch.begin()
        except BaseException:
            await watch.close()
            raise
        return watch

    async def run(self, operation: Operation) -> int:
        """Carry out one operation of a ring."""
        loop = asyncio.get_running_loop()
        ring = self._rings.get(loop)
        if ring is None:
            ring = self._rings[loop] = _LoopRing(self._file_system, loop)
        return await ring.run(operation)

    async def close(self) -> None:
        """End this event loop's ring. The file system stays open."""
        ring = self._rings.pop(asyncio.get_running_loop(), None)
        if ring is not None:
            await _in_thread(ring.close)


async def _in_thread(work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(None, work)


__all__ = ["AsyncFile", "AsyncFileSystem"]
