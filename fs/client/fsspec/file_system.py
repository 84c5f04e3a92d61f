"""`LuciolaFileSystem`: what fsspec finds behind `luciola://`.

F1  Nothing is cached but connections, unless `use_listings_cache` asks for it: every call sees what others have done.
F2  A file that is written as a whole (pipe, put, copy) has its name when it is complete, and never before.
F3  An instance is its storage options. It may be pickled and used after fork; what an environment variable said when
    it was made goes with it.
F4  Every name without "_" works without an event loop, and so within one; those with "_" are coroutines.
"""

import contextlib
import datetime as dt
import hashlib
import os
import posixpath
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from glob import has_magic
from typing import Any, Final

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.config import apply_config
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from ...config import ClientConfig
from ...errors import AlreadyExists, InvalidArgument, IsADirectory, NotADirectory, NotEmpty, NotFound
from ..attributes import Stat
from ..connection import naming
from ..file import File
from ..file_system import FileSystem
from ..location import Location, open_location
from .files import AsyncStream, CachedFile, Replacement, Updater, Writer, wrapped
from .paths import Info, info_of, kind, resolved_cluster, split_url
from .ranges import Range, RangeReader, bounds
from .threads import awaitable, in_thread, parts

COPY_BYTES: Final = (
    512 << 10
)  # a piece of a file on its way: the client reads ahead what is read by less than 1 MiB
IDLE_READERS: Final = 2  # kept from one batch of ranges to the next
BINARY_MODES: Final = {  # as they may be written, and as they are meant
    f"{letter}{rest}": f"{letter}b{'+' * (len(rest) - 1)}" for letter in "rwax" for rest in ("b", "b+", "+b")
}


class _Resolved(type(AsyncFileSystem)):  # type: ignore[misc]
    """Storage options are made complete before fsspec compares, caches and pickles them (F3)."""

    def __call__(cls, cluster: Any = None, **options: Any) -> Any:
        options = apply_config(cls, {**options, **({} if cluster is None else {"cluster": cluster})})
        options["cluster"], secret_file = resolved_cluster(options.get("cluster"), options.get("secret_file"))
        options.pop("secret_file", None)
        if secret_file is not None:
            options["secret_file"] = secret_file
        return super().__call__(**options)


