"""The bytes of files: opened, read by ranges, and written as a whole."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from ...errors import NotFound
from ..file import File
from .files import AsyncStream, CachedFile, OpenFile, Replacement, Updater, Writer, destination, wrapped
from .names import Names
from .paths import Place
from .ranges import Range, RangeReader, bounds
from .threads import in_thread, parts

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COPY_BYTES: Final = (
    512 << 10
)  # a piece of a file on its way: the client reads ahead what is read by less than 1 MiB
SMALL_BYTES: Final = 4 << 10  # by default such files are kept in inodes
IDLE_READERS: Final = 2  # kept from one batch of ranges to the next
BINARY_MODES: Final = {  # as they may be written, and as they are meant
    f"{letter}{rest}": f"{letter}b{'+' * (len(rest) - 1)}" for letter in "rwax" for rest in ("b", "b+", "+b")
}

LocalPath: TypeAlias = str | os.PathLike[str]


class Sink(Protocol):
    """What bytes are copied to."""

    def write(self, data: memoryview, /) -> object: ...


class Contents(Names):
    """Every method without an event loop, except `open_async`."""

    @property
    def _idle(self) -> list[RangeReader]:
        # Atomic. A cached_property has a lock, which a forked child could inherit from a thread that it does not have.
        readers: list[RangeReader] = self.__dict__.setdefault("_idle_readers", [])
        return readers

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, object] | None = None,
        *,
        cache_type: str | None = None,
        atomic: bool = False,
        direct: bool = False,
        permissions: int = 0o666,
        **_: object,
    ) -> OpenFile | CachedFile:
        """`cache_type`, `cache_options`: one of fsspec's caches; by default the client reads ahead itself.

        `atomic`: the file has its name when it is closed, and never if the block it is open in ends by an error.
        `direct`, `permissions`: as for `FileSystem.open`. `block_size`: of the buffer for small reads and writes.
        """
        if mode not in BINARY_MODES:
            raise ValueError(f"not a mode: {mode!r}")
        mode = BINARY_MODES[mode]
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size is at least one byte, not {block_size}")
        place = self._place(path)
        if mode == "rb":
            raw = self._raw(place.path, mode, direct=direct)
            if cache_type is None and not cache_options:
                return wrapped(self, raw, place.name, block_size)
            cache = {"cache_type": cache_type or "readahead", "cache_options": cache_options}
            return CachedFile(self, raw, place.name, block_size=block_size, **cache)
        if not autocommit or atomic:
            return self._open_aside(place, mode, block_size, autocommit=autocommit, permissions=permissions)
        self.invalidate_cache(path)
        raw = self._raw(place.path, mode, direct=direct, permissions=permissions)
        return wrapped(self, raw, place.name, block_size)

    def _open_aside(
        self, place: Place, mode: str, block_size: int | None, *, autocommit: bool, permissions: int
    ) -> Writer | Updater:
        file = self._aside(place, mode, commits=autocommit, block_size=block_size, permissions=permissions)
        if not autocommit and mode.startswith("r"):
            self.transaction.files.append(file)  # fsspec does it for the other modes
        return file

    def _raw(self, path: str, mode: str, *, direct: bool = False, permissions: int = 0o666) -> File:
        try:
            file = self.files.open(path, mode, direct=direct, permissions=permissions)
        except NotFound:
            if mode.startswith("r") or not self._make_parent(path):
                raise
            file = self.files.open(path, mode, direct=direct, permissions=permissions)
        assert isinstance(file, File), "binary files are not wrapped"
        return file

    def _aside(
        self,
        place: Place,
        mode: str,
        *,
        commits: bool,
        block_size: int | None = None,
        permissions: int = 0o666,
    ) -> Writer | Updater:
        """A hidden file that becomes the one at `place`. Modes that keep what is there begin with a copy of it."""
        old = destination(self.files, place.path) if mode[0] in "ra" else (place.path, None)
        if mode[0] == "r" and old[1] is None:
            raise NotFound("no such file", path=place.path)
        replacement = Replacement.of(self.files, place.path, exclusive=mode[0] == "x")
        raw = self._raw(replacement.temporary, "x" + mode[1:], permissions=permissions)
        try:
            if old[1] is not None:
                self._copy_bytes(old[0], raw)
                raw.seek(0, os.SEEK_SET if mode[0] == "r" else os.SEEK_END)
            file = wrapped(self, raw, place.name, block_size)
        except BaseException:
            raw.close()
            replacement.discard(self.files)
            raise
        assert isinstance(file, Writer | Updater), "it was opened to write"
        return file.write_aside(replacement, commits=commits)

    def _copy_bytes(self, source: str, target: Sink, callback: Callback = DEFAULT_CALLBACK) -> None:
        buffer = memoryview(bytearray(COPY_BYTES))
        with self._raw(source, "rb") as file:
            callback.set_size(file.native.length())
            while count := file.readinto(buffer):
                target.write(buffer[:count])
                callback.relative_update(count)

    @contextlib.contextmanager
    def _whole(self, path: object, *, exclusive: bool = False) -> Iterator[Writer | Updater]:
        """A new file, which takes its name at the end: of the block, or of the transaction (F2)."""
        mode = "xb" if exclusive else "wb"
        file = self._aside(self._place(path), mode, commits=not self._intrans, block_size=COPY_BYTES)
        try:
            yield file
            file.close()
        except BaseException:
            file.discard()
            raise
        if self._intrans:
            self.transaction.files.append(file)

    async def open_async(self, path: str, mode: str = "rb", **options: object) -> AsyncStream:
        """A file with a position for asyncio: `await file.read(n)`, `await file.write(data)`, `await file.close()`."""
        if mode not in ("rb", "wb", "ab", "xb"):
            raise ValueError(f"asynchronous files are rb, wb, ab or xb, not {mode!r}")
        file = await in_thread(self.open, path, mode, **options)
        return AsyncStream(self, file, self._place(path).name, mode)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        """Return the bytes of a file, or of its slice [start:end]."""
        with self._raw(self._path(path), "rb") as file:
            offset, length = bounds(start, end, file.native.length())
            return file.pread(length, offset)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Iterable[int | None] | None,
        ends: int | Iterable[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: object,
    ) -> list[bytes | OSError]:
        """Return the slice [start:end] of each path: files are opened once, and all ranges are in flight together.

        `max_gap`: ranges that are nearer than this become one. `on_error`: "return" puts an error in the place of the
        bytes, "raise" raises the first.
        """
        if not isinstance(paths, list):
            raise TypeError(f"paths are a list, not {type(paths).__name__}")
        firsts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        lasts = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(firsts) == len(lasts) == len(paths):
            raise ValueError(f"{len(paths)} paths, {len(firsts)} starts and {len(lasts)} ends")
        names = [self._path(path) for path in paths]
        results = self._read_ranges(names, firsts, lasts, max_gap)
        if on_error != "return":
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    def _read_ranges(
        self, names: list[str], starts: list[int | None], ends: list[int | None], max_gap: int | None
    ) -> list[bytes | OSError]:
        with contextlib.ExitStack() as stack:
            opened = self._open_all(dict.fromkeys(names))
            for file in opened.values():
                if isinstance(file, File):
                    stack.callback(_close_read, file)
            results: list[bytes | OSError] = []
            ranges: dict[int, Range] = {}  # by their place in the results
            for name, start, end in zip(names, starts, ends, strict=True):
                file = opened[name]
                if isinstance(file, File):
                    ranges[len(results)] = Range(file, *bounds(start, end, file.native.length()))
                results.append(b"" if isinstance(file, File) else file)
            for index, result in zip(ranges, self._read(list(ranges.values()), max_gap), strict=True):
                results[index] = result
            return results

    def _open_all(self, names: Iterable[str]) -> dict[str, File | OSError]:
        wanted = list(names)
        if len(wanted) == 1:
            return {wanted[0]: self._open_or_error(wanted[0])}
        return dict(zip(wanted, parts().map(self._open_or_error, wanted), strict=True))

    def _open_or_error(self, name: str) -> File | OSError:
        try:
            return self._raw(name, "rb")
        except OSError as error:
            return error

    def _read(self, ranges: Sequence[Range], max_gap: int | None) -> list[bytes | OSError]:
        reader = self._take_reader()
        results = reader.read(ranges) if max_gap is None else _read_merged(reader, ranges, max_gap)
        if len(self._idle) < IDLE_READERS:
            self._idle.append(reader)
        return results

    def _take_reader(self) -> RangeReader:
        files = self.files
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                reader = self._idle.pop()
                if reader.files is files and reader.process == os.getpid():
                    return reader
        return RangeReader(files)

    def cat(
        self,
        path: object,
        recursive: bool = False,
        on_error: str = "raise",
        *,
        start: int | None = None,
        end: int | None = None,
        **_: object,
    ) -> bytes | OSError | dict[str, bytes | OSError]:
        """The bytes of a file, or a dictionary of them by path for several: read together, as `cat_ranges` does."""
        names = self.expand_path(path, recursive=recursive)
        if recursive:
            names = [name for name in names if not self.isdir(name)]
        found = self.cat_ranges(names, start, end, on_error="raise" if on_error == "raise" else "return")
        if len(names) == 1 and not isinstance(path, list) and names[0] == self._strip_protocol(path):
            return found[0]
        return {
            name: data
            for name, data in zip(names, found, strict=True)
            if on_error != "omit" or not isinstance(data, Exception)
        }

    def pipe_file(self, path: str, value: "ReadableBuffer", mode: str = "overwrite", **_: object) -> None:
        """Make `value` the whole content of a file, in one step: others see the old or the new.

        `mode`: "create" raises FileExistsError if there is one.
        """
        if mode not in ("overwrite", "create"):
            raise ValueError(f'mode is "overwrite" or "create", not {mode!r}')
        with self._whole(path, exclusive=mode == "create") as file:
            file.write(value)

    def pipe(
        self,
        path: str | dict[str, "ReadableBuffer"],
        value: "ReadableBuffer | None" = None,
        mode: str = "overwrite",
        **_: object,
    ) -> None:
        """Write one file, or each of a dictionary, as `pipe_file` does. New small files are sent 64 a request."""
        if isinstance(path, str):
            assert value is not None, "one path has one value"
            self.pipe_file(path, value, mode)
            return
        left = path
        if mode in ("overwrite", "create") and not self._intrans:
            left = self._without_new_small_files(path)
        list(parts().map(lambda each: self.pipe_file(each, path[each], mode), left))

    def _without_new_small_files(self, contents: dict[str, "ReadableBuffer"]) -> dict[str, "ReadableBuffer"]:
        """Make those of the files that are small and new; return the others, also those with an error."""
        small = {
            self._path(path): (path, data)
            for path, data in contents.items()
            if memoryview(data).nbytes <= SMALL_BYTES
        }
        if len(small) < 2:
            return contents
        refused = self.files.create_small({name: data for name, (_, data) in small.items()})
        made = {path for name, (path, _) in small.items() if name not in refused}
        for path in made:
            self.invalidate_cache(path)
        return {path: data for path, data in contents.items() if path not in made}

    def cp_file(self, path1: str, path2: str, **_: object) -> None:
        """Copy one file, or make a directory where `path1` is one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self._whole(path2) as file:
            self._copy_bytes(self._path(path1), file)

    def get_file(
        self,
        rpath: str,
        lpath: LocalPath | Sink,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Sink | None = None,
        **_: object,
    ) -> None:
        """Copy one file to this machine, to a path or an open file; or make a directory where `rpath` is one."""
        source = self._path(rpath)
        target = lpath if outfile is None else outfile
        if not isinstance(target, str | os.PathLike):
            self._copy_bytes(source, target, callback)
        elif self.isdir(rpath):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
            with open(target, "wb") as file:
                self._copy_bytes(source, file, callback)

    def put_file(
        self,
        lpath: str | os.PathLike[str],
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **_: object,
    ) -> None:
        """Copy one file of this machine here, in one step (`pipe_file`); or make a directory."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        buffer = memoryview(bytearray(COPY_BYTES))
        with open(lpath, "rb", buffering=0) as source, self._whole(rpath, exclusive=mode == "create") as file:
            callback.set_size(os.fstat(source.fileno()).st_size)
            while count := source.readinto(buffer):
                file.write(buffer[:count])
                callback.relative_update(count)

    def touch(self, path: str, truncate: bool = True, **_: object) -> None:
        """Make an empty file; of one that is there, empties it (`truncate`) or set its times to now."""
        self.invalidate_cache(path)
        path = self._path(path)
        with self._raw(path, "wb" if truncate else "ab"):
            pass
        if not truncate:
            self.files.utime(path)


def _close_read(file: File) -> None:
    with contextlib.suppress(OSError):  # nothing was written
        file.close()


def _read_merged(reader: RangeReader, ranges: Sequence[Range], max_gap: int) -> list[bytes | OSError]:
    """As `RangeReader.read`; ranges of one file that are at most `max_gap` bytes apart are one read."""
    order = sorted(range(len(ranges)), key=lambda index: (id(ranges[index].file), ranges[index].offset))
    merged: list[Range] = []
    place = [0] * len(ranges)
    for index in order:
        wanted = ranges[index]
        end = wanted.offset + wanted.length
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.file is wanted.file
            and wanted.offset <= last.offset + last.length + max_gap
        ):
            merged[-1] = Range(last.file, last.offset, max(last.length, end - last.offset))
        else:
            merged.append(wanted)
        place[index] = len(merged) - 1
    found = reader.read(merged)
    results: list[bytes | OSError] = []
    for index, wanted in enumerate(ranges):
        data = found[place[index]]
        if isinstance(data, bytes):
            first = wanted.offset - merged[place[index]].offset
            data = data[first : first + wanted.length]
        results.append(data)
    return results


__all__ = ["Contents"]
