"""Names and attributes through `luciola.connect`, compared with the same calls of `os` on a local directory."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import luciola
from cluster import LocalCluster
from luciola.client import FileSystem, Layout
from luciola.errors import AlreadyExists, InvalidArgument, NotADirectory, NotFound


@pytest.fixture(scope="module")
def fs(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        yield fs


@pytest.fixture
def base(fs: FileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{request.module.__name__}/{request.node.name}"
    fs.makedirs(path)
    yield path
    fs.rmtree(path)


class Local:
    """`os` and `shutil` with the method names of `FileSystem`."""

    rmtree = staticmethod(shutil.rmtree)
    exists = staticmethod(os.path.exists)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def write(path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    @staticmethod
    def read(path: str) -> bytes:
        return Path(path).read_bytes()


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class and errno of its error."""
    try:
        result = call()
    except OSError as error:
        kinds = [kind for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        return kinds[0], error.errno
    return result


def test_names_behave_as_those_of_a_local_directory(fs, base, tmp_path):
    def run(side: Any, top: str) -> list[Any]:
        path = lambda name: f"{top}/{name}"  # noqa: E731
        side.mkdir(path("d"))
        side.write(path("f"), b"f")
        side.write(path("g"), b"g")
        side.symlink("f", path("l"))
        side.symlink("nowhere", path("broken"))
        side.link(path("f"), path("d/f2"))
        calls: list[Callable[[], Any]] = [
            lambda: sorted(side.listdir(top)),
            lambda: side.mkdir(path("d")),
            lambda: side.mkdir(path("x/y")),
            lambda: side.mkdir(path("f/y")),
            lambda: side.rmdir(path("d")),
            lambda: side.rmdir(path("f")),
            lambda: side.rmdir(path("none")),
            lambda: side.remove(path("none")),
            lambda: side.listdir(path("none")),
            lambda: side.listdir(path("f")),
            lambda: side.readlink(path("l")),
            lambda: side.readlink(path("f")),
            lambda: side.stat(path("broken")),
            lambda: stat.S_ISLNK(side.lstat(path("broken")).st_mode),
            lambda: side.exists(path("broken")),
            lambda: side.stat(path("f")).st_nlink,
            lambda: side.symlink("f", path("l")),
            lambda: side.link(path("none"), path("m")),
            lambda: side.link(path("f"), path("g")),
            lambda: side.rename(path("none"), path("m")),
            lambda: side.rename(path("f"), path("d")),
            lambda: side.rename(path("d"), path("f")),
            lambda: side.rename(path("d"), path("d/below")),
            lambda: side.rename(path("g"), path("f")),
            lambda: side.read(path("f")),
            lambda: side.read(path("d/f2")),
            lambda: side.stat(path("d/f2")).st_nlink,
            lambda: side.replace(path("d"), path("e")),
            lambda: sorted(side.listdir(path("e"))),
            lambda: side.makedirs(path("a/b/c")),
            lambda: side.makedirs(path("a/b/c")),
            lambda: side.makedirs(path("a/b/c"), exist_ok=True),
            lambda: side.makedirs(path("f"), exist_ok=True),
            lambda: side.mkdir(path("n" * 256)),
            lambda: side.mkdir(path("n" * 255)),
            lambda: side.rmdir(path("n" * 255)),
            lambda: side.rmtree(path("a")),
            lambda: side.remove(path("l")),
            lambda: side.remove(path("broken")),
            lambda: sorted(side.listdir(top)),
        ]
        return [outcome(call) for call in calls]

    mine = run(fs, base)
    local = run(Local(), str(tmp_path))
    assert mine == local


def test_attributes(fs, base):
    path = f"{base}/f"
    fs.write(path, b"12345", permissions=0o600)
    status = fs.stat(path)
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_size, status.st_nlink, status.st_uid) == (5, 1, os.geteuid())
    fs.chmod(path, 0o4751)
    fs.chown(path, 1234, -1)
    fs.chown(path, -1, 4321)
    fs.utime(path, (5.5, 6.25))
    status = fs.stat(path)
    assert (status.st_uid, status.st_gid) == (1234, 4321)
    assert (status.st_atime, status.st_mtime) == (5.5, 6.25)
    fs.utime(path)
    assert fs.stat(path).st_mtime > 1e9
    with pytest.raises(ValueError, match="both"):
        fs.utime(path, (1, 2), ns=(1, 2))
    with pytest.raises(ValueError, match="negative"):
        fs.truncate(path, -1)


