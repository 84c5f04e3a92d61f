"""Random operations, done on the file system under test and on a local directory: everything must stay the same."""

import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from posix_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

pytestmark = pytest.mark.mount

NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
OFFSETS = st.one_of(st.integers(0, 20_000), st.integers(1_000_000, 1_100_000), st.integers(0, 3_000_000))
LENGTHS = st.one_of(st.integers(0, 100), st.integers(4000, 9000), st.integers(0, 1_200_000))
MODES = st.sampled_from((0o600, 0o644, 0o755, 0o400, 0o1777, 0o4755))
FLAGS = st.sampled_from(
    (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_CREAT)
)


class Sides(RuleBasedStateMachine):
    """Two directories that get the same operations."""

    root: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        # One level down, so that links to ".." stay inside.
        self.tops = (
            Path(tempfile.mkdtemp(prefix="random-", dir=self.root)),
            Path(tempfile.mkdtemp(prefix="luciola-")),
        )
        self.sides = (self.tops[0] / "side", self.tops[1] / "side")
        for side in self.sides:
            side.mkdir()
        self.files: dict[int, tuple[int, int]] = {}
        self.numbers = itertools.count()
        self.fill = itertools.count(1)

    def teardown(self) -> None:
        for pair in self.files.values():
            for descriptor in pair:
                os.close(descriptor)
        for top in self.tops:
            shutil.rmtree(top)

    def both(self, call: Callable[[Path], Any]) -> list[Any]:
        """Does `call` on both sides: same result or same errno."""
        results = []
        for side in self.sides:
            try:
                results.append((None, call(side)))
            except OSError as error:
                results.append((errno.errorcode[error.errno or 0], None))
        assert results[0][0] == results[1][0], f"ours: {results[0][0]}, local: {results[1][0]}"
        return [result for _, result in results]

    def same(self, call: Callable[[Path], Any]) -> None:
        ours, local = self.both(call)
        assert ours == local

    def data(self, length: int) -> bytes:
        return bytes([next(self.fill) % 255 + 1]) * length

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(lambda side: os.mkdir(side / path, mode | 0o700))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda side: os.rmdir(side / path))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda side: os.unlink(side / path))

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda side: os.rename(side / old, side / new))

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from((RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename_with_flags(self, old: str, new: str, flags: int) -> None:
        self.both(lambda side: renameat2(str(side / old), str(side / new), flags))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda side: os.link(side / old, side / new, follow_symlinks=False))

    @rule(path=PATHS, content=st.sampled_from(("a", "../b", "nowhere", "c/c")))
    def symlink(self, path: str, content: str) -> None:
        self.both(lambda side: os.symlink(content, side / path))

    @rule(path=PATHS, length=LENGTHS)
    def write_file(self, path: str, length: int) -> None:
        data = self.data(length)
        self.both(lambda side: (side / path).write_bytes(data))

    @rule(path=PATHS)
    def read_file(self, path: str) -> None:
        self.same(lambda side: (side / path).read_bytes())

    @rule(path=PATHS, length=OFFSETS)
    def truncate(self, path: str, length: int) -> None:
        self.both(lambda side: os.truncate(side / path, length))

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda side: os.chmod(side / path, mode | 0o700))

    @rule(path=PATHS, seconds=st.integers(0, 2**31))
    def utime(self, path: str, seconds: int) -> None:
        self.both(lambda side: os.utime(side / path, (seconds, seconds + 1)))
        self.same(lambda side: os.stat(side / path).st_mtime)

    @rule(path=PATHS, name=st.sampled_from(("user.x", "user.y")), length=st.integers(0, 50))
    def setxattr(self, path: str, name: str, length: int) -> None:
        data = self.data(length)
        self.both(lambda side: os.setxattr(side / path, name, data))

    @rule(path=PATHS, flags=FLAGS)
    def open(self, path: str, flags: int) -> None:
        ours, local = self.both(lambda side: os.open(side / path, flags, 0o644))
        if ours is not None:
            if stat.S_ISDIR(os.fstat(ours).st_mode) or len(self.files) > 5:
                os.close(ours)
                os.close(local)
            else:
                self.files[next(self.numbers)] = (ours, local)

    def pick(self, choice: int) -> int:
        return sorted(self.files)[choice % len(self.files)]

    def on_files(self, number: int, call: Callable[[int], Any]) -> None:
        results = []
        for descriptor in self.files[number]:
            try:
                results.append(call(descriptor))
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
        assert results[0] == results[1]

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9), offset=OFFSETS, length=LENGTHS)
    def pwrite(self, choice: int, offset: int, length: int) -> None:
        data = self.data(length)
        self.on_files(self.pick(choice), lambda descriptor: os.pwrite(descriptor, data, offset))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9), length=LENGTHS)
    def write(self, choice: int, length: int) -> None:
        data = self.data(length)
        self.on_files(self.pick(choice), lambda descriptor: os.write(descriptor, data))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9), offset=OFFSETS, length=LENGTHS)
    def pread(self, choice: int, offset: int, length: int) -> None:
        self.on_files(self.pick(choice), lambda descriptor: os.pread(descriptor, length, offset))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9), length=OFFSETS)
    def ftruncate(self, choice: int, length: int) -> None:
        self.on_files(self.pick(choice), lambda descriptor: os.ftruncate(descriptor, length))

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9))
    def fsync(self, choice: int) -> None:
        self.on_files(self.pick(choice), os.fsync)

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9))
    def fstat(self, choice: int) -> None:
        self.on_files(
            self.pick(choice),
            lambda descriptor: (os.fstat(descriptor).st_size, os.fstat(descriptor).st_nlink),
        )

    @precondition(lambda self: self.files)
    @rule(choice=st.integers(0, 9))
    def close(self, choice: int) -> None:
        for descriptor in self.files.pop(self.pick(choice)):
            os.close(descriptor)

    @invariant()
    def trees_are_equal(self) -> None:
        ours, local = self.sides
        assert describe(ours) == describe(local)


def describe(root: Path) -> dict[str, Any]:
    """Everything that two equal trees have in common; content by its checksum."""
    import zlib

    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = Path(directory, name)
            about = path.lstat()
            record: list[Any] = [stat.filemode(about.st_mode)]
            if stat.S_ISREG(about.st_mode):
                first = inodes.setdefault(about.st_ino, str(path.relative_to(root)))
                record += [about.st_size, about.st_nlink, first, zlib.crc32(path.read_bytes())]
            elif stat.S_ISLNK(about.st_mode):
                record.append(os.readlink(path))
            else:
                record.append(about.st_nlink)
            if not stat.S_ISLNK(about.st_mode):
                record.append({key: os.getxattr(path, key) for key in sorted(os.listxattr(path))})
            found[str(path.relative_to(root))] = record
    return found


def test_random_operations_do_the_same_as_on_a_local_file_system(posix_root, request):
    machine = type("Machine", (Sides,), {"root": posix_root})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=request.config.getoption("--posix-examples"),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            database=None,
        ),
    )
