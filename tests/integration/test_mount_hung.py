"""Programs on a mount whose storage node hangs: they can be killed, and others are served."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import LocalCluster, until

pytestmark = [pytest.mark.mount, pytest.mark.root]

# Longer than the tests: nothing ends by a deadline.
CONFIG = "[client]\ndeadline_ms = 600000\n"
MEBIBYTE = 1 << 20
READERS = 20  # more than a mount has threads at first

READ_DIRECT = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("opened", flush=True)
os.preadv(descriptor, [mmap.mmap(-1, 1 << 20)], 0)
"""
READ_BUFFERED = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
print("opened", flush=True)
os.pread(descriptor, 1 << 20, 0)
"""

Start = Callable[[str, Path], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    root = tmp_path_factory.mktemp("hung")
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, config=CONFIG) as cluster:
        yield cluster


@contextmanager
def storage_hangs(cluster: LocalCluster) -> Iterator[None]:
    """Stops the storage node, and the supervisor, which would end it."""
    supervisor = json.loads((cluster.data / "run" / "state.json").read_text())["pid"]
    stopped = [supervisor, cluster.services("storage")[0]["pid"]]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program that reads a file, and returns when it has opened it. None outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_reader(code: str, path: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"opened\n"
        return process

    yield start_reader
    for process in started:
        process.kill()
        process.communicate()


def waits(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process is in a call of the file system that has not returned."""
    where = Path(f"/proc/{process.pid}/wchan").read_text()
    return where == "request_wait_answer" or where.startswith("folio_wait")


@pytest.mark.parametrize("code", [READ_DIRECT, READ_BUFFERED], ids=["direct", "buffered"])
def test_killed_reader_is_gone_while_storage_hangs(cluster, start, code):
    path = cluster.mountpoint / "read"
    path.write_bytes(os.urandom(MEBIBYTE))
    os.truncate(path, MEBIBYTE)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with storage_hangs(cluster):
        reader = start(code, path)
        until(lambda: waits(reader), what="the reader to wait")
        reader.kill()
        until(lambda: reader.poll() is not None, what="the killed reader to be gone")
    assert reader.returncode == -signal.SIGKILL


def asks_its_mount(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process that serves a mount, or one that it has started, waits for an answer of it."""
    tasks = Path(f"/proc/{process.pid}/task")
    children = [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    waiting = [
        *(task / "wchan" for task in tasks.iterdir()),
        *(Path(f"/proc/{child}/wchan") for child in children),
    ]
    return any(path.exists() and path.read_text() == "request_wait_answer" for path in waiting)


def test_killed_mount_is_gone_while_the_metadata_service_hangs(cluster, tmp_path):
    """Also if it is killed while it waits for its own first answer."""
    supervisor = json.loads((cluster.data / "run" / "state.json").read_text())["pid"]
    stopped = [supervisor, cluster.services("meta")[0]["pid"]]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    command = [sys.executable, "-m", "luciola", "mount", "--foreground", str(cluster.data), str(tmp_path)]
    mount = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: asks_its_mount(mount), what="the mount to be asked")
        mount.kill()
        until(lambda: mount.poll() is not None, what="the killed mount to be gone")
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert mount.returncode == -signal.SIGKILL


def test_look_up_is_answered_while_many_readers_hang(cluster, start):
    paths = [cluster.mountpoint / f"read-{number}" for number in range(READERS)]
    for path in paths:
        path.write_bytes(os.urandom(MEBIBYTE))
    found = threading.Event()

    def look_up() -> None:
        assert not (cluster.mountpoint / "never-looked-up-before").exists()
        found.set()

    with storage_hangs(cluster):
        readers = [start(READ_DIRECT, path) for path in paths]
        until(lambda: all(waits(reader) for reader in readers), what="the readers to wait")
        asking = threading.Thread(target=look_up)
        asking.start()
        until(found.is_set, what="the answer to a look-up")
        for reader in readers:
            reader.kill()
        until(lambda: all(reader.poll() is not None for reader in readers), what="the readers to be gone")
    asking.join()
