"""`luciola mount` and `umount`: background and foreground, every way to end, what is left behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import luciola, seen, until
from luciola.fuse import is_mounted, read_records
from luciola.fuse.records import started_at
from posix_calls import as_user

pytestmark = pytest.mark.mount


def pid_of(data: str, place: Path) -> int:
    return next(record.pid for record in read_records(data) if record.mountpoint == str(place))


Foreground = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def foreground(data: str, place: Path) -> Iterator[Foreground]:
    """Mounts on `place`. The process does not outlive the test, whatever it fails on."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "luciola", "mount", "--foreground", data, str(place)]
        reader, writer = os.pipe()
        with open(reader, "rb", buffering=0) as ready:
            try:
                process = subprocess.Popen(
                    [*command, "--ready-fd", str(writer)], stderr=subprocess.DEVNULL, pass_fds=(writer,)
                )
            finally:
                os.close(writer)
            started.append(process)
            # Not from the kernel's table: a process of the mount still asks whether it answers, and keeps it busy.
            assert ready.read(64) == b"ready\n", "the mount ended before it was ready"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_background_mount_is_usable_at_once_and_ends_with_umount(shared_cluster, data, place):
    luciola("mount", data, str(place))
    (place / "from-the-second").write_bytes(b"x" * 100_000)
    assert seen(shared_cluster.mountpoint / "from-the-second").read_bytes() == b"x" * 100_000
    mounts = [service["id"] for service in shared_cluster.services("mount")]
    assert str(place) in mounts
    pid = pid_of(data, place)
    luciola("umount", str(place))
    assert started_at(pid) is None, "umount returns when everything is written back"
    assert not is_mounted(place)
    assert list(place.iterdir()) == []
    (shared_cluster.mountpoint / "from-the-second").unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_foreground_mount_ends_with_a_signal(data, foreground, place, number):
    process = foreground()
    process.send_signal(number)
    assert process.wait(100) == 0
    assert not is_mounted(place)
    assert read_records(data) == [] or all(record.mountpoint != str(place) for record in read_records(data))


@pytest.mark.parametrize("command", [("fusermount3", "-u"), ("umount",)])
def test_mount_that_is_taken_off_from_outside_ends(foreground, place, command):
    process = foreground()
    subprocess.run([*command, str(place)], check=True)
    assert process.wait(100) == 0


def test_signal_to_a_busy_mount_lets_programs_finish(shared_cluster, foreground, place):
    process = foreground()
    with (place / "busy").open("wb", buffering=0) as file:
        file.write(b"before")
        process.send_signal(signal.SIGTERM)
        until(lambda: not is_mounted(place), what="the mount to leave the tree")
        file.write(b" and after")
    assert process.wait(100) == 0
    assert seen(shared_cluster.mountpoint / "busy").read_bytes() == b"before and after"
    (shared_cluster.mountpoint / "busy").unlink()


def test_second_signal_does_not_wait_for_programs(foreground, place):
    process = foreground()
    descriptor = os.open(place / "busy", os.O_WRONLY | os.O_CREAT, 0o644)
    process.send_signal(signal.SIGTERM)
    until(lambda: not is_mounted(place), what="the mount to leave the tree")
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 0
    for call in (lambda: os.write(descriptor, b"too late"), lambda: os.close(descriptor)):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


def test_mount_whose_process_was_killed_is_replaced(shared_cluster, data, place):
    luciola("mount", data, str(place))
    (place / "kept").write_bytes(b"kept")
    os.kill(pid_of(data, place), signal.SIGKILL)

    def is_stale() -> bool:
        try:
            place.stat()
        except OSError as error:
            return error.errno == errno.ENOTCONN
        return False

    until(is_stale, what="the mount to be dead")
    luciola("mount", data, str(place))
    assert (place / "kept").read_bytes() == b"kept"
    luciola("umount", str(place))
    seen(shared_cluster.mountpoint / "kept").unlink()


def test_mounting_where_something_is_mounted_says_so(shared_cluster, data):
    result = luciola("mount", data, str(shared_cluster.mountpoint), check=False)
    assert result.returncode == 1
    assert "mounted here already" in result.stderr


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("/no/such/directory", "neither a data directory"),
        ("nonsense", "neither a data directory"),
        ("127.0.0.1:1", "needs --token-file or --secret-file"),
    ],
)
def test_clusters_that_do_not_exist(place, cluster, said):
    result = luciola("mount", cluster, str(place), check=False)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not is_mounted(place)


