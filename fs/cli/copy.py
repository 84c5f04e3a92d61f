"""`luciola cp`: between this machine and the cluster, and within the cluster.

Contents, permissions, times, extended attributes, symbolic links, and hard links inside one tree are kept; owners where
we may, and set-id bits only with them; holes stay holes, and blocks of zeros become holes. A file is written under a
temporary name beside its target and renamed when it is complete, so that an interrupted copy never leaves half a file
under the name asked for.

A tree is read once. The files of one directory are copied by several threads: each costs several requests, and the
services have time for more than one. What was not kept is in the tally, and makes the exit code 1.
"""

import contextlib
import errno
import io
import os
import signal
import stat as modes
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..errors import InvalidArgument, NotFound
from ..tempname import temp_beside
from ..units import KIB, MIB, format_bytes
from .options import json_option
from .output import print_json, shown
from .target import PREFIX, FilesTarget, cluster_options, cluster_path

COPY_BYTES: Final = 4 * MIB  # four chunks in flight at the default chunk size
ZEROS: Final = bytes(64 * KIB)  # a block of zeros that becomes a hole: the smallest chunk
WORKERS: Final = 8  # files in flight: 32 MiB of buffers, and about what one metadata service answers at once
BATCH: Final = 256  # files handed to the workers at a time
SHOWN_MAX: Final = 50  # lines about what was not kept
# Attributes that the target's own system makes: not a loss.
FOREIGN_ATTRIBUTES: Final = ("security.selinux",)
UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


class Status(Protocol):
    """What a copy reads of `lstat`: `os.stat_result` has it, and so has `client.Stat`."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


class Name(Protocol):
    """What a copy reads of an entry of a directory."""

    @property
    def name(self) -> str: ...
    def stat(self, *, follow_symlinks: bool = ...) -> Status: ...


class Side(Protocol):
    """What a copy needs of a file system. LocalFileSystem and FileSystem both have it."""

    def lstat(self, path: str) -> Status: ...
    def open(self, path: str, mode: str) -> object: ...  # an unbuffered file
    def listdir(self, path: str) -> list[str]: ...
    def scandir(self, path: str) -> AbstractContextManager[Iterator[Name]]: ...
    def listxattr(self, path: str, /) -> list[str]: ...
    def getxattr(self, path: str, attribute: str, /) -> bytes: ...
    def setxattr(self, path: str, attribute: str, value: bytes, /) -> object: ...
    def mkdir(self, path: str, mode: int = ...) -> object: ...
    def readlink(self, path: str) -> str: ...
    def symlink(self, target: str, path: str) -> object: ...
    def link(self, source: str, path: str) -> object: ...
    def replace(self, source: str, path: str) -> object: ...
    def remove(self, path: str) -> object: ...
    def chmod(self, path: str, mode: int) -> object: ...
    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = ...) -> object: ...
    def utime(self, path: str, *, ns: tuple[int, int], follow_symlinks: bool = ...) -> object: ...


@dataclass
class Tally:
    """What was copied. `skipped`: what is not on the target, and why. Filled by several threads."""

    files: int = 0
    unchanged: int = 0
    directories: int = 0
    symlinks: int = 0
    skipped: list[str] = field(default_factory=list)
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Add to the counts."""
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def skip(self, what: str) -> None:
        """Note something that was not kept."""
        with self.lock:
            self.skipped.append(what)

    def describe(self) -> dict[str, object]:
        """Return all but the lock."""
        return {name: value for name, value in vars(self).items() if name != "lock"}


