"""Commands on files of the cluster: ls, cat, rm, stat, mkdir, du. `copy.py` has cp.

Which cluster is said by --data DIR (a cluster on this machine) or by --address HOST:PORT and --token-file FILE or
--secret-file FILE, or by the environment variables LUCIOLA_DATA, LUCIOLA_ADDRESS, LUCIOLA_TOKEN_FILE and
LUCIOLA_SECRET_FILE.
"""

import datetime as dt
import os
import shutil
import stat as modes
import sys
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict

import click

from ..errors import InvalidArgument
from ..units import MIB, format_bytes
from .options import json_option
from .output import print_json, print_table, shown
from .target import FilesTarget, cluster_options, cluster_path

if TYPE_CHECKING:
    from ..client import FileSystem

CAT_BYTES: Final = 4 * MIB
KINDS: Final = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "directory",
    modes.S_IFLNK: "symlink",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
    modes.S_IFCHR: "character device",
    modes.S_IFBLK: "block device",
}


@click.command()
@cluster_options
@json_option
@click.option("-l", "--long", is_flag=True, help="With mode, links, owner, size and time.")
@click.argument("paths", nargs=-1)
def ls(
    cluster: FilesTarget,
    as_json: bool,
    long: bool,
    paths: tuple[str, ...],
) -> None:
    """List directories (the root, if no path is given).

    \b
    Example:
      luciola ls --data /var/lib/luciola -l /datasets
    """
    with cluster.open() as fs:
        paths = paths or ("/",)
        if not (long or as_json):
            names = [_list_names(fs, cluster_path(text)) for text in paths]
            for text, listing in zip(paths, names, strict=True):
                _heading(text, count=len(paths))
                for name in listing:
                    click.echo(shown(name))
            return
        listings = [_list(fs, cluster_path(text)) for text in paths]
    if as_json:
        print_json([entry for listing in listings for entry in listing])
        return
    for text, entries in zip(paths, listings, strict=True):
        _heading(text, count=len(paths))
        rows = [_long(entry) for entry in entries]
        print_table(("MODE", "LINKS", "UID", "GID", "BYTES", "MODIFIED", "NAME"), rows, right=(1, 2, 3, 4))


class Entry(TypedDict):
    """A name with its attributes, as `ls` and `stat` print it. `target`: of a symbolic link."""

    name: str
    path: str
    type: str
    mode: str
    inode: int
    links: int
    uid: int
    gid: int
    size: int
    modified: str
    changed: str
    accessed: str
    target: NotRequired[str]


class Usage(TypedDict):
    """What is below a path, as `du` prints it."""

    path: str
    bytes: int
    files: int


def _list(fs: "FileSystem", path: str) -> list[Entry]:
    info = fs.lstat(path)
    if not modes.S_ISDIR(info.st_mode):
        return [_describe(fs, path, path, info)]
    # Names come with their attributes, a page at a time.
    entries = ((entry.name, entry.stat(follow_symlinks=False)) for entry in fs.scandir(path))
    found = sorted(entries, key=lambda entry: entry[0])
    return [_describe(fs, os.path.join(path, name), name, status) for name, status in found]


def _list_names(fs: "FileSystem", path: str) -> list[str]:
    return sorted(fs.listdir(path)) if modes.S_ISDIR(fs.lstat(path).st_mode) else [path]


def _heading(text: str, *, count: int) -> None:
    if count > 1:
        click.echo(f"{shown(text)}:")


def _long(entry: Entry) -> tuple[str, ...]:
    numbers = (str(number) for number in (entry["links"], entry["uid"], entry["gid"], entry["size"]))
    arrow = f" -> {shown(entry['target'], terminal=True)}" if "target" in entry else ""
    # A line of a long listing is an entry, also for programs: no name may forge one.
    name = shown(entry["name"], terminal=True)
    return (entry["mode"], *numbers, entry["modified"][:19].replace("T", " "), name + arrow)


def _describe(fs: "FileSystem", path: str, name: str, info: os.stat_result) -> Entry:
    entry: Entry = {
        "name": name,
        "path": path,
        "type": KINDS.get(modes.S_IFMT(info.st_mode), "unknown"),
        "mode": modes.filemode(info.st_mode),
        "inode": info.st_ino,
        "links": info.st_nlink,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "size": info.st_size,
        "modified": _time(info.st_mtime_ns),
        "changed": _time(info.st_ctime_ns),
        "accessed": _time(info.st_atime_ns),
    }
    if modes.S_ISLNK(info.st_mode):
        entry["target"] = os.fsdecode(fs.readlink(path))
    return entry


def _time(unix_ns: int) -> str:
    moment = dt.datetime.fromtimestamp(unix_ns / 1e9, tz=dt.UTC).astimezone()
    return moment.isoformat(timespec="microseconds")


