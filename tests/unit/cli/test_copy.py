"""`Copier` between two local directories: what it keeps, and what an interruption leaves."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from luciola.cli.copy import Copier, Tally, _plan, signals_as_exceptions
from luciola.client import LocalFileSystem
from luciola.errors import NotFound


def copy(source: Path, target: Path, side: Any = None, *, update: bool = False) -> Tally:
    tally = Tally()

    def advance(count: int) -> None:
        tally.add(bytes=count)

    copier = Copier(LocalFileSystem(), side or LocalFileSystem(), tally, advance, update=update)
    copier.copy(str(source), str(target))
    return tally


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "empty").touch()
    (root / "sub" / "data").write_bytes(os.urandom(5_000_000))
    os.link(root / "sub" / "data", root / "second-name")
    os.symlink("sub/data", root / "link")
    os.symlink("nowhere", root / "dangling")
    (root / "sub" / "data").chmod(0o640)
    (root / "sub").chmod(0o750)
    os.utime(root / "sub" / "data", ns=(1_000_000_007, 2_000_000_009))
    os.utime(root / "sub", ns=(3_000_000_007, 4_000_000_009))
    return root


def test_contents_modes_times_and_links_are_kept(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    tally = copy(tree, target)
    assert (tally.files, tally.directories, tally.symlinks, tally.bytes) == (3, 2, 2, 5_000_000)
    assert (target / "sub" / "data").read_bytes() == (tree / "sub" / "data").read_bytes()
    for name in ("sub/data", "sub", "empty"):
        left, right = (tree / name).stat(), (target / name).stat()
        assert (left.st_mode, left.st_mtime_ns) == (right.st_mode, right.st_mtime_ns)
    assert os.readlink(target / "link") == "sub/data"
    assert os.readlink(target / "dangling") == "nowhere"
    assert (target / "second-name").stat().st_ino == (target / "sub" / "data").stat().st_ino


def test_copying_again_replaces(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    copy(tree, target)
    (tree / "empty").write_text("no longer")
    copy(tree, target)
    assert (target / "empty").read_text() == "no longer"
    assert sorted(os.listdir(target)) == sorted(os.listdir(tree))


class FullDisk(LocalFileSystem):
    """A side on which no file can be written."""

    def open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "x" in mode:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return super().open(path, mode, *arguments, **named)


def test_failed_copy_leaves_the_old_file_and_no_rest(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        copy(tree / "sub" / "data", target, side=FullDisk())
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["data", "tree"]


class Ended(LocalFileSystem):
    """A side where the process is asked to end while a file is written."""

    def open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "x" in mode:
            Path(path).write_bytes(b"half")
            signal.raise_signal(signal.SIGTERM)  # by this thread: another may note one for the process later
        return super().open(path, mode, *arguments, **named)


def test_signal_that_ends_a_copy_leaves_no_rest(tree: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, signals_as_exceptions():
        copy(tree / "sub" / "data", tmp_path / "data", side=Ended())
    assert stop.value.code == 143
    assert os.listdir(tmp_path) == ["tree"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_special_files_are_skipped_and_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    tally = copy(tmp_path / "pipe", tmp_path / "target")
    assert tally.skipped == [f"skipped {tmp_path / 'pipe'}: not a file, directory or symbolic link"]
    assert not (tmp_path / "target").exists()


def test_directory_that_is_missing_is_named_before_anything_is_copied(tree: Path, tmp_path: Path) -> None:
    side = LocalFileSystem()
    with pytest.raises(NotFound, match=f"no such directory to copy into: '{tmp_path}/absent'"):
        _plan({False: side, True: side}, (str(tree),), f"{tmp_path}/absent/target", recursive=True)
    jobs = _plan({False: side, True: side}, (str(tree),), f"{tmp_path}/target/", recursive=True)
    assert [path for _, path in jobs] == [f"{tmp_path}/target/"]


def test_extended_attributes_are_kept(tree: Path, tmp_path: Path) -> None:
    for path in (tree, tree / "empty"):
        os.setxattr(path, "user.k", b"value")
    target = tmp_path / "target"
    assert copy(tree, target).skipped == []
    assert [os.getxattr(path, "user.k") for path in (target, target / "empty")] == [b"value"] * 2


class WithoutAttributes(LocalFileSystem):
    """A side that keeps no extended attributes."""

    @staticmethod
    def setxattr(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_attribute_that_cannot_be_kept_is_named(tree: Path, tmp_path: Path) -> None:
    os.setxattr(tree / "empty", "user.k", b"value")
    tally = copy(tree / "empty", tmp_path / "target", side=WithoutAttributes())
    assert tally.skipped == [f"lost attribute user.k of {tree / 'empty'}: Operation not supported"]
    assert (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, b"begin"), (9_000_000, b"end")],
        [(5_000_000, b"middle")],
        [(0, bytes(10_000_000))],
        [(0, b"x" * 70_000), (200_000, bytes(300_000)), (500_000, b"y")],
        [],
    ],
)
def test_holes_and_zeros_become_holes(tmp_path: Path, pieces: list[tuple[int, bytes]]) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(12_345_678)
    copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    stored = (tmp_path / "target").stat().st_blocks * 512
    assert stored <= 300_000, "zeros take no space"


def test_update_copies_what_is_missing_or_has_changed_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    copy(tree, target)
    (target / "sub" / "data").unlink()
    (tree / "empty").write_text("changed")
    (tree / "new").write_text("new")
    tally = copy(tree, target, update=True)
    assert (tally.files, tally.unchanged) == (3, 1)  # empty, new, and sub/data as a link
    assert (target / "empty").read_text() == "changed"
    assert (target / "second-name").stat().st_ino == (target / "sub" / "data").stat().st_ino
    again = copy(tree, target, update=True)
    assert (again.files, again.bytes) == (1, 0), "a second name of a file is linked again"


def test_target_that_exists_is_the_copy_itself_if_asked(tree: Path, tmp_path: Path) -> None:
    side = LocalFileSystem()
    target = tmp_path / "target"
    target.mkdir()
    sides: Any = {False: side, True: side}
    for exact, path in ((False, target / "tree"), (True, target)):
        jobs = _plan(sides, (str(tree),), str(target), recursive=True, exact=exact)
        assert [each for _, each in jobs] == [str(path)]


class WithoutOwners(LocalFileSystem):
    """A side on which this user may give nothing away."""

    @staticmethod
    def chown(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_set_id_bits_are_kept_with_the_owner_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tool").touch()
    (source / "tool").chmod(0o6755)
    source.chmod(0o3755)
    copy(source, tmp_path / "another", side=WithoutOwners())
    assert (tmp_path / "another" / "tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "another").stat().st_mode & 0o7777 == 0o1755
    copy(source, tmp_path / "same")
    assert (tmp_path / "same" / "tool").stat().st_mode & 0o7777 == 0o6755