@click.command()
@cluster_options
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all that is in them.")
@click.option(
    "-u",
    "--update",
    is_flag=True,
    help="Leave files alone that the target has with the same size and modification time: "
    "continues an interrupted copy.",
)
@click.option(
    "-T",
    "--no-target-directory",
    "exact",
    is_flag=True,
    help="TARGET is the copy itself, also if it is a directory that exists.",
)
@json_option
@click.option("--progress/--no-progress", default=None, help="A progress bar.  [default: in a terminal]")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
def cp(
    cluster: FilesTarget,
    *,
    recursive: bool,
    update: bool,
    exact: bool,
    as_json: bool,
    progress: bool | None,
    sources: tuple[str, ...],
    target: str,
) -> None:
    """Copy files to, from and within the cluster. Paths on the cluster are written lu:/path.

    If TARGET is a directory, each source is copied into it under its own name; else TARGET is the name of the copy.
    Modes, times, extended attributes, links and holes are kept, and owners for root. Exits with 1 when something was
    not kept, such as a socket; it is named on standard error.

    \b
    Examples:
      luciola cp --data /var/lib/luciola -r ./images lu:/datasets
      luciola cp --data /var/lib/luciola -rT --update ./images lu:/datasets/images
      luciola cp --data /var/lib/luciola lu:/logs/train.log .
    """
    from ..client import LocalFileSystem

    if not any(text.startswith(PREFIX) for text in (*sources, target)):
        raise click.UsageError(
            f"no path on the cluster: write {PREFIX}/path for the source, the target or both"
        )
    if exact and len(sources) > 1:
        raise click.UsageError("--no-target-directory takes one source")
    with cluster.open() as fs:
        sides: dict[bool, Side] = {True: fs, False: LocalFileSystem()}
        jobs = _plan(sides, sources, target, recursive=recursive, exact=exact)
        tally = Tally()
        show = (sys.stderr.isatty() if progress is None else progress) and not as_json
        with signals_as_exceptions(), _bar(enabled=show) as bar:
            # Only the bar needs a total, which costs a pass over the tree.
            total = sum(sum(_sizes(source.side, source.path)) for source, _ in jobs) if show else None
            task = bar.add_task("copying", total=total)

            def advance(count: int) -> None:
                tally.add(bytes=count)
                bar.advance(task, count)

            for source, path in jobs:
                copier = Copier(source.side, sides[target.startswith(PREFIX)], tally, advance, update=update)
                copier.copy(source.path, path)
    _report(tally, as_json=as_json)
    if tally.skipped:
        sys.exit(1)


def _report(tally: Tally, *, as_json: bool) -> None:
    if as_json:
        print_json(tally.describe())
        return
    for what in tally.skipped[:SHOWN_MAX]:
        click.echo(f"luciola: {shown(what)}", err=True)
    if len(tally.skipped) > SHOWN_MAX:
        click.echo(f"luciola: ... and {len(tally.skipped) - SHOWN_MAX} more; --json lists all", err=True)
    counts = [
        _count(tally.files, "file", "files"),
        _count(tally.directories, "directory", "directories"),
        _count(tally.symlinks, "symbolic link", "symbolic links"),
    ]
    left = f"; {_count(tally.unchanged, 'file', 'files')} unchanged" if tally.unchanged else ""
    click.echo(f"copied {', '.join(counts)}, {format_bytes(tally.bytes)}{left}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs inside as Ctrl-C does: what is half done is taken away."""
    ending = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL  # another handler was asked for, by nohup for instance
    ]
    for number in ending:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


@dataclass(frozen=True)
class Source:
    """A path on one side."""

    side: Side
    path: str


def _plan(
    sides: dict[bool, Side], sources: tuple[str, ...], target: str, *, recursive: bool, exact: bool = False
) -> list[tuple[Source, str]]:
    """(source, target path) of each argument. Everything that can be refused is refused here."""
    target_side = sides[target.startswith(PREFIX)]
    target_path = cluster_path(target) if target.startswith(PREFIX) else target
    into = not exact and _is_directory(target_side, target_path)
    if len(sources) > 1 and not into:
        raise InvalidArgument("several sources need an existing directory as target", path=target)
    parent = os.path.dirname(target_path.rstrip("/")) or "."
    if not into and not _is_directory(target_side, parent):
        raise NotFound("no such directory to copy into", path=parent)
    jobs = []
    for text in sources:
        remote = text.startswith(PREFIX)
        source = Source(sides[remote], cluster_path(text) if remote else text)
        info = source.side.lstat(source.path)
        if modes.S_ISDIR(info.st_mode) and not recursive:
            raise InvalidArgument("a directory; use -r to copy it with all its files", path=text)
        name = os.path.basename(source.path.rstrip("/"))
        path = os.path.join(target_path, name) if into and name else target_path
        same = remote == target.startswith(PREFIX)
        if same and (path.rstrip("/") + "/").startswith(source.path.rstrip("/") + "/"):
            raise InvalidArgument("cannot copy something onto or into itself", path=text)
        jobs.append((source, path))
    return jobs