@click.command()
@cluster_options
@click.argument("paths", nargs=-1, required=True)
def cat(cluster: FilesTarget, paths: tuple[str, ...]) -> None:
    """Write files to standard output.

    \b
    Example:
      luciola cat --data /var/lib/luciola /logs/train.log
    """
    with cluster.open() as fs:
        for text in paths:
            with fs.open(cluster_path(text), "rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer, CAT_BYTES)
    sys.stdout.buffer.flush()


@click.command()
@cluster_options
@click.option("-r", "--recursive", is_flag=True, help="Also directories and all that is in them.")
@click.option("-f", "--force", is_flag=True, help="Say nothing of paths that do not exist.")
@click.argument("paths", nargs=-1, required=True)
def rm(
    cluster: FilesTarget,
    recursive: bool,
    force: bool,
    paths: tuple[str, ...],
) -> None:
    """Remove files.

    \b
    Example:
      luciola rm --data /var/lib/luciola -r /scratch/old
    """
    with cluster.open() as fs:
        for text in paths:
            path = cluster_path(text)
            try:
                is_directory = modes.S_ISDIR(fs.lstat(path).st_mode)
                if is_directory and recursive:
                    fs.rmtree(path)
                else:
                    fs.remove(path)
            except FileNotFoundError:
                if not force:
                    raise
            except IsADirectoryError as error:
                raise InvalidArgument(
                    "a directory; use -r to remove it with all its files", path=path
                ) from error


@click.command()
@cluster_options
@json_option
@click.argument("paths", nargs=-1, required=True)
def stat(
    cluster: FilesTarget,
    as_json: bool,
    paths: tuple[str, ...],
) -> None:
    """Show what is known of files.

    \b
    Example:
      luciola stat --data /var/lib/luciola /datasets/train.bin
    """
    with cluster.open() as fs:
        named = [cluster_path(text) for text in paths]
        entries = [_describe(fs, path, path, fs.lstat(path)) for path in named]
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        width = max(len(key) for key in entry)
        for key, value in entry.items():
            click.echo(f"{key.rjust(width)}: {shown(str(value))}")


@click.command()
@cluster_options
@click.option("-p", "--parents", is_flag=True, help="Make missing parents; an existing directory is fine.")
@click.option(
    "-m", "--mode", help="Permissions, octal, whatever the umask is; by default 777 less the umask."
)
@click.argument("paths", nargs=-1, required=True)
def mkdir(
    cluster: FilesTarget,
    parents: bool,
    mode: str | None,
    paths: tuple[str, ...],
) -> None:
    """Make directories, as mkdir(1): -m is for those that are named and new, not for their parents.

    \b
    Example:
      luciola mkdir --data /var/lib/luciola -p /datasets/images
    """
    permissions = None if mode is None else _permissions(mode)
    with cluster.open() as fs:
        for text in paths:
            make_directory(fs, cluster_path(text), permissions, parents=parents)


def _permissions(text: str) -> int:
    try:
        permissions = int(text, 8)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not an octal number such as 755", param_hint="--mode"
        ) from None
    if not 0 <= permissions <= 0o7777:
        raise click.BadParameter(f"{text} is larger than 7777", param_hint="--mode")
    return permissions


def make_directory(fs: "FileSystem", path: str, permissions: int | None, *, parents: bool) -> None:
    """Make a directory with exactly these permissions, or with 777 less the umask.

    It inherits set-group-id all the same. `parents`: those that are missing are made, less the umask; the directory may
    exist, and stays as it is.
    """
    if parents:
        fs.makedirs(os.path.dirname(path.rstrip("/")) or "/", exist_ok=True)
    try:
        if permissions is None:
            fs.mkdir(path)
        else:
            fs.mkdir(path, permissions, umask=0)
    except FileExistsError:
        if parents and fs.isdir(path):
            return
        raise


@click.command()
@cluster_options
@json_option
@click.option("-s", "--summary", is_flag=True, help="Only the totals of the paths named.")
@click.argument("paths", nargs=-1)
def du(
    cluster: FilesTarget,
    as_json: bool,
    summary: bool,
    paths: tuple[str, ...],
) -> None:
    """Sum up the bytes and files of directory trees (one copy of each; hard links once).

    \b
    Example:
      luciola du --data /var/lib/luciola -s /datasets
    """
    with cluster.open() as fs:
        totals: list[Usage] = []
        for text in paths or ("/",):
            found: list[Usage] = []
            _usage(fs, cluster_path(text), found, seen=set())
            totals += found[-1:] if summary else found
    if as_json:
        print_json(totals)
        return
    rows = [(format_bytes(each["bytes"]), str(each["files"]), shown(each["path"])) for each in totals]
    print_table(("SIZE", "FILES", "PATH"), rows, right=(0, 1))


def _usage(fs: "FileSystem", path: str, found: list[Usage], *, seen: set[int]) -> tuple[int, int]:
    """Append the totals of every directory below `path`, deepest first, and return its own."""
    info = fs.lstat(path)
    if not modes.S_ISDIR(info.st_mode):
        fresh = info.st_ino not in seen
        seen.add(info.st_ino)
        found.append({"path": path, "bytes": info.st_size * fresh, "files": int(fresh)})
        return info.st_size * fresh, int(fresh)
    size, count = 0, 0
    for entry in fs.scandir(path):
        child = os.path.join(path, entry.name)
        if entry.is_dir(follow_symlinks=False):
            more = _usage(fs, child, found, seen=seen)
        else:
            status = entry.stat(follow_symlinks=False)
            fresh = status.st_ino not in seen
            seen.add(status.st_ino)
            more = status.st_size * fresh, int(fresh)
        size, count = size + more[0], count + more[1]
    found.append({"path": path, "bytes": size, "files": count})
    return size, count


__all__ = ["cat", "du", "ls", "make_directory", "mkdir", "rm", "stat"]
