"""`luciola cp`: between this machine and the cluster, and within the cluster.

Contents, permissions, times, symbolic links and hard links inside one tree are kept; owners where we may. A file is
written under a temporary name beside its target and renamed when it is complete, so that an interrupted copy never
leaves half a file under the name asked for.
"""

import contextlib
import os
import signal
import stat as modes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

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
from ..hidden import hidden_beside
from ..units import MIB, format_bytes
from .options import json_option
from .output import print_json
from .target import PREFIX, cluster_options, cluster_path, open_cluster

COPY_BYTES: Final = 4 * MIB  # four chunks in flight at the default chunk size


class Side(Protocol):
    """What a copy needs of a file system. LocalFileSystem and FileSystem both have it."""

    def lstat(self, path: str) -> Any: ...
    def open(self, path: str, mode: str) -> Any: ...
    def listdir(self, path: str) -> list[str]: ...
    def mkdir(self, path: str, mode: int = ...) -> Any: ...
    def readlink(self, path: str) -> Any: ...
    def symlink(self, target: str, path: str) -> Any: ...
    def link(self, source: str, path: str) -> Any: ...
    def replace(self, source: str, path: str) -> Any: ...
    def remove(self, path: str) -> Any: ...
    def chmod(self, path: str, mode: int) -> Any: ...
    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = ...) -> Any: ...
    def utime(self, path: str, *, ns: tuple[int, int], follow_symlinks: bool = ...) -> Any: ...


@dataclass
class Tally:
    """What was copied."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    skipped: list[str] = field(default_factory=list)
    bytes: int = 0


@click.command()
@cluster_options
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all that is in them.")
@json_option
@click.option("--progress/--no-progress", default=None, help="A progress bar.  [default: in a terminal]")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
def cp(
    data_path: Path | None,
    address: str | None,
    secret_file: Path | None,
    recursive: bool,
    as_json: bool,
    progress: bool | None,
    sources: tuple[str, ...],
    target: str,
) -> None:
    """Copy files to, from and within the cluster. Paths on the cluster are written lu:/path.

    \b
    Examples:
      luciola cp --data /var/lib/luciola -r ./images lu:/datasets
      luciola cp --data /var/lib/luciola lu:/logs/train.log .
    """
    from ..client import LocalFileSystem

    if not any(text.startswith(PREFIX) for text in (*sources, target)):
        raise click.UsageError(
            f"no path on the cluster: write {PREFIX}/path for the source, the target or both"
        )
    with open_cluster(data_path, address, secret_file) as fs:
        sides: dict[bool, Side] = {True: fs, False: LocalFileSystem()}
        jobs = _plan(sides, sources, target, recursive=recursive)
        total = sum(size for _, _, size in jobs)
        tally = Tally()
        show = (sys.stderr.isatty() if progress is None else progress) and not as_json
        with signals_as_exceptions(), _bar(enabled=show) as bar:
            task = bar.add_task("copying", total=total)

            def advance(count: int) -> None:
                tally.bytes += count
                bar.advance(task, count)

            for source, path, _ in jobs:
                copier = Copier(source.side, sides[target.startswith(PREFIX)], tally, advance)
                copier.copy(source.path, path)
    if as_json:
        print_json(vars(tally))
    else:
        for path in tally.skipped:
            click.echo(f"luciola: skipped {path}: not a file, directory or symbolic link", err=True)
        counts = [
            _count(tally.files, "file", "files"),
            _count(tally.directories, "directory", "directories"),
            _count(tally.symlinks, "symbolic link", "symbolic links"),
        ]
        click.echo(f"copied {', '.join(counts)}, {format_bytes(tally.bytes)}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs inside as Ctrl-C does: what is half done is taken away."""
    ending = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL  # another one is somebody's wish, nohup's for instance
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
    sides: dict[bool, Side], sources: tuple[str, ...], target: str, *, recursive: bool
) -> list[tuple[Source, str, int]]:
    """(source, target path, bytes) of each argument. Everything that can be refused is refused here."""
    target_side = sides[target.startswith(PREFIX)]
    target_path = cluster_path(target) if target.startswith(PREFIX) else target
    into = _is_directory(target_side, target_path)
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
        jobs.append((source, path, sum(_sizes(source.side, source.path))))
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
        for name in side.listdir(path):
            yield from _sizes(side, os.path.join(path, name))


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

    def __init__(self, source: Side, target: Side, tally: Tally, advance: Any) -> None:
        self._source, self._target, self._tally, self._advance = source, target, tally, advance
        self._links: dict[tuple[int, int], str] = {}
        self._buffer = memoryview(bytearray(COPY_BYTES))

    def copy(self, source: str, target: str) -> None:
        """Copies `source` to the name `target`, whatever it is."""
        info = self._source.lstat(source)
        if modes.S_ISDIR(info.st_mode):
            self._directory(source, target, info)
        elif modes.S_ISLNK(info.st_mode):
            self._symlink(source, target, info)
        elif modes.S_ISREG(info.st_mode):
            self._file(source, target, info)
        else:
            self._tally.skipped.append(source)

    def _directory(self, source: str, target: str, info: Any) -> None:
        try:
            self._target.mkdir(target, 0o700)
        except FileExistsError:
            if not _is_directory(self._target, target):
                raise
        for name in sorted(self._source.listdir(source)):
            self.copy(os.path.join(source, name), os.path.join(target, name))
        self._tally.directories += 1
        self._attributes(target, info)

    def _symlink(self, source: str, target: str, info: Any) -> None:
        temporary = hidden_beside(target)
        self._target.symlink(os.fsdecode(self._source.readlink(source)), temporary)
        self._target.replace(temporary, target)
        self._tally.symlinks += 1
        self._owner(target, info)
        self._target.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)

    def _file(self, source: str, target: str, info: Any) -> None:
        key = (info.st_dev, info.st_ino)
        temporary = hidden_beside(target)
        if info.st_nlink > 1 and key in self._links:
            self._target.link(self._links[key], temporary)
            self._target.replace(temporary, target)
            # rename(2) does nothing when both names are the same file already.
            _remove_if_there(self._target, temporary)
            self._tally.files += 1
            return
        try:
            self._contents(source, temporary)
            self._attributes(temporary, info)
            self._target.replace(temporary, target)
        except BaseException:
            _remove_if_there(self._target, temporary)
            raise
        self._links[key] = target
        self._tally.files += 1

    def _contents(self, source: str, target: str) -> None:
        with self._source.open(source, "rb") as reader, self._target.open(target, "xb") as writer:
            while count := reader.readinto(self._buffer):
                left = self._buffer[:count]
                while left:
                    left = left[writer.write(left) :]
                self._advance(count)

    def _attributes(self, target: str, info: Any) -> None:
        self._owner(target, info)
        self._target.chmod(target, modes.S_IMODE(info.st_mode))
        self._target.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _owner(self, target: str, info: Any) -> None:
        # As `cp -a`: only root gives files away.
        with contextlib.suppress(PermissionError):
            self._target.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)


def _remove_if_there(side: Side, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        side.remove(path)


__all__ = ["cp", "signals_as_exceptions"]