def test_extended_attributes(fs, base):
    path = f"{base}/f"
    fs.write(path, b"")
    fs.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    fs.setxattr(path, "user.b", b"\0\xff")
    assert fs.getxattr(path, "user.b") == b"\0\xff"
    assert fs.listxattr(path) == ["user.a", "user.b"]
    for call, number in (
        (lambda: fs.setxattr(path, "user.a", b"2", os.XATTR_CREATE), errno.EEXIST),
        (lambda: fs.setxattr(path, "user.c", b"2", os.XATTR_REPLACE), errno.ENODATA),
        (lambda: fs.getxattr(path, "user.c"), errno.ENODATA),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == number
    fs.removexattr(path, "user.a")
    assert fs.listxattr(path) == ["user.b"]


def test_listings_of_a_large_directory_are_complete(fs, base):
    names = {f"{number:05}-{'x' * (number % 50)}" for number in range(2600)}
    for name in names:
        fs.mkdir(f"{base}/{name}")
    assert fs.listdir(base) == sorted(names)
    entries = list(fs.scandir(base))
    assert {entry.name for entry in entries} == names
    assert all(entry.is_dir() and not entry.is_file() and not entry.is_symlink() for entry in entries)
    assert entries[0].inode() == fs.stat(entries[0]).st_ino
    assert entries[0].stat().st_ino == entries[0].inode()


def test_walk_equals_that_of_os(fs, base, tmp_path):
    for side, top in ((fs, base), (Local(), str(tmp_path))):
        side.makedirs(f"{top}/a/b")
        side.makedirs(f"{top}/c")
        for name in ("a/1", "a/b/2", "3"):
            side.write(f"{top}/{name}", b"")
        side.symlink("a", f"{top}/link")

    def shape(walk: Any, top: str, **named: Any) -> list[Any]:
        return sorted(
            (path[len(top) :], sorted(dirs), sorted(files)) for path, dirs, files in walk(top, **named)
        )

    for named in ({}, {"topdown": False}, {"followlinks": True}):
        assert shape(fs.walk, base, **named) == shape(os.walk, str(tmp_path), **named)
    errors: list[OSError] = []
    assert list(fs.walk(f"{base}/none", onerror=errors.append)) == []
    assert errors[0].filename == f"{base}/none"


def test_names_that_are_no_text(fs, base):
    name = os.fsdecode(b"\xff\xfe name")
    fs.write(f"{base}/{name}", b"x")
    assert fs.listdir(base) == [name]
    assert fs.read(os.fsencode(f"{base}/{name}")) == b"x"
    assert fs.read(Path(f"{base}/{name}")) == b"x"
    with pytest.raises(InvalidArgument):
        fs.write(f"{base}/a\0b", b"")


def test_space_is_that_of_the_cluster(fs, base):
    space = fs.statvfs(base)
    assert 0 < space.f_bavail <= space.f_blocks
    with pytest.raises(FileNotFoundError):
        fs.statvfs(f"{base}/none")


# Small files, many in one request.


def test_small_files_are_made_with_their_contents(fs: FileSystem, base: str) -> None:
    files = {f"{base}/{number}": b"%d" % number * (number % 50) for number in range(150)}
    assert fs.create_small(files, 0o640) == {}
    assert sorted(fs.listdir(base), key=int) == [str(number) for number in range(150)]
    for path, data in files.items():
        assert fs.read(path) == data
        found = fs.stat(path)
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (len(data), 0o640)


def test_small_files_that_are_refused_are_named_with_their_errors(fs: FileSystem, base: str) -> None:
    fs.write(f"{base}/there", b"old")
    refused = fs.create_small(
        {
            f"{base}/new": b"1",
            f"{base}/there": b"2",
            f"{base}/missing/x": b"3",
            f"{base}/there/x": b"4",
            f"{base}/large": b"x" * 5000,
        }
    )
    assert {path: (type(error), error.errno, error.filename) for path, error in refused.items()} == {
        f"{base}/there": (AlreadyExists, errno.EEXIST, f"{base}/there"),
        f"{base}/missing/x": (NotFound, errno.ENOENT, f"{base}/missing/x"),
        f"{base}/there/x": (NotADirectory, errno.ENOTDIR, f"{base}/there/x"),
        f"{base}/large": (InvalidArgument, errno.EFBIG, f"{base}/large"),
    }
    assert sorted(fs.listdir(base)) == ["new", "there"]
    assert (fs.read(f"{base}/new"), fs.read(f"{base}/there")) == (b"1", b"old")


def test_small_files_take_several_requests_where_their_bytes_need_it(fs: FileSystem, base: str) -> None:
    fs.set_layout(base, Layout(inline_bytes=64 << 10))
    files = {f"{base}/{number}": bytes([number]) * (60 << 10) for number in range(40)}
    assert fs.create_small(files) == {}
    assert all(fs.read(path) == data for path, data in files.items())