def test_mount_by_address_needs_the_secret(shared_cluster, data, place, tmp_path):
    import json

    address = json.loads((shared_cluster.data / "cluster.json").read_text())["mgmtd_lane"]
    wrong = tmp_path / "wrong"
    wrong.write_text("00" * 32 + "\n")
    wrong.chmod(0o600)
    result = luciola("mount", address, str(place), "--secret-file", str(wrong), check=False)
    assert result.returncode == 1
    assert not is_mounted(place)
    right = str(shared_cluster.data / "secret")
    luciola("mount", address, str(place), "--secret-file", right, "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (place / "x").write_bytes(b"")
    luciola("umount", str(place))


def test_strict_mounts_see_each_other_at_once(data, place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    luciola("mount", data, str(place), "--consistency", "strict")
    luciola("mount", data, str(other), "--consistency", "strict")
    try:
        with (place / "shared").open("wb", buffering=0) as writer, (other / "shared").open("rb") as reader:
            for round_ in range(20):
                writer.write(b"%04d" % round_)
                assert os.pread(reader.fileno(), 4, 4 * round_) == b"%04d" % round_
        (place / "shared").unlink()
        assert not (other / "shared").exists()
    finally:
        luciola("umount", str(other))
        luciola("umount", str(place))


def test_what_was_closed_is_seen_by_who_opens_later(shared_cluster, data, place):
    luciola("mount", data, str(place))
    ours = shared_cluster.mountpoint / "handed-over"
    for round_ in range(20):
        text = b"%d" % round_ * (1 + round_ * 1000)
        ours.write_bytes(text)
        began = time.monotonic()
        with (place / "handed-over").open("rb") as reader:
            assert reader.read() == text, f"{time.monotonic() - began} s after the close"
    ours.unlink()
    luciola("umount", str(place))


@pytest.mark.root
def test_space_that_is_asked_for_cuts_nothing_that_another_mount_has_written(shared_cluster, data, place):
    mounted = shared_cluster.mountpoint
    luciola("mount", data, str(place))
    (place / "allocated").touch()
    with (mounted / "allocated").open("r+b") as late:
        (place / "allocated").write_bytes(b"z" * 500_000)
        os.posix_fallocate(late.fileno(), 0, 200_000)
        assert (place / "allocated").read_bytes() == b"z" * 500_000
        os.posix_fallocate(late.fileno(), 0, 500_007)
    assert (place / "allocated").read_bytes() == b"z" * 500_000 + bytes(7)
    luciola("umount", str(place))


def test_attributes_of_an_unpacked_file_are_seen_by_who_looks_after_the_close(shared_cluster, data, place):
    luciola("mount", data, str(place))
    for size in (0, 100, 20_000):
        ours, theirs = shared_cluster.mountpoint / f"unpacked-{size}", place / f"unpacked-{size}"
        descriptor = os.open(ours, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, b"x" * size)
        os.utime(descriptor, ns=(5, 1_000_000_007))
        os.fchown(descriptor, 1234, 1235)
        os.fchmod(descriptor, 0o4751)
        for found in (ours.stat(), os.fstat(descriptor)):
            assert (found.st_mtime_ns, found.st_uid, found.st_mode & 0o7777) == (1_000_000_007, 1234, 0o4751)
        os.close(descriptor)
        seen = theirs.stat()
        assert (seen.st_mtime_ns, seen.st_atime_ns, seen.st_size) == (1_000_000_007, 5, size)
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (1234, 1235, 0o4751)
        assert theirs.read_bytes() == b"x" * size
        ours.unlink()
    luciola("umount", str(place))


@pytest.mark.root
def test_attributes_of_a_file_being_made_are_seen_before_what_is_moved_and_after_a_while(
    shared_cluster, data, place
):
    luciola("mount", "--consistency", "strict", data, str(place))
    ours = shared_cluster.mountpoint / "being-made"
    descriptor = os.open(ours, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.fchmod(descriptor, 0o644)
    moved = ours.rename(ours.with_name("moved"))
    assert (place / "moved").stat().st_mode & 0o777 == 0o644
    os.fchmod(descriptor, 0o755)
    until(lambda: (place / "moved").stat().st_mode & 0o777 == 0o755, what="the mode by age")
    os.fchmod(descriptor, 0o700)
    assert (place / "moved").stat().st_mode & 0o777 == 0o700, "what takes access away is synced at once"
    os.close(descriptor)
    moved.unlink()
    luciola("umount", str(place))


WITHOUT_RIGHT_TO_MOUNT = """
import ctypes, runpy, sys
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for index in range(3):
    sets[index] &= ~(1 << 21)  # CAP_SYS_ADMIN
assert libc.capset(header, sets) == 0
runpy.run_module("luciola", run_name="__main__", alter_sys=True)
"""


@pytest.mark.root
def test_process_that_may_not_mount_uses_fusermount(shared_cluster, place):
    """Root without CAP_SYS_ADMIN stands for an ordinary user, in whose reach this interpreter need not be."""
    arguments = ["mount", "--foreground", str(shared_cluster.data), str(place)]
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_RIGHT_TO_MOUNT, *arguments], stderr=subprocess.PIPE
    )
    try:
        until(lambda: is_mounted(place) or process.poll() is not None, what="the mount")
        assert process.poll() is None, process.stderr.read().decode()
        (place / "by-a-user").write_bytes(b"user")
        # The other mount may have listed the directory less than its attribute timeout ago.
        until((shared_cluster.mountpoint / "by-a-user").exists, what="the file on the other mount")
        assert (shared_cluster.mountpoint / "by-a-user").read_bytes() == b"user"
        (place / "by-a-user").unlink()
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0
        assert not is_mounted(place)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.root
def test_mount_made_in_another_pid_namespace_knows_groups_and_is_unmounted(shared_cluster, data, place):
    # The callers' process ids mean nothing to it, nor its own here.
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "luciola"]
    process = subprocess.Popen([*command, "mount", "--foreground", data, str(place)])
    try:
        until(lambda: is_mounted(place) or process.poll() is not None, what="the mount")
        assert process.poll() is None
        shared = place / "of-a-group"
        shared.mkdir()
        os.chown(shared, 0, 5000)
        shared.chmod(0o770)
        directory = os.open(
            shared, os.O_PATH | os.O_DIRECTORY
        )  # what is above it is within root's reach only
        made = f"os.mkdir('made', dir_fd={directory})"
        assert as_user(1001, made) == "EACCES"
        assert as_user(1000, made, groups=(5000,)) == "ok"
        os.close(directory)
        (shared / "made").rmdir()
        shared.rmdir()
        luciola("umount", str(place))
        assert process.wait(100) == 0
    finally:
        process.kill()
        process.wait()