def _is_directory(side: Side, path: str) -> bool:
    try:
        info = side.lstat(path)
        if modes.S_ISLNK(info.st_mode):
            side.listdir(path)
            return True
        return modes.S_ISDIR(info.st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _sizes(side: Side, path: str) -> Iterator[int]:
    info = side.lstat(path)
    if modes.S_ISREG(info.st_mode):
        yield info.st_size
    elif modes.S_ISDIR(info.st_mode):
        for _, child, status in _children(side, path):
            if modes.S_ISDIR(status.st_mode):
                yield from _sizes(side, child)
            elif modes.S_ISREG(status.st_mode):
                yield status.st_size


def _children(side: Side, path: str) -> list[tuple[str, str, Status]]:
    """(name, path, status) of each entry of a directory, by name."""
    with side.scandir(path) as entries:
        return sorted(
            (
                (entry.name, os.path.join(path, entry.name), entry.stat(follow_symlinks=False))
                for entry in entries
            ),
            key=lambda child: child[0],
        )


def _bar(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )


class Copier:
    """Copies one tree. Remembers inodes with several names, so that they stay one file."""

    def __init__(
        self,
        source: Side,
        target: Side,
        tally: Tally,
        advance: Callable[[int], None],
        *,
        update: bool = False,
    ) -> None:
        self._source, self._target, self._tally, self._advance = source, target, tally, advance
        self._update = update
        self._links: dict[tuple[int, int], str] = {}
        self._local = threading.local()
        self._stopping = threading.Event()

    def copy(self, source: str, target: str) -> None:
        """Copy `source`, of any type, to the name `target`."""
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="copy") as workers:
            try:
                self._copy(source, target, self._source.lstat(source), workers)
            except BaseException:
                self._stopping.set()
                workers.shutdown(cancel_futures=True)
                raise

    def _copy(self, source: str, target: str, info: Status, workers: ThreadPoolExecutor) -> None:
        if modes.S_ISDIR(info.st_mode):
            self._directory(source, target, info, workers)
        elif modes.S_ISLNK(info.st_mode):
            self._symlink(source, target, info)
        elif modes.S_ISREG(info.st_mode):
            self._file(source, target, info)
        else:
            self._tally.skip(f"skipped {source}: not a file, directory or symbolic link")

    def _directory(self, source: str, target: str, info: Status, workers: ThreadPoolExecutor) -> None:
        try:
            self._target.mkdir(target, 0o700)
        except FileExistsError:
            if not _is_directory(self._target, target):
                raise
        single: list[tuple[str, str, Status]] = []
        for name, child, status in _children(self._source, source):
            path = os.path.join(target, name)
            # Files with several names are copied in order: the second name links to the first.
            if modes.S_ISREG(status.st_mode) and status.st_nlink == 1:
                single.append((child, path, status))
                continue
            self._copy(child, path, status, workers)
        for start in range(0, len(single), BATCH):
            # The list waits for each batch, and raises the first error.
            list(workers.map(lambda job: self._file(*job), single[start : start + BATCH]))
        self._tally.add(directories=1)
        self._attributes(source, target, info)

    def _symlink(self, source: str, target: str, info: Status) -> None:
        temporary = temp_beside(target)
        self._target.symlink(os.fsdecode(self._source.readlink(source)), temporary)
        self._target.replace(temporary, target)
        self._tally.add(symlinks=1)
        self._owner(target, info)
        self._target.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)

    def _file(self, source: str, target: str, info: Status) -> None:
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in self._links:
            temporary = temp_beside(target)
            self._target.link(self._links[key], temporary)
            self._target.replace(temporary, target)
            # rename(2) does nothing when both names are the same file already.
            _remove_if_there(self._target, temporary)
            self._tally.add(files=1)
            return
        if self._update and self._is_copied(target, info):
            self._tally.add(unchanged=1)
        else:
            self._whole(source, target, info)
            self._tally.add(files=1)
        if info.st_nlink > 1:
            self._links[key] = target

    def _is_copied(self, target: str, info: Status) -> bool:
        try:
            there = self._target.lstat(target)
        except FileNotFoundError:
            return False
        same = (there.st_size, there.st_mtime_ns) == (info.st_size, info.st_mtime_ns)
        return modes.S_ISREG(there.st_mode) and same

    def _whole(self, source: str, target: str, info: Status) -> None:
        temporary = temp_beside(target)
        try:
            self._contents(source, temporary)
            self._attributes(source, temporary, info)
            self._target.replace(temporary, target)
        except BaseException:
            _remove_if_there(self._target, temporary)
            raise

    def _contents(self, source: str, target: str) -> None:
        buffer = self._buffer()
        with _opened(self._source, source, "rb") as reader, _opened(self._target, target, "xb") as writer:
            offset = written = 0
            while True:
                if self._stopping.is_set():
                    raise InterruptedError("the copy was stopped")
                offset = _skip_hole(reader, offset)
                count = reader.readinto(buffer)
                if not count:
                    break
                for begin, end in _data_in(buffer[:count]):
                    if offset + begin != written:
                        writer.seek(offset + begin)
                    _write_fully(writer, buffer[begin:end])
                    written = offset + end
                offset += count
                self._advance(count)
            if offset > written:
                writer.truncate(offset)

    def _buffer(self) -> memoryview:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(COPY_BYTES))
        return buffer

    def _attributes(self, source: str, target: str, info: Status) -> None:
        self._extended(source, target)
        # Set-id bits give the rights of the owner, which would be the user who copies.
        lost = 0 if self._owner(target, info) else modes.S_ISUID | modes.S_ISGID
        self._target.chmod(target, modes.S_IMODE(info.st_mode) & ~lost)
        self._target.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _extended(self, source: str, target: str) -> None:
        try:
            names = self._source.listxattr(source)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return
        for name in names:
            if name in FOREIGN_ATTRIBUTES:
                continue
            try:
                self._target.setxattr(target, name, self._source.getxattr(source, name))
            except OSError as error:
                if error.errno not in (*UNSUPPORTED, errno.ENODATA, errno.ENOSPC, errno.E2BIG):
                    raise
                self._tally.skip(f"lost attribute {name} of {source}: {os.strerror(error.errno)}")

    def _owner(self, target: str, info: Status) -> bool:
        """Give `target` the owner and group of the source; return whether it has them."""
        try:
            self._target.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
        except PermissionError:  # as `cp -a`: only root gives files away
            return False
        return True


