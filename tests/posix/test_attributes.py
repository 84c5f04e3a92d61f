"""Attributes: times, modes, owners, special files, the file system's own numbers."""

import os
import stat
import time
from pathlib import Path

import pytest

from posix_calls import outcome

pytestmark = pytest.mark.mount
CLOCK_REALTIME_COARSE = 5  # of linux/time.h; Python has no name for it


@pytest.mark.parametrize(
    "times_ns",
    [
        (0, 0),
        (1, 999_999_999),
        (1_700_000_000_123_456_789, 1_600_000_000_987_654_321),
        (4_000_000_000_000_000_000, 5),
    ],
)
def test_times_are_kept_to_the_nanosecond(area, times_ns):
    Path("a").write_bytes(b"x")
    os.mkdir("d")
    os.symlink("a", "l")
    for name in ("a", "d", "l"):
        os.utime(name, ns=times_ns, follow_symlinks=False)
        about = os.lstat(name)
        assert (about.st_atime_ns, about.st_mtime_ns) == times_ns


def test_times_set_to_now(area):
    Path("a").write_bytes(b"")
    os.utime("a", ns=(0, 0))
    before = time.time()
    os.utime("a")
    about = os.stat("a")
    assert before - 5 < about.st_atime < before + 60
    assert before - 5 < about.st_mtime < before + 60


def test_times_set_through_a_descriptor_survive_close(area):
    descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, b"x" * 10_000)
    os.utime(descriptor, ns=(5_000_000_000, 6_000_000_000))
    os.close(descriptor)
    about = os.stat("a")
    assert (about.st_atime_ns, about.st_mtime_ns) == (5_000_000_000, 6_000_000_000)


def test_writing_and_truncating_change_mtime_and_ctime(area):
    Path("a").write_bytes(b"x" * 100)
    for change in (lambda: os.truncate("a", 5), lambda: Path("a").write_bytes(b"y" * 100)):
        os.utime("a", ns=(0, 0))
        before = os.stat("a")
        change()
        after = os.stat("a")
        assert after.st_mtime_ns > 0
        assert after.st_ctime_ns >= before.st_ctime_ns
    with open("a", "r+b", buffering=0) as file:
        os.utime("a", ns=(0, 0))
        file.write(b"z")
    assert os.stat("a").st_mtime_ns > 0


def test_changing_attributes_changes_ctime_and_not_mtime(area):
    Path("a").write_bytes(b"x")
    before = os.stat("a")
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= before.st_ctime_ns:
        pass  # local file systems count in ticks of this clock
    os.chmod("a", 0o600)
    after = os.stat("a")
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o7777])
def test_modes_are_kept(area, mode):
    Path("a").write_bytes(b"")
    os.mkdir("d")
    for name in ("a", "d"):
        os.chmod(name, mode)
        assert os.stat(name).st_mode & 0o7777 == mode
    os.chmod("d", 0o755)


@pytest.mark.root
def test_owners_are_kept_and_changed_one_by_one(area):
    Path("a").write_bytes(b"")
    os.symlink("a", "l")
    os.chown("a", 1234, 5678)
    os.lchown("l", 1, 2)
    assert (os.stat("a").st_uid, os.stat("a").st_gid) == (1234, 5678)
    assert (os.lstat("l").st_uid, os.lstat("l").st_gid) == (1, 2)
    os.chown("a", -1, 99)
    assert (os.stat("a").st_uid, os.stat("a").st_gid) == (1234, 99)
    os.chown("a", 4_000_000_000, -1)
    assert (os.stat("a").st_uid, os.stat("a").st_gid) == (4_000_000_000, 99)


@pytest.mark.root
def test_set_user_id_ends_when_the_owner_changes(area):
    Path("a").write_bytes(b"")
    os.chmod("a", 0o6755)
    os.chown("a", 1234, 5678)
    assert os.stat("a").st_mode & 0o7777 == 0o755


def test_fifo_passes_bytes(area):
    os.mkfifo("p", 0o600)
    assert stat.S_ISFIFO(os.stat("p").st_mode)
    descriptor = os.open("p", os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, b"through")
    assert os.read(descriptor, 100) == b"through"
    os.close(descriptor)


def test_socket_accepts(area):
    import socket

    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        server.listen()
        client.connect("s")
    os.unlink("s")


@pytest.mark.root
def test_devices_keep_their_numbers(area):
    for name, kind, check in (("c", stat.S_IFCHR, stat.S_ISCHR), ("b", stat.S_IFBLK, stat.S_ISBLK)):
        os.mknod(name, kind | 0o640, os.makedev(240, 70_000))
        about = os.stat(name)
        assert check(about.st_mode)
        assert about.st_mode & 0o777 == 0o640
        assert (os.major(about.st_rdev), os.minor(about.st_rdev)) == (240, 70_000)


def test_mknod_makes_regular_files(area):
    os.mknod("a", stat.S_IFREG | 0o604)
    assert os.stat("a").st_mode == stat.S_IFREG | 0o604
    Path("a").write_bytes(b"usable")
    assert Path("a").read_bytes() == b"usable"
    assert outcome(os.mknod, "a", stat.S_IFREG | 0o604) == "EEXIST"


def test_numbers_of_the_file_system_make_sense(area):
    about = os.statvfs(".")
    assert about.f_namemax >= 255
    assert about.f_frsize > 0
    assert 0 < about.f_bavail <= about.f_bfree <= about.f_blocks
    assert about.f_files == 0 or about.f_ffree <= about.f_files


def test_inode_numbers_distinguish_files_and_stay(area):
    numbers = set()
    for index in range(100):
        Path(f"f{index}").write_bytes(b"")
        numbers.add(os.stat(f"f{index}").st_ino)
    assert len(numbers) == 100
    before = os.stat("f0").st_ino
    os.rename("f0", "g0")
    os.chmod("g0", 0o600)
    assert os.stat("g0").st_ino == before


def test_blocks_cover_what_was_written(area):
    Path("a").write_bytes(os.urandom(3_000_000))
    descriptor = os.open("a", os.O_RDONLY)
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks * 512 >= 3_000_000
    os.close(descriptor)
