"""`Copier` between two local directories: what it keeps, and what an interruption leaves."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from luciola.cli.copy import Copier, Tally, _plan, signals_as_exceptions
from luciola.client import LocalFileSystem
from luciola.errors import NotFound


def copy(source: Path, target: Path, side: Any = None) -> Tally:
    tally = Tally()

    def advance(count: int) -> None:
        tally.bytes += count

    Copier(LocalFileSystem(), side or LocalFileSystem(), tally, advance).copy(str(source), str(target))
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
            os.kill(os.getpid(), signal.SIGTERM)
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
    assert tally.skipped == [str(tmp_path / "pipe")]
    assert not (tmp_path / "target").exists()


def test_directory_that_is_missing_is_named_before_anything_is_copied(tree: Path, tmp_path: Path) -> None:
    side = LocalFileSystem()
    with pytest.raises(NotFound, match=f"no such directory to copy into: '{tmp_path}/absent'"):
        _plan({False: side, True: side}, (str(tree),), f"{tmp_path}/absent/target", recursive=True)
    jobs = _plan({False: side, True: side}, (str(tree),), f"{tmp_path}/target/", recursive=True)
    assert [path for _, path, _ in jobs] == [f"{tmp_path}/target/"]
