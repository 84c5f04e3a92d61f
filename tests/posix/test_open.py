"""open(2): every flag that a file system has to do with."""

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from posix_calls import outcome

pytestmark = pytest.mark.mount


def write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def test_missing_file_is_not_opened_but_created_on_demand(area):
    assert outcome(os.open, "a", os.O_RDWR) == "ENOENT"
    os.close(os.open("a", os.O_RDWR | os.O_CREAT, 0o640))
    about = os.stat("a")
    assert about.st_size == 0
    assert about.st_mode & 0o7777 == 0o640
    assert about.st_nlink == 1


def test_umask_is_applied_once(area):
    before = os.umask(0o027)
    try:
        os.close(os.open("a", os.O_WRONLY | os.O_CREAT, 0o777))
        os.mkdir("d", 0o777)
        os.mkfifo("p", 0o777)
    finally:
        os.umask(before)
    assert [os.lstat(name).st_mode & 0o7777 for name in ("a", "d", "p")] == [0o750, 0o750, 0o750]


def test_exclusive_create_fails_on_anything_that_has_the_name(area):
    write("file", b"")
    os.mkdir("directory")
    os.symlink("nowhere", "dangling")
    for name in ("file", "directory", "dangling"):
        assert outcome(os.open, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644) == "EEXIST"
    assert not os.path.lexists("nowhere")


def test_create_follows_a_dangling_symlink(area):
    os.symlink("target", "link")
    os.close(os.open("link", os.O_WRONLY | os.O_CREAT, 0o644))
    assert os.path.exists("target")


def test_create_without_exclusive_keeps_content(area):
    write("a", b"content")
    os.close(os.open("a", os.O_RDWR | os.O_CREAT, 0o644))
    assert Path("a").read_bytes() == b"content"


def test_truncate_on_open_empties_the_file_for_everybody(area):
    write("a", b"x" * 100_000)
    reader = os.open("a", os.O_RDONLY)
    os.close(os.open("a", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(reader).st_size == 0
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_truncate_on_open_and_again_with_other_content(area):
    for length in (1, 5_000, 3_000_000, 10):
        with open("a", "wb") as file:
            file.write(bytes([length % 251]) * length)
        data = Path("a").read_bytes()
        assert data == bytes([length % 251]) * length


def test_descriptor_may_only_what_it_was_opened_for(area):
    write("a", b"abc")
    for flags, read, written in (
        (os.O_RDONLY, "ok", "EBADF"),
        (os.O_WRONLY, "EBADF", "ok"),
        (os.O_RDWR, "ok", "ok"),
    ):
        descriptor = os.open("a", flags)
        assert outcome(os.pread, descriptor, 1, 0) == read
        assert outcome(os.pwrite, descriptor, b"x", 0) == written
        os.close(descriptor)


def test_append_writes_at_the_end_wherever_it_is(area):
    appender = os.open("a", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    other = os.open("a", os.O_RDWR)
    os.write(appender, b"one")
    os.pwrite(other, b"two", 10)
    os.lseek(appender, 0, os.SEEK_SET)
    os.write(appender, b"three")
    assert os.pread(other, 100, 0) == b"one" + bytes(7) + b"two" + b"three"
    os.ftruncate(other, 2)
    os.write(appender, b"!")
    assert os.pread(other, 100, 0) == b"on!"
    os.close(appender)
    os.close(other)


def test_append_can_be_switched_off(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, b"abc")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_APPEND)
    os.pwrite(descriptor, b"X", 0)
    assert os.pread(descriptor, 10, 0) == b"Xbc"
    os.close(descriptor)


def test_direct_io_reads_and_writes_what_others_see(area):
    block = mmap.mmap(-1, 1 << 20)
    block[:] = bytes(range(256)) * 4096
    direct = os.open("a", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    assert os.writev(direct, [block]) == 1 << 20
    assert Path("a").read_bytes() == block[:]
    with open("a", "r+b", buffering=0) as file:
        file.seek(4096)
        file.write(b"through the cache")
    page = mmap.mmap(-1, 4096)
    assert os.preadv(direct, [page], 4096) == 4096
    assert page[:17] == b"through the cache"
    assert os.preadv(direct, [page], 1 << 20) == 0
    os.close(direct)


def test_no_follow_refuses_a_symlink_but_nothing_else(area):
    write("a", b"")
    os.symlink("a", "link")
    assert outcome(os.open, "link", os.O_RDONLY | os.O_NOFOLLOW) == "ELOOP"
    os.close(os.open("a", os.O_RDONLY | os.O_NOFOLLOW))


def test_directory_flag_and_directories(area):
    write("a", b"")
    os.mkdir("d")
    assert outcome(os.open, "a", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    assert outcome(os.open, "d", os.O_RDWR) == "EISDIR"
    descriptor = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    assert outcome(os.read, descriptor, 1) == "EISDIR"
    os.close(os.open("inner", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=descriptor))
    os.close(descriptor)
    assert os.listdir("d") == ["inner"]


def test_file_in_the_place_of_a_directory(area):
    write("a", b"")
    assert outcome(os.open, "a/b", os.O_RDONLY) == "ENOTDIR"
    assert outcome(os.open, "a/b", os.O_RDWR | os.O_CREAT, 0o644) == "ENOTDIR"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes(area, flag):
    descriptor = os.open("a", os.O_WRONLY | os.O_CREAT | flag, 0o644)
    os.write(descriptor, b"durable")
    assert Path("a").read_bytes() == b"durable"
    os.close(descriptor)


def test_fsync_of_files_and_directories(area):
    with open("a", "wb") as file:
        file.write(b"x" * 10_000)
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_file_made_read_only_stays_writable_for_who_made_it(area):
    descriptor = os.open("a", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    os.write(descriptor, b"x")
    os.close(descriptor)
    assert Path("a").read_bytes() == b"x"
