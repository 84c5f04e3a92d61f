"""A storage process that hangs: others take over, and it is killed so that no client waits for it."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import LocalCluster, until

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.slow]
PAUSE_S_MAX = 60.0  # lease 3 s, detection 2 s, restart; the rest is for a busy machine


def now(cluster: LocalCluster, service: dict[str, Any]) -> dict[str, Any]:
    """Its outcome."""
    return next(each for each in cluster.services(service["kind"]) if each["id"] == service["id"])


def test_hanging_node_is_killed_and_writers_continue(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, mount=True) as cluster:
        assert cluster.mountpoint is not None
        victim = cluster.services("storage")[1]
        pauses: list[float] = []
        ended = threading.Event()

        def write(number: int) -> None:
            with (cluster.mountpoint / f"file-{number}").open("wb", buffering=0) as file:  # type: ignore[operator]
                count = 0
                while not ended.is_set():
                    started = time.monotonic()
                    file.seek((count % 16) << 20)
                    file.write(bytes([count % 256]) * (1 << 20))
                    os.fsync(file.fileno())
                    pauses.append(time.monotonic() - started)
                    count += 1

        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for writer in writers:
            writer.start()
        until(lambda: len(pauses) > 4, what="writers")
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            until(
                lambda: now(cluster, victim)["pid"] not in (None, victim["pid"]),
                timeout_s=120,
                what="another process in its place",
            )
            reached = len(pauses)
            until(lambda: len(pauses) > reached + 4, what="writers to continue")
        finally:
            ended.set()
            for writer in writers:
                writer.join(120)
        assert max(pauses) < PAUSE_S_MAX
        cluster.wait_healthy()
        assert now(cluster, victim)["restarts"] > victim["restarts"]
        assert cluster.fsck()["problems"] == []


def test_readers_continue_beside_a_hanging_node(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, mount=True) as cluster:
        assert cluster.mountpoint is not None
        content = os.urandom(1 << 20)
        names = [cluster.mountpoint / f"file-{number}" for number in range(8)]
        for path in names:
            path.write_bytes(content)
        supervisor = json.loads((cluster.data / "run" / "state.json").read_text())["pid"]
        stopped = [supervisor, cluster.services("storage")[1]["pid"]]  # no supervisor kills the node
        try:
            for process in stopped:
                os.kill(process, signal.SIGSTOP)
            for path in names:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    assert file.read() == content
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)
        cluster.wait_healthy()