class LuciolaFileSystem(AsyncFileSystem, metaclass=_Resolved):  # type: ignore[misc]
    """The files of a cluster for fsspec and all that is built on it.

    cluster: its data directory on this machine, or HOST:PORT of its manager; by default what LUCIOLA_DATA or
        LUCIOLA_ADDRESS names. A URL may name it instead: luciola:///DATA_DIR!/path, luciola://HOST:PORT/path.
    secret_file, token, config: as for `luciola.connect`; `config` may be a mapping of the [client] table.
    auto_mkdir: whether writing a file makes the directories above it that are missing.
    use_listings_cache: whether `ls` may answer from earlier listings, for `listings_expiry_time` seconds.
    """

    protocol = "luciola"
    root_marker = "/"
    cachable = True
    _pid: int

    def __init__(
        self,
        cluster: str,
        *,
        secret_file: str | None = None,
        token: str | None = None,
        config: ClientConfig | Mapping[str, Any] | None = None,
        auto_mkdir: bool = True,
        use_listings_cache: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(use_listings_cache=use_listings_cache, **options)
        self.cluster = cluster
        self.auto_mkdir = auto_mkdir
        self._secret_file = secret_file
        self._token = token
        self._config = ClientConfig(**config) if isinstance(config, Mapping) else config
        self._files: FileSystem | None = None
        self._idle: list[RangeReader] = []
        # A URL of another cluster must not name a file of this one.
        self._strip_protocol = self._own_path  # type: ignore[method-assign]

    @property
    def files(self) -> FileSystem:
        """The cluster's own interface. Connects if need be; the connection is that of `open_location`."""
        files = self._files
        if files is None or files.connection.is_closed:
            location = Location("/", self.cluster, self._secret_file)
            opened, _ = open_location(location, token=self._token, config=self._config)
            assert isinstance(opened, FileSystem), "the location names a cluster"
            files = self._files = opened
        return files

    @property
    def loop(self) -> Any:
        """fsspec's event loop. A forked child gets its own."""
        if self._pid != os.getpid():
            self._loop = None if self.asynchronous else get_loop()
            self._pid = os.getpid()
        return self._loop

    @property
    def fsid(self) -> str:
        return f"luciola-{self.files.cluster_id}"

    # URLs.

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return split_url(_text(path))[1]

    def _own_path(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._own_path(each) for each in path]
        cluster, path = split_url(_text(path))
        if cluster is not None and cluster != self.cluster:
            raise InvalidArgument(
                f"a file of the cluster {cluster}, not of {self.cluster}: open it by its URL", path=path
            )
        return path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        cluster, _ = split_url(path)
        return {} if cluster is None else {"cluster": cluster}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path."""
        return str(Location(self._strip_protocol(name), self.cluster))

    # What is there.

    def info(self, path: str, **_: Any) -> Info:
        """name, size, type ("file", "directory", "link", "other"), created, mtime, mode, uid, gid, ino, nlink, islink.

        For a link, those of what it leads to. Raises: FileNotFoundError, also for a link that leads nowhere.
        """
        path = self._strip_protocol(path)
        return self._info_of(path, self._stat(path, follow=False))

    def _stat(self, path: str, *, follow: bool) -> Stat:
        with naming(path):
            return Stat(*self.files.connection.client.stat(os.fsencode(path), follow=follow))

    def _info_of(self, path: str, stat: Stat) -> Info:
        if kind(stat) != "link":
            return info_of(path, stat)
        return info_of(
            path, stat, target=self._stat(path, follow=True), destination=self.files.readlink(path)
        )

    def ls(self, path: str, detail: bool = True, *, follow_links: bool = True, **_: Any) -> list[Any]:
        """What is in a directory, in the order of the names' bytes; of a file, the file itself.

        `follow_links`: whether a link to a directory is told as "directory"; else it is a "link".
        """
        path = self._strip_protocol(path)
        stat = self._stat(path, follow=True)
        if kind(stat) != "directory":
            return [self.info(path)] if detail else [path]
        if not detail:
            return [_join(path, name) for name, _ in self._list(path, stat.inode, attributes=False)]
        found = self.dircache.get(path) if self.dircache.use_listings_cache else None
        if found is None:
            found = list(self._entries(path, stat.inode))
            self.dircache[path] = found
        if follow_links:
            return list(found)
        return [{**each, "type": "link"} if _is_linked_directory(each) else each for each in found]

    def _entries(self, path: str, inode: int) -> Iterator[Info]:
        for name, attributes in self._list(path, inode, attributes=True):
            below = _join(path, name)
            try:
                stat = self._stat(below, follow=False) if attributes is None else Stat(*attributes)
            except NotFound:
                continue  # removed since it was listed
            try:
                yield self._info_of(below, stat)
            except (NotFound, NotADirectory, InvalidArgument):
                yield info_of(below, stat)  # a link that leads nowhere

    def _list(self, path: str, inode: int, *, attributes: bool) -> Iterator[tuple[bytes, Any]]:
        client = self.files.connection.client
        after, more = b"", True
        while more:
            with naming(path):
                page, more = client.list(inode, after, with_attributes=attributes)
            yield from ((name, found) for name, _, _, found in page)
            more = more and bool(page)
            after = page[-1][0] if page else b""

    def exists(self, path: str, **_: Any) -> bool:
        """False for a link that leads nowhere. Raises: what is not about the path, such as a cluster that is down."""
        return self._kind(path) is not None

    def lexists(self, path: str, **_: Any) -> bool:
        return self._kind(path, follow=False) is not None

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def islink(self, path: str) -> bool:
        return self._kind(path, follow=False) == "link"

    def _kind(self, path: str, *, follow: bool = True) -> str | None:
        _ = self.files.connection.client  # a cluster that is not found is not a file that is not found
        try:
            return kind(self._stat(self._strip_protocol(path), follow=follow))
        except (NotFound, NotADirectory):
            return None

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **options: Any,
    ) -> Iterator[Any]:
        """As `os.walk`; links to directories are not followed and count as files."""
        options.setdefault("follow_links", False)
        return AbstractFileSystem.walk(self, path, maxdepth, topdown, on_error, **options)  # type: ignore[no-any-return]

    async def _walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **options: Any,
    ) -> AsyncIterator[Any]:
        options.setdefault("follow_links", False)
        async for each in super()._walk(path, maxdepth, topdown, on_error, **options):
            yield each

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **options: Any,
    ) -> Any:
        """The files below a directory (or the file itself), sorted."""
        return AbstractFileSystem.find(self, path, maxdepth, withdirs, detail, **options)

    def glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        return AbstractFileSystem.glob(self, path, maxdepth, **options)

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any
    ) -> list[str]:
        return AbstractFileSystem.expand_path(self, path, recursive, maxdepth, **options)  # type: ignore[no-any-return]

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **options: Any,
    ) -> Any:
        """Bytes in the files below a path, or a dictionary of them by path."""
        found = self.find(path, maxdepth, withdirs, detail=True, **options)
        sizes = {name: (info or self.info(name))["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def size(self, path: str) -> int:
        return int(self.info(path)["size"])

    def created(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["created"], tz=dt.UTC)

    def modified(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["mtime"], tz=dt.UTC)

    def ukey(self, path: str) -> str:
        """Changes with every change of the file that others can see."""
        info = self.info(path)
        parts = [info[name] for name in ("ino", "size", "mtime_ns", "ctime_ns")]
        return hashlib.sha256(repr((self.fsid, parts)).encode()).hexdigest()

    def checksum(self, path: str) -> int:
        """`ukey` as a number."""
        return int(self.ukey(path), 16)

    # Files.

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        *,
        cache_type: str | None = None,
        atomic: bool = False,
        direct: bool = False,
        permissions: int = 0o666,
        **_: Any,
    ) -> Any:
        """`cache_type`, `cache_options`: one of fsspec's caches; by default the client reads ahead itself.

        `atomic`: the file has its name when it is closed, and never if the block it is open in ends by an error.
        `direct`, `permissions`: as for `FileSystem.open`. `block_size`: of the buffer for small reads and writes.
        """
        if mode not in BINARY_MODES:
            raise ValueError(f"not a mode: {mode!r}")
        mode = BINARY_MODES[mode]
        if mode == "rb":
            raw = self._raw(path, mode, direct=direct)
            if cache_type is None and not cache_options:
                return wrapped(self, raw, path, block_size)
            return CachedFile(
                self,
                raw,
                path,
                block_size=block_size,
                cache_type=cache_type or "readahead",
                cache_options=cache_options,
            )
        if autocommit and not atomic:
            self.invalidate_cache(path)
            return wrapped(
                self, self._raw(path, mode, direct=direct, permissions=permissions), path, block_size
            )
        file = self._aside(
            path, mode, commits=autocommit, direct=direct, permissions=permissions, block_size=block_size
        )
        if not autocommit and mode.startswith("r"):
            self.transaction.files.append(file)  # fsspec does it for the other modes
        return file

    def _raw(self, path: str, mode: str, **options: Any) -> File:
        try:
            return self.files.open(path, mode, **options)  # type: ignore[return-value]
        except NotFound:
            if mode.startswith("r") or not self._make_parent(path):
                raise
            return self.files.open(path, mode, **options)  # type: ignore[return-value]

    def _make_parent(self, path: str) -> bool:
        """Whether the directory above is there now: this call may have made it, or another one."""
        if self.auto_mkdir:
            self.files.makedirs(posixpath.dirname(path), exist_ok=True)
        return self.auto_mkdir

    def _aside(
        self, path: str, mode: str, *, commits: bool, block_size: int | None = None, **options: Any
    ) -> Writer | Updater:
        """A hidden file that becomes `path`. Modes that keep what is there begin with a copy of it."""
        replacement = Replacement.of(self.files, path, exclusive=mode.startswith("x"))
        keeps = mode[0] in "ra"
        if mode[0] == "r" and replacement.replaced is None:
            raise NotFound("no such file", path=path)
        raw = self._raw(replacement.temporary, "x" + ("b+" if "+" in mode else "b"), **options)
        try:
            if keeps and replacement.replaced is not None:
                self._copy_bytes(replacement.path, raw)
                raw.seek(0, os.SEEK_SET if mode[0] == "r" else os.SEEK_END)
            file = wrapped(self, raw, path, block_size)
        except BaseException:
            raw.close()
            replacement.discard(self.files)
            raise
        assert isinstance(file, Writer | Updater), "it was opened to write"
        return file.write_aside(replacement, commits=commits)

    def _copy_bytes(self, source: str, target: Any, callback: Any = DEFAULT_CALLBACK) -> None:
        buffer = memoryview(bytearray(COPY_BYTES))
        with self.files.open(source, "rb") as file:
            callback.set_size(file.native.length())  # type: ignore[attr-defined]
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                target.write(buffer[:count])
                callback.relative_update(count)

    @contextlib.contextmanager
    def _whole(self, path: str, *, exclusive: bool = False) -> Iterator[Writer | Updater]:
        """A new file, which takes its name at the end: of the block, or of the transaction (F2)."""
        file = self._aside(
            path, "xb" if exclusive else "wb", commits=not self._intrans, block_size=COPY_BYTES
        )
        try:
            yield file
            file.close()
        except BaseException:
            file.discard()
            raise
        if self._intrans:
            self.transaction.files.append(file)

    async def open_async(self, path: str, mode: str = "rb", **options: Any) -> AsyncStream:
        """A file with a position for asyncio: `await file.read(n)`, `await file.write(data)`, `await file.close()`."""
        if mode not in ("rb", "wb", "ab", "xb"):
            raise ValueError(f"asynchronous files are rb, wb, ab or xb, not {mode!r}")
        file = await in_thread(self.open, path, mode, **options)
        return AsyncStream(self, file, self._strip_protocol(path), mode)

    in_thread = staticmethod(in_thread)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file, or of its slice [start:end]."""
        path = self._strip_protocol(path)
        with self._raw(path, "rb") as file:
            offset, length = bounds(start, end, file.native.length())
            return file.pread(length, offset)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Iterable[int | None] | None,
        ends: int | Iterable[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """The slice [start:end] of each path: files are opened once, and all ranges are in flight together.

        `max_gap`: ranges that are nearer than this become one. `on_error`: "return" puts an error in the place of the
        bytes, "raise" raises the first.
        """
        if not isinstance(paths, list):
            raise TypeError(f"paths are a list, not {type(paths).__name__}")
        firsts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        lasts = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(firsts) == len(lasts) == len(paths):
            raise ValueError(f"{len(paths)} paths, {len(firsts)} starts and {len(lasts)} ends")
        names = [self._strip_protocol(path) for path in paths]
        results = self._read_ranges(names, firsts, lasts, max_gap)
        if on_error != "return":
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    def _read_ranges(
        self, names: list[str], starts: list[Any], ends: list[Any], max_gap: int | None
    ) -> list[Any]:
        with contextlib.ExitStack() as stack:
            opened = self._open_all(dict.fromkeys(names))
            for file in opened.values():
                if isinstance(file, File):
                    stack.callback(_close_read, file)
            results: list[Any] = [opened[name] for name in names]
            good = [index for index, file in enumerate(results) if isinstance(file, File)]
            ranges = [
                Range(results[i], *bounds(starts[i], ends[i], results[i].native.length())) for i in good
            ]
            for index, result in zip(good, self._read(ranges, max_gap), strict=True):
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

    def _read(self, ranges: Sequence[Range], max_gap: int | None) -> list[Any]:
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

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """The bytes of a file, or a dictionary of them by path for several: read together, as `cat_ranges` does."""
        names = self.expand_path(path, recursive=recursive)
        if recursive:
            names = [name for name in names if not self.isdir(name)]
        start, end = options.get("start"), options.get("end")
        found = self.cat_ranges(names, start, end, on_error="raise" if on_error == "raise" else "return")
        if len(names) == 1 and not isinstance(path, list) and names[0] == self._strip_protocol(path):
            return found[0]
        return {
            name: data
            for name, data in zip(names, found, strict=True)
            if on_error != "omit" or not isinstance(data, Exception)
        }

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Makes `value` the whole content of a file, in one step: others see the old or the new.

        `mode`: "create" raises FileExistsError if there is one.
        """
        if mode not in ("overwrite", "create"):
            raise ValueError(f'mode is "overwrite" or "create", not {mode!r}')
        with self._whole(self._strip_protocol(path), exclusive=mode == "create") as file:
            file.write(value)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies one file, or makes a directory where `path1` is one."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(path1):
            self.files.makedirs(path2, exist_ok=True)
            return
        with self._whole(path2) as file:
            self._copy_bytes(path1, file)

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        """Copies one file to this machine, to a path or an open file; or makes a directory where `rpath` is one."""
        rpath = self._strip_protocol(rpath)
        outfile = lpath if outfile is None and isfilelike(lpath) else outfile
        if outfile is not None:
            self._copy_bytes(rpath, outfile, callback)
        elif self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb", buffering=0) as target:
                self._copy_bytes(rpath, target, callback)

    def put_file(
        self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """Copies one file of this machine here, in one step (`pipe_file`); or makes a directory."""
        rpath = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        buffer = memoryview(bytearray(COPY_BYTES))
        with open(lpath, "rb", buffering=0) as source, self._whole(rpath, exclusive=mode == "create") as file:
            callback.set_size(os.fstat(source.fileno()).st_size)
            while count := source.readinto(buffer):
                file.write(buffer[:count])
                callback.relative_update(count)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Makes an empty file; of one that is there, empties it (`truncate`) or sets its times to now."""
        path = self._strip_protocol(path)
        self.invalidate_cache(path)
        with self._raw(path, "wb" if truncate else "ab"):
            pass
        if not truncate:
            self.files.utime(path)

    # Names.

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Raises: FileExistsError."""
        path = self._strip_protocol(path)
        self.invalidate_cache(path)
        if create_parents:
            self.files.makedirs(path)
        else:
            self.files.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Raises: FileExistsError, also with `exist_ok` for something that is not a directory."""
        path = self._strip_protocol(path)
        self.invalidate_cache(path)
        try:
            self.files.makedirs(path, exist_ok=exist_ok)
        except NotADirectory as error:
            if self.isfile(path):
                raise AlreadyExists("a file of this name is there", path=path) from error
            raise

    def rmdir(self, path: str) -> None:
        """Raises: OSError (ENOTEMPTY) if something is in it."""
        path = self._strip_protocol(path)
        self.files.rmdir(path)
        self.invalidate_cache(path)

    def rm_file(self, path: str) -> None:
        """Removes a file or a link. Raises: IsADirectoryError."""
        path = self._strip_protocol(path)
        self.files.remove(path)
        self.invalidate_cache(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Removes files, and with `recursive` directories and all that is in them (the metadata service does it)."""
        if recursive and maxdepth is not None:
            self._rm_down_to(path, maxdepth)
            return
        for name in self.expand_path(path):
            if self._kind(name, follow=False) != "directory":
                self.rm_file(name)
            elif recursive:
                self.files.rmtree(name)
                self.invalidate_cache(name)
            else:
                raise IsADirectory("a directory: give recursive=True", path=name)

    def _rm_down_to(self, path: Any, maxdepth: int) -> None:
        for name in reversed(self.expand_path(path, recursive=True, maxdepth=maxdepth)):
            if self._kind(name, follow=False) != "directory":
                self.rm_file(name)
                continue
            with contextlib.suppress(NotEmpty):
                self.rmdir(name)

    def mv_file(self, path1: str, path2: str, **_: Any) -> None:
        """Gives a file or a directory another name, in one step. A file at `path2` is replaced."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            self.files.rename(path1, path2)
        except NotFound:
            if not self.lexists(path1) or not self._make_parent(path2):
                raise
            self.files.rename(path1, path2)
        self.invalidate_cache(path1)
        self.invalidate_cache(path2)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = True, maxdepth: int | None = None, **_: Any
    ) -> None:
        """Renames; into `path2` where that is a directory. Nothing is copied, and a directory goes with all in it."""
        if isinstance(path1, list) and isinstance(path2, list):
            for source, target in zip(path1, path2, strict=True):
                self.mv_file(source, target)
            return
        if isinstance(path1, str) and not has_magic(self._strip_protocol(path1)):
            sources, several = [self._strip_protocol(path1)], False
        else:
            sources, several = self.expand_path(path1), True
        into = several or path2.endswith("/") or self.isdir(path2)
        target = self._strip_protocol(path2)
        for source in sources:
            self.mv_file(source, _join(target, posixpath.basename(source)) if into else target)

    def link(self, src: str, dst: str, **_: Any) -> None:
        self.files.link(self._strip_protocol(src), self._strip_protocol(dst))
        self.invalidate_cache(dst)

    def symlink(self, src: str, dst: str, **_: Any) -> None:
        """Makes `dst` a link to the path `src`."""
        self.files.symlink(self._strip_protocol(src), self._strip_protocol(dst))
        self.invalidate_cache(dst)

    def chmod(self, path: str, mode: int) -> None:
        self.files.chmod(self._strip_protocol(path), mode)
        self.invalidate_cache(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forgets listings: of a path, of the directory it is in, and of what is below it."""
        super().invalidate_cache(path)
        if not self.dircache.use_listings_cache:
            return
        if path is None:
            self.dircache.clear()
            return
        path = self._strip_protocol(path)
        for known in list(self.dircache):
            if known in (path, self._parent(path)) or known.startswith(path.rstrip("/") + "/"):
                self.dircache.pop(known, None)

    def _isfilestore(self) -> bool:
        return True  # directories are real, as those of a local disk

    # The same for event loops.

    _info = awaitable(info)
    _ls = awaitable(ls)
    _exists = awaitable(exists)
    _isdir = awaitable(isdir)
    _isfile = awaitable(isfile)
    _find = awaitable(find)
    _glob = awaitable(glob)
    _expand_path = awaitable(expand_path)
    _du = awaitable(du)
    _size = awaitable(size)
    _cat_file = awaitable(cat_file)
    _cat_ranges = awaitable(cat_ranges)
    _cat = awaitable(cat)
    _pipe_file = awaitable(pipe_file)
    _cp_file = awaitable(cp_file)
    _mv_file = awaitable(mv_file)
    _get_file = awaitable(get_file)
    _put_file = awaitable(put_file)
    _mkdir = awaitable(mkdir)
    _makedirs = awaitable(makedirs)
    _rmdir = awaitable(rmdir)
    _rm_file = awaitable(rm_file)
    _rm = awaitable(rm)
    _touch = awaitable(touch)
    _mv = awaitable(mv)


def _text(path: Any) -> str:
    text = stringify_path(path)
    if not isinstance(text, str):
        raise InvalidArgument(f"a path is text, not {type(path).__name__}")
    return text


def _join(directory: str, name: bytes | str) -> str:
    return f"{directory.rstrip('/')}/{os.fsdecode(name)}"


def _is_linked_directory(info: Info) -> bool:
    return bool(info["islink"]) and info["type"] == "directory"


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


__all__ = ["LuciolaFileSystem"]
