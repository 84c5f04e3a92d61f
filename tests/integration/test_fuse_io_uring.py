"""Mounts whose requests come over io_uring: what they promise, how they end, what is used where it is not allowed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, seen, until
from fuse_rings import PARAMETER, enable_uring
from luciola.fuse import is_mounted, read_records
from luciola.fuse.records import started_at

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.skipif(
        not os.access(PARAMETER, os.W_OK), reason=f"needs Linux 6.14, whose {PARAMETER} may be written"
    ),
]

POSIX = Path(__file__).parents[1] / "posix"
# Names, direct writes and reads, and fsync, until a SIGTERM or an error.
LOAD = """
import itertools, mmap, os, signal, sys
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
directory, size = os.open(sys.argv[1], os.O_PATH), 1 << 20
page = mmap.mmap(-1, size)
try:
    for number in itertools.takewhile(lambda _: not stop, itertools.count()):
        page[:] = bytes([number % 256]) * size
        name = f"{os.getpid()}-{number % 8}"
        with open(os.open(name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, dir_fd=directory), "r+b", buffering=0) as file:
            file.write(page)
            os.fsync(file)
            page[:] = bytes(size)
            os.preadv(file.fileno(), [page], 0)
            assert page[:] == bytes([number % 256]) * size, "what was written"
        os.rename(name, name + ".renamed", src_dir_fd=directory, dst_dir_fd=directory)
        if number == 1:
            print("works", flush=True)
except OSError as error:
    print(error, flush=True)
"""


Programs = Callable[[Path], list[subprocess.Popen[str]]]


@pytest.fixture
def start_load() -> Iterator[Programs]:
    """Starts programs that use a directory, and returns when each has done so. They do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-c", LOAD, str(directory)]
        started.extend(subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4))
        for process in started:
            assert process.stdout is not None, "it is a pipe"
            assert process.stdout.readline() == "works\n"
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None, "as above"
        process.stdout.close()


def mount(data: str, place: Path, *options: str) -> int:
    """Mount over io_uring; return the process that serves the mount."""
    with enable_uring("Y"):
        luciola("mount", data, str(place), "--fuse-io-uring", "always", *options)
    return next(record.pid for record in read_records(data) if record.mountpoint == str(place))


def channel(cluster: LocalCluster, place: Path) -> tuple[str, str]:
    """Return what `status` says of a mount: where its requests come from, and why not over io_uring."""
    (service,) = (each for each in cluster.services("mount") if each["id"] == str(place))
    return service["channel"], service["channel_reason"]


def is_dead(place: Path) -> bool:
    """Whether no process serves the mount any more. A process of its own asks: the answer may take a while."""
    said = subprocess.run(["stat", str(place)], capture_output=True, text=True, check=False).stderr
    return "not connected" in said


def test_status_says_that_requests_come_over_io_uring(shared_cluster, data, place):
    with enable_uring("Y"):
        luciola("mount", data, str(place), "--fuse-io-uring", "auto")
    assert channel(shared_cluster, place) == ("io_uring", "")
    said = luciola("status", "--data", data).stdout
    assert f"mount {place}: requests by io_uring\n" in said
    (place / "over-rings").write_bytes(b"x" * 100_000)
    assert seen(shared_cluster.mountpoint / "over-rings").read_bytes() == b"x" * 100_000
    (place / "over-rings").unlink()
    luciola("umount", str(place))


def test_mount_does_without_where_the_kernel_does_not_allow_it(shared_cluster, data, place):
    with enable_uring("N"):
        luciola("mount", data, str(place), "--fuse-io-uring", "auto")
    name, reason = channel(shared_cluster, place)
    assert name == "/dev/fuse"
    assert str(PARAMETER) in reason
    assert (
        f"mount {place}: requests by /dev/fuse (io_uring: {reason})\n"
        in luciola("status", "--data", data).stdout
    )
    luciola("umount", str(place))


def test_mount_that_must_use_it_says_what_to_do_where_the_kernel_does_not_allow_it(data, place):
    with enable_uring("N"):
        result = luciola("mount", data, str(place), "--fuse-io-uring", "always", check=False)
    assert result.returncode == 1
    assert f"write Y to {PARAMETER}" in result.stderr
    assert not is_mounted(place)


def test_mount_does_not_use_it_unasked(shared_cluster, data, place):
    with enable_uring("Y"):
        luciola("mount", data, str(place))
    assert channel(shared_cluster, place) == ("/dev/fuse", "not asked for")
    luciola("umount", str(place))


@pytest.mark.parametrize("end", ["signal", "umount"])
def test_mount_that_is_ended_under_load_lets_programs_finish(
    shared_cluster, data, place, start_load, tmp_path, end
):
    # Programs are not cut off by a deadline.
    (tmp_path / "config.toml").write_text("[mount]\ngrace_ms = 600000\n")
    pid = mount(data, place, "--config", str(tmp_path / "config.toml"))
    (place / "load").mkdir()
    programs = start_load(place / "load")
    if end == "signal":
        os.kill(pid, signal.SIGTERM)
    else:
        luciola("umount", "--lazy", str(place))
    until(lambda: not is_mounted(place), what="the mount to leave the tree")
    for program in programs:
        program.terminate()
    for program in programs:
        assert program.communicate() == ("", None), "it got no error"
    until(lambda: started_at(pid) is None, what="the mount to end")
    subprocess.run(["rm", "-r", str(seen(shared_cluster.mountpoint / "load"))], check=True)


def test_programs_of_a_killed_mount_end_and_another_takes_its_place(shared_cluster, data, place, start_load):
    pid = mount(data, place)
    (place / "load").mkdir()
    programs = start_load(place / "load")
    os.kill(pid, signal.SIGKILL)
    for program in programs:
        said, _ = program.communicate()
        assert program.returncode == 0
        # Of a request that the kernel was just handing over: canceled.
        assert any(word in said for word in ("not connected", "connection abort", "canceled")), said
    until(lambda: is_dead(place), what="the mount to be dead")
    mount(data, place)
    assert channel(shared_cluster, place) == ("io_uring", "")
    subprocess.run(["rm", "-r", str(place / "load")], check=True)
    luciola("umount", str(place))


@pytest.mark.slow
def test_files_over_io_uring_are_as_everywhere(data, place):
    pid = mount(data, place)
    files = [str(POSIX / f"test_{name}.py") for name in ("data", "handles", "random_operations")]
    options = ["-q", "-p", "no:cacheprovider", "--posix-dir", str(place), "--posix-examples", "5"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    luciola("umount", str(place))
    assert started_at(pid) is None