def _opened(side: Side, path: str, mode: str) -> io.RawIOBase:
    file = side.open(path, mode)
    assert isinstance(file, io.RawIOBase), "binary files are not wrapped"
    return file


def _skip_hole(reader: io.RawIOBase, offset: int) -> int:
    """Return where the next data of a local file begin, its end if there are none; the reader is there then."""
    if not isinstance(reader, io.FileIO):
        return offset
    try:
        return os.lseek(reader.fileno(), offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # its file system knows no holes
            return offset
        return max(offset, os.lseek(reader.fileno(), 0, os.SEEK_END))


def _data_in(block: memoryview) -> Sequence[tuple[int, int]]:
    """Return the ranges of `block` that are not zero, in steps of a block of zeros."""
    ranges: list[tuple[int, int]] = []
    for begin in range(0, len(block), len(ZEROS)):
        end = min(begin + len(ZEROS), len(block))
        # Most data show in their first byte that they are not zero.
        if end - begin == len(ZEROS) and not block[begin] and bytes(block[begin:end]) == ZEROS:
            continue
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((begin, end))
    return ranges


def _write_fully(writer: io.RawIOBase, data: memoryview) -> None:
    while data:
        count = writer.write(data)
        assert count, "a file that blocks takes something"
        data = data[count:]


def _remove_if_there(side: Side, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        side.remove(path)


__all__ = ["cp", "signals_as_exceptions"]
